"""One run: from a configuration and a data set to a directory of facts.

A run is a function of its configuration. All randomness comes from the seed: torch's global
generator draws the initial weights, a generator of the run's own draws data order and augmentation,
and the optimizer has its own again; so optimizers with one seed start at the same weights and see
the same batches.
"""

from __future__ import annotations

import contextlib
import math
import time
import uuid
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - the name that every torch reader expects

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.data.dataset import Dataset, plan_epoch
from sgdph.lab.errors import LabError
from sgdph.lab.files import WriteError
from sgdph.lab.progress import Reporter
from sgdph.lab.run.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from sgdph.lab.run.directory import CHECKPOINT, RunDirectory, kept_checkpoint
from sgdph.lab.run.distributed import ALONE, Team
from sgdph.lab.run.environment import describe_environment
from sgdph.lab.run.evaluation import evaluate
from sgdph.lab.run.newton_steps import learning_rates, multiplier_summary
from sgdph.lab.run.precision import Arithmetic
from sgdph.lab.run.start import PreparedRun
from sgdph.lab.run.step import attention_for, optimization_step
from sgdph.lab.run.tracking import TrackedRun, tracked

# How often the running loss is looked at; on a GPU every look waits for the device.
CHECK_INTERVAL = 20


class Diverged(Exception):  # noqa: N818 - an outcome that is recorded, not an error
    """The loss is no longer finite."""


