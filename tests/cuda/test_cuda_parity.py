"""Curvature and steps in float64 equal the CPU's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from on_devices import (
    NETWORKS,
    OPTIMIZERS,
    assert_near,
    averages,
    built,
    by_sgdph,
    data,
    on,
    train,
    weights,
)
from pairwise import pairwise
from reference.nets import head
from small import WAYS
from torch import Tensor, nn
from torch.nn import functional

from sgdph.autograd.graph import graph_nodes

ALL = {"refresh": "all", "hessian_momentum": 0.99}
CHANNELS_LAST = torch.channels_last


def curvature(name: str, device: str, way: str, **settings: Any) -> Tensor:
    model = built(name, device)
    optimizer = by_sgdph(model, **{**ALL, **settings})
    train(model, optimizer, data(name, device), 1, way)
    return averages(optimizer)


@on("cpu")
@pairwise(name=NETWORKS, estimator=["row_sum", "hutchinson", "exact"], way=WAYS)
def test_curvature_equals_the_cpu_s(name: str, estimator: str, way: str, device: str) -> None:
    expected = curvature(name, "cpu", "update_hessian", estimator=estimator)
    assert_near(curvature(name, device, way, estimator=estimator), expected, 1e-9)


@on("cpu")
@pairwise(
    name=NETWORKS,
    optimizer=OPTIMIZERS,
    settings=[{}, {**ALL, "estimator": "hutchinson", "hessian_interval": 3}],
)
def test_steps_equal_the_cpu_s(
    name: str, optimizer: str, settings: dict[str, Any], device: str
) -> None:
    found = []
    for where in ("cpu", device):
        model = built(name, where)
        steps = 20 if device == "cuda" else 4
        train(model, OPTIMIZERS[optimizer](model, **settings), data(name, where), steps)
        found.append(weights(model))
    assert_near(found[1], found[0], 1e-8)


def batch_norms(dimensions: int) -> nn.Module:
    """Batch norms, one without scale and shift, and one without running statistics."""
    conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dimensions == 2 else (nn.Conv3d, nn.BatchNorm3d)
    pool = nn.AdaptiveAvgPool2d(1) if dimensions == 2 else nn.AdaptiveAvgPool3d(1)
    layers = [
        *(conv(8, 8, 3, padding=1), norm(8), nn.ReLU()),
        *(conv(8, 8, 1), norm(8, affine=False), nn.SiLU()),
        *(conv(8, 8, 1), norm(8, track_running_stats=False), nn.GELU()),
    ]
    model = nn.Sequential(*layers, pool, *head(8)[1:]).double()
    for module in model.modules():
        if isinstance(module, norm) and module.running_mean is not None:
            module.running_mean.normal_()
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 2.0)
    return model


@on("cpu")
@pairwise(
    cudnn=[True, False], training=[True, False], layout=[None, CHANNELS_LAST], dimensions=[2, 3]
)
def test_batch_norm_equals_the_cpu_s(
    cudnn: bool, training: bool, layout: Any, dimensions: int, device: str
) -> None:
    """With cuDNN and with torch's own kernels, which use other code for channels last."""
    layout = torch.channels_last_3d if layout is not None and dimensions == 3 else layout
    found: list[Tensor] = []
    nodes: set[str] = set()
    for where in ("cpu", device):
        torch.manual_seed(0)
        model = batch_norms(dimensions).to(where).train(training)
        x = torch.randn(6, 8, *[5] * dimensions, dtype=torch.float64).to(where)
        if layout is not None:
            model, x = model.to(memory_format=layout), x.to(memory_format=layout)
        optimizer = by_sgdph(model, **ALL)
        with torch.backends.cudnn.flags(enabled=cudnn, deterministic=True):
            loss = functional.cross_entropy(model(x), torch.arange(6).to(where) % 3)
            nodes = {type(node).__name__ for node in graph_nodes([loss])}
            optimizer.backward(loss)
        optimizer.step()
        found.append(torch.cat([averages(optimizer), weights(model)]))
    assert_near(found[1], found[0], 1e-9)
    if training:
        by_cudnn = cudnn and device == "cuda"
        assert ("CudnnBatchNormBackward0" in nodes) == by_cudnn


Layer = Callable[..., nn.Module]


class Recurrent(nn.Module):
    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(4, 6), nn.LayerNorm(6)
        self.layer, self.last = layer(6, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.layer(self.norm(self.first(x)))[0][:, -1])
        return out


def recurrent(layer: Layer, device: str) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A network and its loss."""
    torch.manual_seed(0)
    model = Recurrent(layer).double().to(device)
    x = torch.randn(5, 7, 4, dtype=torch.float64).to(device)
    labels = torch.arange(5).to(device) % 3
    return model, lambda: functional.cross_entropy(model(x), labels)


def without_cudnn(layer: Layer, device: str) -> Tensor:
    model, loss = recurrent(layer, device)
    optimizer = by_sgdph(model, **ALL)
    with torch.backends.cudnn.flags(enabled=False):
        optimizer.backward(loss())
    optimizer.step()
    return averages(optimizer)


@on("cpu")
@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
def test_recurrent_layers_without_cudnn_equal_the_cpu_s(layer: Layer, device: str) -> None:
    assert_near(without_cudnn(layer, device), without_cudnn(layer, "cpu"), 1e-9)


@on("cpu")
@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
def test_cudnn_recurrent_layers_raise_an_error_and_differences_work(
    layer: Layer, device: str
) -> None:
    """Their second derivative is not available, but differences of gradients are."""
    model, loss = recurrent(layer, device)
    optimizer = by_sgdph(model, **ALL)
    if device == "cuda":
        with pytest.raises(RuntimeError, match=r"cuDNN's recurrent layers .*cudnn\.flags"):
            optimizer.update_hessian(loss())
    optimizer.update_hessian(closure=loss)
    loss().backward()
    optimizer.step()
    assert_near(averages(optimizer), without_cudnn(layer, device), 1e-4)


@on("cpu")
@pytest.mark.parametrize("name", [n for n in ("fused_rms_norm", "group_norm") if n in NETWORKS])
def test_first_gradients_equal_torch_s(name: str, device: str) -> None:
    """Torch uses another formula here for gradients that will be differentiated."""
    found = []
    for way in ("plain", "backward"):
        model = built(name, device)
        optimizer = by_sgdph(model)
        batch = data(name, device)[0]
        loss = functional.cross_entropy(model(batch.inputs), batch.labels)
        if name == "fused_rms_norm" and device == "cuda":
            names = {type(node).__name__ for node in graph_nodes([loss])}
            assert "FusedRmsNormBackward0" in names
        if way == "plain":
            loss.backward()
        else:
            optimizer.backward(loss)
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]).cpu())
    assert_near(found[1], found[0], 1e-13)
