r"""Weight normalisation's second derivative, which is silently wrong in torch.

The kernel of ``w = g v / ‖v‖`` (Salimans & Kingma, 2016) also returns the norms. Torch treats them
as constants when it differentiates twice. So the derivative of :math:`1 / \lVert v \rVert` is
missing if a product passes through :math:`v` (seen in torch 2.15). A product that passes only
through :math:`g`, which is usually a Newton parameter, is right.
"""

from __future__ import annotations

from torch import Tensor

from sgdph.autograd.graph import Hook, Node, Region, has_hooks
from sgdph.autograd.recomputed import Formula, Operation, Saved, recomputed_hook

WEIGHT_NORM = "WeightNormInterfaceBackward0"


def weight_norm_hook(node: Node, region: Region, once: bool) -> Hook | None:
    """Return the hook that gives weight normalisation's gradients their true derivative.

    Args:
        node: One of type ``WEIGHT_NORM``.
        region: The nodes between the loss and the parameters of a product.
        once: Whether only one product will be taken.

    Returns:
        The hook; ``None`` if no product passes through the direction.

    Raises:
        RuntimeError: The hook is needed, but a user's hook on the node prevents it.
    """
    if not region.leads_on(node, 0):
        return None
    if has_hooks(node):
        raise RuntimeError(
            "no partial Hessian can be taken from this loss: a hook on a weight-normalised "
            "weight's graph node prevents the correction of torch's second derivative. Register "
            "the hook on a tensor or module instead"
        )
    return recomputed_hook(node, _OPERATION, once, packed=None)


def _formula(saved: Saved) -> Formula:
    r"""Return the formula of the gradients of ``v`` and ``g``, given the weight's gradient ``u``.

    With :math:`n = \lVert v \rVert` and :math:`s = \langle u, v \rangle` per channel:

    .. math:: g_v = \frac{g}{n} \left( u - \frac{s}{n^2} v \right), \quad g_g = \frac{s}{n}.
    """
    dim = saved("dim")

    def gradients(u: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        def per_channel_sum(t: Tensor) -> Tensor:
            others = [d for d in range(t.dim()) if d != dim % t.dim()]
            return t.sum(others, keepdim=True) if others else t

        norm = per_channel_sum(v.square()).sqrt()
        s = per_channel_sum(u * v)
        return g / norm * (u - s / norm.square() * v), s / norm

    return gradients


_OPERATION = Operation(("v", "g"), _formula, "_weight_norm_interface_backward")
