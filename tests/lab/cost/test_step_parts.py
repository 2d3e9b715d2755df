"""``benchmarks/step_parts.py`` takes parts of the step out by their names."""

import importlib
from pathlib import Path

import pytest

from sgdph.autograd.lean import LEAN, RELEASING

ROOT = Path(__file__).parents[3]


def test_every_part_is_there_to_be_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    parts = importlib.import_module("step_parts").PARTS
    assert len(parts) == 9
    operations = {**LEAN, **RELEASING}
    for name, taken_out in parts.items():
        # Raises AttributeError where what is patched has moved.
        with taken_out():
            is_less = len({**LEAN, **RELEASING}) < len(operations)
            assert is_less == (name not in ("late weight gradients", "inputs let go of"))
        assert operations == {**LEAN, **RELEASING}
