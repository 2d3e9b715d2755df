"""Dense blocks against finite differences of gradients, which need no second derivative."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference.nets import NETS, batches, build
from small import bn_net, loss_of
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import sgdph

Loss = Callable[[], Tensor]


class Sequences(nn.Module):
    """Embedded tokens through a recurrent or an attention layer."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.embedding = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        layers: dict[str, Callable[[], nn.Module]] = {
            "lstm": lambda: nn.LSTM(4, 4, batch_first=True),
            "gru": lambda: nn.GRU(4, 4, batch_first=True),
            "attention": lambda: nn.TransformerEncoderLayer(4, 2, 6, 0.0, batch_first=True),
        }
        self.layer = layers[kind]()
        self.last = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.embedding(tokens))
        with sdpa_kernel(SDPBackend.MATH):
            x = self.layer(x)
        x = x[0] if isinstance(x, tuple) else x
        return self.last(torch.tanh(x).mean(1))


def sequences(kind: str) -> tuple[nn.Module, Loss]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Sequences(kind).double()
        tokens, labels = torch.randint(0, 5, (3, 4)), torch.randint(0, 3, (3,))
    return model, lambda: functional.cross_entropy(model(tokens), labels)


def image_net(name: str) -> tuple[nn.Module, Loss]:
    model = build(name.removesuffix("_eval"))
    first = batches(name.removesuffix("_eval"))[0]
    if name.endswith("_eval"):
        model(first.inputs)
        model.eval()
    return model, lambda: functional.cross_entropy(model(first.inputs), first.labels)


SEQUENCES = ["lstm", "gru", "attention"]
ALL_NETS = [*NETS, "bn_resnet_eval", "instance_norm_eval", *SEQUENCES]


@functools.cache
def net(name: str) -> tuple[nn.Module, Loss]:
    return sequences(name) if name in SEQUENCES else image_net(name)


def channelwise(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.ndim and p.numel() == p.shape[0]]


def by_differences(loss: Loss, params: list[Any], step: float = 1e-5) -> Tensor:
    """Central differences of the gradient, one entry at a time."""

    def gradient() -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss(), params)])

    columns = []
    for p in params:
        for i in range(p.numel()):
            gradients = []
            for sign in (1, -1):
                with torch.no_grad():
                    before = p.view(-1)[i].item()
                    p.view(-1)[i] += sign * step
                gradients.append(gradient())
                with torch.no_grad():
                    p.view(-1)[i] = before
            columns.append((gradients[0] - gradients[1]) / (2 * step))
    return torch.stack(columns, dim=1)


@functools.cache
def expected_block(name: str) -> Tensor:
    model, loss = net(name)
    return by_differences(loss, channelwise(model))


