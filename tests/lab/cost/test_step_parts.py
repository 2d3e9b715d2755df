"""``benchmarks/step_parts.py`` takes parts of the step out by their names."""

import importlib
from pathlib import Path

import pytest

from sgdph.autograd.lean import LEAN

ROOT = Path(__file__).parents[3]


def test_every_part_is_there_to_be_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    parts = importlib.import_module("step_parts").PARTS
    assert len(parts) == 4
    operations = dict(LEAN)
    for name, taken_out in parts.items():
        # Raises AttributeError where what is patched has moved.
        with taken_out():
            assert (len(LEAN) < len(operations)) == (name != "late weight gradients")
        assert operations == LEAN
