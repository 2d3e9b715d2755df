"""Operations whose first derivative torch computes in kernels that it cannot differentiate."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from property_kernels import plain_kernels
from small import WAYS, bn_net, by_backward, loss_of
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop
from torch.nn import functional

import sgdph
from sgdph.autograd import lean
from sgdph.autograd.graph import TELLS_PACKED
from sgdph.autograd.recomputed import PackedArguments

F64 = torch.float64
FACTORS = torch.tensor([0.1, 0.2, 0.05, 0.3], dtype=F64)
Y = torch.tensor([0, 2, 4, 1])
MANY = torch.tensor([[0, 2, -1, 1, 1], [1, -1, 0, 0, 0], [3, 2, 1, 0, 4], [-1, 0, 0, 0, 0]])
WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.1, 3.0], dtype=F64)
TARGETS = torch.tensor([[1, 2, 3], [1, 1, 2], [3, 0, 0], [4, 4, 4]])
LENGTHS = 3, 3, 0, 2
CONCATENATED = torch.tensor([1, 2, 3, 1, 1, 2, 4, 4])

Loss = Callable[[Tensor], Tensor]
"""Of four samples of 30 numbers."""


def margin(target: Tensor = Y, **settings: Any) -> Loss:
    name = "multi_margin_loss" if target is Y else "multilabel_margin_loss"

    def loss(x: Tensor) -> Tensor:
        losses = getattr(functional, name)(2 * x[:, :5], target, **settings)
        return losses.mul(FACTORS).tanh().sum()

    return loss


def ctc(frames: Any, targets: Any = TARGETS, lengths: Any = LENGTHS, **settings: Any) -> Loss:
    def loss(x: Tensor) -> Tensor:
        log_probs = (3 * x.view(4, 6, 5)).permute(1, 0, 2).log_softmax(2)
        losses = functional.ctc_loss(log_probs, targets, frames, lengths, **settings)
        return losses.mul(FACTORS).tanh().sum()

    return loss


LOSSES: dict[str, Loss] = {
    "hardsigmoid": lambda x: functional.hardsigmoid(3 * x).sin().sum(),
    "hardsigmoid_last": lambda x: functional.hardsigmoid(3 * x.sin()).sum(),
    "hardswish": lambda x: functional.hardswish(3 * x).sin().sum(),
    "margin": margin(),
    "margin_weight_none": margin(weight=WEIGHT, reduction="none"),
    "margin_sum": margin(margin=0.4, reduction="sum"),
    "margin_2": margin(p=2, weight=WEIGHT, margin=0.4),
    "margin_2_sum": margin(p=2, reduction="sum"),
    "margin_2_none": margin(p=2, weight=WEIGHT, reduction="none"),
    "many": margin(MANY),
    "many_sum": margin(MANY, reduction="sum"),
    "many_none": margin(MANY, reduction="none"),
    "ctc": ctc((6, 6, 6, 6)),
    "ctc_sum": ctc((6, 5, 4, 3), reduction="sum"),
    "ctc_none": ctc(torch.tensor([6, 5, 4, 3]), lengths=torch.tensor(LENGTHS), reduction="none"),
    "ctc_concatenated": ctc((6, 5, 1, 3), CONCATENATED, reduction="none", blank=0),
    "ctc_blank": ctc((6, 6, 2, 3), TARGETS.clamp(max=3), (3, 2, 0, 1), blank=4),
    "ctc_impossible": ctc((6, 3, 1, 2), zero_infinity=True),
    "ctc_empty": ctc((6, 5, 1, 2), TARGETS, (0, 0, 0, 0)),
}


def of_a_parameter(loss: Loss, entries: int = 6) -> tuple[Loss, Tensor]:
    """Make the loss depend on a small parameter that enters its samples in many places."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(4, 30, generator=generator, dtype=F64)
    p = (0.3 * torch.randn(entries, generator=generator, dtype=F64)).requires_grad_()

    def of_p(p: Tensor) -> Tensor:
        q = p.repeat(30 // entries)
        return loss(x * (1 + q) + q.sin())

    return of_p, p


def gradient(loss: Loss, p: Tensor) -> Tensor:
    p = p.detach().requires_grad_()
    return torch.autograd.grad(loss(p), p)[0]


def assert_close(actual: Tensor, expected: Tensor, within: float) -> None:
    assert expected.abs().max() > 1e-6, "nothing to compare"
    error = float((actual - expected).abs().max() / expected.abs().max())
    assert error <= within, f"off by {error:.1e}"


@pytest.mark.parametrize("chunk_size", [None, 1])
@pytest.mark.parametrize("name", LOSSES)
def test_block_equals_plain_torch_and_finite_differences(name: str, chunk_size: int | None) -> None:
    loss, p = of_a_parameter(LOSSES[name])
    block = sgdph.hessian_block(loss(p), p, chunk_size=chunk_size)
    with plain_kernels():
        expected = torch.autograd.functional.hessian(loss, p)
    assert_close(block, expected, 1e-10)
    steps = 1e-5 * torch.eye(len(p), dtype=F64)
    rows = [(gradient(loss, p + e) - gradient(loss, p - e)) / 2e-5 for e in steps]
    assert_close(block, torch.stack(rows), 1e-6)


@pytest.mark.parametrize("way", ["backward", "update_hessian"])
@pytest.mark.parametrize("name", LOSSES)
def test_the_first_gradient_equals_torch_s_bit_for_bit(name: str, way: str) -> None:
    loss, p = of_a_parameter(LOSSES[name])
    expected = gradient(loss, p)
    block = sgdph.hessian_block(loss(p), p)
    optimizer = sgdph.SGDPH([{"params": [p], "channelwise": True}], hessian_momentum=0)
    WAYS[way](optimizer, loss(p))
    assert torch.equal(p.grad, expected)
    optimizer.step()
    assert_close(optimizer.state[p]["hessian"], block.sum(1).abs(), 1e-12)


@pytest.mark.parametrize("name", ["hardsigmoid", "margin", "margin_2", "many", "ctc"])
def test_the_error_with_create_graph_names_the_ways_that_work(name: str) -> None:
    loss, p = of_a_parameter(LOSSES[name])
    optimizer = sgdph.SGDPH([{"params": [p], "channelwise": True}])

    def third_way() -> None:
        loss(p).backward(create_graph=True)
        optimizer.step()

    with pytest.raises(RuntimeError, match=r"optimizer\.backward\(loss\)"):
        third_way()


@pytest.mark.parametrize("way", ["backward", "update_hessian"])
def test_a_user_s_hook_on_the_node_raises_an_error(way: str) -> None:
    loss, p = of_a_parameter(lambda x: functional.hardsigmoid(x).sum())
    optimizer = sgdph.SGDPH([{"params": [p], "channelwise": True}])
    total = loss(p)
    node = total.grad_fn.next_functions[0][0]
    assert type(node).__name__ == "HardsigmoidBackward0"
    node.register_hook(lambda into, out: (2 * into[0],))
    with pytest.raises(RuntimeError, match="register no hook"):
        WAYS[way](optimizer, total)


def _sparse_matrix_of_values(x: Tensor) -> Tensor:
    """As in graph attention: the entries of a sparse matrix are computed."""
    places, size = torch.tensor([[0, 1, 2, 3], [2, 0, 3, 1]]), (4, 4)
    matrix = torch.sparse_coo_tensor(places, x[:, 0] * x[:, 1], size, check_invariants=True)
    return (matrix @ x).sin().sum()


def _chunked_cross_entropy(x: Tensor) -> Tensor:
    if not hasattr(functional, "linear_cross_entropy"):
        pytest.skip("this torch has no linear_cross_entropy")
    options = nn.LinearCrossEntropyOptions(allow_retain_graph=True)
    weight = torch.linspace(-1, 1, 150, dtype=F64).view(5, 30).sin()
    return functional.linear_cross_entropy(x, weight, Y, options=options)


def _conditional(x: Tensor) -> Tensor:
    is_true = torch.tensor(True)
    return torch.cond(is_true, lambda y: (y * y).sin(), lambda y: y.cos(), (x * 1.0,)).pow(2).sum()


def _loop(x: Tensor) -> Tensor:
    def body(i: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return i + 1, y.sin() * 2

    try:
        _, y = while_loop(lambda i, _: i < 2, body, (torch.tensor(0), x * 1.0))
    except Exception as error:
        pytest.skip(f"this torch has no derivative of while_loop: {error}")
    return y.pow(2).sum()


@pytest.mark.parametrize("way", [*WAYS, "hessian_block"])
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (_sparse_matrix_of_values, r"sparse_coo_tensor.*to_sparse\(\)"),
        (_chunked_cross_entropy, r"linear_cross_entropy.*options=None"),
        (_conditional, "scan, while_loop or cond"),
        (_loop, "scan, while_loop or cond"),
    ],
    ids=["sparse", "linear_cross_entropy", "cond", "while_loop"],
)
def test_a_wrong_second_derivative_of_torch_raises_an_error(
    loss: Loss, message: str, way: str
) -> None:
    """Torch's own second derivative of these is wrong or missing, without an error."""
    of_p, p = of_a_parameter(loss)
    optimizer = sgdph.SGDPH([{"params": [p], "channelwise": True}])

    def take() -> None:
        if way == "hessian_block":
            sgdph.hessian_block(of_p(p), p)
        WAYS[way](optimizer, of_p(p))
        optimizer.step()

    with pytest.raises(RuntimeError, match=message):
        take()


