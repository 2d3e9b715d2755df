"""What a tuning has found so far, read from its run directories alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgdph.lab.run.records import RunRecord, read_run
from sgdph.lab.tune.record import TuneDirectory, Tuning
from sgdph.lab.tune.space import Space

# Trials within this distance of the best accuracy, 0 to 1, count as good.
NEAR = 0.01


@dataclass(frozen=True)
class TrialRecord:
    """One trial.

    Attributes:
        number: Its number among its optimizer's trials, from 0.
        run: Its run.
        settings: The searched settings' values.
    """

    number: int
    run: RunRecord
    settings: Mapping[str, float]

    @property
    def status(self) -> str:
        """``"finished"``, ``"pruned"``, ``"diverged"``, or ``"unfinished"``."""
        known = ("finished", "pruned", "diverged")
        return self.run.status if self.run.status in known else "unfinished"

    @property
    def accuracy(self) -> float | None:
        """Validation accuracy (0 to 1) after the last recorded epoch; None if there is none."""
        return self._last("validation_accuracy")

    @property
    def loss(self) -> float | None:
        """Validation loss (nats) after the last recorded epoch; None if there is none."""
        return self._last("validation_loss")

    @property
    def seconds(self) -> float:
        """Wall-clock seconds, evaluation included."""
        return float(self.run.metrics[-1]["elapsed_seconds"]) if self.run.metrics else 0.0

    def _last(self, name: str) -> float | None:
        return float(self.run.metrics[-1][name]) if self.run.metrics else None


@dataclass(frozen=True)
class Search:
    """One optimizer's trials.

    Attributes:
        optimizer: Its name.
        space: What was searched.
        trials: The trials, by number.
    """

    optimizer: str
    space: Space
    trials: tuple[TrialRecord, ...]

    @property
    def finished(self) -> list[TrialRecord]:
        """The trials that reached their last epoch."""
        return [trial for trial in self.trials if trial.status == "finished"]

    @property
    def best(self) -> TrialRecord | None:
        """The finished trial with the highest final accuracy; among equals, the lowest loss."""
        return max(
            self.finished,
            key=lambda trial: (trial.accuracy or 0.0, -(trial.loss or 0.0)),
            default=None,
        )

    def count(self, status: str) -> int:
        """Count the trials with a status."""
        return sum(trial.status == status for trial in self.trials)

    @property
    def near(self) -> list[TrialRecord]:
        """The finished trials within one percentage point of the best, including the best."""
        best = self.best
        if best is None or best.accuracy is None:
            return []
        # Accuracies are fractions of whole numbers: do not leave one out because of rounding.
        least = best.accuracy - NEAR - 1e-9
        return [trial for trial in self.finished if (trial.accuracy or 0.0) >= least]

    def edges(self) -> dict[str, str]:
        """Return the best settings that are at an end of their range: name to low or high."""
        best = self.best
        ends = {name: each.edge(best.settings[name]) for name, each in self.space.items() if best}
        return {name: end for name, end in ends.items() if end is not None}

    def best_so_far(self) -> list[float | None]:
        """Return the best final accuracy after each trial, by number; None before any finished."""
        best: float | None = None
        course = []
        for trial in self.trials:
            if trial.status == "finished" and trial.accuracy is not None:
                best = max(best or 0.0, trial.accuracy)
            course.append(best)
        return course


def read_searches(directory: TuneDirectory, tuning: Tuning) -> list[Search]:
    """Read every optimizer's trials."""
    runs = [read_run(run.path) for run in directory.inner_runs()]
    searches = []
    for optimizer, space in tuning.spaces.items():
        own = [run for run in runs if run.path.parent.name == optimizer]
        trials = sorted((_trial(run, space) for run in own), key=lambda trial: trial.number)
        searches.append(Search(optimizer, space, tuple(trials)))
    return searches


def _trial(record: RunRecord, space: Space) -> TrialRecord:
    number = int(record.path.name.removeprefix("trial-"))
    return TrialRecord(number, record, {name: record.config.setting(name) for name in space})


def show_settings(settings: Mapping[str, float]) -> str:
    """Format settings in one line."""
    return ", ".join(f"{name} {value:g}" for name, value in settings.items())


def to_json(searches: Sequence[Search]) -> dict[str, Any]:
    """Return all trials as JSON-compatible values."""
    return {
        search.optimizer: {
            "space": {name: vars(each) for name, each in search.space.items()},
            "best": search.best.number if search.best else None,
            "trials": [
                {
                    "number": trial.number,
                    "status": trial.status,
                    "settings": dict(trial.settings),
                    "validation_accuracy": trial.accuracy,
                    "validation_loss": trial.loss,
                    "epochs": len(trial.run.metrics),
                    "seconds": trial.seconds,
                    "reason": trial.run.summary.get("reason"),
                    "run": f"{search.optimizer}/{trial.run.path.name}",
                }
                for trial in search.trials
            ],
        }
        for search in searches
    }
