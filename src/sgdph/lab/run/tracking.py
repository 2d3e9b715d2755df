"""Trackers: send the metrics of a run also to TensorBoard, Weights & Biases or Trackio.

The run's directory holds all results even without a tracker. So if a tracker fails during a run,
the run continues without it.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.config.yaml import to_yaml
from sgdph.lab.errors import LabError
from sgdph.lab.output import printable
from sgdph.lab.progress import Reporter
from sgdph.lab.run.archive import flat

PROJECT = "sgdph"


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker receives about a run before the first metrics.

    Attributes:
        directory: The run's directory.
        identity: A unique name, which the run keeps when it is resumed.
        config: The run's configuration.
        done: Number of finished epochs.
    """

    directory: Path
    identity: str
    config: RunConfig
    done: int


class Tracker(Protocol):
    """An object that receives figures by epoch."""

    def log(self, figures: Mapping[str, float], epoch: int) -> None:
        """Receive an epoch's figures."""

    def close(self) -> None:
        """Send what has not been sent yet."""


class TensorBoard:
    """Event files in the run's directory: ``tensorboard --logdir runs`` shows all runs there."""

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Hides what an interrupted session wrote about later epochs.
        self._writer = SummaryWriter(run.directory, purge_step=run.done + 1)
        if run.done == 0:
            self._writer.add_text("config", f"```yaml\n{to_yaml(run.config)}```", 0)

    def log(self, figures: Mapping[str, float], epoch: int) -> None:
        """Write an epoch's figures."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class Service:
    """A run at a service whose client has the interface of ``wandb``."""

    _run: Any

    def log(self, figures: Mapping[str, float], epoch: int) -> None:
        """Send an epoch's figures."""
        self._run.log(dict(figures), step=epoch)

    def close(self) -> None:
        """Finish the run at the service."""
        self._run.finish()


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Return a configuration as a mapping for a service; its texts can be sent in UTF-8."""
    return {
        name: printable(value) if isinstance(value, str) else value
        for name, value in vars(config).items()
    }


class WandB(Service):
    """A run of Weights & Biases; ``WANDB_MODE``, ``WANDB_PROJECT`` … take precedence."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=printable(run.directory.name),
            id=run.identity,
            resume="allow",
            config=settings_of(run.config),
        )


class Trackio(Service):
    """A run of Trackio, which identifies runs by their names."""

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        self._run = trackio.init(
            project=PROJECT,
            name=printable(f"{run.directory.name}-{run.identity}"),
            resume="allow",
            config=settings_of(run.config),
        )


TRACKERS: Mapping[str, Callable[[TrackedRun], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}


def check_tracker(name: str | None) -> None:
    """Raise LabError if the package of a tracker is not installed."""
    if name is not None and name in TRACKERS and importlib.util.find_spec(name) is None:
        raise LabError(
            f"--track {name} needs the package {name}, which is not installed: pip install {name} "
            "(or '.[track]' in a checkout of sgdph, for all trackers), or leave it out with "
            "--track none"
        )


class TrackingReporter:
    """A reporter that passes all on to another, and the metrics to a tracker until that fails."""

    def __init__(self, reporter: Reporter, name: str, tracker: Tracker) -> None:
        self._reporter = reporter
        self._name = name
        self._tracker: Tracker | None = tracker

    def run_started(self, name: str, *, epochs: int, done: int, batches: int) -> None:
        """Pass it on."""
        self._reporter.run_started(name, epochs=epochs, done=done, batches=batches)

    def batch_finished(self) -> None:
        """Pass it on."""
        self._reporter.batch_finished()

    def epoch_finished(self, metrics: Mapping[str, Any], epochs: int) -> None:
        """Pass it on, and send the metrics."""
        self._reporter.epoch_finished(metrics, epochs)
        if self._tracker is not None:
            try:
                self._tracker.log(flat(metrics, "/"), metrics["epoch"])
            except Exception as error:
                self._give_up(error)

    def run_finished(self, name: str, message: str) -> None:
        """Pass it on."""
        self._reporter.run_finished(name, message)

    def close(self) -> None:
        """Close the tracker."""
        if self._tracker is not None:
            try:
                self._tracker.close()
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        tracker, self._tracker = self._tracker, None
        warnings.warn(
            f"{self._name} stopped accepting metrics ({type(error).__name__}: {error}). The run "
            "continues without it; its directory has all metrics",
            stacklevel=3,
        )
        if tracker is not None:
            with suppress(Exception):
                tracker.close()


@contextmanager
def tracked(reporter: Reporter, run: TrackedRun) -> Iterator[Reporter]:
    """Yield a reporter that also sends the metrics to the run's tracker, if it has one.

    Raises:
        LabError: If the tracker cannot be started.
    """
    name = run.config.track
    if name is None or name not in TRACKERS:
        yield reporter
        return
    check_tracker(name)
    try:
        tracker = TRACKERS[name](run)
    except Exception as error:
        raise LabError(
            f"--track {name} could not be started ({type(error).__name__}: {error}); correct "
            "that, or continue with --track none"
        ) from error
    tracking = TrackingReporter(reporter, name, tracker)
    try:
        yield tracking
    finally:
        tracking.close()
