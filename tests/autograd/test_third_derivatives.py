"""Where torch's second or third derivatives are wrong: right here, or an error."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from small import WAYS
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.func import functional_call
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import sgdph
from sgdph.autograd.graph import TELLS_PACKED

DTYPE = torch.float64
X = torch.randn(6, 4, 3, dtype=DTYPE, generator=torch.Generator().manual_seed(0))

NORMS: dict[str, Callable[[], nn.Module]] = {
    "layer": lambda: nn.LayerNorm((4, 3), dtype=DTYPE),
    "batch": lambda: nn.BatchNorm1d(4, dtype=DTYPE),
    "instance": lambda: nn.InstanceNorm1d(4, affine=True, dtype=DTYPE),
    "batch in evaluation": lambda: nn.BatchNorm1d(4, dtype=DTYPE).eval(),
    "group": lambda: nn.GroupNorm(2, 4, dtype=DTYPE),
    "rms": lambda: nn.RMSNorm((4, 3), dtype=DTYPE),
}
REFUSED = {"layer": "layer norm", "batch": "batch norm", "instance": "batch norm"}


def energy(norm: nn.Module, x: Tensor, p: Tensor, place: str) -> Tensor:
    h = x * p[:, None].sin() if place == "before" else x
    if place == "weight":
        shape = norm.get_parameter("weight").shape
        weight = (p if len(shape) == 1 else p[:, None]).expand(shape)
        h = functional_call(norm, {"weight": weight}, (h,))
    else:
        h = norm(h)
    return functional.silu(h * p[:, None] if place == "behind" else h).sum()


def loss_of(norm: nn.Module, p: Tensor, place: str) -> Tensor:
    x = X.clone().requires_grad_()
    (forces,) = torch.autograd.grad(energy(norm, x, p, place), x, create_graph=True)
    return forces.square().sum()


def differences(norm: nn.Module, p: Tensor, place: str) -> Tensor:
    rows = []
    for step in 1e-5 * torch.eye(len(p), dtype=DTYPE):
        ends = [(p.detach() + sign * step).requires_grad_() for sign in (1, -1)]
        gradients = [torch.autograd.grad(loss_of(norm, end, place), end)[0] for end in ends]
        rows.append((gradients[0] - gradients[1]) / 2e-5)
    return torch.stack(rows)


@pytest.mark.parametrize("way", [*WAYS, "hessian_block"])
@pytest.mark.parametrize("place", ["before", "weight", "behind"])
@pytest.mark.parametrize("name", NORMS)
def test_a_norm_under_a_gradient_penalty_is_right_or_raises_an_error(
    name: str, place: str, way: str
) -> None:
    norm = NORMS[name]()
    p = nn.Parameter(torch.linspace(0.4, 1.2, 4, dtype=DTYPE))
    groups = [{"params": [p], "channelwise": True}]
    optimizer = sgdph.SGDPH(groups, lr=0.0, hessian_momentum=0.0, estimator="exact")

    def take() -> Tensor:
        loss = loss_of(norm, p, place)
        if way == "hessian_block":
            return sgdph.hessian_block(loss, p)
        WAYS[way](optimizer, loss)
        optimizer.step()
        diagonal: Tensor = optimizer.state[p]["hessian"]
        return diagonal

    # Only parameters before the norm need its third derivative with respect to its input.
    if name in REFUSED and place == "before":
        with pytest.raises(RuntimeError, match=rf"{REFUSED[name]}.*third.*GroupNorm.*closure="):
            take()
        return
    expected = differences(norm, p, place)
    if way != "hessian_block":
        expected = expected.diagonal().abs()
    torch.testing.assert_close(take(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", [*WAYS, "hessian_block"])
def test_weight_norm_s_direction_is_right_or_raises_an_error(way: str) -> None:
    """Torch's second derivative by the direction is wrong, but by the length it is right."""
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 1, dtype=DTYPE))
    length, direction = layer.parametrizations.weight.parameters()  # type: ignore[union-attr]

    def take(p: Tensor) -> Tensor:
        groups = [{"params": [p], "channelwise": True}]
        optimizer = sgdph.SGDPH(groups, lr=0.0, hessian_momentum=0.0, estimator="exact")
        loss = layer(X.flatten(0, 1)[:, :1].expand(24, 4).cumsum(1)).sin().sum()
        if way == "hessian_block":
            return sgdph.hessian_block(loss, p).diagonal().abs().view_as(p)
        WAYS[way](optimizer, loss)
        optimizer.step()
        diagonal: Tensor = optimizer.state[p]["hessian"]
        return diagonal

    def by_hand(g: Tensor, v: Tensor) -> Tensor:
        weight = g * v / torch.norm_except_dim(v, 2, 0)
        x = X.flatten(0, 1)[:, :1].expand(24, 4).cumsum(1)
        return functional.linear(x, weight, layer.bias).sin().sum()

    for i, p in enumerate((length, direction)):
        if way == "create_graph" and p is direction:
            with pytest.raises(
                RuntimeError, match=r"with respect to v is wrong.*use optimizer.backward\(loss\)"
            ):
                take(p)
            continue
        values = length.detach(), direction.detach()
        hessian = torch.autograd.functional.hessian(by_hand, values)[i][i]
        expected = hessian.reshape(p.numel(), -1).diagonal().abs().view_as(p)
        torch.testing.assert_close(take(p), expected)