def assert_close(actual: Tensor, expected: Tensor, within: float = 1e-7) -> None:
    assert actual.shape == expected.shape
    error = (actual - expected).abs().max()
    assert error <= within * expected.abs().max(), f"{error} of {expected.abs().max()}"


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
@pytest.mark.parametrize("name", ALL_NETS)
def test_the_joint_block_equals_finite_differences(name: str, chunk_size: int | None) -> None:
    model, loss = net(name)
    params = channelwise(model)
    block = sgdph.hessian_block(loss(), params, chunk_size=chunk_size)
    assert_close(block, expected_block(name))
    # Check the cross blocks by themselves too: the largest entry might hide an error in them.
    first = params[0].numel()
    assert_close(block[:first, first:], expected_block(name)[:first, first:])


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
@pytest.mark.parametrize("name", ALL_NETS)
def test_single_blocks_equal_finite_differences(name: str, chunk_size: int | None) -> None:
    model, loss = net(name)
    start = 0
    for p in channelwise(model):
        block = sgdph.hessian_block(loss(), p, chunk_size=chunk_size)
        expected = expected_block(name)[start : start + p.numel(), start : start + p.numel()]
        start += p.numel()
        within = 1e-7 if expected.abs().max() > 1e-4 else 1e-4  # differences cancel there
        assert (block - expected).abs().max() <= max(within * expected.abs().max(), 1e-10)


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
@pytest.mark.parametrize("name", ["layer_norm_mlp", "rms_norm", "weight_norm"])
def test_the_block_equals_that_of_torch_func(name: str, chunk_size: int | None) -> None:
    model, loss = net(name)
    first = batches(name)[0]
    values = dict(model.named_parameters())
    names = [n for n, p in values.items() if any(p is q for q in channelwise(model))]

    def of(*chosen: Tensor) -> Tensor:
        output = torch.func.functional_call(
            model, dict(zip(names, chosen, strict=True)), first.inputs
        )
        return functional.cross_entropy(output, first.labels)

    params = [values[n] for n in names]
    places = tuple(range(len(names)))
    # Not torch.func.hessian: its forward mode lacks weight norm, and its inner vmap is wrong for a
    # layer norm's cross blocks (torch 2.6 and 2.14), which are then not even symmetric.
    parts = torch.func.jacrev(torch.func.grad(of, places), places)(*params)
    sizes = [p.numel() for p in params]
    expected = torch.cat(
        [
            torch.cat([h.reshape(n, m) for h, m in zip(row, sizes, strict=True)], dim=1)
            for row, n in zip(parts, sizes, strict=True)
        ]
    )
    block = sgdph.hessian_block(loss(), params, chunk_size=chunk_size)
    assert_close(block, expected.detach(), within=1e-12)


def test_blocks_of_matrices_keep_the_given_order() -> None:
    model, loss = net("layer_norm_mlp")
    params = [p for p in model.parameters() if p.numel() < 20][:3]
    block = sgdph.hessian_block(loss(), params)
    assert_close(block, by_differences(loss, params))
    backwards = sgdph.hessian_block(loss(), iter(params[::-1]))
    assert_close(backwards, by_differences(loss, params[::-1]))
    assert not torch.allclose(block, backwards)


def test_scalars_and_tensors_that_are_not_leaves_have_a_block() -> None:
    s = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    assert sgdph.hessian_block(s**3, s).tolist() == [[12.0]]
    a = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    b = 3 * a
    expected = [[2.0 * 6, 2.0 * 3], [2.0 * 3, 0.0]]
    assert sgdph.hessian_block(2 * b[0] ** 2 * b[1] / 2, b).tolist() == expected


def test_the_block_is_right_under_no_grad() -> None:
    s = torch.tensor(2.0, requires_grad=True)
    loss = s**3
    with torch.no_grad():
        assert sgdph.hessian_block(loss, s).tolist() == [[12.0]]


@pytest.mark.parametrize("chunk_size", [None, 1])
def test_a_constant_gradient_has_a_block_of_zeros(chunk_size: int | None) -> None:
    a = torch.tensor([1.0, 2.0], requires_grad=True)
    b = torch.tensor([1.0], requires_grad=True)
    assert sgdph.hessian_block(a.sum(), a, chunk_size=chunk_size).tolist() == [[0, 0], [0, 0]]
    joint = sgdph.hessian_block(a.sum() + b.pow(2).sum(), [a, b], chunk_size=chunk_size)
    assert joint.tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 2]]


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_hessian_block_changes_nothing_else(chunk_size: int | None) -> None:
    model, plain = bn_net(), bn_net()
    fired: list[Tensor] = []
    for p in model.parameters():
        p.register_hook(fired.append)
    p = model[1].weight
    p.grad = torch.full_like(p, 7.0)
    loss = loss_of(model)
    state, buffers = torch.get_rng_state(), [b.clone() for b in model.buffers()]

    block = sgdph.hessian_block(loss, p, chunk_size=chunk_size)
    sgdph.hessian_block(loss, p, chunk_size=chunk_size)

    assert block.grad_fn is None
    assert not block.requires_grad
    assert fired == []
    assert torch.equal(p.grad, torch.full_like(p, 7.0))
    assert all(q.grad is None for q in model.parameters() if q is not p)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, buffers, model.buffers()))
    p.grad = None
    loss.backward()  # the graph is alive
    loss_of(plain).backward()
    assert len(fired) == len(list(model.parameters()))
    for q, r in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(q.grad, r.grad)


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_no_graph_outlives_the_loss(chunk_size: int | None) -> None:
    gc.collect()
    gc.disable()
    try:
        model = bn_net()
        kept = []
        hook = model[1].register_forward_hook(
            lambda *args: kept.append(weakref.ref(args[2].untyped_storage()))
        )
        loss = loss_of(model)
        hook.remove()
        block = sgdph.hessian_block(loss, model[1].weight, chunk_size=chunk_size)
        del loss
        assert [reference() for reference in kept] == [None]
        assert block.shape == (4, 4)
    finally:
        gc.enable()


