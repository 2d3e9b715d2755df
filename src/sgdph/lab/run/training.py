"""One run: train a configuration on a data set, and record the results in a directory.

A run is a function of its configuration. All randomness comes from the seed. Torch's global
generator draws the initial weights, a separate generator draws data order and augmentation, and an
optimizer that draws has a generator of its own, except SophiaH. So optimizers with the same seed
start at the same weights and see the same batches.
"""

from __future__ import annotations

import contextlib
import math
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.data.dataset import Dataset, plan_epoch
from sgdph.lab.errors import LabError
from sgdph.lab.files import WriteError
from sgdph.lab.progress import Reporter
from sgdph.lab.run.checkpoint import (
    TrainingState,
    checkpoint_content,
    load_checkpoint,
    save_checkpoint,
)
from sgdph.lab.run.directory import CHECKPOINT, RunDirectory, kept_checkpoint
from sgdph.lab.run.distributed import ALONE, Team
from sgdph.lab.run.environment import describe_environment
from sgdph.lab.run.epoch import Diverged, Stopwatch, TrainingSums, train_epoch
from sgdph.lab.run.evaluation import evaluation_sums
from sgdph.lab.run.newton_steps import learning_rates, multiplier_summary, warn_of_short_run
from sgdph.lab.run.precision import Arithmetic
from sgdph.lab.run.start import PreparedRun
from sgdph.lab.run.tracking import TrackedRun, tracked
from sgdph.lab.run.writer import Snapshot, Writer, write_checkpoint


def writes_beside(device: torch.device, team: Team) -> bool:
    """Return whether an epoch's files are written while the next epoch trains.

    A GPU trains during the writing. A CPU would only alternate between the two.
    """
    return device.type == "cuda" and team.size == 1


@dataclass
class Trainer:
    """Trains one run from its current state to its end.

    Attributes:
        config: The run's configuration.
        directory: Where its results are written.
        data: Its data set, on the run's device.
        state: Its current state.
        reporter: Receives its progress.
        team: The processes that train it.
    """

    config: RunConfig
    directory: RunDirectory
    data: Dataset
    state: TrainingState
    reporter: Reporter
    team: Team = ALONE

    def train(self) -> dict[str, Any]:
        """Train to the last epoch.

        Returns:
            The summary, whose status is ``"finished"`` or ``"diverged"``.

        Raises:
            KeyboardInterrupt: If interrupted. The status is then ``"interrupted"``, as after any
                other exception.
        """
        self._summarise("running")
        if self.state.epoch == 0 and 0 in (self.config.keep_checkpoints or ()):
            with self.team.agreement():
                save_checkpoint(self.directory.path / kept_checkpoint(0), self.state, self.team)
        try:
            with Writer(writes_beside(self.data.device, self.team)) as writer:
                try:
                    while self.state.epoch < self.config.epochs:
                        self._epoch(writer)
                finally:
                    writer.wait()
        except Diverged as outcome:
            return self._summarise("diverged", str(outcome))
        except BaseException as error:
            # If the disk is full, the error that is raised again below already says so.
            with contextlib.suppress(WriteError):
                self._write_summary("interrupted", f"{type(error).__name__}: {error}".rstrip(": "))
            raise
        return self._summarise("finished")

    def _epoch(self, writer: Writer) -> None:
        """Train and evaluate one epoch, record it, and write the checkpoint."""
        state, config, started = self.state, self.config, time.perf_counter()
        epoch, split = state.epoch + 1, config.evaluated
        rates = learning_rates(state.optimizer)
        watch = Stopwatch(self.data.device)
        try:
            trained = self._pass()
            watch.stop()
            self.team.share_buffers(state.model)
            evaluated = evaluation_sums(state.model, self.data, Arithmetic.of(config), self.team)
            # Reads all sums of the epoch from the device at once.
            *sums, total_loss, correct, count = torch.cat([trained.values, evaluated]).tolist()
            train_loss, train_accuracy = trained.read(sums)
        except Diverged as outcome:
            raise Diverged(f"epoch {epoch}: {outcome}") from None
        loss = total_loss / count
        if not math.isfinite(loss):
            raise Diverged(f"the {split} loss after epoch {epoch} is {loss}")
        state.scheduler.step()
        metrics: dict[str, Any] = {
            "epoch": epoch,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            f"{split}_loss": loss,
            f"{split}_accuracy": correct / count,
            **rates,
            "seconds": watch.seconds(),
            "elapsed_seconds": state.elapsed + time.perf_counter() - started,
        }
        multipliers = multiplier_summary(state.optimizer)
        if multipliers is not None:
            metrics["newton_multiplier"] = multipliers
        state.epoch, state.step = epoch, state.step + trained.steps
        state.history.append(metrics)
        self._record(metrics, writer)
        self.reporter.epoch_finished(metrics, config.epochs)

    def _record(self, metrics: Mapping[str, Any], writer: Writer) -> None:
        """Write the epoch's line, its checkpoints and the summary, in this order."""
        state, path = self.state, self.directory.path
        # last.pt comes last: after a kill in between, the resumed run repeats the epoch.
        names = [CHECKPOINT]
        if state.epoch in (self.config.keep_checkpoints or ()):
            names.insert(0, kept_checkpoint(state.epoch))
        with self.team.agreement():
            content = checkpoint_content(state, self.team)
            if not self.team.first:
                return
            snapshot = Snapshot(content, self.data.device) if writer.beside else None
            summary = self._summary("running")

            def write() -> None:
                self.directory.append_metrics(metrics)
                copied = content if snapshot is None else snapshot.content()
                write_checkpoint([path / name for name in names], copied)
                self.directory.write_summary(summary)

            writer.do(write)

    def _pass(self) -> TrainingSums:
        """Train on all training images once."""
        data, state, team = self.data, self.state, self.team
        size = self.config.batch_size
        state.model.train()
        return train_epoch(
            # Wrapped again in each epoch: DDP changes the order of its sums after its first step,
            # and a resumed run begins at the start of an epoch.
            team.wrap(state.model),
            state.optimizer,
            data.training_batches(plan_epoch(data, state.generator), size, team.equal_share),
            steps=team.steps(data.train_count, size),
            arithmetic=Arithmetic.of(self.config),
            scaler=state.scaler,
            team=team,
            finished=self.reporter.batch_finished,
        )

    def _summarise(self, status: str, reason: str | None = None) -> dict[str, Any]:
        """Write the summary of the epochs so far and return it."""
        with self.team.agreement():
            return self._write_summary(status, reason)

    def _write_summary(self, status: str, reason: str | None) -> dict[str, Any]:
        summary = self._summary(status, reason)
        if self.team.first:
            self.directory.write_summary(summary)
        return summary

    def _summary(self, status: str, reason: str | None = None) -> dict[str, Any]:
        history = self.state.history
        last = history[-1] if history else None
        split = self.config.evaluated
        accuracy = f"{split}_accuracy"
        best = max(history, key=lambda line: line[accuracy]) if history else None
        return {
            "status": status,
            "reason": reason,
            "epochs": self.state.epoch,
            "planned_epochs": self.config.epochs,
            "steps": self.state.step,
            "evaluated": split,
            f"final_{accuracy}": last[accuracy] if last and status == "finished" else None,
            f"best_{accuracy}": best[accuracy] if best else None,
            "best_epoch": best["epoch"] if best else None,
            "final_train_loss": last["train_loss"] if last and status == "finished" else None,
            "seconds": sum(line["seconds"] for line in history),
            "elapsed_seconds": self.state.elapsed,
            "train_images": self.data.train_count,
            f"{split}_images": self.data.test_count,
            "parameters": sum(p.numel() for p in self.state.model.parameters()),
        }