def test_ctc_of_many_frames_stays_finite_in_float32() -> None:
    """Most states stay unreachable for so many frames that a power of three overflows float32."""
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(120, 2, 6, generator=generator)
    targets = torch.randint(1, 6, (2, 90), generator=generator)

    def block(dtype: torch.dtype) -> Tensor:
        p = torch.zeros(2, dtype=dtype, requires_grad=True)
        log_probs = (scores.to(dtype) + p.repeat(3)).log_softmax(2)
        loss = functional.ctc_loss(log_probs, targets, (120, 119), (90, 30))
        return sgdph.hessian_block(loss, p)

    assert_close(block(torch.float32).double(), block(F64), 1e-2)


@pytest.mark.parametrize(("dim", "shape"), [(0, (3, 1, 1)), (2, (1, 1, 2))])
def test_the_block_of_weight_norm_s_direction_is_right(dim: int, shape: tuple[int, ...]) -> None:
    """Torch has a second derivative here, and it is wrong."""
    generator = torch.Generator().manual_seed(0)
    v, t = torch.randn(2, 3, 4, 2, generator=generator, dtype=F64)
    g = torch.rand(shape, generator=generator, dtype=F64) + 0.5
    leaves = v.requires_grad_(), g.requires_grad_()

    def loss(v: Tensor, g: Tensor) -> Tensor:
        return (torch._weight_norm(v, g, dim) * t).sin().sum()

    block = sgdph.hessian_block(loss(*leaves), leaves)
    with plain_kernels():
        parts = torch.autograd.functional.hessian(loss, leaves)
    n = v.numel()
    assert_close(block[:n, :n], parts[0][0].reshape(n, n), 1e-12)
    assert_close(block[n:, :n], parts[1][0].reshape(-1, n), 1e-12)
    assert_close(block[:n, n:], parts[0][1].reshape(n, -1), 1e-12)


