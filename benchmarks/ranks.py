"""What the curvature's reduction costs a training step of two processes.

    python benchmarks/ranks.py [--rounds 20] [--steps 10] [--ranks 2]

Steps of ResNet-20 under DistributedDataParallel (gloo, batch 16 of 32x32 images per process), by
turns in the same processes: SGDPH, SGDPH whose curvature stays on its rank (a process group of one:
the same work but for the collective), and torch's SGD. Wall time, because waiting is what is asked
for; median over rounds of the ratio within a round. Then the collective by itself, on ranks that
come to it together. What starting it before the backward could hide is at most the difference
between the first two.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import sgdph
from sgdph.lab.networks.models import build_model

SHARED, ALONE, SGD = "SGDPH", "SGDPH, curvature not reduced", "torch.optim.SGD"


class Trainer:
    """A model under DDP and its optimizer."""

    def __init__(self, kind: str, group: dist.ProcessGroup | None) -> None:
        torch.manual_seed(0)
        model = build_model("resnet20", in_channels=3, classes=10)
        self.replica = DistributedDataParallel(model)
        settings = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(model.parameters(), **settings)
            if kind == SGD
            else sgdph.SGDPH(sgdph.param_groups(model), **settings, process_group=group)
        )

    def step(self, x: Tensor, y: Tensor) -> None:
        """Train on one batch."""
        self.optimizer.zero_grad()
        loss = functional.cross_entropy(self.replica(x), y)
        if isinstance(self.optimizer, sgdph.SGDPH):
            self.optimizer.backward(loss)
        else:
            loss.backward()
        self.optimizer.step()


def seconds_of_collective(numbers: int, times: int = 200) -> float:
    """Time one all-reduce of float32 numbers on ranks that come to it together: the median."""
    vector, found = torch.zeros(numbers), []
    for _ in range(times):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(vector)
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def on_rank(rank: int, ranks: int, folder: str, rounds: int, steps: int) -> None:
    """Measure; the first rank prints."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks
    )
    alone = [dist.new_group([r]) for r in range(ranks)][rank]
    trainers = {
        kind: Trainer(kind, alone if kind == ALONE else None) for kind in (SHARED, ALONE, SGD)
    }
    x, y = torch.randn(16, 3, 32, 32), torch.randint(0, 10, (16,))
    seconds: dict[str, list[float]] = {kind: [] for kind in trainers}
    for i in range(rounds + 1):  # the first warms up
        for kind, trainer in trainers.items():
            dist.barrier()
            start = time.perf_counter()
            for _ in range(steps):
                trainer.step(x, y)
            if i > 0:
                seconds[kind].append((time.perf_counter() - start) / steps)
    model = trainers[SHARED].replica.module
    newton = [p.numel() for g in sgdph.param_groups(model) if g["channelwise"] for p in g["params"]]
    mean = round(statistics.mean(newton)) + 1
    collective = seconds_of_collective(mean)
    if rank == 0:
        gradient = 4 * sum(p.numel() for p in model.parameters())
        print(
            f"{ranks} ranks, {rounds} rounds of {steps} steps, torch {torch.__version__}, "
            f"{platform.machine()}"
        )
        for kind, times in seconds.items():
            ratios = [t / base for t, base in zip(times, seconds[ALONE], strict=True)]
            print(
                f"{kind:30} {statistics.median(times) * 1e3:8.1f} ms   "
                f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
            )
        print(f"one all-reduce of {4 * mean} bytes: {collective * 1e3:.2f} ms")
        print(
            f"bytes a step: curvature {4 * mean} (mean over {len(newton)} parameters; "
            f"{4 * (min(newton) + 1)} to {4 * (max(newton) + 1)}), gradient {gradient}: "
            f"{4 * mean / gradient:.1e}"
        )
    dist.destroy_process_group()


def main() -> None:
    """Start the ranks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--ranks", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(
            on_rank,
            (arguments.ranks, folder, arguments.rounds, arguments.steps),
            nprocs=arguments.ranks,
        )


if __name__ == "__main__":
    main()
