"""One run in several processes, as ``torchrun`` starts them: who is who, and what they agree on.

Every process takes its share of each batch, and gradients and curvature are averaged. What is read
from the run's directory, written there or said is the first process's business alone; the others
need not even see the disk that it lies on.
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
    """A share that is as large as every other process's: what does not divide is left out."""

    def of(self, items: Tensor) -> Tensor:
        """Take every so-manieth item, after leaving out up to ``processes - 1`` at the end."""
        return super().of(items[: len(items) // self.processes * self.processes])


@dataclass(frozen=True)
class Team:
    """The processes that train a run together, seen from one of them.

    Attributes:
        rank: Which one this is, from 0.
        size: How many there are.
        local_rank: Which one on this machine, from 0.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the one that reads, writes and speaks."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """This process's part of what all look at once."""
        return Share(self.rank, self.size)

    @property
    def equal_share(self) -> Share:
        """This process's part of a batch: all must have the same number of images."""
        return EqualShare(self.rank, self.size)

    def steps(self, count: int, batch_size: int) -> int:
        """Count the batches of an epoch over ``count`` images that hold one for every process."""
        full, rest = divmod(count, batch_size)
        return full + (rest >= self.size)

    def sum(self, values: Tensor) -> Tensor:
        """Add up a tensor over the processes."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total

    def gather(self, value: T) -> list[T]:
        """Collect every process's value, in all of them, by rank."""
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
        """Let all processes go on only if none fails within.

        Raises:
            LabError: If a process raised an exception: an :class:`Agreed`, but in the first process
                its own, if it raised one. What is no ``LabError`` goes its way where it was raised.
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
        """Give the first process's buffers (batch norm's running statistics) to all."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the network to call in training: its gradients become the processes' mean."""
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
    """Join the processes that ``torchrun`` has started, for as long as the context lasts.

    Yields:
        The team: of one, where this process was started alone.

    Raises:
        LabError: If this torch cannot do it.
    """
    if processes() == 1:
        yield ALONE
        return
    if not dist.is_available():
        raise LabError("this torch was built without torch.distributed; start a single process")
    store, rank, size = next(rendezvous("env://"))
    dist.init_process_group(
        # Two backends: what the processes say to each other of the run goes through the CPU.
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        # torchrun's store outlives a group. Under the same names the next group would find the
        # addresses of the last one's processes, where nobody listens any more.
        store=PrefixStore(f"sgdph/{next(_joins)}", store),
        rank=rank,
        world_size=size,
    )
    yield Team(rank, size, int(os.environ.get("LOCAL_RANK", rank)))
    # Not after an error: the others may be gone, and leaving in order would wait for them.
    dist.destroy_process_group()
