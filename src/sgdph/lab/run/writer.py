"""Write an epoch's files, in the background if a GPU trains the next epoch meanwhile.

A checkpoint of ResNet18 has 90 MB, and an epoch takes two seconds on a large GPU. Needs only torch,
like :mod:`sgdph.lab.run.epoch`.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgdph.lab.files import write_bytes


class Writer:
    """Runs write functions one after another, in the caller's thread or in a background thread.

    At most one write is in progress: submitting the next one waits for it. So a kill loses at most
    the epoch that had just finished, and a failed write is reported one epoch later.

    Args:
        beside: Whether to use a background thread. A write there must not call anything that all
            processes have to call together.
    """

    def __init__(self, beside: bool) -> None:
        self.beside = beside
        self._thread = ThreadPoolExecutor(1, "sgdph-writer") if beside else None
        self._last: Future[None] | None = None

    def do(self, write: Callable[[], None]) -> None:
        """Start a write after the previous one has finished.

        Raises:
            Exception: What the previous write raised, or this one without a background thread.
        """
        self.wait()
        if self._thread is None:
            write()
        else:
            self._last = self._thread.submit(write)

    def wait(self) -> None:
        """Wait until everything is written.

        Raises:
            Exception: What the last write raised.
        """
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=True)


class Snapshot:
    """A copy of nested tensors in CPU memory, which later steps do not change.

    Creating the copy does not wait for the device: its tensors are copied to pinned memory after
    the work that is already queued. Only :meth:`content` waits.

    Args:
        content: Tensors within mappings, lists and tuples.
        device: The device of all tensors that are not on the CPU.
    """

    def __init__(self, content: Any, device: torch.device) -> None:
        self._content = _copied(content)
        self._copied: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(device))

    def content(self) -> Any:
        """Wait for the copy and return it."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._content


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        value = value.detach()
        if value.device.type != "cuda":
            return value.to("cpu", copy=True)
        return torch.empty_like(value, device="cpu", pin_memory=True).copy_(
            value, non_blocking=True
        )
    if isinstance(value, Mapping):
        # Copy the mapping itself: a state dict has its modules' versions as an attribute.
        same: Any = copy.copy(value)
        same.update({name: _copied(each) for name, each in value.items()})
        return same
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(each) for each in value)
    return value


def write_checkpoint(paths: Sequence[Path], content: Mapping[str, Any]) -> None:
    """Replace checkpoints one after another, each atomically.

    Raises:
        WriteError: If one cannot be written. Its old file is kept then.
    """
    # Serialized in memory first, because torch.save hides why a file cannot be written.
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    for path in paths:
        write_bytes(path, buffer.getbuffer())