@pytest.mark.parametrize(("zero_infinity", "expected"), [(True, 0.0), (False, torch.nan)])
def test_ctc_of_a_too_long_target_gives_zero_or_nan(zero_infinity: bool, expected: float) -> None:
    """Like torch's own gradient: 0 or not a number."""

    def second_sample(x: Tensor) -> Tensor:
        scores = x.view(4, 6, 5).permute(1, 0, 2)
        losses, _ = torch._ctc_loss(scores, TARGETS, (6, 3, 1, 2), LENGTHS, 0, zero_infinity)
        return losses[1]

    loss, p = of_a_parameter(second_sample)
    block = sgdph.hessian_block(loss(p), p)
    torch.testing.assert_close(block, torch.full_like(block, expected), equal_nan=True)


def test_ctc_accepts_lengths_as_tensors() -> None:
    """On GPUs the lengths stay tensors, and the node has another type."""

    def block(wrap: Callable[[Any], Any]) -> tuple[Tensor, str]:
        def last_sample(x: Tensor) -> Tensor:
            log_probs = x.view(4, 6, 5).permute(1, 0, 2).log_softmax(2)
            lengths = wrap((6, 6, 6, 5)), wrap(LENGTHS)
            return torch._ctc_loss(log_probs, TARGETS, *lengths)[0][3]

        loss, p = of_a_parameter(last_sample)
        total = loss(p)
        node = total.grad_fn.next_functions[0][0]
        return sgdph.hessian_block(total, p), type(node).__name__

    (expected, first), (found, second) = block(tuple), block(torch.tensor)
    assert (first, second) == ("CtcLossBackward0", "CtcLossBackward1")
    assert_close(found, expected, 1e-12)