Norm = Callable[[Tensor, "Tensor | None"], Tensor]
SHIFTS: dict[str, Norm] = {
    "layer": lambda x, shift: functional.layer_norm(x, (4,), None, shift),
    "batch": lambda x, shift: functional.batch_norm(x, None, None, None, shift, True),
    "batch in evaluation": lambda x, shift: functional.batch_norm(
        x, x.new_zeros(4), x.new_ones(4), None, shift
    ),
    "instance": lambda x, shift: functional.instance_norm(x, None, None, None, shift),
    "group": lambda x, shift: functional.group_norm(x, 2, None, shift),
}


def saving_on_cpu(norm: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with save_on_cpu():
        return norm(x)


KEEPING = {
    "plain": lambda norm, x: norm(x),
    "checkpoint": lambda norm, x: checkpoint(norm, x, use_reentrant=False),
    "save_on_cpu": saving_on_cpu,
}
WRONG_SHIFTS = SHIFTS.keys() - {"group"}


@pytest.mark.parametrize("kept", KEEPING)
@pytest.mark.parametrize("way", [*WAYS, "hessian_block"])
@pytest.mark.parametrize("name", SHIFTS)
def test_a_norm_s_shift_without_a_scale_is_right_or_raises_an_error(
    name: str, way: str, kept: str
) -> None:
    """In torch its second derivative is zero. Also if the input depends on the same parameter."""
    x = X.movedim(1, 2).contiguous() if name == "layer" else X
    mixed = torch.linspace(0.5, 1.5, x.numel(), dtype=DTYPE).view(x.shape).sin()

    def loss_of_shift(p: Tensor, norm: Norm, kept: str = "plain") -> Tensor:
        scaled = x * (p if name == "layer" else p[:, None]).sin()
        return (KEEPING[kept](lambda h: norm(h, p), scaled) * mixed).sin().sum()

    def written_out(h: Tensor, p: Tensor | None) -> Tensor:
        assert p is not None
        return SHIFTS[name](h, None) + (p if name == "layer" else p[:, None])

    p = nn.Parameter(torch.linspace(0.4, 1.2, 4, dtype=DTYPE))
    expected = torch.autograd.functional.hessian(lambda p: loss_of_shift(p, written_out), p)
    if way == "hessian_block":
        block = sgdph.hessian_block(loss_of_shift(p, SHIFTS[name], kept), p)
        torch.testing.assert_close(block, expected)
        return
    groups = [{"params": [p], "channelwise": True}]
    optimizer = sgdph.SGDPH(groups, lr=0.0, hessian_momentum=0.0, estimator="exact")
    WAYS[way](optimizer, loss_of_shift(p, SHIFTS[name], kept))
    if way == "create_graph" and name in WRONG_SHIFTS:
        with pytest.raises(RuntimeError, match=r"no scale.*use optimizer.backward\(loss\)"):
            optimizer.step()
        return
    optimizer.step()
    torch.testing.assert_close(optimizer.state[p]["hessian"], expected.diagonal().abs())


@pytest.mark.parametrize("way", [*WAYS, "a user's hook"])
@pytest.mark.parametrize("frozen_scale", [True, False])
def test_only_a_shift_without_a_scale_is_refused(frozen_scale: bool, way: str) -> None:
    p = nn.Parameter(torch.linspace(0.4, 1.2, 4, dtype=DTYPE))
    groups = [{"params": [p], "channelwise": True}]
    optimizer = sgdph.SGDPH(groups, lr=0.0, hessian_momentum=0.0, estimator="exact")
    scale = torch.ones_like(p) if frozen_scale else None
    h = functional.layer_norm(X.movedim(1, 2), (4,), scale, p)
    loss = h.sin().sum()
    if way == "a user's hook":
        h.grad_fn.register_hook(lambda *_: None)  # type: ignore[union-attr]
    told = frozen_scale and TELLS_PACKED
    wrong = not told and way in ("create_graph", "a user's hook")
    with pytest.raises(RuntimeError, match="no scale") if wrong else nullcontext():
        WAYS.get(way, WAYS["backward"])(optimizer, loss)
        optimizer.step()
        expected = h.sin().sum((0, 1)).abs()
        torch.testing.assert_close(optimizer.state[p]["hessian"], expected)


def test_a_step_that_is_not_due_may_free_the_graph() -> None:
    layer = nn.LayerNorm(4, dtype=DTYPE)
    layer.weight.requires_grad_(False)
    groups = [{"params": [layer.bias], "channelwise": True}]
    optimizer = sgdph.SGDPH(groups, hessian_interval=2)
    optimizer.backward(layer(X.movedim(1, 2)).sin().sum())
    optimizer.step()
    optimizer.zero_grad()
    loss = layer(X.movedim(1, 2)).sin().sum()
    loss.backward(create_graph=True, retain_graph=False)
    optimizer.step()
