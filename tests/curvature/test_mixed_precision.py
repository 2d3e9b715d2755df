"""Autocast, GradScaler, bfloat16 weights: the curvature is the loss's own, in float32."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small import WAYS, assert_same_bits, batch, bn_net
from torch import Tensor, nn
from torch.nn import functional

import sgdph

FORMATS = {"bfloat16": torch.bfloat16, "float16": torch.float16}
FEEDS = [*WAYS, "closure"]


def smooth_net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Without ReLU, whose kinks differences of gradients see and second derivatives do not."""
    model = bn_net(dtype)
    model[2] = nn.SiLU()
    return model


def half_loss(model: nn.Module, step: int, dtype: torch.dtype, cache: bool = True) -> Tensor:
    x, y = batch(step)
    with torch.autocast("cpu", dtype, cache_enabled=cache):
        return functional.cross_entropy(model(x), y)


def feed(
    way: str,
    optimizer: sgdph.SGDPH,
    loss: Callable[[], Tensor],
    scaler: torch.amp.GradScaler,
) -> None:
    """Use one way under a scaler. create_graph has no argument for the scale."""
    scale = scaler.get_scale()
    if way == "closure":
        optimizer.update_hessian(closure=lambda: scaler.scale(loss()), loss_scale=scale)
        scaler.scale(loss()).backward()
    elif way == "update_hessian":
        scaled = scaler.scale(loss())
        optimizer.update_hessian(scaled, loss_scale=scale)
        scaled.backward()
    elif way == "backward":
        optimizer.backward(scaler.scale(loss()), loss_scale=scale)
    else:
        scaler.scale(loss()).backward(create_graph=True)


def run(
    way: str,
    loss: Callable[[nn.Module, int], Tensor],
    *,
    scaled: bool,
    skipped: tuple[int, ...] = (),
    steps: int = 9,
    micro: int = 1,
    **settings: Any,
) -> tuple[nn.Module, sgdph.SGDPH]:
    """Train; steps in ``skipped`` overflow under the scaler, and are left out without one."""
    model = smooth_net()
    optimizer = sgdph.SGDPH(sgdph.param_groups(model), lr=0.05, **settings)
    # A power of two, so that scaling changes no bit of what does not underflow.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
    for step in range(steps):
        if step in skipped and not scaled:
            # The forward still ran, and batch norm saw the batch.
            with torch.no_grad():
                for m in range(micro):
                    loss(model, micro * step + m)
            continue
        optimizer.zero_grad()
        overflow = step in skipped
        handles = [
            p.register_hook(lambda g: g * float("inf")) for p in model.parameters() if overflow
        ]
        for m in range(micro):
            feed(way, optimizer, lambda m=m, s=step: loss(model, micro * s + m) / micro, scaler)
        for handle in handles:
            handle.remove()
        scaler.step(optimizer)
        scaler.update()
    return model, optimizer


def averages(model: nn.Module, optimizer: sgdph.SGDPH) -> dict[str, Tensor]:
    return {
        name: optimizer.state[p]["hessian"]
        for name, p in model.named_parameters()
        if "hessian" in optimizer.state.get(p, {})
    }


@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize("way", FEEDS)
@pytest.mark.parametrize("dtype", FORMATS.values(), ids=FORMATS)
def test_a_scaled_run_equals_the_unscaled_run_without_skipped_steps(
    dtype: torch.dtype, way: str, micro: int
) -> None:
    def loss(model: nn.Module, step: int) -> Tensor:
        return half_loss(model, step, dtype)

    skipped = (0, 3, 4)
    scaled = run(way, loss, scaled=True, skipped=skipped, micro=micro)
    plain = run(way, loss, scaled=False, skipped=skipped, micro=micro)
    found, expected = averages(*scaled), averages(*plain)
    assert found.keys() == expected.keys() == {"0.bias", "1.weight", "1.bias"}
    # Half-precision gradients near the smallest number round differently when scaled.
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        scale = float(value.abs().max())
        torch.testing.assert_close(found[name], value, rtol=0.05, atol=0.02 * scale + 2e-3)
    for p, q in zip(scaled[0].parameters(), plain[0].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=5e-3)
    counts = [int(s["refreshes"]) for s in scaled[1].state.values() if "refreshes" in s]
    assert counts == [2, 2, 2]


def full_loss(model: nn.Module, step: int) -> Tensor:
    x, y = batch(step)
    return functional.cross_entropy(model(x), y)


