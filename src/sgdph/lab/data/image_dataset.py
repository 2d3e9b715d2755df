"""Sets of image files, which worker processes read, augment and resize.

torch's ``DataLoader`` reads, torchvision's transforms (v2) augment, and the device normalises. An
image's augmentation depends only on its own seed, which is part of the epoch's plan. So the number
of workers or processes does not change a single bit, and neither does resuming a run.
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

# Statistics of ImageNet's training images in [0, 1], as used by torchvision and most recipes.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# ImageNet's usual evaluation: resize the shorter side to 256, then crop a window of 224.
RESIZE, WINDOW = 256, 224
# Every seed below this fits into an int64.
SEEDS = 2**63 - 1


@dataclass(frozen=True)
class ImageFileDataset(Dataset):
    """A set whose images are files.

    At most one pass over the training images and one over the evaluation images can run at a time.
    Each has its own workers, which are kept for the next pass.

    Attributes:
        train_files: The training images.
        test_files: The evaluation images.
        train_transform: Transform of a training image. It draws from torch's global CPU generator.
        test_transform: Transform of an evaluation image.
        workers: Number of processes that read each of the two; 0 reads in the main process.
        batch_device: Device of its batches.
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
        """Device of its batches."""
        return self.batch_device

    @property
    def train_count(self) -> int:
        """Number of training images."""
        return len(self.train_files)

    @property
    def test_count(self) -> int:
        """Number of evaluation images."""
        return len(self.test_files)

    def to(self, device: torch.device) -> ImageFileDataset:
        """Return the set with its batches on a device; ``self``, with its workers, if unchanged."""
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
        # This generator must not hold self: the workers would then be part of a reference cycle.
        # The garbage collector would close their queues first, and they would end only by a
        # time-out.
        items = (
            list(zip(plan.order[places].tolist(), plan.seeds[places].tolist(), strict=True))
            for places in batch_places(self.train_count, size, share)
        )
        return map(self._on_device, self._training.batches(items))

    def evaluation_batches(
        self, size: int, share: Share = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the evaluation batches; see :meth:`Dataset.evaluation_batches`."""
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
    """Return a transform that crops a random part (8% to 100% of the area), resizes and mirrors it.

    This is ImageNet's usual augmentation (Szegedy et al., "Going Deeper with Convolutions", CVPR
    2015). Mirroring is random too.

    Args:
        size: Height and width of the result, in pixels.
    """
    from torchvision.transforms import v2

    return v2.Compose(
        [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    )


def resize(size: int) -> Any:
    """Return a transform that resizes the whole image, as the SGD-PH paper does for Mini-ImageNet.

    The paper says "resized to 224".
    """
    from torchvision.transforms import v2

    return v2.Compose([v2.Resize((size, size), antialias=True), v2.PILToTensor()])


def resize_and_crop(size: int) -> Any:
    """Return ImageNet's usual evaluation transform.

    It resizes the shorter side to 256/224 of ``size`` and crops the centre.
    """
    from torchvision.transforms import v2

    shorter = round(size * RESIZE / WINDOW)
    return v2.Compose([v2.Resize(shorter, antialias=True), v2.CenterCrop(size), v2.PILToTensor()])
