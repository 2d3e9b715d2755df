"""check_curvature: it names wrong second derivatives, passes right ones, and changes nothing."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

import sgdph
from sgdph.diagnostics import curvature_check

pytestmark = pytest.mark.filterwarnings("ignore:estimator=.hutchinson. with refresh=.all.")

PRECISIONS = [torch.float32, torch.float64]
SETTINGS: list[dict[str, Any]] = [
    {},
    {"estimator": "hutchinson", "refresh": "all"},
    {"estimator": "exact", "refresh": "all"},
]


class NoGraph(torch.autograd.Function):
    """Like a wrapper of a Triton or C++ kernel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return functional.silu(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        with torch.no_grad():
            s = x.sigmoid()
            return g * (s * (1 + x * (1 - s)))


class FreshTensor(NoGraph):
    """The backward fills a new tensor."""

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        out = torch.empty_like(g)
        with torch.no_grad():
            out.copy_(NoGraph.backward(ctx, g))
        return out


class GradientInForward(torch.autograd.Function):
    """A fused cross entropy that computes its gradient in the forward and keeps it."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        hot = functional.one_hot(target, logits.shape[1])
        ctx.save_for_backward((logits.softmax(1) - hot) / len(target))
        return functional.cross_entropy(logits, target)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g * ctx.saved_tensors[0], None


class SavedStatistic(torch.autograd.Function):
    """An RMS norm that saves its reciprocal root as a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        r = (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        ctx.save_for_backward(x, r)
        return x * r

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        x, r = ctx.saved_tensors
        return r * g - x * r**3 * (g * x).mean(-1, keepdim=True)


class TwiceTheSlope(torch.autograd.Function):
    """A sigmoid's slope in terms of its output, with an error in its own derivative: a factor 2."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        return y * (1 - y)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return 2 * g * (1 - 2 * y)


class WrongFactor(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.sigmoid()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * TwiceTheSlope.apply(ctx.saved_tensors[0])


class Right(torch.autograd.Function):
    """A correct kernel, with a kink."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0) * x.tanh()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * (x > 0) * (x.tanh() + x * (1 - x.tanh() ** 2))


class OnceDifferentiable(NoGraph):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return NoGraph.backward(ctx, g)


KERNELS: dict[str, Callable[[Tensor], Tensor]] = {
    cls.__name__: cls.apply
    for cls in (NoGraph, FreshTensor, SavedStatistic, WrongFactor, OnceDifferentiable)
}


class Net(nn.Module):
    """A kernel between a norm and a layer, with ReLU before and after."""

    def __init__(self, kernel: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(5, 16)
        self.norm = nn.LayerNorm(16)
        # With scales of one, a second norm would change nothing, and its errors would not show.
        nn.init.uniform_(self.norm.weight, 0.3, 3.0)
        self.kernel = kernel
        self.behind = nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        h = self.kernel(self.norm(self.first(x).relu()))
        return self.head(self.behind(h).relu())


BEFORE = ["first.bias", "norm.weight", "norm.bias"]
Y = torch.arange(64) % 3


def batch(dtype: torch.dtype, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(64, *shape, generator=generator, dtype=torch.float64).to(dtype)


def checked(
    model: nn.Module, *shape: int, loss_fn: Any = functional.cross_entropy, **settings: Any
) -> dict[str, float]:
    x = batch(next(model.parameters()).dtype, *shape)
    optimizer = sgdph.SGDPH(sgdph.param_groups(model), **settings)
    return sgdph.check_curvature(lambda: loss_fn(model(x), Y), optimizer, raise_exception=False)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_parameters_before_a_wrong_kernel_are_named(
    kernel: str, dtype: torch.dtype, settings: dict[str, Any]
) -> None:
    model = Net(KERNELS[kernel], dtype)
    errors = checked(model, 5, **settings)
    assert list(errors) == [*BEFORE, "behind.bias"]
    assert all(errors[name] > 0.05 for name in BEFORE), errors
    assert errors["behind.bias"] < 0.03, errors


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_a_loss_that_saves_its_gradient_in_the_forward_raises_an_error(dtype: torch.dtype) -> None:
    model = Net(torch.tanh, dtype)
    x = batch(dtype, 5)
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    with pytest.raises(RuntimeError) as raised:
        sgdph.check_curvature(lambda: GradientInForward.apply(model(x), Y), optimizer)
    for name in [*BEFORE, "behind.bias"]:
        assert name in str(raised.value)
    assert "update_hessian(closure=...)" in str(raised.value)


class Recurrent(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        kind, _, nonlinearity = kind.partition("-")
        options: dict[str, Any] = {"nonlinearity": nonlinearity} if nonlinearity else {}
        self.recurrent = getattr(nn, kind)(4, 12, num_layers=2, batch_first=True, **options)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(x)[0][:, -1])


def convolutions(*middle: nn.Module) -> nn.Module:
    layers = [nn.Conv2d(2, 6, 3), *middle, nn.Conv2d(6, 6, 2), nn.BatchNorm2d(6), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))


def perceptron(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 12), *middle, nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3))


# name: network, shape of an input
RIGHT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: perceptron(nn.Tanh()), (5,)),
    "relu": (lambda: perceptron(nn.ReLU(), nn.Linear(12, 12), nn.ReLU(inplace=True)), (5,)),
    "layer_norm_dropout": (lambda: perceptron(nn.LayerNorm(12), nn.Dropout(0.3), nn.GELU()), (5,)),
    "kinks": (lambda: perceptron(nn.Hardswish(), nn.Linear(12, 12), nn.PReLU(12), nn.SELU()), (5,)),
    "clamps": (lambda: perceptron(nn.LeakyReLU(), nn.Linear(12, 12), nn.ReLU6()), (5,)),
    "batch_norm_pool": (
        lambda: convolutions(nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)),
        (2, 9, 9),
    ),
    "group_norm": (lambda: convolutions(nn.GroupNorm(2, 6), nn.SiLU()), (2, 6, 6)),
    "lstm": (lambda: Recurrent("LSTM"), (4, 4)),
    "rnn_relu": (lambda: Recurrent("RNN-relu"), (4, 4)),
}


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
@pytest.mark.parametrize("name", RIGHT)
def test_correct_networks_pass_and_a_factor_of_two_does_not(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, shape = RIGHT[name]
    torch.manual_seed(0)
    model = build().to(dtype)
    model(batch(dtype, *shape))
    errors = checked(model, *shape)
    tolerance = 3e-2 if dtype == torch.float32 else 1e-4
    assert max(errors.values()) <= tolerance, errors

    right = curvature_check.curvature_of_gradients
    monkeypatch.setattr(
        curvature_check,
        "curvature_of_gradients",
        lambda *args: [None if h is None else 2 * h for h in right(*args)],
    )
    wrong = checked(model, *shape)
    # A bias before batch norm has a block of zeros, and twice zero is no error.
    flat = {"batch_norm_pool": ["0.bias", "4.bias"], "group_norm": ["3.bias"]}.get(name, [])
    assert all((wrong[n] > 0.2) is (n not in flat) for n in wrong), wrong
    assert set(flat) <= set(wrong)


@pytest.mark.parametrize("seed", [5, 43, 64, 133, 138])
def test_a_block_of_zeros_passes(seed: int) -> None:
    """At these seeds, one probe takes a single entry of rounding errors for exact by chance."""
    torch.manual_seed(seed)
    norms = nn.BatchNorm2d(1), nn.BatchNorm2d(2)
    body = nn.Conv2d(2, 1, 3), norms[0], nn.Tanh(), nn.Conv2d(1, 2, 2), norms[1], nn.ReLU()
    model = nn.Sequential(*body, nn.Flatten(), nn.Linear(18, 3))
    x, y = torch.randn(16, 2, 6, 6), torch.arange(16) % 3
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    sgdph.check_curvature(lambda: functional.cross_entropy(model(x), y), optimizer)


def test_a_kernel_with_a_kink_passes_in_float64() -> None:
    assert max(checked(Net(Right.apply, torch.float64), 5).values()) <= 1e-4


@pytest.mark.parametrize("kind", ["squared margin", "spectrum"])
def test_losses_that_are_curved_between_their_kinks_pass(kind: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(5, 8, dtype=torch.float64)
    x, y = torch.randn(6, 5, dtype=torch.float64), torch.arange(6) % 3
    optimizer = sgdph.SGDPH([{"params": [layer.bias], "channelwise": True}])

    def loss() -> Tensor:
        if kind == "squared margin":
            return functional.multi_margin_loss(layer(x).tanh(), y, p=2)
        return (torch.fft.rfft(layer(x)).abs() - 1).square().mean()

    assert sgdph.check_curvature(loss, optimizer)


def test_a_loss_that_is_not_finite_raises_an_error() -> None:
    layer = nn.Linear(5, 8)
    optimizer = sgdph.SGDPH([{"params": [layer.bias], "channelwise": True}])
    with pytest.raises(RuntimeError, match="the loss is nan at the present weights"):
        sgdph.check_curvature(lambda: layer(torch.ones(2, 5)).sum() * float("nan"), optimizer)


def test_a_wrong_kernel_that_create_graph_misses_is_found() -> None:
    """After ``loss.backward(create_graph=True)`` the kernel's node cannot be found."""
    model = Net(NoGraph.apply, torch.float64)
    optimizer = sgdph.SGDPH(sgdph.param_groups(model), lr=0.0, refresh="all")
    functional.cross_entropy(model(batch(torch.float64, 5)), Y).backward(create_graph=True)
    optimizer.step()
    assert not optimizer.state[model.norm.bias]["hessian"].any()
    assert checked(model, 5)["norm.bias"] > 0.05


class Everything(nn.Module):
    """Dropout of torch's, numpy's and Python's generators, running statistics, a counter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU())
        self.head = nn.Linear(8, 3)
        self.frozen = nn.BatchNorm1d(3).eval()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.frozen(self.head(self.body(x)) * np.random.rand() * random.random())  # noqa: NPY002


def seed() -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_check_does_not_change_the_run(settings: dict[str, Any]) -> None:
    """A run with checks at all points, also with pending curvature, equals the run without."""
    x = batch(torch.float32, 5)
    runs = []
    for check in (False, True):
        model = Everything()
        optimizer = sgdph.SGDPH(sgdph.param_groups(model), **settings)
        seed()

        def look(model: nn.Module = model, optimizer: Any = optimizer, check: bool = check) -> None:
            if check:
                hooks = [len(p._backward_hooks or ()) for p in model.parameters()]
                sgdph.check_curvature(lambda: functional.cross_entropy(model(x), Y), optimizer)
                assert [len(p._backward_hooks or ()) for p in model.parameters()] == hooks

        for _ in range(3):
            look()
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), Y)
            optimizer.update_hessian(loss)
            look()
            loss.backward()
            look()
            optimizer.step()
        tensors = [*model.state_dict().values(), *optimizer.multipliers().values()]
        tensors += [p.grad for p in model.parameters() if p.grad is not None]
        flags = [module.training for module in model.modules()]
        rest = torch.get_rng_state().tolist(), np.random.rand(), random.random()  # noqa: NPY002
        runs.append((copy.deepcopy(tensors), flags, rest))
    (plain, *others), (looked_at, *their_others) = runs
    assert all(torch.equal(a, b) for a, b in zip(plain, looked_at, strict=True))
    assert others == their_others


def test_frozen_and_unreached_parameters_are_left_out() -> None:
    model = Net(torch.tanh, torch.float64)
    model.norm.weight.requires_grad_(False)
    x = batch(torch.float64, 16)
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    errors = sgdph.check_curvature(
        lambda: functional.cross_entropy(model.head(model.behind(x).relu()), Y), optimizer
    )
    assert list(errors) == ["behind.bias"]
    assert "norm.weight" not in checked(model, 5)
    with pytest.raises(RuntimeError, match="none of the optimizer's trainable Newton parameters"):
        sgdph.check_curvature(lambda: model.head(x).square().mean(), optimizer)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable Newton parameters"):
        sgdph.check_curvature(lambda: model.head(x).square().mean(), optimizer)


def test_the_error_explains_why_there_is_no_exact_product() -> None:
    model = Net(OnceDifferentiable.apply, torch.float64)
    x = batch(torch.float64, 5)
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    with pytest.raises(RuntimeError, match="marked once_differentiable") as raised:
        sgdph.check_curvature(lambda: functional.cross_entropy(model(x), Y), optimizer)
    assert all(name in str(raised.value) for name in BEFORE)
    assert "behind.bias" not in str(raised.value)


@pytest.mark.parametrize("low", ["parameters", "autocast", "first_order"])
def test_low_precision_raises_an_error(low: str) -> None:
    model = Net(torch.tanh, torch.bfloat16 if low == "parameters" else torch.float32)
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    x = batch(next(model.parameters()).dtype, 5)

    def closure() -> Tensor:
        if low == "first_order":
            return model(x).bfloat16().square().mean().float()
        with torch.autocast("cpu", torch.bfloat16, enabled=low == "autocast"):
            return functional.cross_entropy(model(x), Y)

    with pytest.raises(ValueError, match=r"bfloat16.*float64 or float32"):
        sgdph.check_curvature(closure, optimizer)


def test_wrong_arguments_raise_an_error() -> None:
    model = Net(torch.tanh, torch.float64)
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    x = batch(torch.float64, 5)
    calls = iter(range(100))

    def closure() -> Tensor:
        return functional.cross_entropy(model(x), Y)

    with pytest.raises(TypeError, match="closure must be a function"):
        sgdph.check_curvature(closure(), optimizer)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be an SGDPH"):
        sgdph.check_curvature(closure, torch.optim.SGD(model.parameters()))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rtol must be above 0"):
        sgdph.check_curvature(closure, optimizer, rtol=0.0)
    with pytest.raises(RuntimeError, match="not a function of the weights"):
        sgdph.check_curvature(lambda: closure() * (1 + 0.01 * next(calls)), optimizer)
    wrong = sgdph.SGDPH(sgdph.param_groups(model := Net(SavedStatistic.apply, torch.float64)))
    with pytest.raises(RuntimeError, match="of 4 Newton parameters disagrees"):
        sgdph.check_curvature(closure, wrong)
    assert max(sgdph.check_curvature(closure, wrong, rtol=0.9).values()) > 0.05
