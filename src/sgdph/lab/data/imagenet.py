"""ImageNet (ILSVRC 2012): 1,281,167 training and 50,000 validation images in 1,000 classes.

Source: Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015. As is
usual, this laboratory tests on the 50,000 validation images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sgdph.lab.data.image_dataset import resize_and_crop
from sgdph.lab.data.image_files import (
    FolderSplits,
    ImageFiles,
    check_same_classes,
    class_folders,
    set_root,
)
from sgdph.lab.data.registry import DATASETS
from sgdph.lab.data.source import FileSource
from sgdph.lab.errors import LabError

NAME = "imagenet"
PAGE = DATASETS[NAME].origin
# The file that torchvision makes from the development kit, and the kit itself.
META = ("meta.bin", "ILSVRC2012_devkit_t12.tar.gz")
SPLITS = ("train", "val")
CLASSES, TRAINING_IMAGES, TEST_IMAGES = 1000, 1_281_167, 50_000


def has_devkit(root: Path) -> bool:
    """Return whether a file of :data:`META`, which torchvision's ``ImageNet`` needs, is there."""
    return any((root / name).is_file() for name in META)


def missing_imagenet(data_dir: Path | None) -> str | None:
    """Describe what is missing of the set in a directory; ``None`` if it seems complete."""
    if data_dir is None:
        return "train/<class>/, val/<class>/"
    root = set_root(NAME, data_dir)
    gone = [f"{name}/<class>/" for name in SPLITS if not (root / name).is_dir()]
    return ", ".join(gone) or None


def read_imagenet(data_dir: Path | None) -> FolderSplits:
    """List the set's files, through torchvision if the development kit is there.

    With the kit, or the ``meta.bin`` that torchvision makes from it, the set must hold everything
    that the kit lists. Without it, any ``train/<class>/`` and ``val/<class>/`` are accepted.

    Args:
        data_dir: The directory that holds the files, or a folder ``imagenet`` with them.

    Raises:
        LabError: If files are missing or damaged, or classes or counts are wrong.
    """
    expected = "train/<class>/ and val/<class>/ (images), and for torchvision's checks " + META[1]
    if data_dir is None:
        raise LabError(
            f"{NAME} needs --data-dir DIR, a directory that holds {expected}; registered users "
            f"fetch it from {PAGE}"
        )
    root = set_root(NAME, data_dir)
    missing = [f"{root / name}/" for name in SPLITS if not (root / name).is_dir()]
    if missing:
        raise LabError(
            f"{NAME}: {' and '.join(missing)} is not there; expected {expected}. Unpack the "
            f"archives there (from {PAGE}): with all of them in that directory, "
            f"torchvision.datasets.ImageNet({str(root)!r}, split) does it, for train and for val"
        )
    if not has_devkit(root):
        return class_folders(root, *SPLITS)
    train, test = (read_split(root, split) for split in SPLITS)
    check_same_classes(root, *SPLITS, train.wnids, test.wnids)
    found = FolderSplits(
        "torchvision.datasets.ImageNet", len(train.classes), files_of(train), files_of(test)
    )
    problem = disagreement(root, train.wnids, found)
    if problem is not None:
        raise LabError(
            f"{root} {problem}: unpack the archives again ({PAGE}), or remove "
            f"{' and '.join(META)} if this is your own set"
        )
    return found


def disagreement(root: Path, classes: list[str], found: FolderSplits) -> str | None:
    """Describe how the files differ from the list in torchvision's ``meta.bin``, if they do.

    Args:
        root: The set's folder.
        classes: The folders of ``train/``, the same as those of ``val/``.
        found: The files.
    """
    from torchvision.datasets.imagenet import load_meta_file

    names, test_labels = load_meta_file(root)
    missing = sorted(set(names) - set(classes))
    if missing:
        return (
            f"lacks {len(missing)} of the {len(names)} classes that {META[0]} lists, like "
            f"{missing[0]}"
        )
    if len(found.test) < len(test_labels):
        return f"has {len(found.test):,} images in val/, and {META[0]} lists {len(test_labels):,}"
    if found.classes == CLASSES and len(found.train) != TRAINING_IMAGES:
        return f"has {len(found.train):,} images in train/, expected {TRAINING_IMAGES:,}"
    return None


def read_split(root: Path, split: str) -> Any:
    """Read a split with torchvision's ``ImageNet``."""
    from torchvision.datasets import ImageNet

    try:
        return ImageNet(root, split)
    # torch.load raises errors of many types on a damaged file.
    except Exception as error:
        first = str(error).split(". ")[0]
        raise LabError(
            f"torchvision cannot read {root / split} as ImageNet ({type(error).__name__}: "
            f"{first}): the folder or {META[0]} is damaged, or scipy is not installed; unpack the "
            f"archives again ({PAGE}), or remove {' and '.join(META)} to read any class folders"
        ) from error


def files_of(split: Any) -> ImageFiles:
    """Return the files of a torchvision ``ImageFolder``."""
    return ImageFiles.of(*zip(*split.samples, strict=True))


def shortfall(found: FolderSplits) -> str | None:
    """Describe how a set's counts differ from the official ones; ``None`` if they do not."""
    counts = (found.classes, len(found.train), len(found.test))
    official = (CLASSES, TRAINING_IMAGES, TEST_IMAGES)
    if counts == official:
        return None
    return "{} classes and {:,} + {:,} images, ImageNet has {} and {:,} + {:,}".format(
        *counts, *official
    )


IMAGENET = FileSource(read_imagenet, missing_imagenet, shortfall, resize_and_crop)
