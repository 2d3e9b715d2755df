"""Warnings of the core, which must point to the user's line: here, to one of a test."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def warns_here(match: str) -> Iterator[None]:
    """Demand a warning of this pattern that points into the folder of the tests."""
    with pytest.warns(UserWarning, match=match) as found:
        yield
    files = [Path(each.filename) for each in found if re.search(match, str(each.message))]
    assert all(file.is_relative_to(Path(__file__).parent) for file in files), files
