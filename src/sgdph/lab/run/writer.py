"""Writes an epoch's files, beside the next epoch where a GPU trains.

A checkpoint of ResNet18 takes 90 MB, and its epoch two seconds on a large GPU. Needs torch alone,
as :mod:`sgdph.lab.run.epoch`.
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
    """Does one thing after another, here or in a thread of its own.

    At most one is under way: who hands over the next one waits for it. So a kill costs at most the
    epoch that had just finished, and one that cannot be written is heard of an epoch later.

    Args:
        beside: Whether in a thread. It must not take part in what processes do together.
    """

    def __init__(self, beside: bool) -> None:
        self.beside = beside
        self._thread = ThreadPoolExecutor(1, "sgdph-writer") if beside else None
        self._last: Future[None] | None = None

    def do(self, write: Callable[[], None]) -> None:
        """Write, once what was handed over before is written.

        Raises:
            Exception: What that one raised, or this one if it is done here.
        """
        self.wait()
        if self._thread is None:
            write()
        else:
            self._last = self._thread.submit(write)

    def wait(self) -> None:
        """Wait until all is written.

        Raises:
            Exception: What the last one raised.
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
    """A copy of nested tensors in the CPU's memory, which later steps leave alone.

    The device is not waited for before the content is asked for: its tensors are copied to pinned
    memory behind what it has been given to do.

    Args:
        content: Tensors within mappings, lists and tuples.
        device: Whose tensors they are, but for those on the CPU.
    """

    def __init__(self, content: Any, device: torch.device) -> None:
        self._content = _copied(content)
        self._copied: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(device))

    def content(self) -> Any:
        """Return the copy, once it is there."""
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
        # A state dict bears its modules' versions as an attribute.
        same: Any = copy.copy(value)
        same.update({name: _copied(each) for name, each in value.items()})
        return same
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(each) for each in value)
    return value


def write_checkpoint(paths: Sequence[Path], content: Mapping[str, Any]) -> None:
    """Replace checkpoints, one after the other, each in one step.

    Raises:
        WriteError: If one cannot be written; the old one is still there then.
    """
    # In memory first: torch.save hides why a file cannot be written.
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    for path in paths:
        write_bytes(path, buffer.getbuffer())
