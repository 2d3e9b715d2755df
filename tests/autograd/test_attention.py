"""Fused attention's second derivative, against torch's math attention in float64."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small import WAYS
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

import sgdph
from sgdph.autograd import attention, attention_derivative
from sgdph.autograd.attention import make_attention_twice_differentiable
from sgdph.lab.cost.memory import StorageTracker

F64 = torch.float64
FUSED = "ScaledDotProductFlashAttentionForCpuBackward0"


def inputs(
    samples: int, heads: int, key_heads: int, length: int, keys: int, width: int
) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = (heads, length), (key_heads, keys), (key_heads, keys)
    # The memory layout after a projection: the heads of one token are adjacent.
    tensors = [torch.randn(samples, n, h, width, dtype=F64).transpose(1, 2) for h, n in shapes]
    return [t.requires_grad_() for t in tensors]


def hidden(samples: int, heads: int, length: int, keys: int) -> Tensor:
    mask = torch.rand(samples, 1, length, keys) > 0.3
    mask[0, :, 1] = False  # nothing to attend to
    return mask


def biases(samples: int, heads: int, length: int, keys: int) -> Tensor:
    return torch.randn(1, heads, length, keys, dtype=F64)


MASKS: dict[str, Callable[..., Tensor] | None] = {"none": None, "bool": hidden, "float": biases}


def products(qkv: list[Tensor], out: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the first gradients of a loss of the output, and a Hessian-vector product."""
    loss = (out.sin() * torch.arange(out.numel(), dtype=out.dtype).cos().view_as(out)).sum()
    gradients = torch.autograd.grad(loss, qkv, create_graph=True)
    vectors = [torch.arange(g.numel(), dtype=g.dtype).sin().view_as(g) for g in gradients]
    total = sum((g * v).sum() for g, v in zip(gradients, vectors, strict=True))
    return gradients, torch.autograd.grad(total, qkv)


def assert_near(found: Tensor, expected: Tensor, tolerance: float = 1e-11) -> None:
    assert found.shape == expected.shape
    found, expected = found.detach(), expected.detach()
    scale = max(float(expected.abs().max()), 1.0)
    assert float((found - expected).abs().max()) <= tolerance * scale


@pytest.mark.parametrize(
    "sizes",
    [(2, 4, 4, 6, 6, 5), (3, 4, 2, 7, 5, 8), (2, 6, 1, 5, 9, 4), (1, 2, 2, 300, 260, 4)],
    ids=["plain", "grouped", "one_key_head", "long"],
)
def test_a_hessian_vector_product_equals_that_of_math_attention(
    sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_attention_twice_differentiable()
    settings = itertools.product(MASKS, [False, True], [None, 0.7])
    for (kind, is_causal, scale), count in itertools.product(settings, [2**16, 50]):
        if kind != "none" and is_causal:
            continue
        samples, heads, key_heads, length, keys, _ = sizes
        torch.manual_seed(1)
        make = MASKS[kind]
        mask = None if make is None else make(samples, heads, length, keys)
        monkeypatch.setattr(attention_derivative, "SCORES", count)
        named = {"is_causal": is_causal, "scale": scale, "enable_gqa": heads != key_heads}
        found = []
        for backend in (None, SDPBackend.MATH):
            qkv = inputs(*sizes)
            with sdpa_kernel(backend) if backend is not None else contextlib.nullcontext():
                out = functional.scaled_dot_product_attention(*qkv, mask, **named)
            # Torch 2.6 uses the math kernel for grouped queries.
            if heads == key_heads:
                assert (type(out.grad_fn).__name__ == FUSED) == (backend is None)
            found.append(products(qkv, out))
        (first, fused), (_, plain) = found
        for one, other in zip(fused, plain, strict=True):
            assert_near(one, other)
        # The first gradients equal those of the kernel itself, bit for bit.
        qkv = inputs(*sizes)
        out = functional.scaled_dot_product_attention(*qkv, mask, **named)
        torch.manual_seed(0)
        loss = (out.sin() * torch.arange(out.numel(), dtype=F64).cos().view_as(out)).sum()
        for one, other in zip(first, torch.autograd.grad(loss, qkv), strict=True):
            assert torch.equal(one, other)


def layer(dropout: float = 0.0) -> nn.TransformerEncoderLayer:
    torch.manual_seed(0)
    made = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=dropout).double()
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return made


def curvature(model: nn.Module, way: str, factor: float = 1.0) -> list[Tensor]:
    """Return each Newton parameter's joint estimate after one step."""
    optimizer = sgdph.SGDPH(
        sgdph.param_groups(model), estimator="hutchinson", refresh="all", hessian_momentum=0.99
    )
    x = torch.randn(2, 5, 8, dtype=F64, generator=torch.Generator().manual_seed(0))
    WAYS[way](optimizer, factor * model(x).pow(3).mean())
    optimizer.step()
    return [state["hessian"] for state in optimizer.state.values() if "hessian" in state]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_curvature_of_math_attention(way: str) -> None:
    with sdpa_kernel(SDPBackend.MATH):
        expected = curvature(layer(), way)
    found = curvature(layer(), way)
    assert len(found) == len(expected) > 5
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other, 1e-12)


