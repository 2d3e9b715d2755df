"""``benchmarks/step_parts.py`` takes parts of the step out by their names."""

import importlib
from pathlib import Path
from unittest import mock

import pytest

ROOT = Path(__file__).parents[3]


def test_every_part_is_there_to_be_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    parts = importlib.import_module("step_parts").PARTS
    assert len(parts) == 4
    for target, replacement in parts.values():
        # Raises AttributeError where the part has moved.
        with mock.patch(target, replacement):
            pass