def train_run(prepared: PreparedRun, directory: RunDirectory, reporter: Reporter) -> dict[str, Any]:
    """Train a run to its end, from its checkpoint if it has one.

    Args:
        prepared: The run, just prepared: the global generators must still be in the state that
            :func:`sgdph.lab.run.start.prepare` left.
        directory: Its directory, which must already hold the configuration.
        reporter: Receives its progress.

    Returns:
        The summary.

    Raises:
        Claimed: If another process is training the run.
        LabError: If the checkpoint cannot be read, a file cannot be written, the tracker cannot be
            started, or the number of processes is not the run's.
    """
    config, data, state, team = prepared.config, prepared.data, prepared.state, prepared.team
    if config.processes != team.size:
        raise LabError(
            f"{directory.path} is a run of {config.processes} processes, but {team.size} were "
            f"started; start it with torchrun --nproc-per-node {config.processes}"
        )
    with contextlib.ExitStack() as stack:
        with team.agreement():
            if team.first:
                stack.enter_context(directory.claim())
        checkpoint = directory.path / CHECKPOINT
        if team.from_first(checkpoint.is_file):
            load_checkpoint(checkpoint, state, team)
        with team.agreement():
            if team.first:
                run = _record_start(prepared, directory)
                reporter = stack.enter_context(tracked(reporter, run))
        name, batches = directory.path.name, team.steps(data.train_count, config.batch_size)
        warn_of_short_run(config, state.optimizer, config.epochs * batches)
        reporter.run_started(name, epochs=config.epochs, done=state.epoch, batches=batches)
        summary = Trainer(config, directory, data, state, reporter, team).train()
        reporter.run_finished(name, describe_outcome(summary))
    return summary


def _record_start(prepared: PreparedRun, directory: RunDirectory) -> TrackedRun:
    """Record the session, and reset the metrics to the state of the checkpoint."""
    state, team = prepared.state, prepared.team
    if state.epoch == 0:
        directory.check_no_metrics()
    environment = describe_environment(prepared.data.device)
    session = {"session": uuid.uuid4().hex[:12], "processes": team.size}
    directory.write_env({**environment, **session})
    directory.replace_metrics(state.history)
    # All sessions of a run use the identity of the first one.
    identity = str(directory.read_env().get("session", session["session"]))
    return TrackedRun(directory.path, identity, prepared.config, state.epoch)


def describe_outcome(summary: dict[str, Any]) -> str:
    """Describe in one line how a run ended."""
    if summary["status"] == "diverged":
        return f"diverged after {summary['epochs']} epochs: {summary['reason']}"
    if summary["status"] == "pruned":
        return f"pruned, {summary['reason']}"
    split = summary.get("evaluated", "test")
    return (
        f"final {split} accuracy {summary[f'final_{split}_accuracy']:.2%}, best "
        f"{summary[f'best_{split}_accuracy']:.2%} (epoch {summary['best_epoch']}), "
        f"{summary['seconds']:.1f} s of training"
    )