def test_the_block_has_the_requested_dtype() -> None:
    model = bn_net()
    loss = loss_of(model)
    block = sgdph.hessian_block(loss, model[1].weight)
    assert block.dtype == torch.float32
    double = sgdph.hessian_block(loss, model[1].weight, dtype=torch.float64)
    assert double.dtype == torch.float64
    assert torch.equal(double, block.double())  # it converts, and adds no precision
    a = torch.ones(2, requires_grad=True)
    b = torch.ones(1, requires_grad=True, dtype=torch.float64)
    assert sgdph.hessian_block((a.sum() * b).pow(2).sum(), [a, b]).dtype == torch.float64


class _Cube(Function):
    """A cube whose second derivative calls ``.item()``, which fails for a batch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return _CubeGradient.apply(g, *ctx.saved_tensors)


class _CubeGradient(Function):
    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(g, x)
        return g * 3 * x**2

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, Tensor]:
        g, x = ctx.saved_tensors
        if v.isnan().any().item():
            raise AssertionError
        return v * 3 * x**2, v * g * 6 * x


@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_operations_that_cannot_be_batched_are_looped(chunk_size: int | None) -> None:
    w = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    block = sgdph.hessian_block(_Cube.apply(w).sum(), w, chunk_size=chunk_size)
    assert torch.equal(block, torch.diag(6 * w.detach()))


@pytest.mark.parametrize("chunk_size", [None, 1, 4])
def test_the_block_through_a_checkpoint_with_dropout_is_right(chunk_size: int | None) -> None:
    layer = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Tanh(), nn.Dropout(0.4)).double()
    x = torch.randn(6, 4, dtype=torch.float64)
    blocks = []
    for through in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            loss = through(x).pow(2).sum()
        blocks.append(sgdph.hessian_block(loss, layer[1].weight, chunk_size=chunk_size))
    assert_close(blocks[1], blocks[0], within=1e-12)


@pytest.mark.parametrize(
    ("pixels", "chunk_size", "passes"), [(4, None, 1), (4, 1, 16), (4, 5, 4), (256, None, 16)]
)
def test_small_tensors_are_batched_and_large_ones_looped(
    monkeypatch: pytest.MonkeyPatch, pixels: int, chunk_size: int | None, passes: int
) -> None:
    model = nn.Sequential(nn.Conv2d(1, 16, 1), nn.BatchNorm2d(16), nn.AdaptiveAvgPool2d(1))
    loss = model(torch.randn(2, 1, pixels, pixels)).exp().mean()
    grad, calls = torch.autograd.grad, []

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return grad(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counting)
    sgdph.hessian_block(loss, model[1].bias, chunk_size=chunk_size)
    assert len(calls) == 1 + passes  # the gradient, and the products


class _Once(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * g


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_fused_attention_has_the_block_of_math_attention(chunk_size: int | None) -> None:
    blocks = []
    for kernel in (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True).double()
        with sdpa_kernel(kernel):
            loss = layer(torch.randn(3, 5, 8, dtype=torch.float64)).pow(3).mean()
            blocks.append(
                sgdph.hessian_block(loss, layer.self_attn.in_proj_bias, chunk_size=chunk_size)
            )
    assert blocks[1].abs().max() > 1e-3
    torch.testing.assert_close(*blocks, rtol=1e-10, atol=1e-14)


def freed(w: Tensor) -> Tensor:
    loss = w.pow(3).sum()
    loss.backward()
    return loss


@pytest.mark.parametrize("chunk_size", [None, 1, 4])
@pytest.mark.parametrize(
    ("make_loss", "match"),
    [
        (freed, "already freed.*hessian_block"),
        (lambda w: (_Once.apply(w) * w).pow(2).sum(), "once_differentiable"),
        (lambda w: w.detach().sum(), "no graph"),
        (lambda w: torch.ones(1, requires_grad=True).sum(), "does not depend on the parameter at"),
    ],
    ids=["freed", "once", "detached", "unused"],
)
def test_losses_without_a_usable_graph_raise_an_error(
    make_loss: Callable[[Tensor], Tensor], match: str, chunk_size: int | None
) -> None:
    w = torch.ones(8, requires_grad=True)
    with pytest.raises(RuntimeError, match=match):
        sgdph.hessian_block(make_loss(w), w, chunk_size=chunk_size)


def test_a_sparse_gradient_raises_an_error() -> None:
    layer = nn.Embedding(4, 2, sparse=True)
    with pytest.raises(RuntimeError, match="sparse=False"):
        sgdph.hessian_block(layer(torch.arange(3)).pow(2).sum(), layer.weight)


S = torch.tensor(2.0, requires_grad=True)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"loss": 3.0}, TypeError, "must be a tensor, got float"),
        ({"loss": torch.ones(2)}, ValueError, "real scalar"),
        ({"p": []}, ValueError, "at least one parameter, got none"),
        ({"p": 3}, TypeError, "expected a tensor or several, got int"),
        ({"p": [S, "w"]}, TypeError, "got str at place 1"),
        ({"p": [S, S]}, ValueError, "place 1 of shape .*twice"),
        ({"p": torch.ones(2)}, ValueError, r"\(2,\) is frozen"),
        ({"p": torch.ones(0, requires_grad=True)}, ValueError, "no entries"),
        ({"p": torch.ones(2, dtype=torch.cfloat, requires_grad=True)}, ValueError, "complex"),
        (
            {"p": torch.ones(16_385, requires_grad=True)},
            ValueError,
            r"place 0 of .* is 16,385 x 16,385 and would take 16,385 products and 1\.0 GiB",
        ),
        (
            {"p": [torch.ones(10_000, requires_grad=True) for _ in "ab"], "dtype": torch.float64},
            ValueError,
            r"together is 20,000 x 20,000 .* 3\.0 GiB.*fewer or smaller",
        ),
        ({"chunk_size": 0}, ValueError, "at least 1, got 0"),
        ({"chunk_size": 2.0}, ValueError, r"got 2\.0"),
        ({"dtype": torch.int32}, ValueError, "torch.int32"),
        ({"dtype": torch.cfloat}, ValueError, "torch.complex64"),
    ],
)
def test_bad_input_raises(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        sgdph.hessian_block(**{"loss": S**3, "p": S, **arguments})


def test_autocast_outside_the_loss_changes_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    loss = model(torch.randn(5, 6)).pow(2).sum()
    expected = sgdph.hessian_block(loss, model[0].bias)
    with torch.autocast("cpu", torch.bfloat16):
        block = sgdph.hessian_block(loss, model[0].bias)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(block, expected)


def test_inference_mode_raises_an_error() -> None:
    p = nn.Parameter(torch.ones(2))
    loss = p.pow(3).sum()
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        sgdph.hessian_block(loss, p)
