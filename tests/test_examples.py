"""The examples, shortened: they run, offline, and what they train is better than chance."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SHORT: dict[str, tuple[dict[str, int], float]] = {
    "accelerate_digits": ({"epochs": 1}, 0.6),
    "lightning_digits": ({"epochs": 1}, 0.6),
    "timm_digits": ({"epochs": 2}, 0.5),
    # Bits per byte, negative so that more is better; without training it is 8.
    "transformers_text": ({"steps": 12}, -7.0),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.xdist_group(name.partition("_")[0]))
        for name in sorted(path.stem for path in EXAMPLES.glob("*.py"))
        # test_torchrun.py starts that one, as it wants several processes.
        if name != "ddp"
    ],
)
def test_example_trains(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings, least = SHORT[name]
    main: Any = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]
    figure = main(**settings)
    assert (-figure if least < 0 else figure) > least
