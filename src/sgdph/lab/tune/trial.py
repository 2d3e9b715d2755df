"""One trial: its run, which the study watches epoch by epoch and stops early if it is poor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgdph.lab.config.run_config import RunConfig, differences
from sgdph.lab.data.dataset import Dataset
from sgdph.lab.errors import LabError
from sgdph.lab.progress import Reporter
from sgdph.lab.run.directory import OVER
from sgdph.lab.run.start import prepare
from sgdph.lab.run.training import train_run
from sgdph.lab.sweep.state import failures
from sgdph.lab.sweep.worker import Worker
from sgdph.lab.tune.record import TuneDirectory
from sgdph.lab.tune.study import Studies, TrialInHand


def train_next_trial(path: Path, place: Mapping[str, Any], worker: Worker) -> bool:
    """Take a trial of a tuning, if there is one to take, and train it.

    If a trial has failed, no more are taken: the cause may affect all of them. A trial's run may be
    over although its process died before it told the study. Such trials are first reported to the
    study. The caller counts them as over, so they do not replace a trial that is left to train.

    Args:
        path: The tuning's directory.
        place: Fields of the runs' configuration that apply on this machine.
        worker: The worker of this process.

    Returns:
        Always True: taking a trial already settles which process trains it.
    """
    directory = TuneDirectory(path)
    is_over = True
    while is_over and not failures(path):
        with Studies(directory).take() as hand:
            if hand is None:
                break
            is_over = hand.run.exists() and hand.run.status() in OVER
            config = directory.read().config(hand.optimizer, hand.settings, place)
            with worker.noting_failure(path, f"{hand.optimizer}/{hand.run.path.name}"):
                run_trial(hand, config, worker.dataset(config), worker.reporter)
    return True


class Pruned(Exception):  # noqa: N818 - an outcome that is recorded, not an error
    """The trial lies below the median of the finished ones."""


class Watch:
    """A reporter that reports every epoch to the study, and stops the trial if the study says so.

    Args:
        hand: The trial.
        reporter: Receives the progress as well.
    """

    def __init__(self, hand: TrialInHand, reporter: Reporter) -> None:
        self.hand = hand
        self.reporter = reporter

    def run_started(self, name: str, *, epochs: int, done: int, batches: int) -> None:
        """Pass on that the run begins, under the trial's name and with its settings."""
        settings = ", ".join(f"{key} {value:g}" for key, value in self.hand.settings.items())
        name = f"{self.hand.name} ({settings})"
        self.reporter.run_started(name, epochs=epochs, done=done, batches=batches)

    def batch_finished(self) -> None:
        """Pass on that one step is done."""
        self.reporter.batch_finished()

    def epoch_finished(self, metrics: Mapping[str, Any], epochs: int) -> None:
        """Pass on an epoch, and report it to the study.

        Raises:
            Pruned: If the study stops the trial.
        """
        self.reporter.epoch_finished(metrics, epochs)
        self.tell(metrics)
        self.judge(metrics, epochs)

    def run_finished(self, name: str, message: str) -> None:
        """Pass on how the run ended."""
        self.reporter.run_finished(self.hand.name, message)

    def tell(self, metrics: Mapping[str, Any]) -> None:
        """Report an epoch to the study."""
        self.hand.report(int(metrics["epoch"]), float(metrics["validation_accuracy"]))

    def judge(self, metrics: Mapping[str, Any], epochs: int) -> None:
        """Ask the study whether to continue after an epoch, except after the last one.

        Raises:
            Pruned: If the study says no.
        """
        epoch = int(metrics["epoch"])
        if epoch < epochs and self.hand.trial.should_prune():
            raise Pruned(
                f"below the median of the finished trials after epoch {epoch}, at "
                f"{metrics['validation_accuracy']:.2%}"
            )


def run_trial(hand: TrialInHand, config: RunConfig, data: Dataset, reporter: Reporter) -> None:
    """Train a trial's run to its end, from its checkpoint if it has one, and tell the study.

    Args:
        hand: The trial.
        config: The configuration of its run on this machine.
        data: Its training and validation images.
        reporter: Receives the progress.

    Raises:
        LabError: If the run directory holds another run.
    """
    if hand.run.exists():
        check_same(hand, config)
    else:
        hand.run.create(config)
    if hand.run.status() not in OVER:
        train(hand, config, data, Watch(hand, reporter))
    summary = hand.run.read_summary()
    hand.finish(summary["status"], summary["final_validation_accuracy"])


def check_same(hand: TrialInHand, config: RunConfig) -> None:
    """Raise LabError if the trial's directory holds another run."""
    problems = differences(vars(config), hand.run.read_config())
    if problems:
        raise LabError(
            f"{hand.run.path} contains another run than the study's trial:\n  "
            + "\n  ".join(problems)
            + "\nthe study and the runs do not belong together. Name another --out"
        )


def train(hand: TrialInHand, config: RunConfig, data: Dataset, watch: Watch) -> None:
    """Train, and record the run as pruned if the study stops it."""
    try:
        catch_up(hand, config.epochs, watch)
        train_run(prepare(config, data), hand.run, watch)
    except Pruned as outcome:
        summary = {**hand.run.read_summary(), "status": "pruned", "reason": str(outcome)}
        hand.run.write_summary(summary)
        watch.run_finished(hand.name, f"pruned, {outcome}")


def catch_up(hand: TrialInHand, epochs: int, watch: Watch) -> None:
    """Report all recorded epochs to the study: a process may have died before reporting one.

    Raises:
        Pruned: If the study says not to continue.
    """
    lines = hand.run.read_metrics()
    for line in lines:
        watch.tell(line)
    if lines:
        watch.judge(lines[-1], epochs)