def test_the_full_score_matrix_is_never_in_memory() -> None:
    """Apart from tensors of the inputs' size, only a few blocks of scores are held."""
    make_attention_twice_differentiable()
    torch.manual_seed(0)
    qkv = [torch.randn(4, 8, 1024, 32, requires_grad=True) for _ in range(3)]
    out = functional.scaled_dot_product_attention(*qkv)
    gradients = torch.autograd.grad(out.square().sum(), qkv, create_graph=True)
    with StorageTracker() as memory:
        memory.start()
        torch.autograd.grad(gradients, qkv, [torch.ones_like(g) for g in gradients])
        added = memory.peak().added
    # All scores are 32 heads. Allowed: four results, three vectors, and what leads to the loss.
    one_input = one_head = 4 * 8 * 1024 * 32 * 4
    assert added <= 9 * one_input + 2 * one_head


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_products_are_near_those_in_float64(dtype: torch.dtype) -> None:
    make_attention_twice_differentiable()
    exact = [t.detach().to(dtype) for t in inputs(2, 4, 2, 6, 6, 8)]
    found = []
    for kind in (dtype, F64):
        qkv = [t.to(kind).requires_grad_() for t in exact]
        out = functional.scaled_dot_product_attention(*qkv, enable_gqa=True)
        gradients = torch.autograd.grad(out.sum() * 8, qkv, create_graph=True)
        found.append(torch.autograd.grad([g.sum() for g in gradients], qkv))
    for one, other in zip(*found, strict=True):
        assert one.dtype == dtype
        assert (one.double() - other).norm() <= 0.02 * other.norm()


@pytest.mark.parametrize("way", WAYS)
def test_dropout_on_the_cpu_uses_the_math_kernel(way: str) -> None:
    torch.manual_seed(3)
    found = curvature(layer(dropout=0.1).train(), way)
    torch.manual_seed(3)
    with sdpa_kernel(SDPBackend.MATH):
        expected = curvature(layer(dropout=0.1).train(), way)
    for one, other in zip(found, expected, strict=True):
        assert_near(one, other, 1e-12)


def fake_kernel(name: str, dropout: float = 0.0) -> Callable[..., Any]:
    """Return a stand-in for CUDA's backward kernel: its schema, computed by plain products."""
    schema = getattr(torch.ops.aten, name).default._schema
    names = [argument.name.rstrip("_") for argument in schema.arguments]

    def run(*arguments: Any, **named: Any) -> tuple[Tensor | None, ...]:
        known = {**dict(zip(names, arguments, strict=False)), **named}
        g, q, k, v = (known[key] for key in ("grad_out", "query", "key", "value"))
        p = scores(q, k, known.get("attn_bias"), known["scale"]).softmax(-1)
        s = p * (g @ v.mT - (g * known["out"]).sum(-1, keepdim=True))
        gradients = known["scale"] * s @ k, known["scale"] * s.mT @ q, p.mT @ g
        return (*gradients, s) if "grad_input_mask" in known else gradients

    kernel: Any = run
    kernel._schema = schema

    def call(g: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, bias: Tensor | None) -> Any:
        known = {
            "grad_out": g,
            "query": q,
            "key": k,
            "value": v,
            "out": out,
            "attn_bias": bias,
            "dropout_p": dropout,
            "is_causal": False,
            "scale": 0.6,
            "grad_input_mask": [True, True, True, bias is not None],
        }
        arguments = [known.get(key) for key in names[:-1]]
        return attention._autograd_kernel(kernel)(*arguments, scale=0.6)

    return call


