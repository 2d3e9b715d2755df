"""Sets of image files, read, augmented and resized by worker processes.

torch's ``DataLoader`` reads, torchvision's transforms (v2) augment, and the device normalises. What
becomes of an image depends on its own seed alone, which the epoch's plan holds; so the number of
workers or processes changes no bit, and neither does a resumption.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sgdph.lab.data.dataset import WHOLE, Dataset, EpochPlan, Share, batch_places, normalise
from sgdph.lab.data.image_files import ImageFiles
from sgdph.lab.data.image_reader import Reader, Transform

# Of ImageNet's training images, in [0, 1]: what torchvision's and most other recipes use.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# ImageNet's usual evaluation: the shorter side to 256 for a window of 224.
RESIZE, WINDOW = 256, 224
# Every seed below it fits an int64.
SEEDS = 2**63 - 1


@dataclass(frozen=True)
class ImageFileDataset(Dataset):
    """A set whose images are files.

    One pass over the training images, and one over those evaluated on, can be under way at a time:
    each has its own workers, which stay for the next pass.

    Attributes:
        train_files: The training images.
        test_files: The images that it is evaluated on.
        train_transform: What is made of a training image; draws from torch's global CPU generator.
        test_transform: What is made of an image that it is evaluated on.
        workers: Processes that read each of the two; 0 reads in the process itself.
        batch_device: Where its batches lie.
    """

    train_files: ImageFiles
    test_files: ImageFiles
    train_transform: Transform
    test_transform: Transform
    workers: int
    batch_device: torch.device

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return 3

    @property
    def device(self) -> torch.device:
        """Where its batches lie."""
        return self.batch_device

    @property
    def train_count(self) -> int:
        """Number of training images."""
        return len(self.train_files)

    @property
    def test_count(self) -> int:
        """Number of images that it is evaluated on."""
        return len(self.test_files)

    def to(self, device: torch.device) -> ImageFileDataset:
        """Return the set with its batches on a device; itself, with its workers, if it is there."""
        return self if device == self.batch_device else replace(self, batch_device=device)

    def plan(self, order: Tensor, generator: torch.Generator) -> EpochPlan:
        """Draw the seed of each image's augmentation."""
        count = len(order)
        seeds = torch.randint(SEEDS, (count,), generator=generator)
        return EpochPlan(order, torch.empty(0, 2), torch.empty(0), seeds)

    def training_batches(
        self, plan: EpochPlan, size: int, share: Share = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield an epoch's batches; see :meth:`Dataset.training_batches`."""
        # Nothing of self in here: the workers would belong to a cycle, and a collector that comes
        # upon one closes their queues first, after which they end by a time-out only.
        items = (
            list(zip(plan.order[places].tolist(), plan.seeds[places].tolist(), strict=True))
            for places in batch_places(self.train_count, size, share)
        )
        return map(self._on_device, self._training.batches(items))

    def evaluation_batches(
        self, size: int, share: Share = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what it is evaluated on; see :meth:`Dataset.evaluation_batches`."""
        windows = torch.split(share.of(torch.arange(self.test_count)), size)
        items = ([(index, 0) for index in window.tolist()] for window in windows)
        return map(self._on_device, self._evaluation.batches(items))

    @cached_property
    def _training(self) -> Reader:
        return self._reader(self.train_files, self.train_transform)

    @cached_property
    def _evaluation(self) -> Reader:
        return self._reader(self.test_files, self.test_transform)

    def _reader(self, files: ImageFiles, transform: Transform) -> Reader:
        return Reader(files, transform, self.workers, pin_memory=self.batch_device.type == "cuda")

    @cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        mean, std = (
            torch.tensor(values, device=self.batch_device).view(3, 1, 1) * 255
            for values in (IMAGENET_MEAN, IMAGENET_STD)
        )
        return mean, std

    def _on_device(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        images, labels = (part.to(self.batch_device, non_blocking=True) for part in batch)
        return normalise(images, *self._statistics), labels


def training_transform(size: int) -> Any:
    """Cut out a random part (8% to 100% of the area), resize it, and mirror it at random.

    ImageNet's usual augmentation (Szegedy et al., "Going Deeper with Convolutions", CVPR 2015).

    Args:
        size: Height and width of the outcome, pixels.
    """
    from torchvision.transforms import v2

    return v2.Compose(
        [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    )


def resize(size: int) -> Any:
    """Resize the whole image, as the SGD-PH paper says of Mini-ImageNet ("resized to 224")."""
    from torchvision.transforms import v2

    return v2.Compose([v2.Resize((size, size), antialias=True), v2.PILToTensor()])


def resize_and_crop(size: int) -> Any:
    """Resize the shorter side to 256/224 of the size, and cut out the middle, as for ImageNet."""
    from torchvision.transforms import v2

    shorter = round(size * RESIZE / WINDOW)
    return v2.Compose([v2.Resize(shorter, antialias=True), v2.CenterCrop(size), v2.PILToTensor()])
