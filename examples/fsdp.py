"""Train a sharded model (FSDP2) with SGDPH, save it half-way, and go on from the checkpoint.

    pip install .
    torchrun --standalone --nproc-per-node 2 examples/fsdp.py

On GPUs take "nccl" for "gloo", and move model and batches.
"""

from __future__ import annotations

import os
import tempfile

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

import sgdph
from sgdph.integrations import fsdp

STEPS = 60


def build(seed: int) -> tuple[nn.Module, sgdph.SGDPH]:
    """Make the sharded model, and then the optimizer of its parameters."""
    torch.manual_seed(seed)
    blocks = [
        nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
        for _ in range(2)
    ]
    model = nn.Sequential(nn.Embedding(8, 16), *blocks, nn.Linear(16, 8))
    for block in blocks:
        fully_shard(block)
    fully_shard(model)
    # With layer norm take "hutchinson": the row sum of biases in front of it is zero.
    groups = sgdph.param_groups(model)
    return model, sgdph.SGDPH(groups, lr=0.1, estimator="hutchinson", hessian_interval=2)


def batch(step: int) -> Tensor:
    """Make this rank's sequences ``(8, 12)``, which count upwards from a random start."""
    generator = torch.Generator().manual_seed(1000 * dist.get_rank() + step)
    start = torch.randint(8, (8, 1), generator=generator)
    return (start + torch.arange(12)) % 8


def train(model: nn.Module, optimizer: sgdph.SGDPH, steps: range) -> float:
    """Predict each next number, and return the last loss."""
    loss = torch.zeros(())
    for step in steps:
        x = batch(step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten())
        fsdp.backward(model, optimizer, loss)  # was: loss.backward()
        fsdp.clip_grad_norm_(model, 1.0)
        optimizer.step()
    return float(loss.detach())


def main() -> None:
    """Train, save, and train on twice: with the model at hand, and from the checkpoint."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    model, optimizer = build(seed=0)
    first = train(model, optimizer, range(1))
    train(model, optimizer, range(1, STEPS // 2))
    folder = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folder)
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=folder[0])
    last = train(model, optimizer, range(STEPS // 2, STEPS))

    other, resumed = build(seed=1)
    weights, state = get_state_dict(other, resumed)
    held = {"model": weights, "optimizer": state}
    dcp.load(held, checkpoint_id=folder[0])
    set_state_dict(
        other, resumed, model_state_dict=held["model"], optim_state_dict=held["optimizer"]
    )
    again = train(other, resumed, range(STEPS // 2, STEPS))
    if dist.get_rank() == 0:
        print(f"loss {first:.4f}\nloss {last:.4f}\nresumed to the bit: {again == last}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    # See ddp.py.
    os._exit(0)
