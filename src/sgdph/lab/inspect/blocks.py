"""Stand-in until sgdph.diagnostics is merged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def hessian_block(loss: Tensor, p: Tensor) -> Tensor:
    (g,) = torch.autograd.grad(loss, p, create_graph=True)
    eye = torch.eye(p.numel(), dtype=p.dtype, device=p.device).view(-1, *p.shape)
    (rows,) = torch.autograd.grad(g, p, eye, retain_graph=True, is_grads_batched=True)
    return rows.reshape(p.numel(), p.numel())


@dataclass(frozen=True)
class EstimateError:
    cosine: float
    relative_error: float

    @classmethod
    def of(cls, estimate: Tensor, diagonal: Tensor) -> EstimateError:
        h, d = estimate.double().abs().flatten(), diagonal.double().abs().flatten()
        return cls((h @ d / (h.norm() * d.norm())).item(), ((h - d).norm() / d.norm()).item())


def corrected_average(average: Tensor, refreshes: Tensor, beta2: float) -> Tensor:
    return average.abs() / (1 - beta2 ** refreshes.item())
