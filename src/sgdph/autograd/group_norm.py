"""Group norm: what its node remembers."""

from __future__ import annotations

from sgdph.autograd.graph import Hook, Node, Region
from sgdph.autograd.row_norm import RowNorm, row_norm_hook

GROUP_NORM = "NativeGroupNormBackward0"


def group_norm_hook(node: Node, region: Region, once: bool) -> Hook | None:
    """Make the hook that gives a group norm's gradients a lean derivative."""
    return row_norm_hook(node, region, once, _saved)


def _saved(node: Node) -> RowNorm:
    samples, channels, places = node._saved_N, node._saved_C, node._saved_HxW
    return RowNorm(
        node._saved_input,
        node._saved_weight,
        mean=node._saved_result1.detach(),
        inverse_std=node._saved_result2.detach(),
        width=channels // node._saved_group * places,
        shape=(samples, channels, places),
        scale_shape=(channels, 1),
    )
