"""A small sharded model, and the same run of it on several ranks and on one process."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import torch
from ranks import Found
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import sgdph
from sgdph.integrations import fsdp

Optimizer = sgdph.SGDPH | sgdph.PartialHessian
WIDTH = 6  # On four ranks: 2, 2, 2 and none.


# ---- the models ----------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, checkpointed: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.checkpointed = checkpointed

    def forward(self, x: Tensor) -> Tensor:
        if self.checkpointed:
            return checkpoint(self.compute, x, use_reentrant=False)
        return self.compute(x)

    def compute(self, x: Tensor) -> Tensor:
        q, k, v = (
            each.unflatten(-1, (2, -1)).transpose(1, 2)
            for each in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(4, WIDTH)
        self.blocks = nn.ModuleList(Block(checkpointed) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class ConvNet(nn.Module):
    def __init__(self, checkpointed: bool = False) -> None:
        super().__init__()
        self.embed = nn.Conv1d(5, WIDTH, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv1d(WIDTH, WIDTH, 3, padding=1), nn.GroupNorm(2, WIDTH), nn.SiLU())
            for _ in range(2)
        )
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean(-1))


# ---- one run -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    """A run that one process or any number of ranks can do."""

    model: type[nn.Module] = Transformer
    ignored: bool = False
    by_block: bool = True
    reshard_after_forward: bool | int = True
    checkpointed: bool = False
    micro_batches: int = 1
    sync: str = "each"
    max_norm: float | None = None
    adamw: bool = False
    steps: int = 5
    dtype: torch.dtype = torch.float64
    settings: tuple[tuple[str, Any], ...] = ()

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        model = self.model(self.checkpointed).to(self.dtype)
        for name, p in model.named_parameters():
            if "norm" in name:
                nn.init.normal_(p, 1.0, 0.3)
        return model

    def shard(self, model: nn.Module, **options: Any) -> nn.Module:
        ignored = channelwise(model) if self.ignored else set()
        options = {"ignored_params": ignored, **options}
        reshard = self.reshard_after_forward
        for block in model.blocks if self.by_block else ():
            fully_shard(block, reshard_after_forward=reshard, **options)
        return fully_shard(model, reshard_after_forward=reshard, **options)

    def optimizer(self, model: nn.Module) -> Optimizer:
        settings = {"lr": 0.02, "hessian_momentum": 0.8, **dict(self.settings)}
        groups = sgdph.param_groups(model, weight_decay=1e-2)
        if not self.adamw:
            return sgdph.SGDPH(groups, **settings)
        inner = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
        return sgdph.PartialHessian(inner, groups, **settings)


def channelwise(model: nn.Module) -> set[Tensor]:
    groups = sgdph.param_groups(model)
    return {p for group in groups if group["channelwise"] for p in group["params"]}


def batch(rank: int, step: int, micro: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(10_000 * rank + 100 * step + micro)
    x = torch.randn(4, 5, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (4,), generator=generator)


def loss_on(model: nn.Module, rank: int, step: int, micro: int) -> Tensor:
    x, y = batch(rank, step, micro)
    out = model(x.to(next(model.parameters()).dtype))
    return functional.cross_entropy(out if out.ndim == 2 else out.mean(1), y)


def whole(value: Any) -> Any:
    value = value.full_tensor() if isinstance(value, DTensor) else value
    return value.detach().clone() if isinstance(value, Tensor) else value


def everything(model: nn.Module, optimizer: Optimizer, norms: list[Tensor]) -> Found:
    found = {f"weight {name}": whole(p) for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        kept = optimizer.state.get(p, {})
        found |= {f"{key} {name}": whole(value) for key, value in kept.items()}
    found |= {f"multiplier {name}": m for name, m in optimizer.multipliers().items()}
    for name, statistics in optimizer.multiplier_statistics().items():
        found[f"statistics {name}"] = torch.tensor(dataclasses.astuple(statistics))
    group = optimizer.param_groups[-1]
    found |= {key: torch.tensor(group[key]) for key in ("step", "cursor", "refreshes")}
    return found | {f"norm {i}": norm for i, norm in enumerate(norms)}


def train_sharded(
    case: Case, model: nn.Module, optimizer: Optimizer, ranks: int | range, steps: Iterable[int]
) -> list[Tensor]:
    """Train on the batches of one rank, or of several if fewer ranks resume the run."""
    norms = []
    batches = range(ranks, ranks + 1) if isinstance(ranks, int) else ranks
    for step in steps:
        optimizer.zero_grad()
        for micro in range(case.micro_batches):
            if case.sync == "last":
                model.set_requires_gradient_sync(micro == case.micro_batches - 1)
            losses = [loss_on(model, rank, step, micro) for rank in batches]
            fsdp.backward(model, optimizer, torch.stack(losses).mean() / case.micro_batches)
        if case.max_norm is not None:
            norms.append(fsdp.clip_grad_norm_(model, case.max_norm))
        optimizer.step()
    return norms


def train_whole(
    case: Case, model: nn.Module, optimizer: Optimizer, ranks: int, steps: Iterable[int]
) -> list[Tensor]:
    norms = []
    for step in steps:
        optimizer.zero_grad()
        for micro in range(case.micro_batches):
            losses = [loss_on(model, rank, step, micro) for rank in range(ranks)]
            optimizer.backward(torch.stack(losses).mean() / case.micro_batches)
        if case.max_norm is not None:
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), case.max_norm))
        optimizer.step()
    return norms


def sharded_run(rank: int, case: Case) -> Found:
    model = case.shard(case.build())
    optimizer = case.optimizer(model)
    norms = train_sharded(case, model, optimizer, rank, range(case.steps))
    return everything(model, optimizer, norms)


@functools.cache
def whole_run(case: Case, ranks: int) -> Found:
    model = case.build()
    optimizer = case.optimizer(model)
    norms = train_whole(case, model, optimizer, ranks, range(case.steps))
    return everything(model, optimizer, norms)


def worst(found: Found, expected: Found) -> float:
    # A resumed run also has averages of parameters without a partial Hessian so far.
    assert found.keys() >= expected.keys()
    errors = {
        name: ((found[name] - value).abs() / value.abs().clamp(min=1)).max().item()
        for name, value in expected.items()
    }
    return max(errors.values())


def sharded(case: Case = Case(), **options: Any) -> tuple[nn.Module, Optimizer]:
    model = case.shard(case.build(), **options)
    return model, case.optimizer(model)
