"""RoI align's second derivative, which torchvision lacks.

Detection networks pool features by torchvision's ``roi_align`` (He et al., 2017, "Mask R-CNN"). It
is linear in the features, so its gradient is linear in the output's gradient. The derivative of the
gradient is ``roi_align`` itself. Boxes have no gradient in torchvision.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import _SingleLevelFunction

from sgdph.autograd.graph import Gradients

_KERNEL = "_roi_align_backward"


def make_roi_align_twice_differentiable() -> None:
    """Register the second derivative of torchvision's RoI align, if torchvision is imported."""
    if hasattr(torch.ops.torchvision, _KERNEL):
        _register()


@functools.cache
def _register() -> torch.library.Library:
    library = torch.library.Library("torchvision", "IMPL")  # type: ignore[no-untyped-call]
    for device in ("AutogradCPU", "AutogradCUDA"):
        library.impl(_KERNEL, _gradient, device)  # type: ignore[no-untyped-call]
    return library


def _gradient(grad_output: Tensor, *arguments: Any) -> Tensor:
    """Compute the features' gradient, given the output's gradient."""
    if not (torch.is_grad_enabled() and grad_output.requires_grad):
        return _below_autograd(_KERNEL, grad_output, *arguments)
    gradient: Tensor = _RoiAlignGradient.apply(grad_output, *arguments)  # type: ignore[attr-defined]
    return gradient


def _below_autograd(name: str, *arguments: Any) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        result: Tensor = getattr(torch.ops.torchvision, name).default(*arguments)
    return result


class _RoiAlignGradient(_SingleLevelFunction):
    @staticmethod
    def forward(ctx: Any, grad_output: Tensor, rois: Tensor, *settings: Any) -> Tensor:
        ctx.save_for_backward(rois)
        scale, height, width, *_, sampling_ratio, aligned = settings
        ctx.settings = scale, height, width, sampling_ratio, aligned
        ctx.others = len(settings) + 1
        return _below_autograd(_KERNEL, grad_output, rois, *settings)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Gradients:
        (rois,) = ctx.saved_tensors
        found = torch.ops.torchvision.roi_align(v, rois, *ctx.settings)
        return found, *(None for _ in range(ctx.others))
