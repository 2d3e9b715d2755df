"""Activations whose first derivative torch computes in a kernel without a derivative."""

from __future__ import annotations

import torch
from torch import Tensor

from sgdph.autograd.recomputed import Formula, Operation, Saved


def _hardsigmoid(saved: Saved) -> Formula:
    r"""``relu6(x + 3) / 6`` (Howard et al., 2019, "Searching for MobileNetV3").

    The gradient :math:`g / 6` inside :math:`(-3, 3)`, 0 outside, depends on :math:`g` alone. The
    slope is the kernel's own: in float64 too, its sixth is one of float32.
    """

    def gradient(g: Tensor, x: Tensor) -> tuple[Tensor]:
        with torch.no_grad():
            slope = torch.ops.aten.hardsigmoid_backward(torch.ones_like(g), x)
        return (g * slope,)

    return gradient


ELEMENTWISE = {"HardsigmoidBackward0": Operation(("self",), _hardsigmoid, "hardsigmoid_backward")}
