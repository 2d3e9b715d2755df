"""``benchmarks/step_parts.py`` removes parts of the step by their names."""

import importlib
from pathlib import Path

import pytest

from sgdph.autograd.lean import LEAN, RELEASING

ROOT = Path(__file__).parents[3]


def test_every_part_can_be_removed_and_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    parts = importlib.import_module("step_parts").PARTS
    assert len(parts) == 9
    operations = {**LEAN, **RELEASING}
    for name, taken_out in parts.items():
        # Raises AttributeError if what it patches has moved.
        with taken_out():
            is_less = len({**LEAN, **RELEASING}) < len(operations)
            assert is_less == (name not in ("late weight gradients", "inputs let go of"))
        assert operations == {**LEAN, **RELEASING}
