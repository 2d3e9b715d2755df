"""Sets of image files: their paths and labels, and layouts with one folder per class."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgdph.lab.errors import LabError


@dataclass(frozen=True)
class ImageFiles:
    """Image files and their labels.

    Attributes:
        paths: Encoded paths ``(N,)``. They are one array, because a list of strings would be copied
            into every worker when its reference counts change.
        labels: Class indices ``(N,)``, int64.
    """

    paths: np.ndarray[Any, np.dtype[np.bytes_]]
    labels: Tensor

    @classmethod
    def of(cls, paths: Iterable[str | os.PathLike[str]], labels: Iterable[int]) -> ImageFiles:
        """Make the object from one path and one label per image."""
        encoded = [os.fsencode(path) for path in paths]
        return cls(np.array(encoded, dtype=np.bytes_), torch.tensor(list(labels)).long())

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def path(self, index: int) -> str:
        """Return an image's path."""
        return os.fsdecode(self.paths[index])

    def subset(self, chosen: Tensor) -> ImageFiles:
        """Return the images at these positions."""
        return ImageFiles(self.paths[chosen.numpy()], self.labels[chosen])


@dataclass(frozen=True)
class FolderSplits:
    """The image files of a set, as found on the disk.

    Attributes:
        layout: Description of the directory layout.
        classes: Number of classes.
        train: The training images.
        test: The images to evaluate on.
    """

    layout: str
    classes: int
    train: ImageFiles
    test: ImageFiles


def set_root(name: str, data_dir: Path) -> Path:
    """Return the folder with the set's name in the data directory, or else the directory itself."""
    return data_dir / name if (data_dir / name).is_dir() else data_dir


def class_folders(root: Path, train: str, test: str) -> FolderSplits:
    """Read a set that has one folder per split, each with one folder per class.

    Args:
        root: The directory of the split folders.
        train: Folder of the training split.
        test: Folder of the test split.

    Raises:
        LabError: If a folder holds no classes, a class holds no images, or the two folders hold
            different classes.
    """
    (classes, train_files), (test_classes, test_files) = (
        scan(root / name) for name in (train, test)
    )
    check_same_classes(root, train, test, classes, test_classes)
    layout = f"{train}/<class>/ and {test}/<class>/"
    return FolderSplits(layout, len(classes), train_files, test_files)


def check_same_classes(
    root: Path, train: str, test: str, classes: list[str], test_classes: list[str]
) -> None:
    """Raise LabError unless both of the root's folders hold the same classes."""
    alone = sorted(set(classes) ^ set(test_classes))
    if alone:
        raise LabError(
            f"{root / train} and {root / test} must hold the same classes, but {len(alone)} of "
            f"their {len(set(classes) | set(test_classes))} are in one of them only, like "
            f"{alone[0]}. Put images of every class into both. The few-shot split has different "
            "classes in its parts and cannot be used"
        )


def scan(folder: Path) -> tuple[list[str], ImageFiles]:
    """List the classes of a folder of class folders, and their images, sorted by name.

    Raises:
        LabError: If there are no classes, or one has no images.
    """
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(folder)
    except OSError as error:
        raise LabError(
            f"{folder} must hold a folder of images per class: {str(error).splitlines()[0]}"
        ) from error
    return found.classes, ImageFiles.of(*zip(*found.samples, strict=True))
