"""One pass over the training images, without waiting for a GPU.

Losses and hits stay on the device until the epoch's end; the loop reads nothing from a GPU. This
module needs only torch: ``benchmarks/paper_cell.py`` times the same loop where nothing else is
installed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that every torch reader expects

from sgdph.lab.run.distributed import ALONE, Team
from sgdph.lab.run.precision import Arithmetic
from sgdph.lab.run.step import attention_for, optimization_step

# Steps between checks of the losses on a CPU. On a GPU, a check would wait for the device, so there
# is one per epoch.
CHECK_INTERVAL = 20


class Diverged(Exception):  # noqa: N818 - an outcome that is recorded, not an error
    """The loss is no longer finite."""


@dataclass(frozen=True)
class TrainingSums:
    """The sums of an epoch, still on the device.

    Attributes:
        values: Sum of the losses over all labels, number of labels that were hit, and the first
            step, from 1, whose loss was not finite (0 if all were): ``(3,)``, float64.
        labels: Number of labels.
        steps: Number of steps.
    """

    values: Tensor
    labels: int
    steps: int

    def read(self, values: Sequence[float]) -> tuple[float, float]:
        """Return mean loss and accuracy, from the values after their transfer to the CPU.

        Raises:
            Diverged: If a step's loss was not finite.
        """
        loss, correct, first_bad = values
        if first_bad:
            raise _diverged(int(first_bad), self.steps)
        return loss / self.labels, correct / self.labels


def train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    steps: int,
    arithmetic: Arithmetic,
    scaler: torch.amp.GradScaler | None = None,
    team: Team = ALONE,
    finished: Callable[[], None] = lambda: None,
) -> TrainingSums:
    """Train on an epoch's batches, one step each.

    Args:
        network: The network, in training mode; wrapped by DDP if there are several processes.
        optimizer: Its optimizer.
        batches: Images and labels, on the device.
        steps: Number of batches that have an image for every process.
        arithmetic: Precision and memory layout of the network's computation.
        scaler: The loss scaler.
        team: The processes that share the batches.
        finished: Called after each step.

    Returns:
        Loss and hits over all labels, each batch's computed before its step.

    Raises:
        Diverged: On a CPU, if the loss is no longer finite. On a GPU the losses are checked after
            the epoch, by :meth:`TrainingSums.read`.
    """
    losses: list[Tensor] = []
    hits: list[Tensor] = []
    labels_in_all = 0
    for images, labels in batches:
        if len(losses) == steps:
            # The last batch has fewer images than there are processes.
            break
        with attention_for(optimizer):
            logits = arithmetic.logits(network, images)
        loss = F.cross_entropy(logits, labels)
        losses.append(loss.detach() * labels.numel())
        hits.append((logits.detach().argmax(1) == labels).sum())
        labels_in_all += labels.numel() * team.size
        if loss.device.type == "cpu" and len(losses) % CHECK_INTERVAL == 0:
            _look(team.sum(torch.stack(losses[-CHECK_INTERVAL:])), len(losses), steps)
        optimization_step(optimizer, loss, scaler)
        finished()
    by_step = team.sum(torch.stack(losses).double())
    if by_step.device.type == "cpu":
        _look(by_step, steps, steps)
    correct = team.sum(torch.stack(hits).sum().double())
    values = torch.stack([by_step.sum(), correct, _first_bad(by_step)])
    return TrainingSums(values, labels_in_all, steps)


def _first_bad(losses: Tensor) -> Tensor:
    """Return the position, from 1, of the first loss that is not finite; 0 if all are finite."""
    bad = ~losses.isfinite()
    # argmax may return any of several equal maxima, so compare the positions instead.
    places = torch.arange(len(losses), 0, -1, device=losses.device)
    latest = (places * bad).amax()
    return torch.where(latest > 0, len(losses) + 1 - latest, latest).double()


def _look(losses: Tensor, step: int, steps: int) -> None:
    """Raise Diverged if one of the latest losses, up to this step, is not finite."""
    if not losses.isfinite().all():
        raise _diverged(step - len(losses) + int(_first_bad(losses)), steps)


def _diverged(step: int, steps: int) -> Diverged:
    return Diverged(f"the training loss at step {step} of {steps} is not finite")


class Stopwatch:
    """A timer for the work of a device, which does not wait for the device."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self._marks = [self._mark()]

    def _mark(self) -> Any:
        if self._stream is None:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    def stop(self) -> None:
        """Mark the end."""
        self._marks.append(self._mark())

    def seconds(self) -> float:
        """Return the seconds from start to stop; on a GPU, synchronize the device first."""
        first, last = self._marks[0], self._marks[-1]
        return float(last - first if self._stream is None else first.elapsed_time(last) / 1000)
