"""timm: its registry, the conventions of its training script, its companions."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import timm
import torch
from compilations import Compilations
from small import assert_same_bits
from timm.models import model_parameters
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3, NativeScaler, dispatch_clip_grad
from torch import Tensor, nn
from torch.nn import functional

import sgdph
from integrations.loops import SETTINGS, gap
from sgdph.integrations.timm import PartialHessianScaler, by_role, register

pytestmark = [pytest.mark.xdist_group("timm"), pytest.mark.filterwarnings("ignore")]

NETWORKS = ["test_resnet", "test_vit"]
STEPS = 6
BATCHES = [
    (torch.randn(4, 3, 32, 32, generator=generator), torch.tensor([0, 1, 2, 3]))
    for generator in (torch.Generator().manual_seed(step) for step in range(STEPS))
]


@pytest.fixture(autouse=True)
def _registered() -> None:
    register()
    register()


def network(name: str = "test_resnet", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    size = {"img_size": 32} if name == "test_vit" else {}
    return timm.create_model(name, num_classes=4, pretrained=False, **size)


def script_epoch(
    model: nn.Module,
    optimizer: Any,
    loss_scaler: Any = None,
    clip_grad: float | None = None,
    clip_mode: str = "norm",
    accumulate: int = 1,
    model_ema: Any = None,
) -> None:
    """One epoch in the order of calls of timm's training script."""
    second_order = hasattr(optimizer, "is_second_order") and optimizer.is_second_order
    parameters = list(model_parameters(model, exclude_head="agc" in clip_mode))
    optimizer.zero_grad()
    for step, (x, y) in enumerate(BATCHES):
        need_update = (step + 1) % accumulate == 0
        loss = functional.cross_entropy(model(x), y) / accumulate
        if loss_scaler is not None:
            loss_scaler(
                loss,
                optimizer,
                clip_grad=clip_grad,
                clip_mode=clip_mode,
                parameters=parameters,
                create_graph=second_order,
                need_update=need_update,
            )
        else:
            loss.backward(create_graph=second_order)
            if need_update:
                if clip_grad is not None:
                    dispatch_clip_grad(parameters, value=clip_grad, mode=clip_mode)
                optimizer.step()
        if need_update:
            if model_ema is not None:
                model_ema.update(model)
            optimizer.zero_grad()


def plain_epoch(
    model: nn.Module,
    optimizer: sgdph.SGDPH,
    accumulate: int = 1,
    clip: Any = None,
    ema: list[Tensor] | None = None,
) -> None:
    for step, (x, y) in enumerate(BATCHES):
        optimizer.backward(functional.cross_entropy(model(x), y) / accumulate)
        if (step + 1) % accumulate:
            continue
        if clip is not None:
            clip(model)
        optimizer.step()
        optimizer.zero_grad()
        if ema is not None:
            for average, p in zip(ema, model.parameters(), strict=True):
                average.lerp_(p.detach(), 0.1)


def beside_adamw(model: nn.Module, **settings: Any) -> sgdph.PartialHessian:
    """As a user of timm writes it: timm's AdamW over timm's groups."""
    adamw = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, **settings)
    return sgdph.PartialHessian(adamw, sgdph.param_groups(model), **SETTINGS)


def clip_norm(model: nn.Module) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_script_trains_as_the_plain_loop(name: str) -> None:
    model, twin = network(name), network(name)
    optimizer = create_optimizer_v2(model, "sgdph", param_group_fn=sgdph.param_groups, **SETTINGS)
    script_epoch(model, optimizer, clip_grad=0.5, accumulate=2)
    reference = sgdph.SGDPH(sgdph.param_groups(twin), **SETTINGS)
    plain_epoch(twin, reference, accumulate=2, clip=clip_norm)
    assert gap(model, twin) < 1e-5
    assert {*optimizer.multipliers()} == {*reference.multipliers()}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("scaler", [None, NativeScaler, PartialHessianScaler])