@dataclass
class Trainer:
    """Carries one run from its state to its end.

    Attributes:
        config: What the run is.
        directory: Where its facts go.
        data: Its data set, on the run's device.
        state: Where it stands.
        reporter: What is told of its progress.
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
            KeyboardInterrupt: When interrupted; the status is then ``"interrupted"``, as it is
                after any other exception.
        """
        self._summarise("running")
        if self.state.epoch == 0:
            self._keep_checkpoint()
        try:
            while self.state.epoch < self.config.epochs:
                self._epoch()
        except Diverged as outcome:
            return self._summarise("diverged", str(outcome))
        except BaseException as error:
            # Where the disk is full, the reason is on its way to who called.
            with contextlib.suppress(WriteError):
                self._write_summary("interrupted", f"{type(error).__name__}: {error}".rstrip(": "))
            raise
        return self._summarise("finished")

    def _epoch(self) -> None:
        """Train and evaluate one epoch, record it, and take the checkpoint."""
        state, started = self.state, time.perf_counter()
        rates = learning_rates(state.optimizer)
        train_loss, train_accuracy, steps = self._pass()
        seconds = time.perf_counter() - started
        self.team.share_buffers(state.model)
        loss, accuracy = evaluate(state.model, self.data, Arithmetic.of(self.config), self.team)
        epoch, split = state.epoch + 1, self.config.evaluated
        if not math.isfinite(loss):
            raise Diverged(f"the {split} loss after epoch {epoch} is {loss}")
        state.scheduler.step()
        metrics: dict[str, Any] = {
            "epoch": epoch,
            "train_loss": train_loss,
            "train_accuracy": train_accuracy,
            f"{split}_loss": loss,
            f"{split}_accuracy": accuracy,
            **rates,
            "seconds": seconds,
            "elapsed_seconds": state.elapsed + time.perf_counter() - started,
        }
        multipliers = multiplier_summary(state.optimizer)
        if multipliers is not None:
            metrics["newton_multiplier"] = multipliers
        state.epoch, state.step = epoch, state.step + steps
        state.history.append(metrics)
        with self.team.agreement():
            if self.team.first:
                self.directory.append_metrics(metrics)
        # Before the last one: what a kill in between leaves out, the resumed run makes again.
        self._keep_checkpoint()
        self._save(CHECKPOINT)
        self._summarise("running")
        self.reporter.epoch_finished(metrics, self.config.epochs)

    def _keep_checkpoint(self) -> None:
        """Save the state under its epoch's name where the configuration has it kept."""
        epoch = self.state.epoch
        if epoch in (self.config.keep_checkpoints or ()):
            self._save(kept_checkpoint(epoch))

    def _save(self, name: str) -> None:
        with self.team.agreement():
            save_checkpoint(self.directory.path / name, self.state, self.team)

    def _pass(self) -> tuple[float, float, int]:
        """Step through the training images once.

        Returns:
            Mean loss and accuracy over all labels as they came, each before its batch's step, and
            the number of steps.
        """
        data, state, team = self.data, self.state, self.team
        arithmetic, size = Arithmetic.of(self.config), self.config.batch_size
        state.model.train()
        # Anew for each epoch: the order of its sums changes after its first step, and a resumed
        # run begins at an epoch.
        network = team.wrap(state.model)
        plan = plan_epoch(data, state.generator)
        labels_in_all, steps = 0, team.steps(data.train_count, size)
        loss_sum = torch.zeros((), dtype=torch.float64, device=data.device)
        correct = torch.zeros((), dtype=torch.float64, device=data.device)
        for step, (images, labels) in enumerate(
            data.training_batches(plan, size, team.equal_share), 1
        ):
            if labels.numel() == 0:
                # Fewer were left for the last batch than there are processes.
                break
            with attention_for(state.optimizer):
                logits = arithmetic.logits(network, images)
            loss = F.cross_entropy(logits, labels)
            loss_sum += loss.detach() * labels.numel()
            correct += (logits.detach().argmax(1) == labels).sum()
            labels_in_all += labels.numel() * team.size
            look = step % CHECK_INTERVAL == 0 or step == steps
            if look and not team.sum(loss_sum).isfinite():
                raise Diverged(
                    f"the training loss in epoch {state.epoch + 1}, at step {step} of "
                    f"{steps} or up to {CHECK_INTERVAL - 1} before, is not finite"
                )
            optimization_step(state.optimizer, loss, state.scaler)
            self.reporter.batch_finished()
        if data.device.type == "cuda":
            torch.cuda.synchronize()
        total_loss, total_correct = team.sum(torch.stack([loss_sum, correct])).tolist()
        return total_loss / labels_in_all, total_correct / labels_in_all, steps

    def _summarise(self, status: str, reason: str | None = None) -> dict[str, Any]:
        """Write the summary of the epochs so far and return it."""
        with self.team.agreement():
            return self._write_summary(status, reason)

    def _write_summary(self, status: str, reason: str | None) -> dict[str, Any]:
        history = self.state.history
        last = history[-1] if history else None
        split = self.config.evaluated
        accuracy = f"{split}_accuracy"
        best = max(history, key=lambda line: line[accuracy]) if history else None
        summary = {
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
        if self.team.first:
            self.directory.write_summary(summary)
        return summary


def train_run(prepared: PreparedRun, directory: RunDirectory, reporter: Reporter) -> dict[str, Any]:
    """Train a run to its end, from its checkpoint where it has one.

    Args:
        prepared: The run, just prepared: the global generators must still stand where
            :func:`sgdph.lab.run.start.prepare` left them.
        directory: Its directory, which holds the configuration already.
        reporter: What is told of its progress.

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
            f"{directory.path} is a run of {config.processes} processes, and there are {team.size};"
            f" start it with torchrun --nproc-per-node {config.processes}"
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
        reporter.run_started(name, epochs=config.epochs, done=state.epoch, batches=batches)
        summary = Trainer(config, directory, data, state, reporter, team).train()
        reporter.run_finished(name, describe_outcome(summary))
    return summary


def _record_start(prepared: PreparedRun, directory: RunDirectory) -> TrackedRun:
    """Record the session, and bring the metrics to where the checkpoint was taken."""
    state, team = prepared.state, prepared.team
    if state.epoch == 0:
        directory.check_no_metrics()
    environment = describe_environment(prepared.data.device)
    session = {"session": uuid.uuid4().hex[:12], "processes": team.size}
    directory.write_env({**environment, **session})
    directory.replace_metrics(state.history)
    # That of the first session, which all others carry on.
    identity = str(directory.read_env().get("session", session["session"]))
    return TrackedRun(directory.path, identity, prepared.config, state.epoch)


def describe_outcome(summary: dict[str, Any]) -> str:
    """Say in a line how a run ended."""
    if summary["status"] == "diverged":
        return f"diverged after {summary['epochs']} epochs: {summary['reason']}"
    if summary["status"] == "pruned":
        return f"pruned, {summary['reason']}"
    split = summary.get("evaluated", "test")
    return (
        f"{split} accuracy {summary[f'final_{split}_accuracy']:.2%} at the end, "
        f"{summary[f'best_{split}_accuracy']:.2%} at best (epoch {summary['best_epoch']}), "
        f"{summary['seconds']:.1f} s of training"
    )
