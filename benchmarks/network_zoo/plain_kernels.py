"""Replacements for operations that have no second derivative in torch, used by the oracle."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional


class _Hardsigmoid(torch.autograd.Function):
    """Hardsigmoid whose gradient uses 1/6 in float32, as torch's kernel does even in float64."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x + 3).clamp(0, 6) / 6

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        sixth = torch.tensor(1 / 6, dtype=torch.float32).to(x.dtype)
        return torch.where(x.abs() < 3, g * sixth, 0)


def hardsigmoid(x: Tensor, inplace: bool = False) -> Tensor:
    """Replace ``torch.nn.functional.hardsigmoid``; never in place."""
    return _Hardsigmoid.apply(x)


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """Replace ``torch.nn.functional.ctc_loss``: recursion over frames (Graves et al., 2006)."""
    if targets.dim() == 1:
        pieces = targets.split(target_lengths.tolist())
    else:
        pieces = [row[:n] for row, n in zip(targets, target_lengths.tolist(), strict=True)]
    losses = [
        -_log_probability(log_probs[:n, i], pieces[i], blank)
        for i, n in enumerate(input_lengths.tolist())
    ]
    loss = torch.stack(losses)
    if zero_infinity:
        loss = torch.where(loss.isinf(), 0, loss)
    if reduction == "mean":
        return (loss / target_lengths.clamp(min=1)).mean()
    return loss.sum() if reduction == "sum" else loss


def _log_probability(frames: Tensor, target: Tensor, blank: int) -> Tensor:
    labels = torch.full((2 * len(target) + 1,), blank, dtype=torch.long)
    labels[1::2] = target
    # A blank may be skipped between two labels that differ.
    skips = torch.zeros(len(labels), dtype=torch.bool)
    skips[3::2] = labels[3::2] != labels[1:-2:2]
    # Not minus infinity, because its derivative is NaN.
    never = frames.new_full((2,), -1e30)
    alpha = torch.cat([frames[0, labels[:2]], never.new_full((len(labels) - 2,), -1e30)])
    for frame in frames[1:]:
        before = torch.cat([never, alpha])
        ways = [alpha, before[1:-1], torch.where(skips, before[:-2], never[0])]
        alpha = torch.stack(ways).logsumexp(0) + frame[labels]
    return alpha[-2:].logsumexp(0)


def roi_align(
    kernel: Callable[..., Tensor], input: Tensor, rois: Tensor, *arguments: Any
) -> Tensor:
    """Replace ``torch.ops.torchvision.roi_align`` by torchvision's own version in Python."""
    if not input.requires_grad:
        # A target's mask. The Python version would sample every pixel of it.
        return kernel(input, rois, *arguments)
    python = sys.modules["torchvision.ops.roi_align"]._roi_align
    # Unwrapped, because it compiles itself, and compiled code has no second derivative.
    return getattr(python, "__wrapped__", python)(input, rois, *arguments)


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """Let forward passes in the context use operations that torch can differentiate twice."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            mock.patch.multiple(functional, hardsigmoid=hardsigmoid, ctc_loss=ctc_loss)
        )
        if "torchvision.ops" in sys.modules:
            operators = torch.ops.torchvision
            python = functools.partial(roi_align, operators.roi_align)
            stack.enter_context(mock.patch.object(operators, "roi_align", python))
        yield