def error_of(way: str, loss: Callable[[nn.Module, int], Tensor]) -> float:
    """Error of the curvature against float32's. A bias before batch norm has only rounding."""
    found = averages(*run(way, loss, scaled=True, steps=1, refresh="all"))
    exact = averages(*run("update_hessian", full_loss, scaled=False, steps=1, refresh="all"))
    names = ("1.weight", "1.bias")
    return max(float((found[n] - exact[n]).norm() / exact[n].norm()) for n in names)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", FORMATS.values(), ids=FORMATS)
def test_half_precision_curvature_is_near_float32(dtype: torch.dtype, way: str) -> None:
    error = error_of(way, lambda model, step: half_loss(model, step, dtype))
    assert error < (0.15 if dtype == torch.bfloat16 else 0.02)


@pytest.mark.parametrize("way", ["update_hessian", "backward"])
@pytest.mark.parametrize("dtype", FORMATS.values(), ids=FORMATS)
def test_a_product_inside_autocast_equals_the_one_outside(dtype: torch.dtype, way: str) -> None:
    """The operations of the product keep the dtypes of the forward."""
    found = []
    for inside in (False, True):
        model = transformer_layer()
        optimizer = sgdph.SGDPH(sgdph.param_groups(model), refresh="all")
        x = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
        with torch.autocast("cpu", dtype):
            loss = model(x).float().square().mean()
            if inside:
                WAYS[way](optimizer, loss)
        if not inside:
            WAYS[way](optimizer, loss)
        optimizer.step()
        found.append(averages(model, optimizer))
    for name, value in found[0].items():
        torch.testing.assert_close(
            found[1][name], value, rtol=1e-3, atol=1e-3 * float(value.abs().max())
        )


def transformer_layer() -> nn.Module:
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True, norm_first=True)


def test_differences_need_more_precision_than_bfloat16() -> None:
    # A difference divides the rounding of two gradients by a small distance. The closure may
    # compute in float32 even if the loss uses autocast.
    assert error_of("closure", lambda m, s: half_loss(m, s, torch.float16)) < 0.1
    assert error_of("closure", lambda m, s: half_loss(m, s, torch.bfloat16)) > 0.3
    assert error_of("closure", full_loss) < 0.01


@pytest.mark.parametrize("way", FEEDS)
def test_the_autocast_cache_changes_nothing(way: str) -> None:
    # With it, a weight is cast once for all its uses, and the graph goes through that one cast.
    def train(cache: bool) -> nn.Module:
        return run(way, lambda m, s: half_loss(m, s, torch.bfloat16, cache), scaled=False, steps=6)[
            0
        ]

    assert_same_bits(train(True), train(False))


@pytest.mark.parametrize("way", FEEDS)
def test_bfloat16_weights_train_and_resume_bit_for_bit(way: str) -> None:
    def loss(model: nn.Module, step: int) -> Tensor:
        x, y = batch(step % 2, torch.bfloat16)
        return functional.cross_entropy(model(x), y)

    def steps(model: nn.Module, optimizer: sgdph.SGDPH, which: range) -> list[float]:
        losses = []
        off = torch.amp.GradScaler("cpu", enabled=False)
        for step in which:
            optimizer.zero_grad()
            feed(way, optimizer, lambda s=step: loss(model, s), off)
            optimizer.step()
            losses.append(float(loss(model, step).detach()))
        return losses

    def fresh() -> tuple[nn.Module, sgdph.SGDPH]:
        model = smooth_net(torch.bfloat16)
        return model, sgdph.SGDPH(sgdph.param_groups(model), lr=0.05)

    model, optimizer = fresh()
    losses = steps(model, optimizer, range(13))
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    losses += steps(model, optimizer, range(13, 30))
    assert losses[-1] < 0.5 * losses[0]
    assert all(a.dtype == torch.float32 for a in averages(model, optimizer).values())

    again, resumed = fresh()
    again.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    steps(again, resumed, range(13, 30))
    assert_same_bits(model, again)


@pytest.mark.parametrize("way", FEEDS)
def test_a_scaler_that_really_overflows_finds_its_scale(way: str) -> None:
    # float16 ends at 65504: a scale of 2^40 really overflows, curvature included.
    model = smooth_net()
    optimizer = sgdph.SGDPH(sgdph.param_groups(model), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    taken, losses = 0, []
    for step in range(60):
        optimizer.zero_grad()
        before = optimizer.param_groups[0]["step"]
        feed(way, optimizer, lambda s=step: half_loss(model, s % 2, torch.float16), scaler)
        scaler.step(optimizer)
        scaler.update()
        taken += optimizer.param_groups[0]["step"] - before
        losses.append(float(half_loss(model, step % 2, torch.float16).detach()))
    assert 20 < taken < 60
    assert all(bool(average.isfinite().all()) for average in averages(model, optimizer).values())
    assert losses[-1] < 0.5 * losses[0]
