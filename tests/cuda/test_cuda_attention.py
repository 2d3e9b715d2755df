"""Fused attention's second derivative, kernel by kernel, against math attention in float64.

The CPU's kernel stands in for CUDA's where there is no GPU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from on_devices import CUDA, Transformer, averages, by_sgdph
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from sgdph.autograd.attention import make_attention_twice_differentiable
from sgdph.autograd.graph import graph_nodes

FLASH, EFFICIENT = SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION
CUDNN = SDPBackend.CUDNN_ATTENTION
F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
# Error of a product, as a share of its norm. The CPU's kernel has 3e-4, 2.4e-3, 3e-7 and 7e-16.
TOLERANCE = {F16: 0.003, BF16: 0.02, F32: 1e-3, F64: 1e-12}


class Case(NamedTuple):
    """Sizes, and the kind of mask.

    Attributes:
        shape: Samples, heads, heads of the keys, places, keys, width of a head.
        mask: ``none``, ``causal``, ``bool``, ``hidden`` (a query sees no key), ``bias`` (it
            requires a gradient).
    """

    shape: tuple[int, ...]
    mask: str = "none"


CASES = {
    "plain": Case((2, 4, 4, 64, 64, 64)),
    # One head has more scores than are computed at once.
    "long": Case((1, 2, 2, 2100, 2100, 64), "causal"),
    "narrow": Case((3, 2, 2, 40, 40, 20)),
    "cross": Case((2, 2, 2, 33, 70, 32)),
    "causal": Case((2, 4, 4, 70, 70, 64), "causal"),
    "grouped": Case((2, 4, 2, 64, 64, 64)),
    "bool": Case((2, 2, 2, 64, 64, 64), "bool"),
    "hidden": Case((2, 2, 2, 64, 64, 64), "hidden"),
    "bias": Case((2, 2, 2, 64, 64, 64), "bias"),
}
# The cases that each kernel must accept. It may refuse the others.
OF_CUDA: dict[SDPBackend, tuple[list[torch.dtype], set[str]]] = {
    FLASH: ([F16, BF16], {"plain", "long", "narrow", "cross", "causal", "grouped"}),
    EFFICIENT: ([F32, BF16], {"plain", "long", "cross", "causal", "bool", "bias"}),
    CUDNN: ([BF16], {"plain", "causal"}),
}
ON_CPU = [
    pytest.param("cpu", FLASH, dtype, name, id=f"cpu-{dtype}-{name}".replace("torch.", ""))
    for dtype in TOLERANCE
    for name in CASES
    if name not in ("long", "bias") and (dtype == F64 or name == "plain")
]
ON_CUDA = [
    pytest.param(
        "cuda",
        kernel,
        dtype,
        name,
        marks=pytest.mark.cuda,
        id=f"{kernel.name}-{dtype}-{name}".replace("torch.", ""),
    )
    for kernel, (dtypes, _) in OF_CUDA.items()
    for dtype in dtypes
    for name in CASES
]


def inputs(case: Case, device: str, dtype: torch.dtype) -> tuple[list[Tensor], Tensor | None]:
    samples, heads, key_heads, places, keys, width = case.shape
    torch.manual_seed(0)
    shapes = (heads, places), (key_heads, keys), (key_heads, keys)
    # The memory layout after a projection: the heads of one token are adjacent.
    made = [torch.randn(samples, n, h, width).transpose(1, 2) for h, n in shapes]
    mask = None
    if case.mask in ("bool", "hidden"):
        mask = torch.rand(samples, 1, places, keys) > 0.3
        mask[0, :, 1] = case.mask == "bool"
        mask = mask.to(device)
    elif case.mask == "bias":
        mask = torch.randn(1, heads, places, keys).to(device, dtype).requires_grad_()
    return [t.to(device, dtype).requires_grad_() for t in made], mask


def attention(qkv: list[Tensor], mask: Tensor | None, case: Case, **more: Any) -> Tensor:
    named = {"enable_gqa": case.shape[1] != case.shape[2], **more}
    return functional.scaled_dot_product_attention(
        *qkv, mask, is_causal=case.mask == "causal", **named
    )


def products(wanted: list[Tensor], out: Tensor) -> tuple[Tensor, ...]:
    """Return a Hessian-vector product of a loss of the output."""
    kind = {"device": out.device, "dtype": torch.float64}
    loss = (out.double().sin() * torch.arange(out.numel(), **kind).cos().view_as(out)).sum()
    gradients = torch.autograd.grad(loss, wanted, create_graph=True)
    if not all(g.isfinite().all() for g in gradients):
        pytest.skip("the kernel's own gradients are not finite")
    vectors = [torch.arange(g.numel(), **kind).sin().view_as(g) for g in gradients]
    total = sum((g.double() * v).sum() for g, v in zip(gradients, vectors, strict=True))
    assert isinstance(total, Tensor)
    return torch.autograd.grad(total, wanted)


@pytest.mark.parametrize(("device", "kernel", "dtype", "name"), [*ON_CPU, *ON_CUDA])
def test_a_hessian_vector_product_equals_that_of_math_attention(
    device: str, kernel: SDPBackend, dtype: torch.dtype, name: str
) -> None:
    make_attention_twice_differentiable()
    case = CASES[name]
    qkv, mask = inputs(case, device, dtype)
    wanted = [*qkv, *([mask] if mask is not None and mask.requires_grad else [])]
    # Torch 2.6 does not use the CPU's kernel for grouped queries.
    must = name in OF_CUDA[kernel][1] if device == "cuda" else name != "grouped"
    try:
        with sdpa_kernel(kernel):
            out = attention(qkv, mask, case)
    except RuntimeError as error:
        if must:
            raise
        pytest.skip(f"{kernel.name} does not take this: {str(error).splitlines()[0]}")
    names = {type(node).__name__ for node in graph_nodes([out])}
    assert any(n.startswith("ScaledDotProduct") and "Math" not in n for n in names), names
    found = products(wanted, out)
    exact = [t.detach().double().requires_grad_() for t in wanted]
    bias = exact[3] if len(exact) > 3 else mask
    with sdpa_kernel(SDPBackend.MATH):
        expected = products(exact, attention(exact[:3], bias, case))
    for one, other in zip(found, expected, strict=True):
        assert one.isfinite().all()
        error = float((one.double() - other).norm() / other.norm())
        assert error <= TOLERANCE[dtype], error


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("kernel", OF_CUDA, ids=lambda kernel: kernel.name)
def test_dropout_inside_a_kernel_raises_an_error(kernel: SDPBackend, device: str) -> None:
    make_attention_twice_differentiable()
    case = CASES["plain"]
    qkv, _ = inputs(case, device, BF16)
    with sdpa_kernel(kernel):
        out = attention(qkv, None, case, dropout_p=0.1)
    # A step without a product gets its gradients.
    assert torch.autograd.grad(out.sum(), qkv[0], retain_graph=True)[0].isfinite().all()
    with pytest.raises(RuntimeError, match=r"dropout.*SDPBackend\.MATH"):
        products(qkv, out)


OF_TRANSFORMER = [
    pytest.param("cpu", FLASH, id="cpu"),
    *(pytest.param("cuda", k, marks=pytest.mark.cuda, id=k.name) for k in OF_CUDA),
]


@pytest.mark.parametrize(("device", "kernel"), OF_TRANSFORMER)
def test_transformer_curvature_under_autocast_is_near_float32(
    device: str, kernel: SDPBackend
) -> None:
    """Each kernel runs under bfloat16 autocast. Float32 is computed by math attention."""
    found = []
    for attend in (SDPBackend.MATH, kernel):
        torch.manual_seed(0)
        model = Transformer(64, 2).to(device)
        x, y = torch.randn(8, 1, 16, 64).to(device), (torch.arange(8) % 3).to(device)
        optimizer = by_sgdph(model, refresh="all")
        half = attend == kernel
        with sdpa_kernel(attend), torch.autocast(device, BF16, enabled=half):
            loss = functional.cross_entropy(model(x), y)
        optimizer.backward(loss)
        optimizer.step()
        found.append(averages(optimizer))
    exact, half_precision = found
    assert (half_precision - exact).norm() <= 0.1 * exact.norm()
