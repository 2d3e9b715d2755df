"""Curvature from differences of gradients: how exact it is, and where products do not work."""

from __future__ import annotations

import contextlib
import copy
import random
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from small import assert_same_bits, batch, bn_net, loss_of
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

import sgdph

ESTIMATORS: dict[str, dict[str, Any]] = {
    "row_sum": {},
    "hutchinson": {"estimator": "hutchinson"},
    "exact": {"estimator": "exact"},
    "row_sum-all": {"refresh": "all"},
    "joint": {"estimator": "hutchinson", "refresh": "all", "hessian_momentum": 0.99},
}


def smooth_net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.SiLU(),
        nn.Conv2d(4, 3, 2),
        nn.GroupNorm(1, 3),
        nn.Flatten(),
        nn.Tanh(),
        nn.Linear(27, 3),
    ]
    return nn.Sequential(*layers).to(dtype)


def by_closure(optimizer: sgdph.SGDPH, model: nn.Module, step: int, **settings: Any) -> None:
    optimizer.update_hessian(closure=lambda: loss_of(model, step), **settings)
    loss_of(model, step).backward()


def pending(optimizer: sgdph.SGDPH, **settings: Any) -> list[Tensor]:
    """Averages after a first step: |h| of the refreshed parameters, times 1 - beta2."""
    optimizer.step()
    return [s["hessian"].clone() for s in optimizer.state.values() if "hessian" in s]


@pytest.mark.parametrize("settings", ESTIMATORS.values(), ids=ESTIMATORS)
def test_ten_steps_equal_those_with_the_exact_product(settings: dict[str, Any]) -> None:
    exact, different = smooth_net(), smooth_net()
    first = sgdph.SGDPH(sgdph.param_groups(exact), lr=0.05, **settings)
    second = sgdph.SGDPH(sgdph.param_groups(different), lr=0.05, **settings)
    for step in range(10):
        first.zero_grad()
        second.zero_grad()
        first.backward(loss_of(exact, step))
        by_closure(second, different, step)
        first.step()
        second.step()
    for p, q in zip(exact.parameters(), different.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=2e-6)
    for p, q in zip(first.multipliers().values(), second.multipliers().values(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


def test_float32_is_near_float64() -> None:
    """A small step would be lost in float32's rounding, a large one in the third derivative."""
    for place in range(7):
        models = [smooth_net(torch.float64), smooth_net(torch.float32)]
        averages = []
        for model in models:
            optimizer = sgdph.SGDPH(sgdph.param_groups(model))
            optimizer.param_groups[0]["cursor"] = place
            for group in optimizer.param_groups:
                group["cursor"] = place
            if model is models[0]:
                optimizer.backward(loss_of(model))
            else:
                by_closure(optimizer, model, 0)
            averages.append(torch.cat([h.flatten() for h in pending(optimizer)]).double())
        error = (averages[0] - averages[1]).norm() / averages[0].norm().clamp(min=1e-3)
        assert error < 0.02


class Watched(nn.Module):
    """A network with dropout, batch statistics, and a buffer that counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.body = bn_net()
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.masks: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.masks.append(self.dropout(torch.ones(20)))
        return self.body(x) * self.masks[-1].mean()


def test_weights_buffers_generators_and_gradients_are_unchanged() -> None:
    model = Watched()
    optimizer = sgdph.SGDPH(model.parameters())
    x, y = batch()
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    before = copy.deepcopy(model)
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    places = [p.data_ptr() for p in model.parameters()]
    random = torch.get_rng_state()
    optimizer.update_hessian(closure=lambda: functional.cross_entropy(model(x), y))
    assert_same_bits(model, before)
    assert [p.data_ptr() for p in model.parameters()] == places
    assert torch.equal(torch.get_rng_state(), random)
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, gradient)
    # Both passes dropped the same units, and the user's own forward drops them too.
    model(x)
    assert len(model.masks) == 3
    assert all(torch.equal(mask, model.masks[0]) for mask in model.masks)


DRAWS: dict[str, Callable[[], float]] = {
    "torch": lambda: torch.rand(()).item(),
    "numpy": lambda: float(np.random.rand()),  # noqa: NPY002
    "python": random.random,
}


@pytest.mark.parametrize("name", DRAWS)
def test_each_pass_draws_the_same_random_numbers(name: str) -> None:
    """Mixup drawn in the closure: the curvature is the exact product's with the next draw."""
    x, y = batch(dtype=torch.float64)
    averages, drawn = [], []
    for way in ("closure", "backward"):
        model = smooth_net()
        optimizer = sgdph.SGDPH(sgdph.param_groups(model))
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)

        def loss(model: nn.Module = model) -> Tensor:
            drawn.append(DRAWS[name]())
            return functional.cross_entropy(model(drawn[-1] * x + (1 - drawn[-1]) * x.flip(0)), y)

        if way == "closure":
            optimizer.update_hessian(closure=loss)
            loss().backward()
        else:
            optimizer.backward(loss())
        averages.append(torch.cat([h.flatten() for h in pending(optimizer)]))
    assert drawn == drawn[:1] * 4
    torch.testing.assert_close(averages[0], averages[1], rtol=1e-6, atol=1e-9)


def test_numpy_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "numpy")
    optimizer = sgdph.SGDPH((model := bn_net()).parameters())
    by_closure(optimizer, model, 0)
    assert "numpy" not in sys.modules


