"""Layer norm and RMS norm: the data that their nodes saved."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sgdph.autograd.graph import Gradients, Hook, Node, Region
from sgdph.autograd.row_norm import RowNorm, row_norm_hook

LAYER_NORM = "NativeLayerNormBackward0"
RMS_NORM = "FusedRmsNormBackward0"


def layer_norm_hook(node: Node, region: Region, once: bool) -> Hook | None:
    """Return the hook that gives the gradients of a layer norm or RMS norm a lean derivative.

    RMS norm (Zhang & Sennrich, 2019, "Root Mean Square Layer Normalization") subtracts no mean.
    """
    return row_norm_hook(node, region, once, _saved)


def _saved(node: Node) -> RowNorm:
    is_centred = type(node).__name__ == LAYER_NORM
    x, normalised = node._saved_input, tuple(node._saved_normalized_shape)
    weight = node._saved_weight
    inverse_std = (node._saved_result2 if is_centred else node._saved_result1).detach()

    def rms_gradients(g: Tensor, wanted: list[bool]) -> Gradients:
        found: Gradients = torch.ops.aten._fused_rms_norm_backward(
            g, x, normalised, inverse_std, weight, wanted
        )
        return found

    return RowNorm(
        x,
        weight,
        mean=node._saved_result1.detach() if is_centred else None,
        inverse_std=inverse_std,
        width=math.prod(normalised),
        shape=tuple(x.shape),
        scale_shape=normalised,
        gradients=None if is_centred else rms_gradients,
    )
