"""Sets whose images are tensors on the device and are augmented there, batch by batch.

Images stay bytes until a batch is made, so CIFAR takes only 184 MB.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sgdph.lab.data.dataset import WHOLE, Dataset, EpochPlan, Share, batch_places, normalise

# Bytes of images that a GPU prepares at once, because launching the kernels for a small batch takes
# longer than running them. A CPU prepares one batch at a time, which stays in its cache.
BLOCK = 2**27


@dataclass(frozen=True)
class TensorDataset(Dataset):
    """A set whose images are tensors.

    Attributes:
        crop_padding: Pixels of zero padding for the random crop that augments training; 0 for none.
        flip: Whether training images are mirrored at random.
        train_images: Bytes ``(N, C, H, W)``.
        train_labels: Class indices ``(N,)``, int64.
        test_images: Evaluation images, bytes ``(M, C, H, W)``.
        test_labels: Class indices ``(M,)``, int64.
        mean: Per-channel mean of the training images ``(C, 1, 1)``, in pixel units.
        std: Per-channel standard deviation of the training images ``(C, 1, 1)``, in pixel units.
    """

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
        """Device of its batches."""
        return self.mean.device

    @property
    def train_count(self) -> int:
        """Number of training images (windows of text)."""
        return len(self.train_labels)

    @property
    def test_count(self) -> int:
        """Number of evaluation images (windows of text)."""
        return len(self.test_labels)

    def to(self, device: torch.device) -> TensorDataset:
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

    def plan(self, order: Tensor, generator: torch.Generator) -> EpochPlan:
        """Draw where each image is cropped, and which images are mirrored."""
        count = len(order)
        offsets = torch.randint(2 * self.crop_padding + 1, (count, 2), generator=generator)
        flips = torch.rand(count, generator=generator) < 0.5
        return EpochPlan(order, offsets, flips, torch.empty(0, dtype=torch.int64))

    def training_batches(
        self, plan: EpochPlan, size: int, share: Share = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield an epoch's batches; see :meth:`Dataset.training_batches`."""
        batches = batch_places(self.train_count, size, share)
        plan = plan.at(torch.cat(batches)).to(self.device)
        together, first = self._batches_together(size), 0
        for start in range(0, len(batches), together):
            sizes = [len(places) for places in batches[start : start + together]]
            images, labels = training_batch(self, plan.at(slice(first, first + sum(sizes))))
            parts = (torch.split(each, sizes) for each in (images, labels))
            yield from zip(*parts, strict=True)
            first += sum(sizes)

    def _batches_together(self, size: int) -> int:
        """Return how many batches of ``size`` images are prepared at once."""
        if self.device.type == "cpu":
            return 1
        return max(1, BLOCK // (size * 4 * self.train_images[0].numel()))

    def evaluation_batches(
        self, size: int, share: Share = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the evaluation batches; see :meth:`Dataset.evaluation_batches`."""
        images, labels = share.of(self.test_images), share.of(self.test_labels)
        for some, their in zip(
            *(torch.split(each, size) for each in (images, labels)), strict=True
        ):
            yield self.normalise(some), their

    def normalise(self, images: Tensor) -> Tensor:
        """Turn bytes ``(B, C, H, W)`` into float32; training images get mean 0 and deviation 1."""
        return normalise(images, self.mean, self.std)


@dataclass(frozen=True)
class TextDataset(TensorDataset):
    """Windows of text; the label of each character is the next character.

    ``train_images`` and ``test_images`` are windows ``(N, 64)`` of character indices, bytes. Labels
    are ``(N, 64)``, int64. There is no augmentation; ``mean`` and ``std`` are not used.
    """

    @property
    def channels(self) -> int:
        """Number of different characters."""
        return self.classes

    def normalise(self, images: Tensor) -> Tensor:
        """Turn bytes ``(B, 64)`` into the indices that an embedding takes."""
        return images.long()


def training_batch(data: TensorDataset, plan: EpochPlan) -> tuple[Tensor, Tensor]:
    """Make one augmented, normalised batch.

    The crop is the usual one for CIFAR: pad the image with zero (black) pixels, then crop a window
    of the original size.

    Args:
        data: The set.
        plan: The choices for these images, on the set's device.

    Returns:
        Images ``(B, C, H, W)``, float32, and labels ``(B,)``.
    """
    # On a CPU, index_select copies whole images; an index in brackets copies byte by byte.
    images = data.train_images.index_select(0, plan.order)
    if data.crop_padding:
        images = _crop(images, data.crop_padding, plan.offsets)
    if data.flip:
        images = _mirror(images, plan.flips)
    return data.normalise(images), data.train_labels[plan.order]


def _crop(images: Tensor, padding: int, offsets: Tensor) -> Tensor:
    """Pad the images with zeros, and crop each at its offset to its original size."""
    height, width = images.shape[2:]
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    rows = torch.arange(len(images), device=images.device)
    return windows[rows, :, offsets[:, 0], offsets[:, 1]]


def _mirror(images: Tensor, chosen: Tensor) -> Tensor:
    """Mirror the chosen images by selecting each image or its mirror image, as a whole."""
    count = len(images)
    places = torch.arange(count, device=images.device) + count * chosen
    return torch.cat([images, images.flip(3)]).index_select(0, places)


def noise_dataset(
    name: str, shape: tuple[int, int, int], classes: int, *, train: int, test: int
) -> TensorDataset:
    """Make random images ``(C, H, W)``, augmented like CIFAR if ``name`` is a CIFAR set."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (train + test, *shape), generator=generator, dtype=torch.uint8)
    labels = torch.randint(classes, (train + test,), generator=generator)
    is_cifar = name.startswith("cifar")
    return TensorDataset(
        name=name,
        classes=classes,
        crop_padding=4 if is_cifar else 0,
        flip=is_cifar,
        train_images=images[:train],
        train_labels=labels[:train],
        test_images=images[train:],
        test_labels=labels[train:],
        mean=torch.full((shape[0], 1, 1), 127.5),
        std=torch.full((shape[0], 1, 1), 74.0),
    )


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Compute each channel's mean and population deviation over bytes ``(N, C, H, W)``.

    Pixels are counted per grey level, so the result is exact and the same on every machine.

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