def test_newton_steps_beside_timms_adamw(scaler: Any, name: str) -> None:
    model, twin = network(name), network(name)
    optimizer = beside_adamw(model)
    # timm's script asks for is_second_order. PartialHessianScaler does not need it.
    assert not hasattr(optimizer, "is_second_order")
    if scaler is not PartialHessianScaler:
        optimizer.is_second_order = True
    script_epoch(model, optimizer, scaler and scaler("cpu"), clip_grad=0.5, accumulate=2)
    plain_epoch(twin, beside_adamw(twin), accumulate=2, clip=clip_norm)
    assert gap(model, twin) < 1e-5
    assert all(s.refreshes for s in list(optimizer.multiplier_statistics().values())[:3])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_resumed_run_equals_the_uninterrupted_run(name: str) -> None:
    model, resumed = network(name), network(name, seed=1)
    optimizers = beside_adamw(model), beside_adamw(resumed)
    script_epoch(model, optimizers[0], PartialHessianScaler("cpu"))
    resumed.load_state_dict(model.state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for each, optimizer in zip((model, resumed), optimizers, strict=True):
        script_epoch(each, optimizer, PartialHessianScaler("cpu"))
    assert_same_bits(model, resumed)


@pytest.mark.parametrize("scaler", [NativeScaler, PartialHessianScaler])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_scalers_train_as_the_plain_loop(scaler: Any, accumulate: int) -> None:
    model, twin = network(), network()
    # The registry's class asks for a graph of every gradient; the second scaler needs none.
    kind = (
        sgdph.SGDPH if scaler is PartialHessianScaler else timm.optim.get_optimizer_class("sgdph")
    )
    optimizer = kind(model.parameters(), **SETTINGS)
    script_epoch(model, optimizer, scaler("cpu"), clip_grad=0.5, accumulate=accumulate)
    plain_epoch(twin, sgdph.SGDPH(twin.parameters(), **SETTINGS), accumulate, clip_norm)
    assert gap(model, twin) < 1e-5


def test_adaptive_clipping_and_ema() -> None:
    model, twin = network(), network()
    ema = ModelEmaV3(model, decay=0.9)
    optimizer = create_optimizer_v2(model, "sgdph", **SETTINGS)
    script_epoch(model, optimizer, clip_grad=0.01, clip_mode="agc", model_ema=ema)
    reference = create_optimizer_v2(twin, "sgdph", **SETTINGS)
    average = [p.detach().clone() for p in twin.parameters()]

    def clip(model: nn.Module) -> None:
        parameters = model_parameters(model, exclude_head=True)
        dispatch_clip_grad(parameters, 0.01, mode="agc")

    plain_epoch(twin, reference, clip=clip, ema=average)
    assert gap(model, twin) < 1e-5
    for p, q in zip(ema.module.parameters(), average, strict=True):
        assert (p - q).abs().max() < 1e-5
        assert p.grad is None


def test_the_registry_passes_on_the_settings() -> None:
    info = timm.optim.get_optimizer_info("sgdph")
    assert info.second_order
    optimizer = create_optimizer_v2(
        network(), "sgdph", lr=0.3, weight_decay=0.1, momentum=0.8, eps=0.5, second_order_lr=0.7
    )
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.0, 0.1]
    for group in optimizer.param_groups:
        assert (group["lr"], group["momentum"], group["eps"]) == (0.3, 0.8, 0.5)
        assert group["second_order_lr"] == 0.7
    assert "lookahead" in type(create_optimizer_v2(network(), "lookahead_sgdph")).__name__.lower()


def test_lookahead_trains() -> None:
    model, twin = network(), network()
    # Its slow weights begin at the first synchronisation, which therefore changes nothing.
    optimizer = create_optimizer_v2(model, "lookahead_sgdph", **SETTINGS)
    script_epoch(model, optimizer)
    assert optimizer.param_groups[0]["lookahead_step"] == STEPS
    plain_epoch(twin, create_optimizer_v2(twin, "sgdph", **SETTINGS))
    assert gap(model, twin) < 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_layer_decay_groups_by_role(name: str) -> None:
    model = network(name)
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5)
    split = by_role(model, groups)
    roles = {id(p): g["channelwise"] for g in sgdph.param_groups(model) for p in g["params"]}
    scales = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert sum(len(g["params"]) for g in split) == len(list(model.parameters()))
    assert len({g["lr_scale"] for g in split}) > 2
    for group in split:
        for p in group["params"]:
            assert group["channelwise"] == roles[id(p)]
            assert (group["lr_scale"], group["weight_decay"]) == scales[id(p)]


