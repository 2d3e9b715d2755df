"""From a set's name to the set, divided as it was asked for."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from sgdph.lab.config.run_config import DatasetName
from sgdph.lab.data.cifar import CIFARS, read_cifar
from sgdph.lab.data.dataset import Dataset
from sgdph.lab.data.embedded import read_digits, read_mnist5k
from sgdph.lab.data.fashion import read_fashion_mnist
from sgdph.lab.data.folders import FolderDataset
from sgdph.lab.data.image_reader import pick_workers
from sgdph.lab.data.imagenet import read_imagenet
from sgdph.lab.data.mini_imagenet import read_mini_imagenet
from sgdph.lab.data.splits import SplitSizes
from sgdph.lab.data.tensors import TensorDataset, TextDataset, channel_statistics
from sgdph.lab.data.text import CHARACTERS, read_pydoc
from sgdph.lab.data.transforms import evaluation_transform, training_transform
from sgdph.lab.errors import LabError, unknown_name

FOLDERS = ("mini-imagenet", "imagenet")
IMAGE_SIZE = 224
# Zero padding of the random crop, with a random flip; sets that are not named are not augmented.
CROP_PADDING = {"cifar10": 4, "cifar100": 4, "fashion-mnist": 4}


def load_dataset(
    name: str,
    *,
    data_dir: Path | None = None,
    train_size: int | None = None,
    validation_size: int | None = None,
    download: bool = False,
    image_size: int | None = None,
    workers: int | None = None,
) -> Dataset:
    """Load a set onto the CPU.

    Args:
        name: One of :data:`sgdph.lab.config.run_config.DatasetName`.
        data_dir: Where the files of a set lie that does not come with a package.
        train_size: Use a stratified subset of this many training images (of windows of text: a
            subset spread over all of it); ``None`` uses all.
        validation_size: Hold out so many of these, stratified, and evaluate on them: the set that
            is returned then has no test images. ``None`` evaluates on the test images.
        download: Let torchvision download CIFAR or Fashion-MNIST into ``data_dir`` where it is not
            there yet.
        image_size: Height and width of the images, where they are files; 224 if ``None``.
        workers: Processes that read image files; ``None`` for one per CPU core, at most 8.

    Returns:
        The set. Mean and deviation are those of the images trained on (of image files: ImageNet's).

    Raises:
        LabError: If files are missing or damaged, or an option does not fit the set.
    """
    if name not in get_args(DatasetName):
        raise LabError(
            unknown_name("dataset", name, get_args(DatasetName), "sgdph data lists them")
        )
    sizes = SplitSizes(train_size, validation_size)
    if name in FOLDERS:
        return _files(name, data_dir, sizes, image_size or IMAGE_SIZE, pick_workers(workers))
    if image_size is not None:
        raise LabError(
            f"--image-size is for sets of image files ({', '.join(FOLDERS)}); {name} keeps the "
            "size that it has: leave it out"
        )
    if name == "pydoc":
        return _text(sizes)
    return _images(name, _read(name, data_dir, download), sizes)


def _read(
    name: str, data_dir: Path | None, download: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Read a set of images as tensors: images and labels to train, and to test."""
    if name in CIFARS:
        return read_cifar(name, data_dir, download)
    if name == "fashion-mnist":
        return read_fashion_mnist(data_dir, download)
    return read_mnist5k() if name == "mnist5k" else read_digits()


def _images(
    name: str, parts: tuple[Tensor, Tensor, Tensor, Tensor], sizes: SplitSizes
) -> TensorDataset:
    images, labels, test_images, test_labels = parts
    kept, held = sizes.split(name, labels)
    if held is not None:
        test_images, test_labels = images[held], labels[held]
    train_images = images[kept]
    mean, std = channel_statistics(train_images)
    return TensorDataset(
        name=name,
        classes=CIFARS[name].classes if name in CIFARS else 10,
        crop_padding=CROP_PADDING.get(name, 0),
        flip=name in CROP_PADDING,
        train_images=train_images,
        train_labels=labels[kept],
        test_images=test_images,
        test_labels=test_labels,
        mean=mean,
        std=std,
    )


def _text(sizes: SplitSizes) -> TextDataset:
    windows, following, test, test_following = read_pydoc()
    # A window has no class.
    kept, held = sizes.split("pydoc", torch.zeros(len(windows), dtype=torch.int64))
    if held is not None:
        test, test_following = windows[held], following[held]
    return TextDataset(
        name="pydoc",
        classes=len(CHARACTERS),
        crop_padding=0,
        flip=False,
        train_images=windows[kept],
        train_labels=following[kept],
        test_images=test,
        test_labels=test_following,
        mean=torch.zeros(1),
        std=torch.ones(1),
    )


def _files(
    name: str, data_dir: Path | None, sizes: SplitSizes, image_size: int, workers: int
) -> FolderDataset:
    found = read_imagenet(data_dir) if name == "imagenet" else read_mini_imagenet(data_dir)
    kept, held = sizes.split(name, found.train.labels)
    return FolderDataset(
        name=name,
        classes=found.classes,
        train_files=found.train.subset(kept),
        test_files=found.test if held is None else found.train.subset(held),
        train_transform=training_transform(image_size),
        test_transform=evaluation_transform(name, image_size),
        workers=workers,
        batch_device=torch.device("cpu"),
    )
