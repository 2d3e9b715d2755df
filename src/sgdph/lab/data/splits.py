"""Subsets and held-out parts that depend only on the labels, never on a run's seed."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from sgdph.lab.errors import LabError

SPLIT_KEY = "sgdph split 1"


def stratified(labels: Tensor, count: int) -> Tensor:
    """Choose ``count`` items so that every class keeps its share. Every call chooses the same ones.

    The order within a class comes from a hash of the item's index. So the choice does not depend on
    the version of a random generator. If classes are of equal size, a smaller choice is a subset of
    a larger one with the same labels.

    Args:
        labels: Class indices ``(N,)``.
        count: Number of items, between the number of classes and N.

    Returns:
        Sorted indices ``(count,)``, int64.

    Raises:
        LabError: If ``count`` is out of bounds.
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


@dataclass(frozen=True)
class SplitSizes:
    """How many of a set's training images are used, and for what.

    Attributes:
        train: Number of training images in use, a stratified subset; ``None`` for all.
        validation: Number of these that are held out for evaluation, a stratified subset again;
            ``None`` to train on all of them and evaluate on the test images.
    """

    train: int | None = None
    validation: int | None = None

    def split(self, name: str, labels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Choose the images to train on and the images to hold out.

        Args:
            name: The set's name, for error messages.
            labels: Labels by which the training images are stratified ``(N,)``, int64.

        Returns:
            Sorted indices of the images to train on, and of those held out (``None`` if none are).

        Raises:
            LabError: If a size is out of bounds.
        """
        used = torch.arange(len(labels))
        if self.train is not None:
            try:
                used = stratified(labels, self.train)
            except LabError as error:
                raise LabError(f"--train-size for {name}: {error}") from error
        if self.validation is None:
            return used, None
        classes = len(set(labels.tolist()))
        most = len(used) - classes
        if not classes <= self.validation <= most:
            raise LabError(
                f"--validation-size for {name}: expected between {classes} images (one per class) "
                f"and {most} (which leaves one per class of the {len(used)} training images in "
                f"use); got {self.validation}"
            )
        held = stratified(labels[used], self.validation)
        kept = torch.ones(len(used), dtype=torch.bool).index_fill_(0, held, False)
        return used[kept], used[held]
