"""Sources of data sets, which look for a set, read it and check it."""

from __future__ import annotations

import hashlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from sgdph.lab.data.dataset import Dataset
from sgdph.lab.data.image_dataset import ImageFileDataset, training_transform
from sgdph.lab.data.image_files import FolderSplits
from sgdph.lab.data.image_reader import Transform, check_readable
from sgdph.lab.data.splits import SplitSizes
from sgdph.lab.data.tensors import TensorDataset, channel_statistics
from sgdph.lab.errors import LabError

IMAGE_SIZE = 224

TensorSplits: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
"""Images and labels to train on, then those to test on."""
Missing: TypeAlias = Callable[[Path | None], str | None]
"""Says what is missing under a data directory; ``None`` where all seems there."""


@dataclass(frozen=True)
class Request:
    """A request for a data set.

    Attributes:
        name: The set's name.
        data_dir: Directory of its files.
        sizes: How many of its training images are used, and for what.
        download: Whether it may be downloaded if it is missing.
        image_size: Height and width of the images. ``None`` means 224 for image files, and the
            original size otherwise.
        workers: Number of processes that read image files.
    """

    name: str
    data_dir: Path | None
    sizes: SplitSizes
    download: bool
    image_size: int | None
    workers: int


class Source(ABC):
    """The source of a data set."""

    @abstractmethod
    def missing(self, data_dir: Path | None) -> str | None:
        """Describe what is missing under a data directory; ``None`` if it seems complete."""

    @abstractmethod
    def load(self, request: Request) -> Dataset:
        """Load the set onto the CPU.

        Raises:
            LabError: If files are missing or damaged, or a size is out of bounds.
        """

    @abstractmethod
    def check(self, data_dir: Path | None, workers: int) -> str:
        """Read all of the set, and describe what was found.

        Raises:
            LabError: If something is missing or damaged.
        """

    def download(self, data_dir: Path) -> None:
        """Download the set into a directory, if the registry says that torchvision can.

        Raises:
            LabError: If the download fails.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class TensorSource(Source):
    """A set of images that fits into memory.

    Attributes:
        classes: Number of classes.
        read: Reads the set from a directory; downloads it if it is missing and that is allowed.
        find: Describes what is missing.
        crop_padding: Zero padding of the random crop that augments training, together with a random
            flip; 0 for neither.
    """

    classes: int
    read: Callable[[Path | None, bool], TensorSplits]
    find: Missing
    crop_padding: int = 0

    def missing(self, data_dir: Path | None) -> str | None:
        """Describe what is missing."""
        return self.find(data_dir)

    def load(self, request: Request) -> Dataset:
        """Load the set; see :meth:`Source.load`."""
        images, labels, test_images, test_labels = self.read(request.data_dir, request.download)
        padding = self.crop_padding
        if (size := request.image_size) is not None:
            padding = padding * size // images.shape[-1]
            images = shrink(request.name, images, size)
            test_images = shrink(request.name, test_images, size)
        kept, held = request.sizes.split(request.name, labels)
        if held is not None:
            test_images, test_labels = images[held], labels[held]
        train_images = images[kept]
        mean, std = channel_statistics(train_images)
        return TensorDataset(
            name=request.name,
            classes=self.classes,
            crop_padding=padding,
            flip=self.crop_padding > 0,
            train_images=train_images,
            train_labels=labels[kept],
            test_images=test_images,
            test_labels=test_labels,
            mean=mean,
            std=std,
        )

    def check(self, data_dir: Path | None, workers: int) -> str:
        """Read all of the set, and return the counts."""
        images, labels, test, test_labels = self.read(data_dir, False)
        shape = "x".join(map(str, images.shape[1:]))
        classes = len(torch.cat([labels, test_labels]).bincount().nonzero())
        return f"{len(images):,} + {len(test):,} of {shape}, {classes} classes"

    def download(self, data_dir: Path) -> None:
        """Download the set."""
        self.read(data_dir, True)


@dataclass(frozen=True)
class FileSource(Source):
    """A set of image files.

    Attributes:
        read: Lists its files in a directory.
        find: Describes what is missing.
        shortfall: Describes how the counts differ from the official ones; ``None`` if they do not.
        evaluation_transform: Makes the transform of an evaluation image from the image size.
    """

    read: Callable[[Path | None], FolderSplits]
    find: Missing
    shortfall: Callable[[FolderSplits], str | None]
    evaluation_transform: Callable[[int], Transform]

    def missing(self, data_dir: Path | None) -> str | None:
        """Describe what is missing."""
        return self.find(data_dir)

    def load(self, request: Request) -> Dataset:
        """Load the set; see :meth:`Source.load`."""
        found, size = self.read(request.data_dir), request.image_size or IMAGE_SIZE
        kept, held = request.sizes.split(request.name, found.train.labels)
        return ImageFileDataset(
            name=request.name,
            classes=found.classes,
            train_files=found.train.subset(kept),
            test_files=found.test if held is None else found.train.subset(held),
            train_transform=training_transform(size),
            test_transform=self.evaluation_transform(size),
            workers=request.workers,
            batch_device=torch.device("cpu"),
        )

    def check(self, data_dir: Path | None, workers: int) -> str:
        """Read every image file, and return the counts."""
        found = self.read(data_dir)
        for files in (found.train, found.test):
            check_readable(files, workers)
        counts = f"{len(found.train):,} + {len(found.test):,} images, {found.classes} classes"
        less = self.shortfall(found)
        return counts if less is None else f"{counts}; incomplete: {less}"


def shrink(name: str, images: Tensor, size: int) -> Tensor:
    """Shrink images to ``size`` pixels a side; each pixel is the rounded mean of a square.

    Args:
        name: The set's name.
        images: Bytes ``(N, C, H, H)``.
        size: New height and width, a divisor of the old.

    Returns:
        Bytes ``(N, C, size, size)``.

    Raises:
        LabError: If ``size`` does not divide the height.
    """
    height = images.shape[-1]
    side = height // size
    if side * size != height:
        sizes = ", ".join(str(s) for s in range(1, height + 1) if height % s == 0)
        raise LabError(
            f"--image-size for {name} must divide its {height} pixels: {sizes}; got {size}"
        )
    squares = images.view(*images.shape[:2], size, side, size, side)
    # Integer arithmetic, so the result is the same on every machine. Halves are rounded up.
    count = side * side
    total: Tensor = squares.sum((3, 5)).add_(count // 2)
    return total.floor_divide_(count).to(torch.uint8)


def in_package(module: str) -> Missing:
    """Return a function that looks for a package that holds a set, whatever the data directory."""

    def missing(data_dir: Path | None) -> str | None:
        there = importlib.util.find_spec(module) is not None
        hint = f"the package {module}; pip install '.[lab]' in a checkout of sgdph"
        return None if there else hint

    return missing


def check_digest(file: Path, algorithm: str, expected: str, remedy: str) -> None:
    """Raise LabError, ending with the ``remedy``, unless a file's digest is the expected one."""
    with file.open("rb") as stream:
        digest = hashlib.new(algorithm, usedforsecurity=False)
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        raise LabError(
            f"{file} is damaged or not the official file: expected {algorithm.upper()} {expected}, "
            f"got {digest.hexdigest()}; {remedy}"
        )
