"""Reading of image files by worker processes of torch's ``DataLoader``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import data as torch_data

from sgdph.lab.data.image_files import ImageFiles
from sgdph.lab.errors import LabError

MOST_WORKERS = 8
CHECKED_AT_ONCE = 64

Item: TypeAlias = tuple[int, int]
"""Which image, and the seed of its augmentation."""
Transform: TypeAlias = Callable[[Any], Tensor]
"""From a PIL image to bytes ``(3, S, S)``."""


@dataclass(frozen=True)
class Unreadable:
    """A worker's result in place of an image that it cannot read."""

    path: str
    reason: str


class Reader:
    """Reads batches of image files with a pool of workers that is kept between passes.

    Args:
        files: The images.
        transform: Transform of each image.
        workers: Number of worker processes; 0 reads in the main process.
        pin_memory: Whether batches are in page-locked memory, for a GPU.
    """

    def __init__(
        self, files: ImageFiles, transform: Transform, workers: int, pin_memory: bool
    ) -> None:
        self._order = _Order()
        self._passes = 0
        self._loader = torch_data.DataLoader(
            _Images(files, transform),
            batch_sampler=self._order,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=pin_memory,
            persistent_workers=workers > 0,
            worker_init_fn=_leave_the_end_to_the_main_process,
            # Without its own generator, each pass would draw from torch's global one.
            generator=torch.Generator(),
        )

    def batches(self, items: Iterable[list[Item]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches in order; this ends an earlier pass that is not finished.

        Args:
            items: The images of each batch, with the seeds of their augmentation.

        Yields:
            Bytes ``(B, 3, S, S)`` and labels ``(B,)``, int64, on the CPU.

        Raises:
            LabError: If a file cannot be read as an image.
            RuntimeError: If another pass was started in the meantime.
        """
        self._passes += 1
        this_pass = self._passes
        self._order.items = items
        for batch in self._loader:
            if isinstance(batch, Unreadable):
                raise LabError(
                    f"{batch.path} cannot be read as an image ({batch.reason}): it is damaged or "
                    "incomplete. Fetch or unpack it again, or remove it from the set"
                )
            yield batch
            if self._passes != this_pass:
                raise RuntimeError(
                    "another pass over these images was started and ended this one; finish one "
                    "before the next"
                )


class _Order(torch_data.Sampler[list[Item]]):
    """The batches of the next pass. The loader reads them when a pass starts."""

    items: Iterable[list[Item]] = ()

    def __iter__(self) -> Iterator[list[Item]]:
        return iter(self.items)


class _Images(torch_data.Dataset[Any]):
    """The part of the reader that runs in the workers: opens and transforms image files."""

    def __init__(self, files: ImageFiles, transform: Transform) -> None:
        self.files = files
        self.transform = transform

    def __getitem__(self, item: Item) -> tuple[Tensor, int] | Unreadable:
        index, seed = item
        image = open_image(self.files.path(index))
        if isinstance(image, Unreadable):
            return image
        with torch.random.fork_rng(devices=[]):
            # In the main process, torch.manual_seed would also reseed a GPU's generator.
            torch.default_generator.manual_seed(seed)
            return self.transform(image), int(self.files.labels[index])


def open_image(path: str) -> Any:
    """Read a file as an RGB image of PIL; return :class:`Unreadable` if that fails."""
    from torchvision.datasets.folder import default_loader

    try:
        return default_loader(path)
    # Pillow's readers raise errors of many types on damaged files.
    except Exception as error:
        return Unreadable(path, f"{type(error).__name__}: {error}")


def _collate(items: list[tuple[Tensor, int] | Unreadable]) -> tuple[Tensor, Tensor] | Unreadable:
    """Stack a batch, or return its first image that could not be read."""
    images, labels = [], []
    for item in items:
        if isinstance(item, Unreadable):
            return item
        images.append(item[0])
        labels.append(item[1])
    return torch.stack(images), torch.tensor(labels)


def _leave_the_end_to_the_main_process(worker: int) -> None:
    """Ignore Ctrl-C in a worker: the main process receives it too and stops the workers.

    If the main process is interrupted while it fetches a batch, it closes the connection to the
    worker's thread that passes on the batch's memory. That thread reports the lost connection
    through ``sys.excepthook``, so the hook is replaced by one that ignores such errors.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _report_all_but_hanging_up


def _report_all_but_hanging_up(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, traceback)


def pick_workers(workers: int | None) -> int:
    """Return the requested number of workers; by default one per available CPU core, at most 8."""
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return min(MOST_WORKERS, cores or 1)
    return workers


def check_readable(files: ImageFiles, workers: int) -> None:
    """Read every image, to check that it can be read.

    Raises:
        LabError: If a file cannot be read as an image.
    """
    windows = torch.split(torch.arange(len(files)), CHECKED_AT_ONCE)
    whole_set = ([(index, 0) for index in window.tolist()] for window in windows)
    for _ in Reader(files, _Nothing(), workers, pin_memory=False).batches(whole_set):
        pass


class _Nothing:
    """A transform that discards the image and returns an empty tensor."""

    def __call__(self, image: Any) -> Tensor:
        return torch.empty(0)
