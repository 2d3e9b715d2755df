"""Trials below the median are stopped, count in the budget, and are recorded as pruned."""

import statistics
from pathlib import Path

import pytest

from lab.conftest import Command
from sgdph.lab.tune.study import STARTUP
from sgdph.lab.tune.trial import Pruned, Watch

from .conftest import TINY, searches


def test_a_trial_below_the_median_is_stopped(sgdph: Command, tmp_path: Path) -> None:
    out = tmp_path / "a"
    words = [*TINY[:-1], "--epochs=3", "--optimizers=sgdm", "--sampler=random", "--trials=9"]
    code, said, _ = sgdph("tune", *words, "--space=sgdm.lr=1e-7:0.2", f"--out={out}")
    assert code == 0
    search = searches(out)["sgdm"]
    assert len(search.trials) == 9
    assert search.count("pruned") + search.count("finished") == 9
    assert search.count("pruned") >= 1
    finished: list[list[float]] = []
    for trial in search.trials:
        course = [line["validation_accuracy"] for line in trial.run.metrics]
        # The rule, by hand: from a third of the epochs on, compare the best so far to the median.
        below = [
            len(finished) >= STARTUP
            and max(course[:epoch]) < statistics.median(each[epoch - 1] for each in finished)
            for epoch in range(1, min(len(course), 2) + 1)
        ]
        if trial.status == "pruned":
            assert below == [False] * (len(course) - 1) + [True]
            assert trial.run.summary["reason"].startswith("below the median")
            assert trial.run.summary["final_validation_accuracy"] is None
            assert f"{trial.run.path.name}: pruned, below the median" in said
        else:
            assert not any(below)
            assert len(course) == 3
            finished.append(course)
    assert "pruned" in (out / "report.md").read_text()


class Stub:
    """A trial that the study wants to stop, and the accuracies that are reported."""

    def __init__(self) -> None:
        self.told: list[tuple[int, float]] = []
        self.trial = self

    def should_prune(self) -> bool:
        return True

    def report(self, epoch: int, accuracy: float) -> None:
        self.told.append((epoch, accuracy))

    def epoch_finished(self, metrics: object, epochs: int) -> None:
        pass


def test_a_trial_is_not_pruned_after_its_last_epoch() -> None:
    stub = Stub()
    watch = Watch(stub, stub)
    with pytest.raises(Pruned):
        watch.epoch_finished({"epoch": 1, "validation_accuracy": 0.1}, 2)
    watch.epoch_finished({"epoch": 2, "validation_accuracy": 0.2}, 2)
    assert stub.told == [(1, 0.1), (2, 0.2)]
