"""What a run asks of a data set, whatever it lies in: batches, counts, and an epoch's choices."""

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
        """Take every so-manieth item."""
        return items[self.rank :: self.processes]


WHOLE = Share()


@dataclass(frozen=True)
class EpochPlan:
    """All random choices of one epoch, drawn at its start, on the CPU.

    A set uses the choices that its augmentation needs, and leaves the others empty.

    Attributes:
        order: The training images in order ``(N,)``.
        offsets: Row and column where each image is cropped ``(N, 2)``.
        flips: Which images are mirrored ``(N,)``, bool.
        seeds: The seed of each image's augmentation, where that is drawn when it is read ``(N,)``.
    """

    order: Tensor
    offsets: Tensor
    flips: Tensor
    seeds: Tensor

    def at(self, places: Tensor | slice) -> EpochPlan:
        """Return the choices for some places of the order ``(B,)``."""
        parts = (self.order, self.offsets, self.flips, self.seeds)
        return EpochPlan(*(part[places] if len(part) else part for part in parts))

    def to(self, device: torch.device) -> EpochPlan:
        """Return the choices on a device, without waiting for it.

        One transfer from pinned memory: of pageable memory each would wait.
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
    """Images (or windows of text) and labels, to train and to evaluate on.

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
        """Where its batches lie."""

    @property
    @abstractmethod
    def train_count(self) -> int:
        """Number of training images (windows of text)."""

    @property
    @abstractmethod
    def test_count(self) -> int:
        """Number of images (windows of text) that it is evaluated on."""

    @abstractmethod
    def to(self, device: torch.device) -> Dataset:
        """Return the set with its batches on a device."""

    @abstractmethod
    def plan(self, order: Tensor, generator: torch.Generator) -> EpochPlan:
        """Draw the augmentation that goes with an epoch's order; called by :func:`plan_epoch`."""

    @abstractmethod
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

    @abstractmethod
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


def plan_epoch(data: Dataset, generator: torch.Generator) -> EpochPlan:
    """Draw an epoch's order and augmentation.

    Drawn on the CPU, so that one seed gives one order on every device, and used or not, so that the
    generator's place depends on the number of epochs alone.

    Args:
        data: The set to be passed over.
        generator: A CPU generator; it moves on.
    """
    order = torch.randperm(data.train_count, generator=generator)
    return data.plan(order, generator)


def batch_places(count: int, size: int, share: Share) -> list[Tensor]:
    """List the places ``(B,)`` in an epoch's order that make up its batches, or a share of each.

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
