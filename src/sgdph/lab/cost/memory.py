"""The peak of live tensor bytes in a stretch of a program."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(NamedTuple):
    """A peak, in bytes.

    Attributes:
        added: What was allocated on top of what lived when the stretch began.
        live: What was allocated since the watch began, earlier stretches' included.
    """

    added: int
    live: int


class MemoryWatch(Protocol):
    """Watches stretches of a program, one after another."""

    def start(self) -> None:
        """Begin a stretch."""

    def peak(self) -> Peak:
        """Read the stretch's peak so far."""


class StorageTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that operations allocate while the mode is active.

    An operation's output has a storage of its own where none of its inputs has that storage: views
    and results written in place are not counted again. A storage is counted until it is freed,
    wherever that happens, the autograd engine included. What an operation allocates and frees
    inside itself (a convolution's workspace) is not seen.

    Attributes:
        live: Bytes that are allocated now.
        highest: The most that ``live`` has been since the last :meth:`start`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.highest = 0
        self._at_start = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def start(self) -> None:
        """Begin a stretch."""
        self._at_start = self.highest = self.live

    def peak(self) -> Peak:
        """Read the stretch's peak so far."""
        return Peak(self.highest - self._at_start, self.highest)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operation and count what it allocated."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        # Held until the end, so that no identity is given anew meanwhile.
        inputs = _storages((args, kwargs))
        given = {id(storage) for storage in inputs}
        for storage in _storages(out):
            if id(storage) not in given and id(storage) not in self._known:
                self._add(storage)
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()

        def freed(_: object) -> None:
            del self._known[key]
            self.live -= size

        self._known[key] = weakref.ref(storage, freed)
        self.live += size
        self.highest = max(self.highest, self.live)


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [
        leaf.untyped_storage()
        for leaf in tree_leaves(tree)
        if isinstance(leaf, Tensor) and leaf.layout == torch.strided
    ]


class CudaMemory:
    """Reads the CUDA allocator's counters.

    Args:
        device: A CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._at_watch = self._at_start = self._allocated()

    def start(self) -> None:
        """Begin a stretch."""
        self._at_start = self._allocated()
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> Peak:
        """Read the stretch's peak so far."""
        torch.cuda.synchronize(self._device)
        highest = torch.cuda.max_memory_allocated(self._device)
        return Peak(highest - self._at_start, highest - self._at_watch)

    def _allocated(self) -> int:
        torch.cuda.synchronize(self._device)
        return torch.cuda.memory_allocated(self._device)


@contextlib.contextmanager
def watch_memory(device: torch.device) -> Iterator[MemoryWatch]:
    """Watch the memory of a device.

    Args:
        device: CUDA by its allocator's counters; any other by :class:`StorageTracker`, which slows
            the program down.
    """
    if device.type == "cuda":
        yield CudaMemory(device)
    else:
        with StorageTracker() as tracker:
            yield tracker


def bytes_of(tensors: Iterator[Tensor]) -> int:
    """Sum the bytes of the tensors' storages, each storage once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
