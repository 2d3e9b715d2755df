"""Shared by the tests of tuning: a small tuning, helpers that read one, and tiny options."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from sgdph.lab import cli
from sgdph.lab.tune.outcome import Search, read_searches
from sgdph.lab.tune.record import TuneDirectory

# 80 digits to train on and 20 to validate on: an epoch of 4 steps.
TINY = ["--dataset=digits", "--train-size=100", "--device=cpu", "--threads=1", "--epochs=1"]


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes pictures blank, except those of ``tuned``: drawing takes longer than the trials."""

    def blank(searches: object, path: Path, title: str) -> None:
        path.write_bytes(b"")

    for name in ("draw_sensitivity", "draw_budget"):
        monkeypatch.setattr(f"sgdph.lab.tune.page.{name}", blank)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a small tuning: two optimizers, three trials each. Tests must not change it."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("tuned") / "out"
    words = ["tune", *TINY, "--optimizers=sgdm,adamw", "--trials=3", f"--out={out}"]
    assert cli.main(words) == 0
    return out


def searches(out: Path) -> dict[str, Search]:
    """Read the searches of a directory, by optimizer."""
    directory = TuneDirectory(out)
    return {each.optimizer: each for each in read_searches(directory, directory.read())}


def facts(out: Path) -> dict[str, list[Any]]:
    """Return each trial's number, status, settings and metrics, without what depends on a clock."""
    return {
        name: [
            (trial.number, trial.status, dict(trial.settings), _course(trial.run.metrics))
            for trial in search.trials
        ]
        for name, search in searches(out).items()
    }


def _course(metrics: list[Mapping[str, Any]]) -> list[tuple[float, float]]:
    return [(line["train_loss"], line["validation_accuracy"]) for line in metrics]
