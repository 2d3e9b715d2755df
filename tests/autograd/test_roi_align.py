"""torchvision's RoI align: its second derivative, against the same operation as a matrix."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small import WAYS
from torch import Tensor, nn

import sgdph

ops = pytest.importorskip("torchvision").ops

CHANNELS, SIDE = 2, 5
BOXES = torch.tensor([[0, 0.3, 0.5, 3.2, 4.1], [1, 1.0, 0.2, 2.5, 2.9], [0, 2.0, 2.0, 4.6, 4.7]])


def roi_align(x: Tensor) -> Tensor:
    pooled: Tensor = ops.roi_align(x, BOXES.to(x), 2, 0.9, 2, True)
    return pooled


def plain_roi_align(x: Tensor) -> Tensor:
    """The same by a matrix product, because RoI align is linear."""
    unit = torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape)
    matrix = torch.stack([roi_align(each) for each in unit], -1)
    return matrix @ x.flatten()


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(1, CHANNELS, 3, padding=1), nn.GroupNorm(1, CHANNELS))
        self.double()

    def loss(self, pool: Callable[[Tensor], Tensor]) -> Tensor:
        x = torch.randn(2, 1, SIDE, SIDE, dtype=torch.float64)
        return pool(self.body(x).sin()).pow(3).sum()


@pytest.mark.parametrize("way", WAYS)
def test_curvature_equals_that_of_the_matrix_product(way: str) -> None:
    found = []
    for pool in (roi_align, plain_roi_align):
        model = Detector()
        optimizer = sgdph.SGDPH(
            model.parameters(), estimator="hutchinson", refresh="all", hessian_momentum=0.99
        )
        WAYS[way](optimizer, model.loss(pool))
        gradients = [p.grad for p in model.parameters()]
        optimizer.step()
        states = [s["hessian"] for s in optimizer.state.values() if "hessian" in s]
        found.append((gradients, states))
    (gradients, states), (plain_gradients, plain_states) = found
    assert len(states) == len(plain_states) > 1
    pairs = zip(gradients + states, plain_gradients + plain_states, strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)
