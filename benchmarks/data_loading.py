"""What share of an epoch a run waits for its data: CIFAR-10 as a tensor, and torch's DataLoader.

    python benchmarks/data_loading.py --data-dir DIR [--models resnet8,resnet20] [--rounds 5]
        [--steps 60] [--batch-size 128] [--data-workers 0,1,2] [--threads N] [--device cpu]

Every way of loading gives the same augmentation (crop of 32 out of 40, flip, normalisation) in the
same memory format. An epoch here is ``--steps`` steps of SGDM over that many batches of training
images; the waiting is all time inside ``next(batches)``, and the drawing of the epoch's plan. The
ways alternate in one process; one pass of each comes before, so that worker processes are there
already. The figures are medians over rounds, the shares with the smallest and the largest. Where
other work runs on the machine, the share of the process's own CPU time says more of one tensor than
the wall clock's; of a loader with workers it says nothing of theirs. The last column is images per
second, waiting and training.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms import v2

from sgdph.lab.data.dataset import plan_epoch
from sgdph.lab.data.loading import load_dataset
from sgdph.lab.data.tensors import TensorDataset
from sgdph.lab.networks.models import build_model
from sgdph.lab.run.step import optimization_step

Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]


class Items(TorchDataset[tuple[Tensor, int]]):
    """The training images one by one, augmented by torchvision's transforms."""

    def __init__(self, data: TensorDataset) -> None:
        self.images, self.labels = data.train_images, data.train_labels.tolist()
        self.transform = v2.Compose(
            [
                v2.RandomCrop(32, padding=data.crop_padding),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32),
                v2.Normalize(data.mean.flatten().tolist(), data.std.flatten().tolist()),
            ]
        )

    def __len__(self) -> int:
        """Count the images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Augment one image."""
        return self.transform(self.images[index]), self.labels[index]


def as_tensor(data: TensorDataset, size: int) -> Batches:
    """Load as the laboratory does."""
    generator = torch.Generator().manual_seed(0)
    return lambda: data.training_batches(plan_epoch(data, generator), size)


def by_loader(data: TensorDataset, size: int, workers: int, device: torch.device) -> Batches:
    """Load through torch's DataLoader, its workers kept from pass to pass."""
    loader: Any = DataLoader(
        Items(data),
        batch_size=size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in loader:
            moved = images.to(device, non_blocking=True)
            yield moved.contiguous(memory_format=torch.channels_last), labels.to(device)

    return batches


@dataclass
class Way:
    """One way of loading, and what was measured of it."""

    name: str
    batches: Batches
    shares: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)


def epoch(way: Way, model: nn.Module, device: torch.device) -> None:
    """Train one epoch and note what it took."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    waited, waited_cpu, count, steps = 0.0, 0.0, 0, 0
    begun, begun_cpu = time.perf_counter(), time.process_time()
    batches = way.batches()
    while True:
        asked, asked_cpu = time.perf_counter(), time.process_time()
        batch = next(batches, None)
        wait_for(device)
        waited += time.perf_counter() - asked
        waited_cpu += time.process_time() - asked_cpu
        if batch is None:
            break
        images, labels = batch
        optimization_step(optimizer, F.cross_entropy(model(images), labels))
        wait_for(device)
        count += len(labels)
        steps += 1
    seconds = time.perf_counter() - begun
    way.shares.append(waited / seconds)
    way.own.append(waited_cpu / (time.process_time() - begun_cpu))
    way.waits.append(1e3 * waited / steps)
    way.rates.append(count / seconds)


def wait_for(device: torch.device) -> None:
    """Let a GPU finish, so that its work is counted where it belongs."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--models", default="resnet8,resnet20")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--data-workers", default="0,1,2")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device, size = torch.device(arguments.device), arguments.batch_size
    whole = load_dataset("cifar10", data_dir=arguments.data_dir)
    assert isinstance(whole, TensorDataset)
    count = min(arguments.steps * size, whole.train_count)
    data = replace(
        whole, train_images=whole.train_images[:count], train_labels=whole.train_labels[:count]
    )
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(
        f"torch {torch.__version__}, Python {platform.python_version()}, {where}, "
        f"{torch.get_num_threads()} threads, batch {size}, {arguments.steps} steps an epoch, "
        f"{arguments.rounds} rounds\n"
    )
    print(
        "| model | loading | wait, share of the epoch | of the CPU time | ms a batch | images/s |"
    )
    print("|---|---|---|---|---|---|")
    for name in arguments.models.split(","):
        torch.manual_seed(0)
        model = build_model(name, in_channels=3, classes=10)
        model.to(device=device, memory_format=torch.channels_last)
        ways = [Way("one tensor", as_tensor(data.to(device), size))]
        for workers in map(int, arguments.data_workers.split(",")):
            loading = by_loader(data, size, workers, device)
            ways.append(Way(f"DataLoader, {workers} workers", loading))
        for _ in range(1 + arguments.rounds):
            for way in ways:
                epoch(way, model, device)
        for way in ways:
            print(
                f"| {name} | {way.name} | {spread(way.shares[1:])} | {spread(way.own[1:])} | "
                f"{statistics.median(way.waits[1:]):.1f} | "
                f"{statistics.median(way.rates[1:]):,.0f} |",
                flush=True,
            )


def spread(shares: list[float]) -> str:
    """Write a median with the smallest and the largest."""
    return f"{statistics.median(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})"


if __name__ == "__main__":
    main()
