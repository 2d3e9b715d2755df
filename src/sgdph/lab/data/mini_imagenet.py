"""Mini-ImageNet: 100 of ImageNet's classes with 600 images each, for classification.

The classes are those of Ravi & Larochelle ("Optimization as a Model for Few-Shot Learning", ICLR
2017). Their lists ``train.csv``, ``val.csv`` and ``test.csv`` hold 64, 16 and 20 *classes*. For
classification, the three are pooled, and every class is split into 500 training and 100 test
images. No such split has been published. Here the images are sorted by class and file name, and
:func:`sgdph.lab.data.splits.stratified` chooses the training images by the hash that it uses for
every set. So the split is the same on every machine.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import torch

from sgdph.lab.data.image_dataset import resize
from sgdph.lab.data.image_files import FolderSplits, ImageFiles, class_folders, set_root
from sgdph.lab.data.registry import DATASETS
from sgdph.lab.data.source import FileSource
from sgdph.lab.data.splits import stratified
from sgdph.lab.errors import LabError

NAME = "mini-imagenet"
LISTS = ("train.csv", "val.csv", "test.csv")
IMAGES = "images"
PAGE = DATASETS[NAME].origin
CLASSES, IMAGES_PER_CLASS = 100, 600
# Of every six images of a class, five are for training and one is for testing.
PARTS = 6


def find_layout(data_dir: Path) -> str | None:
    """Return the layout: ``"lists"``, the name of the test split's folder, or ``None``."""
    root = set_root(NAME, data_dir)
    if any((root / name).is_file() for name in LISTS):
        return "lists"
    for test in ("test", "val"):
        if (root / "train").is_dir() and (root / test).is_dir():
            return test
    return None


def missing_mini_imagenet(data_dir: Path | None) -> str | None:
    """Describe what is missing of the set in a directory; ``None`` if it seems complete."""
    expected = f"{IMAGES}/ and {', '.join(LISTS)}, or train/<class>/ and test/<class>/"
    if data_dir is None:
        return expected
    layout = find_layout(data_dir)
    if layout != "lists":
        return None if layout else expected
    root = set_root(NAME, data_dir)
    gone = [name for name in (*LISTS, IMAGES) if not (root / name).exists()]
    return ", ".join(gone) or None


def read_mini_imagenet(data_dir: Path | None) -> FolderSplits:
    """List the set's files, in either layout.

    Args:
        data_dir: The directory that holds the files, or a folder ``mini-imagenet`` with them.

    Raises:
        LabError: If files are missing, or differ from what the lists say.
    """
    expected = (
        f"{IMAGES}/ with all images and the split files {', '.join(LISTS)}, or train/<class>/ and "
        "test/<class>/ (or val/)"
    )
    if data_dir is None:
        raise LabError(
            f"{NAME} needs --data-dir DIR, a directory that holds {expected}; it is made of "
            f"ImageNet, whose terms forbid passing it on (source of the lists: {PAGE})"
        )
    root, layout = set_root(NAME, data_dir), find_layout(data_dir)
    if layout is None:
        raise LabError(
            f"{NAME}: {root} must hold {expected}; found none of them. Put them there, or name "
            "the directory that holds them with --data-dir"
        )
    return read_lists(root) if layout == "lists" else class_folders(root, "train", layout)


def read_lists(root: Path) -> FolderSplits:
    """Pool the three lists and split every class into training and test images.

    Raises:
        LabError: If a list or an image is missing, a list cannot be read, or classes differ in
            size.
    """
    classes = pooled(root)
    check_sizes(root, {name: len(files) for name, files in classes.items()})
    check_images(root, classes)
    paths, labels = [], []
    for label, name in enumerate(sorted(classes)):
        for file in sorted(classes[name]):
            paths.append(root / IMAGES / file)
            labels.append(label)
    files = ImageFiles.of(paths, labels)
    size = len(files) // len(classes)
    test = max(1, round(size / PARTS))
    chosen = stratified(files.labels, (size - test) * len(classes))
    rest = torch.ones(len(files), dtype=torch.bool).index_fill_(0, chosen, False)
    layout = f"{IMAGES}/ and {', '.join(LISTS)}"
    return FolderSplits(
        layout, len(classes), files.subset(chosen), files.subset(rest.nonzero()[:, 0])
    )


def pooled(root: Path) -> dict[str, set[str]]:
    """Read the three lists, and return class to file names.

    Raises:
        LabError: If a list is missing, or lacks ``filename`` or ``label`` in its header or a line.
    """
    classes: dict[str, set[str]] = defaultdict(set)
    for name in LISTS:
        path = root / name
        if not path.is_file():
            raise LabError(
                f"{path} is missing: the {CLASSES} classes are spread over "
                f"{', '.join(LISTS)}; put the three split files beside {IMAGES}/"
            )
        with path.open(newline="", encoding="utf-8") as file:
            lines = csv.DictReader(file)
            if not {"filename", "label"} <= set(lines.fieldnames or ()):
                raise LabError(
                    f"{path} begins with {','.join(lines.fieldnames or ()) or 'nothing'}, "
                    "expected the columns filename,label; put the official split files there"
                )
            for line in lines:
                if not line["filename"] or not line["label"]:
                    raise LabError(
                        f"{path} has no filename and label in line {lines.line_num}; it is "
                        "incomplete or damaged. Fetch it again"
                    )
                classes[line["label"]].add(line["filename"])
    return classes


def check_sizes(root: Path, sizes: dict[str, int]) -> None:
    """Raise LabError unless all classes have the same number of images, at least two."""
    smallest, largest = (pick(sizes, key=lambda name: sizes[name]) for pick in (min, max))
    if sizes[smallest] < sizes[largest] or sizes[smallest] < 2:
        raise LabError(
            f"the split files in {root} list {sizes[smallest]} images of class {smallest} and "
            f"{sizes[largest]} of {largest}; expected equally many of each (Mini-ImageNet has "
            f"{IMAGES_PER_CLASS} of each of {CLASSES} classes): one of {', '.join(LISTS)} "
            "is cut off or not the official one; fetch it again. Your own set may also have the "
            "layout train/<class>/ and test/<class>/, without these files and with any numbers of "
            "images"
        )


def check_images(root: Path, classes: dict[str, set[str]]) -> None:
    """Raise LabError unless every listed image is there."""
    folder = root / IMAGES
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    listed = {file for files in classes.values() for file in files}
    missing = sorted(listed - there)
    if missing:
        raise LabError(
            f"{folder} lacks {len(missing):,} of the {len(listed):,} images that the split files "
            f"list, like {missing[0]}; unpack all images into that one folder"
        )


def shortfall(found: FolderSplits) -> str | None:
    """Describe how a set's counts differ from the official ones; ``None`` if they do not."""
    images = len(found.train) + len(found.test)
    wanted = CLASSES * IMAGES_PER_CLASS
    if (found.classes, images) == (CLASSES, wanted):
        return None
    return (
        f"{found.classes} classes and {images:,} images, Mini-ImageNet has {CLASSES} and {wanted:,}"
    )


MINI_IMAGENET = FileSource(read_mini_imagenet, missing_mini_imagenet, shortfall, resize)
