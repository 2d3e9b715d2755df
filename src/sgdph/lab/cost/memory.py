"""Measurement of the peak of live tensor bytes in a section of a program."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(NamedTuple):
    """A peak, in bytes.

    Attributes:
        added: Bytes on top of those live at the start of the section.
        live: Live bytes allocated since the measurement began, also in earlier sections.
    """

    added: int
    live: int


class MemoryWatch(Protocol):
    """Measures the memory of sections of a program, one after another."""

    def start(self) -> None:
        """Start a section."""

    def peak(self) -> Peak:
        """Return the peak of the section so far."""


class StorageTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that operations allocate while the mode is active.

    The storage of an output is counted if it is new: it is none of the inputs' storages, and was
    not counted before. So views and in-place results are not counted again. A storage is counted
    until it is freed, wherever that happens, including the autograd engine. Memory that an
    operation allocates and frees internally (a convolution's workspace) is not seen.

    Attributes:
        live: Bytes that are currently allocated.
        highest: Maximum of ``live`` since the last :meth:`start`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.highest = 0
        self._at_start = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def start(self) -> None:
        """Start a section."""
        self._at_start = self.highest = self.live

    def peak(self) -> Peak:
        """Return the peak of the section so far."""
        return Peak(self.highest - self._at_start, self.highest)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operation and count what it allocated."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        # Kept alive until the end, so that no ``id`` is reused in the meantime.
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
        """Start a section."""
        self._at_start = self._allocated()
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> Peak:
        """Return the peak of the section so far."""
        torch.cuda.synchronize(self._device)
        highest = torch.cuda.max_memory_allocated(self._device)
        return Peak(highest - self._at_start, highest - self._at_watch)

    def _allocated(self) -> int:
        torch.cuda.synchronize(self._device)
        return torch.cuda.memory_allocated(self._device)


@contextlib.contextmanager
def watch_memory(device: torch.device) -> Iterator[MemoryWatch]:
    """Measure the memory of a device in a context.

    Args:
        device: For a CUDA device, the allocator's counters are read. For any other device,
            :class:`StorageTracker` is used, which slows the program down.
    """
    if device.type == "cuda":
        yield CudaMemory(device)
    else:
        with StorageTracker() as tracker:
            yield tracker


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Sum the bytes of the tensors' storages, each storage once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())
