"""Group norm: the data that its node saved."""

from __future__ import annotations

import torch
from torch import Tensor

from sgdph.autograd.graph import Gradients, Hook, Node, Region
from sgdph.autograd.row_norm import RowNorm, row_norm_hook

GROUP_NORM = "NativeGroupNormBackward0"


def group_norm_hook(node: Node, region: Region, once: bool) -> Hook | None:
    """Return the hook that gives a group norm's gradients a lean derivative."""
    return row_norm_hook(node, region, once, _saved)


def _saved(node: Node) -> RowNorm:
    samples, channels, places = node._saved_N, node._saved_C, node._saved_HxW
    x, weight, groups = node._saved_input, node._saved_weight, node._saved_group
    mean, inverse_std = node._saved_result1.detach(), node._saved_result2.detach()

    def gradients(g: Tensor, wanted: list[bool]) -> Gradients:
        # Torch calls its kernel with this layout; with another one it rounds differently.
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        layout = torch.channels_last if last and not x.is_cuda else torch.contiguous_format
        g, own = g.contiguous(memory_format=layout), x.contiguous(memory_format=layout)
        found: Gradients = torch.ops.aten.native_group_norm_backward(
            g, own, mean, inverse_std, weight, *sizes, groups, wanted
        )
        return found

    sizes = samples, channels, places
    return RowNorm(
        x,
        weight,
        mean,
        inverse_std,
        width=channels // groups * places,
        shape=sizes,
        scale_shape=(channels, 1),
        gradients=gradients,
    )
