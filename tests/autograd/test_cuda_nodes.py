"""Norms whose graph nodes exist only on CUDA: on a CPU, stand-ins replace the nodes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from sgdph.autograd.batch_norm import batch_norm_hook
from sgdph.autograd.layer_norm import layer_norm_hook

F64 = torch.float64


class Everything:
    """A region in which the gradients of all inputs lead to a parameter."""

    def leads_on(self, node: Any, place: int) -> bool:
        return True


REGION: Any = Everything()


class FusedRmsNormBackward0:
    """What CUDA's node of a fused RMS norm saves. On the CPU the norm has several nodes."""

    def __init__(self, x: Tensor, weight: Tensor) -> None:
        self._saved_input, self._saved_weight = x, weight
        self._saved_result1 = (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        self._saved_normalized_shape = (x.shape[-1],)


def rms_gradients(g: Tensor, x: Tensor, shape: Any, rstd: Tensor, weight: Tensor, _: Any) -> Any:
    """What CUDA's kernel returns."""
    u = g * weight
    return rstd * (u - x * rstd.square() * (u * x).mean(-1, keepdim=True)), (g * x * rstd).sum(
        (0, 1)
    )


@pytest.mark.skipif(
    not hasattr(torch.ops.aten, "_fused_rms_norm_backward"), reason="this torch has no such kernel"
)
def test_the_cuda_node_of_rms_norm_has_the_plain_derivatives() -> None:
    library = torch.library.Library("aten", "IMPL")
    library.impl("_fused_rms_norm_backward", rms_gradients, "CPU")
    torch.manual_seed(0)
    x, g = (torch.randn(3, 5, 8, dtype=F64).requires_grad_() for _ in range(2))
    weight = torch.randn(8, dtype=F64).requires_grad_()
    out = functional.rms_norm(x, (8,), weight, 1e-5)
    plain = torch.autograd.grad(out, (x, weight), g, create_graph=True)
    hook = layer_norm_hook(FusedRmsNormBackward0(x, weight), REGION, True)
    # Zeros stand for torch's differentiable gradients. The hook must return the kernel's.
    found = hook([torch.zeros_like(t) for t in plain], (g, None))
    for one, other in zip(found, plain, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)
    vectors = [torch.randn_like(t) for t in plain]
    for one, other in zip(
        torch.autograd.grad(found, (x, weight, g), vectors, retain_graph=True),
        torch.autograd.grad(plain, (x, weight, g), vectors),
        strict=True,
    ):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


class CudnnBatchNormBackward0:
    """What cuDNN's node saves. In evaluation it has no batch statistics."""

    def __init__(self, node: Any, training: bool) -> None:
        self._saved_input, self._saved_weight = node._saved_input, node._saved_weight
        self._saved_training, self._saved_epsilon = training, node._saved_eps
        self._saved_running_mean = node._saved_running_mean
        self._saved_running_var = node._saved_running_var
        empty = torch.empty(0)
        self._saved_result1 = node._saved_result1 if training else empty
        self._saved_result2 = node._saved_result2 if training else empty


class CudaBatchNorm(TorchDispatchMode):
    """CUDA's kernel allocates the gradients of scale and shift like the scale, so it needs one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ == "native_batch_norm_backward":
            wanted = args[9]
            assert args[2] is not None or not (wanted[1] or wanted[2])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", [True, False])
def test_the_cudnn_node_of_batch_norm_has_the_plain_derivatives(training: bool) -> None:
    torch.manual_seed(0)
    x, g = (torch.randn(5, 3, 4, dtype=F64).requires_grad_() for _ in range(2))
    model = nn.BatchNorm1d(3, eps=0.1).double().train(training)
    assert model.running_mean is not None
    model.running_mean.normal_()
    weight, bias = model.weight, model.bias
    out = model(x)
    plain = torch.autograd.grad(out, (x, weight, bias), g, create_graph=True)
    node = CudnnBatchNormBackward0(out.grad_fn, training)
    hook = batch_norm_hook(node, REGION, True)
    assert hook is not None
    found = hook(plain, (g, None, None))
    vectors = [torch.randn_like(t) for t in plain]
    with CudaBatchNorm():
        products = torch.autograd.grad(found, (x, weight, g), vectors, retain_graph=True)
    for one, other in zip(
        products, torch.autograd.grad(plain, (x, weight, g), vectors), strict=True
    ):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)
