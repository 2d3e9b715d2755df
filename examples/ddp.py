"""Train with SGDPH in several processes.

    pip install .
    torchrun --standalone --nproc-per-node 2 examples/ddp.py

Each process has its share of the batches; two lines differ from a loop in one process: the wrapper
around the model, and the sampler. On GPUs take "nccl" for "gloo", and move model and batches.
"""

from __future__ import annotations

import math
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import sgdph


def two_moons(count: int) -> TensorDataset:
    """Make two half circles of noisy points, one for each class."""
    generator = torch.Generator().manual_seed(0)
    angle = math.pi * torch.rand(count, generator=generator)
    label = torch.arange(count) % 2
    side = 1 - 2 * label
    points = torch.stack([angle.cos() + label, side * angle.sin() + 0.5 * label], dim=1)
    return TensorDataset(points + 0.1 * torch.randn(points.shape, generator=generator), label)


def main() -> None:
    """Train for some epochs, and let the first process print the progress."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    width = 32
    model = nn.Sequential(
        nn.Linear(2, width),
        nn.LayerNorm(width),
        nn.SiLU(),
        nn.Linear(width, width),
        nn.SiLU(),
        nn.Linear(width, 2),
    )
    replica = DistributedDataParallel(model)
    # The row sum of a bias that layer norm follows is zero; Hutchinson's estimate is not.
    optimizer = sgdph.SGDPH(sgdph.param_groups(model), lr=0.2, estimator="hutchinson")
    data = two_moons(1024)
    sampler: DistributedSampler[tuple[Tensor, Tensor]] = DistributedSampler(data)
    loader = DataLoader(data, batch_size=32, sampler=sampler)
    for epoch in range(10):
        sampler.set_epoch(epoch)
        for x, y in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(replica(x), y)
            optimizer.backward(loss)
            optimizer.step()
        mean = loss.detach()
        dist.all_reduce(mean)
        if dist.get_rank() == 0:
            print(f"epoch {epoch + 1}: loss {float(mean) / dist.get_world_size():.4f}", flush=True)
    mine = torch.cat([p.detach().flatten() for p in model.parameters()])
    everyones = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyones, mine)
    if dist.get_rank() == 0:
        same = all(torch.equal(weights, mine) for weights in everyones)
        print(f"the same weights in every process, to the bit: {same}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    # A thread of gloo's that lets go of the last message while Python ends aborts the process
    # ("terminate called without an active exception"), and torchrun calls that a failure.
    os._exit(0)
