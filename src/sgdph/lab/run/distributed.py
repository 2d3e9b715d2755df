"""One run in several processes, started by ``torchrun``: their ranks and how they communicate.

Every process takes its share of each batch, and gradients and curvature are averaged. Only the
first process reads the run's directory, writes there and prints. The others need no access to that
disk.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from sgdph.lab.data.dataset import Share
from sgdph.lab.errors import LabError
from sgdph.lab.run.processes import Agreed, processes

T = TypeVar("T")
_joins = itertools.count()


class EqualShare(Share):
    """A share that has the same size in all processes; a remainder is left out."""

    def of(self, items: Tensor) -> Tensor:
        """Take every ``processes``-th item, after dropping up to ``processes - 1`` at the end."""
        return super().of(items[: len(items) // self.processes * self.processes])


@dataclass(frozen=True)
class Team:
    """The processes that train a run together, seen from one of them.

    Attributes:
        rank: The rank of this process, from 0.
        size: The number of processes.
        local_rank: The rank of this process on its machine, from 0.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process is the one that reads, writes and prints."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """This process's share of images; together, the shares hold each image once."""
        return Share(self.rank, self.size)

    @property
    def equal_share(self) -> Share:
        """This process's share of a batch; all processes get the same number of images."""
        return EqualShare(self.rank, self.size)

    def steps(self, count: int, batch_size: int) -> int:
        """Count an epoch's batches, over ``count`` images, that have an image for every process."""
        full, rest = divmod(count, batch_size)
        return full + (rest >= self.size)

    def sum(self, values: Tensor) -> Tensor:
        """Sum a tensor over the processes."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank, in every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_first(self, make: Callable[[], T]) -> T:
        """Return, in all processes, what ``make`` returns in the first.

        Raises:
            LabError: In all processes, if it raises in the first.
        """
        made: list[Any] = [None]
        with self.agreement():
            if self.first:
                made[0] = make()
        if self.size > 1:
            dist.broadcast_object_list(made)
        value: T = made[0]
        return value

    @contextmanager
    def agreement(self) -> Iterator[None]:
        """Let all processes continue only if none of them fails inside the context.

        Raises:
            LabError: If a process failed. It is an :class:`Agreed`, except in the first process: if
                that one failed, it raises its own error. An error that is not a ``LabError`` is
                raised unchanged in the process where it occurred.
        """
        own: Exception | None = None
        try:
            yield
        except Exception as error:
            own = error
        problems = self.gather(_describe(own) if own is not None else None)
        if own is not None and (self.first or not isinstance(own, LabError)):
            raise own
        for rank, problem in enumerate(problems):
            if problem is not None:
                raise Agreed(f"process {rank}: {problem}")

    def share_buffers(self, model: nn.Module) -> None:
        """Copy the first process's buffers (batch norm's running statistics) to all processes."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the network to call in training; it averages gradients over the processes."""
        if self.size == 1:
            return model
        device = next(model.parameters()).device
        return DistributedDataParallel(
            model, device_ids=[device] if device.type == "cuda" else None
        )


ALONE = Team()


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, LabError) else f"{type(error).__name__}: {error}"


@contextmanager
def joined() -> Iterator[Team]:
    """Join the processes that ``torchrun`` started, for the duration of the context.

    Yields:
        The team; it has one process if this process was started alone.

    Raises:
        LabError: If this torch was built without ``torch.distributed``.
    """
    if processes() == 1:
        yield ALONE
        return
    if not dist.is_available():
        raise LabError("this torch was built without torch.distributed; start a single process")
    store, rank, size = next(rendezvous("env://"))
    dist.init_process_group(
        # Two backends: Python objects are exchanged through the CPU.
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        # torchrun's store outlives a group. Without a new prefix, the next group would find the
        # addresses of the last group's processes, which no longer listen.
        store=PrefixStore(f"sgdph/{next(_joins)}", store),
        rank=rank,
        world_size=size,
    )
    yield Team(rank, size, int(os.environ.get("LOCAL_RANK", rank)))
    # Not after an error: the other processes may be gone, and this call would wait for them.
    dist.destroy_process_group()