def test_each_pass_starts_from_the_same_buffers() -> None:
    """Spectral norm continues its power iteration at each call, and uses the result."""
    averages = []
    for way in ("closure", "backward"):
        model = smooth_net()
        nn.utils.parametrizations.spectral_norm(model[3])
        optimizer = sgdph.SGDPH(sgdph.param_groups(model), refresh="all")
        if way == "closure":
            by_closure(optimizer, model, 0)
        else:
            optimizer.backward(loss_of(model))
        averages.append(torch.cat([h.flatten() for h in pending(optimizer)]))
    torch.testing.assert_close(averages[0], averages[1], rtol=1e-6, atol=1e-9)


class AnotherEachTime:
    """Closures that are not functions of the weights, each for another reason."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.calls = 0
        self.numpy = np.random.default_rng(0)
        self.torch = torch.Generator().manual_seed(0)

    def loader(self) -> Tensor:
        return loss_of(self.model, self.calls)

    def counter(self) -> Tensor:
        return loss_of(self.model) * (1 + 0.02 * self.calls)

    def alternating(self) -> Tensor:
        return loss_of(self.model, self.calls % 2)

    def mixup(self) -> Tensor:
        x, y = batch(dtype=next(self.model.parameters()).dtype)
        share = self.numpy.random()
        return functional.cross_entropy(self.model(share * x + (1 - share) * x.flip(0)), y)

    def noise(self) -> Tensor:
        x, y = batch(dtype=next(self.model.parameters()).dtype)
        noise = torch.randn(x.shape, generator=self.torch).to(x.dtype)
        return functional.cross_entropy(self.model(x + 0.3 * noise), y)

    def closure(self, kind: str) -> Tensor:
        self.calls += 1
        return getattr(self, kind)()


@pytest.mark.parametrize("settings", ESTIMATORS.values(), ids=ESTIMATORS)
@pytest.mark.parametrize("kind", ["loader", "counter", "alternating", "mixup", "noise"])
def test_a_closure_that_is_not_a_function_of_the_weights_raises_an_error(
    kind: str, settings: dict[str, Any]
) -> None:
    """Almost every time: two draws may give the same loss by chance."""
    for model in (bn_net(), smooth_net()):
        optimizer = sgdph.SGDPH(sgdph.param_groups(model), lr=0.05, **settings)
        other = AnotherEachTime(model)
        noticed = 0
        for step in range(3):
            optimizer.zero_grad()
            random, before = torch.get_rng_state(), copy.deepcopy(model)
            try:
                optimizer.update_hessian(closure=lambda other=other: other.closure(kind))
            except RuntimeError as error:
                if "not a function of the weights" not in str(error):
                    raise
                assert_same_bits(model, before)
                assert torch.equal(torch.get_rng_state(), random)
                noticed += 1
                # Nothing of it is left: the step uses the curvature of a correct closure.
                by_closure(optimizer, model, step)
            else:
                loss_of(model, step).backward()
            optimizer.step()
        assert noticed >= 2


def test_a_correct_closure_is_called_twice_per_product() -> None:
    for model in (bn_net(), smooth_net(), smooth_net(torch.float32)):
        optimizer = sgdph.SGDPH(sgdph.param_groups(model), lr=0.05)
        calls: list[int] = []

        def closure(model: nn.Module, step: int, calls: list[int]) -> Tensor:
            calls.append(step)
            return loss_of(model, step)

        for step in range(20):
            optimizer.zero_grad()
            optimizer.update_hessian(closure=partial(closure, model, step, calls))
            loss_of(model, step).backward()
            optimizer.step()
        assert len(calls) == 40


def test_a_loss_computed_before_the_closure_is_still_differentiable() -> None:
    model, untouched = bn_net(), bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    for group in optimizer.param_groups:
        group["cursor"] = 1  # The scale, which the batch norm has saved for its backward.
    loss = loss_of(model)
    optimizer.update_hessian(closure=lambda: loss_of(model))
    loss.backward()
    loss_of(untouched).backward()
    for p, q in zip(model.parameters(), untouched.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert torch.equal(p.grad, q.grad)


def test_a_failing_closure_changes_nothing() -> None:
    model = Watched()
    optimizer = sgdph.SGDPH(model.parameters())
    before, random = copy.deepcopy(model), torch.get_rng_state()

    def failing() -> Tensor:
        model(batch()[0])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        optimizer.update_hessian(closure=failing)
    assert_same_bits(model, before)
    assert torch.equal(torch.get_rng_state(), random)


def test_micro_batches_add_up_and_are_divided_by_the_loss_scale() -> None:
    whole, parts = smooth_net(), smooth_net()
    first, second = (sgdph.SGDPH(sgdph.param_groups(m)) for m in (whole, parts))
    first.backward((loss_of(whole, 0) + loss_of(whole, 1)) / 2)
    for step in range(2):
        second.update_hessian(closure=lambda s=step: 8 * loss_of(parts, s) / 2, loss_scale=8)
        (loss_of(parts, step) / 2).backward()
    for h, k in zip(pending(first), pending(second), strict=True):
        torch.testing.assert_close(h, k, rtol=1e-4, atol=1e-8)


def test_the_closure_is_called_only_at_due_steps() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters(), hessian_interval=2)
    calls = []
    for step in range(4):
        optimizer.zero_grad()

        def closure(step: int = step) -> Tensor:
            calls.append(step)
            return loss_of(model, step)

        optimizer.update_hessian(closure=closure)
        loss_of(model, step).backward()
        optimizer.step()
    assert calls == [0, 0, 2, 2]


def test_wrong_losses_and_closures_raise_an_error() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    with pytest.raises(TypeError, match="got neither"):
        optimizer.update_hessian()
    with pytest.raises(TypeError, match="got both"):
        optimizer.update_hessian(loss_of(model), closure=lambda: loss_of(model))
    with pytest.raises(TypeError, match="the loss must be a tensor, got float"):
        optimizer.update_hessian(closure=lambda: loss_of(model).item())  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="no graph"):
        optimizer.update_hessian(closure=lambda: loss_of(model).detach())
    with pytest.raises(RuntimeError, match="none of this optimizer's parameters"):
        optimizer.update_hessian(closure=lambda: loss_of(bn_net()))


def test_differences_see_the_kinks_that_a_second_derivative_misses() -> None:
    """mean(relu(x + b)) over many x has the curvature of their density, all of it in the kinks."""
    x = torch.linspace(-1, 1, 20_000)[:, None].expand(-1, 3)
    b = nn.Parameter(torch.zeros(3))
    optimizer = sgdph.SGDPH([{"params": [b], "channelwise": True}])
    averages = []
    for closure in (False, True):
        state = copy.deepcopy(optimizer.state_dict())
        loss = torch.relu(x + b).mean(0).sum()
        if closure:
            optimizer.update_hessian(closure=lambda: (torch.relu(x + b)).mean(0).sum())
        else:
            optimizer.update_hessian(loss)
        loss.backward()
        optimizer.step()
        averages.append(optimizer.state[b]["hessian"] / 0.1)
        optimizer.load_state_dict(state)
        with torch.no_grad():
            b.zero_()
    assert torch.equal(averages[0], torch.zeros(3))
    torch.testing.assert_close(averages[1], torch.full((3,), 0.5), rtol=0.02, atol=0)


class FusedAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.TransformerEncoderLayer(
            8, 2, 16, batch_first=True, dropout=0.0, activation="gelu"
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_fused_attention_agrees_with_the_plain_kernel() -> None:
    x = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0))
    averages = []
    for fused in (False, True):
        model = FusedAttention()
        optimizer = sgdph.SGDPH(
            sgdph.param_groups(model), estimator="hutchinson", refresh="all", hessian_momentum=0.99
        )
        if fused:
            optimizer.update_hessian(closure=lambda m=model: (m(x) ** 3).mean())
            (model(x) ** 3).mean().backward()
        else:
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                optimizer.backward((model(x) ** 3).mean())
        averages.append(torch.cat([h.flatten() for h in pending(optimizer)]))
    error = (averages[0] - averages[1]).norm() / averages[0].norm()
    assert error < 0.05


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_closure_may_be_called_inside_autocast(dtype: torch.dtype) -> None:
    """Autocast remembers its casts of the weights, and the passes move the weights."""
    averages, losses = [], []
    for outside in (True, False):
        model = smooth_net(torch.float32)
        optimizer = sgdph.SGDPH(sgdph.param_groups(model), refresh="all")

        def loss(model: nn.Module = model) -> Tensor:
            with torch.autocast("cpu", dtype):
                return loss_of(model)

        with torch.autocast("cpu", dtype, enabled=outside):
            loss()
            optimizer.update_hessian(closure=loss)
            after = loss()
        losses.append(after.detach())
        after.backward()
        averages.append(torch.cat([h.flatten() for h in pending(optimizer)]))
    assert torch.equal(*averages)
    assert torch.equal(*losses)


class _Shifted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


@pytest.mark.parametrize("before", [False, True], ids=["nothing before", "a forward before"])
def test_a_closure_may_be_called_while_parametrizations_are_cached(before: bool) -> None:
    averages = []
    for outside in (True, False):
        model = smooth_net()
        parametrize.register_parametrization(model[0], "bias", _Shifted())
        original = model[0].parametrizations.bias.original
        optimizer = sgdph.SGDPH([{"params": [original], "channelwise": True}])
        with parametrize.cached() if outside else contextlib.nullcontext():
            loss = loss_of(model) if before else None
            optimizer.update_hessian(closure=lambda model=model: loss_of(model))
            (loss_of(model) if loss is None else loss).backward()
        averages.extend(pending(optimizer))
    assert torch.equal(*averages)
    assert bool(averages[0].any())


def test_a_compiled_model_trains_like_the_uncompiled_one() -> None:
    """``aot_eager`` uses torch's compiled autograd, but no C++ compiler."""
    model = smooth_net(torch.float32)
    reference = copy.deepcopy(model)
    graphs = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=graphs)
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    expected = sgdph.SGDPH(sgdph.param_groups(reference))
    for step in range(3):
        optimizer.zero_grad()
        expected.zero_grad()
        optimizer.update_hessian(closure=lambda s=step: loss_of(compiled, s))
        loss_of(compiled, step).backward()
        expected.backward(loss_of(reference, step))
        optimizer.step()
        expected.step()
    for (name, p), q in zip(
        model.state_dict().items(), reference.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-4, msg=name)
    assert int(model[1].num_batches_tracked) == 3
    assert graphs.frame_count == 1