class Whole(torch.autograd.Function):
    """An attention that is a single graph node."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        return scores(q, k, bias, 0.6).softmax(-1) @ v


def scores(q: Tensor, k: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    plain = scale * q @ k.mT
    return plain if bias is None else plain + bias


CUDA = ["flash", "efficient", "cudnn"]


@pytest.mark.parametrize("kind", CUDA)
def test_stand_ins_for_cuda_kernels_give_the_plain_derivatives(kind: str) -> None:
    """The kernels need a GPU. The code that handles their arguments does not."""
    call = fake_kernel(f"_scaled_dot_product_{kind}_attention_backward")
    bias = None if kind == "flash" else torch.randn(2, 3, 5, 5, dtype=F64).requires_grad_()
    wanted = [*inputs(2, 3, 3, 5, 5, 4), *([bias] if kind == "efficient" else [])]
    q, k, v = wanted[:3]
    plain = scores(q, k, bias, 0.6).softmax(-1) @ v
    out = Whole.apply(q, k, v, bias)
    g = torch.randn_like(out).requires_grad_()
    results = []
    for found in (
        call(g, q, k, v, out, bias),
        torch.autograd.grad(plain, wanted, g, create_graph=True),
    ):
        assert len(found) == len(wanted)
        vectors = [torch.arange(t.numel(), dtype=F64).sin().view_as(t) for t in found]
        products = torch.autograd.grad(found, [*wanted, g], vectors, retain_graph=True)
        results.append([*found, *products])
    for one, other in zip(*results, strict=True):
        assert_near(one, other)


def test_dropout_inside_a_kernel_raises_an_error() -> None:
    call = fake_kernel("_scaled_dot_product_flash_attention_backward", dropout=0.1)
    q, k, v = inputs(2, 3, 3, 5, 5, 4)
    out = Whole.apply(q, k, v, None)
    gradients = call(torch.ones_like(out), q, k, v, out, None)
    with pytest.raises(RuntimeError, match=r"dropout.*SDPBackend\.MATH"):
        torch.autograd.grad(gradients[0].sum(), q)


@pytest.mark.parametrize("way", ["backward", "update_hessian"])
def test_a_third_derivative_raises_an_error(way: str) -> None:
    """A loss with a gradient penalty needs one. First-order training with it works."""
    model = layer()
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))

    def penalty(x: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(model(x).pow(3).mean(), x, create_graph=True)
        return gradient.square().sum()

    x = torch.randn(2, 5, 8, dtype=F64).requires_grad_()
    penalty(x).backward()
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match=r"third|layer norm"):
        WAYS[way](optimizer, penalty(x))
    q, k, v = inputs(1, 2, 2, 3, 3, 4)
    out = functional.scaled_dot_product_attention(q, k, v)
    (first,) = torch.autograd.grad(out.pow(3).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no third.*SDPBackend\.MATH"):
        torch.autograd.grad(first.sum(), q, create_graph=True)


def test_blockwise_attention_raises_an_error() -> None:
    """The kernel gets some of the keys, but the output and the normaliser of all keys."""
    make_attention_twice_differentiable()
    q, k, v = inputs(1, 2, 2, 6, 6, 4)
    aten = torch.ops.aten
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    g = torch.ones_like(out)
    parts = [
        aten._scaled_dot_product_flash_attention_for_cpu_backward(
            g, q, k[:, :, half], v[:, :, half], out, lse, 0.0, False
        )[0]
        for half in (slice(3), slice(3, 6))
    ]
    whole = torch.autograd.grad(out, q, g, retain_graph=True)[0]
    assert_near(parts[0] + parts[1], whole)
    with pytest.raises(RuntimeError, match="blockwise"):
        torch.autograd.grad(parts[0].sum(), q)


def test_forward_mode_raises_an_error() -> None:
    make_attention_twice_differentiable()
    q, k, v = (t.detach() for t in inputs(1, 2, 2, 3, 3, 4))

    def slope(c: Tensor) -> Tensor:
        def loss(v: Tensor) -> Tensor:
            return (c * functional.scaled_dot_product_attention(q, k, v)).sum()

        return torch.func.grad(loss)(v)

    with pytest.raises(NotImplementedError, match=r"forward-mode.*SDPBackend\.MATH"):
        torch.func.jvp(slope, (torch.ones_like(q),), (torch.ones_like(q),))


def test_torch_func_grad_works_once_and_nested_raises_an_error() -> None:
    make_attention_twice_differentiable()
    q, k, v = (t.detach() for t in inputs(1, 2, 2, 3, 3, 4))

    def loss(q: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(q, k, v).pow(3).sum()

    expected = q.clone().requires_grad_()
    loss(expected).backward()
    assert torch.equal(torch.func.grad(loss)(q), expected.grad)
    with pytest.raises(RuntimeError, match="no third"):
        torch.func.grad(lambda q: torch.func.grad(loss)(q).sum())(q)


def test_a_compiled_model_has_the_same_first_gradients() -> None:
    """AOTAutograd traces the kernel that we registered."""
    make_attention_twice_differentiable()
    found = []
    for compiled in (False, True):
        model = layer()
        x = torch.randn(2, 5, 8, dtype=F64, generator=torch.Generator().manual_seed(0))
        run = torch.compile(model, backend="aot_eager") if compiled else model
        run(x).pow(3).mean().backward()
        found.append([p.grad for p in model.parameters()])
    for one, other in zip(*found, strict=True):
        assert_near(one, other, 1e-14)


def test_a_second_registration_returns_the_first() -> None:
    assert make_attention_twice_differentiable() is make_attention_twice_differentiable()


def test_stand_ins_cover_the_registered_kernels() -> None:
    names = {f"_scaled_dot_product_{kind}_attention_backward" for kind in CUDA}
    assert names == {n for n, device in attention._KERNELS.items() if device == "AutogradCUDA"}