@pytest.mark.filterwarnings("ignore:the loaded state has one")
def test_layer_decay_groups_load_a_state_of_sgd_over_the_model() -> None:
    model = network()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    functional.cross_entropy(model(BATCHES[0][0]), BATCHES[0][1]).backward()
    sgd.step()
    groups = by_role(model, param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5))
    optimizer = sgdph.SGDPH(groups)
    optimizer.load_state_dict(sgd.state_dict())
    for p in model.parameters():
        assert torch.equal(optimizer.state[p]["momentum_buffer"], sgd.state[p]["momentum_buffer"])


def test_layer_decay_under_timms_scheduler() -> None:
    model = network()
    groups = by_role(model, param_groups_layer_decay(model, layer_decay=0.5))
    optimizer = create_optimizer_v2(groups, "sgdph", lr=0.02)
    scheduler = CosineLRScheduler(optimizer, t_initial=4, lr_min=1e-4)
    before = copy.deepcopy(model)
    for epoch in range(2):
        script_epoch(model, optimizer)
        scheduler.step(epoch + 1)
    rates = {group["lr"] / group["lr_scale"] for group in optimizer.param_groups}
    assert max(rates) - min(rates) < 1e-12
    assert max(rates) < 0.02
    assert gap(model, before) > 1e-4


def test_layer_decay_beside_timms_adamw() -> None:
    model = network()
    groups = [param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.5) for _ in range(2)]
    adamw = create_optimizer_v2(groups[0], "adamw", lr=1e-3)
    with pytest.raises(ValueError, match="once for each of the two"):
        # AdamW has written its lr, and its eps of 1e-8, into the first groups.
        sgdph.PartialHessian(adamw, by_role(model, groups[0]), lr=0.02)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Both halves got the same settings, so none is unused.
        optimizer = sgdph.PartialHessian(adamw, by_role(model, groups[1]), lr=0.02)
    scheduler = CosineLRScheduler(optimizer, t_initial=4, lr_min=0.0)
    before = copy.deepcopy(model)
    script_epoch(model, optimizer, PartialHessianScaler("cpu"))
    scheduler.step(2)
    newton = [g for g in optimizer.param_groups if "second_order_lr" in g]
    for halved, theirs in ((0.01, newton), (0.0005, adamw.param_groups)):
        assert [g["lr"] / g["lr_scale"] for g in theirs] == pytest.approx([halved] * len(theirs))
    assert len({g["lr_scale"] for g in newton}) > 2
    assert gap(model, before) > 1e-4


def test_a_scaler_with_another_optimizer_raises_an_error() -> None:
    model = network()
    loss = functional.cross_entropy(model(BATCHES[0][0]), BATCHES[0][1])
    with pytest.raises(TypeError, match="got SGD: only these two"):
        PartialHessianScaler("cpu")(loss, torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize(
    ("scaler", "by"),
    [
        (None, "torch.compile"),
        (NativeScaler, "sgdph.compiled"),
        (PartialHessianScaler, "torch.compile"),
        (PartialHessianScaler, "sgdph.compiled"),
    ],
)
def test_compiled(compilations: Compilations, scaler: Any, by: str) -> None:
    """As ``--torchcompile`` of timm's script, with one call changed or added."""
    settings = SETTINGS | {"hessian_interval": 2}
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    # timm's test networks take torch ten seconds to compile.
    model = nn.Sequential(*layers, nn.Linear(256, 4))
    twin = copy.deepcopy(model)
    optimizer = create_optimizer_v2(model, "sgdph", **settings)
    if by == "torch.compile":
        net = sgdph.compiled(torch.compile(model, backend="aot_eager"), optimizer)
    else:
        net = sgdph.compiled(model, optimizer, backend="aot_eager")
    script_epoch(net, optimizer, scaler and scaler("cpu"), clip_grad=0.5)
    plain_epoch(twin, create_optimizer_v2(twin, "sgdph", **settings), clip=clip_norm)
    assert gap(model, twin) < 1e-5
    # Evaluation.
    with torch.no_grad():
        net.eval()(BATCHES[0][0])
    assert (compilations.graphs, compilations.runs) == (2, STEPS // 2 + 1)
