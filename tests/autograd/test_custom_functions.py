"""Custom autograd functions: correct ones pass silently, others raise an error or warn."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small import WAYS
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from user_warnings import warns_here

import sgdph

DTYPE = torch.float64
TWO_WAYS = ["update_hessian", "backward"]
NAMES = itertools.count()

Use = Callable[[Tensor, Tensor], Tensor]
"""Given activations and data of their shape, a part of a network, or the loss's end."""


def silu_gradient(g: Tensor, x: Tensor) -> Tensor:
    s = x.sigmoid()
    return g * s * (1 + x * (1 - s))


def function(forward: Any, backward: Any, name: str = "Kernel") -> Any:
    """Make a new class at each call, because a warning is given once per class."""
    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(name, (Function,), members)


def saving(*kept: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def forward(ctx: Any, x: Tensor, *_: Any) -> Tensor:
        ctx.save_for_backward(*(keep(x) for keep in kept))
        return functional.silu(x)

    return forward


def same(x: Tensor) -> Tensor:
    return x


def by_saved_input(ctx: Any, g: Tensor) -> Tensor:
    return silu_gradient(g, ctx.saved_tensors[0])


# Correct functions, and the same in torch's own operations.


def saved_input(h: Tensor, data: Tensor) -> Tensor:
    return function(saving(same), by_saved_input).apply(h)


def saved_output(h: Tensor, data: Tensor) -> Tensor:
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.exp()
        ctx.save_for_backward(y)
        return y

    return function(forward, lambda ctx, g: g * ctx.saved_tensors[0]).apply(h)


def mask_of_floats(h: Tensor, data: Tensor) -> Tensor:
    def forward(ctx: Any, x: Tensor) -> Tensor:
        mask = 2.0 * (x > 0).to(x)
        ctx.save_for_backward(mask)
        return x * mask

    return function(forward, lambda ctx, g: g * ctx.saved_tensors[0]).apply(h)


def _scale_forward(ctx: Any, x: Tensor, factors: Tensor) -> Tensor:
    ctx.save_for_backward(factors)
    return x * factors


def data_that_is_held(h: Tensor, data: Tensor) -> Tensor:
    return function(_scale_forward, lambda ctx, g: (g * ctx.saved_tensors[0], None)).apply(h, data)


def linear_layer(h: Tensor, data: Tensor) -> Tensor:
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight

    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return g @ weight.t(), x.t() @ g

    # No other code holds these data, like those that a network moves to its device.
    return function(forward, backward).apply(data[:, :2] + 1, h[:2])


def gradient_reversal(h: Tensor, data: Tensor) -> Tensor:
    return function(lambda ctx, x: x.view_as(x), lambda ctx, g: -g).apply(h)


def zero_gradient(h: Tensor, data: Tensor) -> Tensor:
    stop = function(lambda ctx, x: x.clone(), lambda ctx, g: torch.zeros(g.shape, dtype=g.dtype))
    return h + stop.apply(h)


def no_gradient(h: Tensor, data: Tensor) -> Tensor:
    return h + function(lambda ctx, x: x.clone(), lambda ctx, g: None).apply(h)


def absolute_error(h: Tensor, data: Tensor) -> Tensor:
    """The end of a loss, piecewise linear: its gradient has no graph of its own."""

    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.abs().sum()

    return function(forward, lambda ctx, g: g * ctx.saved_tensors[0].sign()).apply(h.sin())


def checkpointed(h: Tensor, data: Tensor) -> Tensor:
    kernel = function(saving(same), by_saved_input)
    result: Tensor = checkpoint(lambda x: kernel.apply(x.sin()), h, use_reentrant=False)
    return result


def mapped(h: Tensor, data: Tensor) -> Tensor:
    class Silu(Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return functional.silu(x)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
            ctx.save_for_backward(*inputs)

        backward = staticmethod(by_saved_input)

    return torch.func.vmap(Silu.apply)(h)


def custom_operator(h: Tensor, data: Tensor) -> Tensor:
    @torch.library.custom_op(f"sgdph_right::silu{next(NAMES)}", mutates_args=())
    def operator(x: Tensor, factors: Tensor) -> Tensor:
        return functional.silu(x) * factors

    def setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        x, factors = ctx.saved_tensors
        return silu_gradient(g * factors, x), None

    operator.register_autograd(backward, setup_context=setup)
    return operator(h, data)


RIGHT: dict[Use, Use] = {
    saved_input: lambda h, d: functional.silu(h),
    saved_output: lambda h, d: h.exp(),
    mask_of_floats: lambda h, d: 2 * h.relu(),
    data_that_is_held: lambda h, d: h * d,
    linear_layer: lambda h, d: (d[:, :2] + 1) @ h[:2],
    no_gradient: lambda h, d: h + h.detach(),
    zero_gradient: lambda h, d: h + h.detach(),
    gradient_reversal: lambda h, d: 2 * h.detach() - h,
    absolute_error: lambda h, d: h.sin().abs().sum(),
    checkpointed: lambda h, d: functional.silu(h.sin()),
    mapped: lambda h, d: functional.silu(h),
    custom_operator: lambda h, d: functional.silu(h) * d,
}


def curvature(use: Use, way: str, p: Tensor | None = None) -> Tensor:
    torch.manual_seed(0)
    data, weights = torch.randn(6, 4, dtype=DTYPE), torch.randn(6, 4, dtype=DTYPE)
    p = nn.Parameter(torch.linspace(0.5, 1.5, 4, dtype=DTYPE))
    groups = [{"params": [p], "channelwise": True}]
    optimizer = sgdph.SGDPH(groups, lr=0.0, hessian_momentum=0.0, estimator="exact")
    out = use((weights * p).sin(), data)
    loss = out if out.ndim == 0 else out.square().mean() + out.sin().mean()
    if way == "hessian_block":
        return sgdph.hessian_block(loss, p).diagonal().abs()
    WAYS[way](optimizer, loss)
    optimizer.step()
    result: Tensor = optimizer.state[p]["hessian"]
    return result


@pytest.mark.parametrize("way", [*WAYS, "hessian_block"])
@pytest.mark.parametrize("use", RIGHT, ids=lambda use: use.__name__)
def test_correct_functions_give_the_exact_curvature_without_warnings(use: Use, way: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="Using backward\\(\\) with create_graph")
        found = curvature(use, way)
    expected = curvature(RIGHT[use], "update_hessian")
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


# Functions whose gradient has no graph.


def _under_no_grad(ctx: Any, g: Tensor) -> Tensor:
    with torch.no_grad():
        return silu_gradient(g, ctx.saved_tensors[0])


def _from_detached(ctx: Any, g: Tensor) -> Tensor:
    return silu_gradient(g.detach(), ctx.saved_tensors[0].detach())


def _in_fresh_memory(ctx: Any, g: Tensor) -> Tensor:
    out = torch.empty_like(ctx.saved_tensors[0])
    with torch.no_grad():
        out.copy_(silu_gradient(g, ctx.saved_tensors[0]))
    return out


def _by_numpy(ctx: Any, g: Tensor) -> Tensor:
    gradient = silu_gradient(g, ctx.saved_tensors[0]).detach().numpy().copy()
    return torch.from_numpy(gradient)


def _in_saved_memory(ctx: Any, g: Tensor) -> Tensor:
    """The gradient overwrites the saved tensor, as in fused cross entropies."""
    with torch.no_grad():
        saved: Tensor = ctx.saved_tensors[0].detach()
        return saved.copy_(silu_gradient(g, saved.clone()))


def _once(ctx: Any, g: Tensor) -> Tensor:
    if hasattr(ctx, "used"):
        raise RuntimeError("called twice")
    ctx.used = True
    return _under_no_grad(ctx, g)


def _from_detached_gradient(ctx: Any, g: Tensor) -> Tensor:
    """The result still requires grad, through the saved input."""
    return silu_gradient(g.detach(), ctx.saved_tensors[0])


GRAPHLESS = [
    _under_no_grad,
    _from_detached,
    _from_detached_gradient,
    _in_fresh_memory,
    _by_numpy,
    _in_saved_memory,
    _once,
]


@pytest.mark.filterwarnings("ignore:.*check_curvature")
@pytest.mark.parametrize("way", [*TWO_WAYS, "hessian_block"])
@pytest.mark.parametrize("ends_the_loss", [False, True])
@pytest.mark.parametrize("backward", GRAPHLESS, ids=lambda backward: backward.__name__)
def test_a_graphless_backward_raises_an_error(backward: Any, ends_the_loss: bool, way: str) -> None:
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.clone() if backward is _in_saved_memory else x)
        return functional.silu(x) if not ends_the_loss else functional.silu(x).sum()

    with pytest.raises(
        RuntimeError, match=r"Kernel returns a gradient without a graph.*closure=\.\.\."
    ):
        curvature(lambda h, d: function(forward, backward).apply(h), way)


@pytest.mark.parametrize("way", TWO_WAYS)
def test_one_of_two_gradients_without_a_graph_raises_an_error(way: str) -> None:
    def forward(ctx: Any, x: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return functional.silu(x) + shift

    kernel = function(forward, lambda ctx, g: (_under_no_grad(ctx, g), g))
    with pytest.raises(RuntimeError, match="returns a gradient without a graph"):
        curvature(lambda h, d: kernel.apply(h, h.cos()), way)
    # A gradient that does not lead to the parameter needs no graph.
    found = curvature(lambda h, d: kernel.apply(d.clone().requires_grad_(), h), way)
    expected = curvature(lambda h, d: functional.silu(d) + h, way)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("way", WAYS)
def test_a_custom_operator_without_a_derivative_raises_an_error(way: str) -> None:
    name = f"sgdph_formula{next(NAMES)}"

    @torch.library.custom_op(f"{name}::gradient", mutates_args=())
    def gradient(g: Tensor, x: Tensor) -> Tensor:
        return silu_gradient(g, x)

    kernel = function(saving(same), lambda ctx, g: gradient(g, *ctx.saved_tensors))
    with pytest.raises(RuntimeError, match=r"torch\.library\.register_autograd"):
        curvature(lambda h, d: kernel.apply(h), way)


def constant_gradient(h: Tensor, data: Tensor) -> Tensor:
    """As a mixture of experts adds its auxiliary loss: a product would add it once more."""

    def forward(ctx: Any, x: Tensor, auxiliary: Tensor) -> Tensor:
        ctx.shape = auxiliary.shape
        return x.view_as(x)

    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        return g, torch.full(ctx.shape, 0.5, dtype=g.dtype)

    return function(forward, backward).apply(h.sin(), h.square().sum())


@pytest.mark.parametrize("way", TWO_WAYS)
def test_a_constant_gradient_raises_an_error(way: str) -> None:
    with pytest.raises(RuntimeError, match="returns a gradient without a graph"):
        curvature(constant_gradient, way)


# Functions that save tensors without a history.


def gradient_in_forward(h: Tensor, data: Tensor) -> Tensor:
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        one_hot = functional.one_hot(target, logits.shape[1])
        ctx.save_for_backward((logits.softmax(1) - one_hot) / len(target))
        return functional.cross_entropy(logits, target)

    kernel = function(forward, lambda ctx, g: (g * ctx.saved_tensors[0], None))
    return kernel.apply(h, torch.arange(6) % 4)


def saved_statistic(h: Tensor, data: Tensor) -> Tensor:
    def forward(ctx: Any, x: Tensor) -> Tensor:
        r = (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        ctx.save_for_backward(x, r)
        return x * r

    def backward(ctx: Any, g: Tensor) -> Tensor:
        x, r = ctx.saved_tensors
        return r * g - x * r**3 * (g * x).mean(-1, keepdim=True)

    return function(forward, backward).apply(h)


def statistic_beside_data(h: Tensor, data: Tensor) -> Tensor:
    """Saves log-sum-exp, a statistic, and also targets, which are data."""

    def forward(ctx: Any, x: Tensor, target: Tensor) -> Tensor:
        total = x.logsumexp(1)
        ctx.save_for_backward(x, target, total)
        return (total - x.gather(1, target[:, None])[:, 0]).mean()

    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        x, target, total = ctx.saved_tensors
        p = (x - total[:, None]).exp()
        return g * (p - functional.one_hot(target, x.shape[1])) / len(x), None

    return function(forward, backward).apply(h, torch.arange(6) % 4)


def attribute(h: Tensor, data: Tensor) -> Tensor:
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.slope = silu_gradient(torch.ones_like(x), x)
        return functional.silu(x)

    return function(forward, lambda ctx, g: g * ctx.slope).apply(h)


def attribute_beside_data(h: Tensor, data: Tensor) -> Tensor:
    """A fused loss that keeps its gradient, and also takes targets, which are data."""

    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        one_hot = functional.one_hot(target, logits.shape[1])
        ctx.gradient = (logits.softmax(1) - one_hot) / len(target)
        return functional.cross_entropy(logits, target)

    kernel = function(forward, lambda ctx, g: (g * ctx.gradient, None))
    return kernel.apply(h, torch.arange(6) % 4)


def flattened_input(h: Tensor, data: Tensor) -> Tensor:
    """As in wrappers of Triton kernels: the saved view has no history."""
    flatten = saving(lambda x: x.reshape(-1))

    def backward(ctx: Any, g: Tensor) -> Tensor:
        return silu_gradient(g, ctx.saved_tensors[0].view_as(g))

    return function(flatten, backward).apply(h)


def in_a_list(h: Tensor, data: Tensor) -> Tensor:
    def forward(ctx: Any, x: Tensor) -> Tensor:
        s = x.sigmoid()
        ctx.cache = {"slopes": 0, "all": [1]}
        ctx.slopes = [s * (1 + x * (1 - s))]
        return x * s

    return function(forward, lambda ctx, g: g * ctx.slopes[0]).apply(h)


LOST = [
    gradient_in_forward,
    saved_statistic,
    statistic_beside_data,
    attribute,
    attribute_beside_data,
    in_a_list,
    flattened_input,
]


@pytest.mark.parametrize("way", [*WAYS, "hessian_block"])
@pytest.mark.parametrize("use", LOST, ids=lambda use: use.__name__)
def test_saved_tensors_without_a_history_give_a_warning(use: Use, way: str) -> None:
    with warns_here(r"Kernel saved tensors.*sgdph\.check_curvature"):
        curvature(use, way)


def test_a_warning_is_given_once_per_class() -> None:
    kernel = function(
        saving(lambda x: x + 1), lambda ctx, g: silu_gradient(g, ctx.saved_tensors[0] - 1)
    )
    with warns_here("check_curvature"):
        curvature(lambda h, d: kernel.apply(h), "backward")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curvature(lambda h, d: kernel.apply(h), "backward")


# Functions marked once_differentiable.


def marked(h: Tensor, data: Tensor) -> Tensor:
    return function(saving(same), once_differentiable(by_saved_input)).apply(h)


def marked_below_another_decorator(h: Tensor, data: Tensor) -> Tensor:
    backward = torch.amp.custom_bwd(once_differentiable(by_saved_input), device_type="cpu")
    forward = torch.amp.custom_fwd(saving(same), device_type="cpu")
    return function(forward, backward).apply(h)


def marked_at_the_end(h: Tensor, data: Tensor) -> Tensor:
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp().sum()

    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.saved_tensors[0].exp()

    return function(forward, once_differentiable(backward)).apply(h)


def marked_inside(h: Tensor, data: Tensor) -> Tensor:
    helper = once_differentiable(by_saved_input)
    return function(saving(same), lambda ctx, g: helper(ctx, g) * 1.0).apply(h)


@pytest.mark.parametrize("way", [*WAYS, "hessian_block"])
@pytest.mark.parametrize(
    "use",
    [marked, marked_below_another_decorator, marked_at_the_end, marked_inside],
    ids=lambda use: use.__name__,
)
def test_once_differentiable_raises_an_error(use: Use, way: str) -> None:
    with pytest.raises(RuntimeError, match=r"once_differentiable.*channelwise=False"):
        curvature(use, way)


@pytest.mark.parametrize("way", WAYS)
def test_a_function_added_during_training_raises_an_error(way: str) -> None:
    torch.manual_seed(0)
    layer, head = nn.Linear(5, 8), nn.Linear(8, 3)
    x = torch.randn(16, 5)
    optimizer = sgdph.SGDPH(sgdph.param_groups(nn.Sequential(layer, nn.Tanh(), head)))

    def step(activation: Callable[[Tensor], Tensor]) -> None:
        optimizer.zero_grad()
        loss = functional.cross_entropy(head(activation(layer(x))), torch.arange(16) % 3)
        WAYS[way](optimizer, loss)
        optimizer.step()

    for _ in range(2):
        step(torch.tanh)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="once_differentiable"):
            step(lambda h: marked(h, h))
    step(torch.tanh)


@pytest.mark.parametrize("way", WAYS)
def test_torchvision_deform_conv2d_raises_an_error(way: str) -> None:
    ops = pytest.importorskip("torchvision").ops
    conv = nn.Conv2d(3, 4, 1)
    optimizer = sgdph.SGDPH([{"params": [conv.bias], "channelwise": True}])

    def step() -> None:
        h = conv(torch.rand(1, 3, 8, 8))
        out = ops.deform_conv2d(h, torch.rand(1, 18, 6, 6), torch.rand(2, 4, 3, 3))
        WAYS[way](optimizer, out.square().sum())
        optimizer.step()

    with pytest.raises(RuntimeError, match=r"channelwise=False.*deform_conv2d"):
        step()
