"""The interface of all data sets: batches, counts, and the random choices of an epoch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


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
        """Return this process's items: every ``processes``-th one, from ``rank`` on."""
        return items[self.rank :: self.processes]


WHOLE = Share()


@dataclass(frozen=True)
class EpochPlan:
    """All random choices of one epoch, drawn on the CPU at its start.

    A set draws the choices that its kind of augmentation uses, and leaves the others empty.

    Attributes:
        order: Indices of the training images, in the order of the epoch ``(N,)``.
        offsets: Row and column where each image is cropped ``(N, 2)``.
        flips: Which images are mirrored ``(N,)``, bool.
        seeds: Seed of each image's augmentation, if that is drawn when the image is read ``(N,)``.
    """

    order: Tensor
    offsets: Tensor
    flips: Tensor
    seeds: Tensor

    def at(self, places: Tensor | slice) -> EpochPlan:
        """Return the choices at some positions of the order ``(B,)``."""
        parts = (self.order, self.offsets, self.flips, self.seeds)
        return EpochPlan(*(part[places] if len(part) else part for part in parts))

    def to(self, device: torch.device) -> EpochPlan:
        """Return the choices on a device, without waiting for it. The seeds stay on the CPU.

        The choices move in one transfer from pinned memory. A transfer from pageable memory would
        wait for the device.
        """
        if device == self.order.device:
            return self
        numbers = (self.order[:, None], self.offsets, self.flips[:, None])
        packed = torch.cat([part.to(torch.int64) for part in numbers], 1)
        if device.type == "cuda":
            packed = packed.pin_memory()
        packed = packed.to(device, non_blocking=True)
        return EpochPlan(packed[:, 0], packed[:, 1:-1], packed[:, -1].bool(), self.seeds)


@dataclass(frozen=True)
class Dataset(ABC):
    """Images (or windows of text) and labels, for training and evaluation.

    Attributes:
        name: The set's name.
        classes: Number of classes.
    """

    name: str
    classes: int

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels of an image."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of its batches."""

    @property
    @abstractmethod
    def train_count(self) -> int:
        """Number of training images (windows of text)."""

    @property
    @abstractmethod
    def test_count(self) -> int:
        """Number of images (windows of text) for evaluation."""

    @abstractmethod
    def to(self, device: torch.device) -> Dataset:
        """Return the set with its batches on a device."""

    @abstractmethod
    def plan(self, order: Tensor, generator: torch.Generator) -> EpochPlan:
        """Draw the augmentation for an epoch's order; called by :func:`plan_epoch`."""

    @abstractmethod
    def training_batches(
        self, plan: EpochPlan, size: int, share: Share = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield an epoch's batches, or a process's share of each, on the device.

        Args:
            plan: The epoch's choices, the same in all processes.
            size: Images per batch, over all processes.
            share: Which part of every batch.

        Yields:
            Images ``(B, C, H, W)``, augmented and normalised, float32, and labels ``(B,)``, int64.
        """

    @abstractmethod
    def evaluation_batches(
        self, size: int, share: Share = WHOLE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images for evaluation, or a process's share of them, in order.

        Args:
            size: Images per batch.
            share: Which part of the set.

        Yields:
            Normalised images ``(B, C, H, W)``, float32, and labels ``(B,)``, int64.
        """


def plan_epoch(data: Dataset, generator: torch.Generator) -> EpochPlan:
    """Draw an epoch's order and augmentation.

    All choices are drawn on the CPU, so that a seed gives the same order on every device. They are
    drawn even if they are not used, so that the generator's state depends only on the number of
    epochs.

    Args:
        data: The data set.
        generator: A CPU generator; it is advanced.
    """
    order = torch.randperm(data.train_count, generator=generator)
    return data.plan(order, generator)


def batch_places(count: int, size: int, share: Share) -> list[Tensor]:
    """List each batch's positions ``(B,)`` in an epoch's order, or a share of them.

    Args:
        count: Number of training images.
        size: Images per batch, over all processes.
        share: Which part of every batch.
    """
    return [share.of(places) for places in torch.split(torch.arange(count), size)]


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Turn bytes ``(B, C, H, W)`` into float32 ``(images - mean) / std``, channels last."""
    scaled = images.to(torch.float32).sub_(mean).div_(std)
    return scaled.contiguous(memory_format=torch.channels_last)
