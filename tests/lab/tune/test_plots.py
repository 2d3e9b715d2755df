from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from lab.conftest import tiny_config
from sgdph.lab.reports import sensitivity_pictures
from sgdph.lab.run.records import RunRecord
from sgdph.lab.tune import plots
from sgdph.lab.tune.outcome import Search, TrialRecord
from sgdph.lab.tune.plots import draw_budget, draw_sensitivity
from sgdph.lab.tune.space import Range


def trial(number: int, status: str, accuracy: float | None, **settings: float) -> TrialRecord:
    line = {"validation_accuracy": accuracy, "validation_loss": 1.0, "elapsed_seconds": 2.0}
    metrics = [] if accuracy is None else [line]
    run = RunRecord(Path(f"trial-{number}"), tiny_config(), {"status": status}, metrics, {})
    return TrialRecord(number, run, settings)


def search(optimizer: str, scale: float) -> Search:
    """Five scattered trials; the last one has not ended."""
    bounds = Range(1e-3 * scale, 1.0 * scale, log=True)
    outcomes = [
        ("finished", 0.5),
        ("pruned", 0.9),
        ("diverged", 0.2),
        ("finished", 0.8 * scale**0.1),
        ("running", None),
    ]
    trials = tuple(
        trial(i, status, accuracy, lr=0.01 * scale * 2**i, weight_decay=0.3 * scale / 3**i)
        for i, (status, accuracy) in enumerate(outcomes)
    )
    return Search(optimizer, {"lr": bounds, "weight_decay": bounds}, trials)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, in order."""
    made: list[Figure] = []
    legend_below = plots.legend_below

    def record(figure: Figure, *arguments: Any) -> None:
        legend_below(figure, *arguments)
        made.append(figure)

    for module in (plots, sensitivity_pictures):
        monkeypatch.setattr(module, "legend_below", record)
    return made


def test_all_optimizers_share_axes_and_colours(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_sensitivity([search("sgdm", 1.0), search("sgdph", 0.1)], tmp_path / "a.png", "a task")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    first, second, *bars = drawn[0].axes
    assert [first.get_title(), second.get_title()] == ["sgdm: best 80.00%", "sgdph: best 63.55%"]
    for axes in (first, second):
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        low, high = axes.get_xlim()
        # The axis covers both searched ranges.
        assert low < 1e-4 < 1.0 < high
    assert first.get_xlim() == second.get_xlim()
    assert first.get_ylim() == second.get_ylim()
    assert len({bar.get_ylim() for bar in bars}) == 1
    told = {text.get_text() for text in drawn[0].legends[0].get_texts()}
    assert told == {"finished", "pruned", "none finished", "best", "searched"}
    # Four trials ended. The pruned one is not the best, even with a higher accuracy.
    assert len(first.collections) == 4
    assert [text.get_text() for text in first.texts] == ["80.0"]


def test_a_grid_is_a_map_and_among_equals_the_lowest_loss_is_framed(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    bounds = Range(0.01, 0.1, log=True)
    places = [(lr, decay) for lr in (0.01, 0.1) for decay in (0.01, 0.1)]
    trials = [
        trial(i, "finished", 0.7, lr=lr, weight_decay=decay) for i, (lr, decay) in enumerate(places)
    ]
    trials[3].run.metrics[0]["validation_loss"] = 0.5
    found = Search("sgdm", {"lr": bounds, "weight_decay": bounds}, tuple(trials))
    draw_sensitivity([found], tmp_path / "a.png", "a task")
    axes = drawn[0].axes[0]
    assert len(axes.images) == 1
    assert [text.get_text() for text in axes.texts] == ["70.0\nn = 1"] * 4
    (frame,) = axes.patches
    assert [math.ceil(each) for each in frame.get_xy()] == [1, 1]


def test_the_budget_shows_the_best_finished_trial_so_far(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    draw_budget([search("sgdm", 1.0)], tmp_path / "a.png", "a task")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    by_trial, by_seconds = (axes.lines[0] for axes in drawn[0].axes)
    # The pruned trial's 90% is not counted. A trial takes 2 seconds; the running one has none yet.
    for line in (by_trial, by_seconds):
        assert list(line.get_ydata()) == [50.0, 50.0, 50.0, 80.0, 80.0]
    assert list(by_trial.get_xdata()) == [1, 2, 3, 4, 5]
    assert list(by_seconds.get_xdata()) == [2.0, 4.0, 6.0, 8.0, 8.0]