class CudnnCtcLoss(torch.autograd.Function):
    """Gives its node the name of cuDNN's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sum()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g.expand(4, 30)


@pytest.mark.parametrize("way", ["backward", "update_hessian"])
def test_cudnn_s_ctc_loss_raises_an_error(way: str) -> None:
    """Its gradient is a constant to torch, so the product would be silently wrong."""
    loss, p = of_a_parameter(CudnnCtcLoss.apply)
    optimizer = sgdph.SGDPH([{"params": [p], "channelwise": True}])
    with pytest.raises(RuntimeError, match=r"cudnn\.flags\(enabled=False\)"):
        WAYS[way](optimizer, loss(p))


def test_other_networks_get_neither_hook_nor_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(PackedArguments, "__init__", forbidden)
    if TELLS_PACKED:
        gates, p = of_a_parameter(LOSSES["hardsigmoid"])
        sgdph.SGDPH([{"params": [p], "channelwise": True}]).backward(gates(p))
    monkeypatch.setattr(lean, "recomputed_hook", forbidden)
    by_backward(sgdph.SGDPH((model := bn_net()).parameters()), loss_of(model))


@pytest.mark.parametrize("name", ["hardsigmoid", "hardswish"])
def test_bfloat16_blocks_are_near_float64(name: str) -> None:
    loss, p = of_a_parameter(LOSSES[name])
    half = p.detach().bfloat16().requires_grad_()
    rounded, _ = of_a_parameter(lambda x: LOSSES[name](x.bfloat16()))
    found = sgdph.hessian_block(rounded(half), half).double()
    assert_close(found, sgdph.hessian_block(loss(p), p), 0.05)


@pytest.mark.parametrize("inside", [False, True], ids=["backward outside", "backward inside"])
@pytest.mark.parametrize("name", ["margin_2_sum", "many", "ctc", "hardsigmoid"])
def test_row_sums_under_autocast_are_near_float64(name: str, inside: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 30, generator=generator)
    model = nn.Linear(30, 30)
    nn.init.orthogonal_(model.weight, generator=generator)

    def row_sum(model: nn.Linear, autocast: bool) -> Tensor:
        newton = [{"params": [model.bias], "channelwise": True}]
        optimizer = sgdph.SGDPH(newton, hessian_momentum=0)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = LOSSES[name](model(x.to(model.weight.dtype)).tanh())
            if inside:
                optimizer.backward(loss)
        if not inside:
            optimizer.backward(loss)
        optimizer.step()
        return optimizer.state[model.bias]["hessian"].double()

    assert_close(row_sum(model, True), row_sum(copy.deepcopy(model).double(), False), 0.1)


@pytest.mark.parametrize("way", ["backward", "update_hessian"])
def test_mobilenet_v3_has_the_exact_row_sums(way: str) -> None:
    """Torchvision's network, with half the width."""
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model = models.mobilenet_v3_small(num_classes=3, width_mult=0.5, dropout=0.0).to(F64)
    x, y = torch.randn(3, 3, 48, 48, dtype=F64), torch.tensor([0, 2, 1])
    for name in ("features.0.1.weight", "features.1.block.1.fc2.bias"):
        p = model.get_parameter(name)
        with plain_kernels():
            loss = functional.cross_entropy(model(x), y)
            (g,) = torch.autograd.grad(loss, p, create_graph=True)
            (expected,) = torch.autograd.grad(g.sum(), p)
        optimizer = sgdph.SGDPH([{"params": [p], "channelwise": True}], hessian_momentum=0)
        WAYS[way](optimizer, functional.cross_entropy(model(x), y))
        optimizer.step()
        assert_close(optimizer.state[p]["hessian"], expected.abs(), 1e-10)
