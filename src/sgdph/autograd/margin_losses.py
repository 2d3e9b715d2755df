"""Second derivatives of multi-class margin losses, which torch lacks."""

from __future__ import annotations

import torch
from torch import Tensor

from sgdph.autograd.recomputed import Formula, Operation, Saved

_MEAN = 1  # torch's number for the reduction "mean"


def _multi_margin(saved: Saved) -> Formula:
    r"""Return the gradient's formula for the multi-margin loss of Weston & Watkins (1999).

    The loss is :math:`\frac{w_y}{C} \sum_{j \ne y} \max(0, m - x_y + x_j)^p`. Let
    :math:`h_j = \frac{w_y}{C}\, p \max(0, m - x_y + x_j)^{p-1}` if the maximum is positive and
    :math:`j \ne y`, and 0 otherwise. The gradient is :math:`g h_j`, and :math:`-g \sum_j h_j` at
    :math:`j = y`. For :math:`p = 1` its derivative with respect to :math:`x` is zero.
    """
    target, weight = saved("target"), saved("weight")
    p, margin, reduction = saved("p"), saved("margin"), saved("reduction")

    def gradient(g: Tensor, x: Tensor) -> tuple[Tensor]:
        scores, y = _samples(x), target.reshape(-1, 1)
        slack = margin + scores - scores.gather(1, y)
        active = (slack > 0).scatter(1, y, False)
        power = 2 * slack if p == 2 else torch.ones_like(slack)
        h = torch.where(active, power, 0) / scores.shape[1]
        if weight is not None:
            h = h * weight[y]
        h = h.scatter(1, y, -h.sum(1, keepdim=True))
        return ((_per_sample(g, scores, reduction) * h).reshape(x.shape),)

    return gradient


def _multilabel_margin(saved: Saved) -> Formula:
    r"""Return the gradient's formula for the multi-label margin loss.

    The loss is the sum of :math:`\max(0, 1 - x_j + x_k) / C` over targets :math:`j` and other
    classes :math:`k`. It is piecewise linear, so the gradient is linear in :math:`g`, and its
    derivative with respect to :math:`x` is zero.
    """
    target, is_target, reduction = saved("target"), saved("is_target"), saved("reduction")

    def gradient(g: Tensor, x: Tensor) -> tuple[Tensor]:
        with torch.no_grad():
            slope = torch.ops.aten.multilabel_margin_loss_backward(
                torch.ones_like(g), x, target, reduction, is_target
            )
        return ((g.reshape(-1, 1) * _samples(slope)).reshape(x.shape),)

    return gradient


def _samples(x: Tensor) -> Tensor:
    """View the scores of a batch, or of one sample, as a matrix."""
    return x if x.dim() == 2 else x.reshape(1, -1)


def _per_sample(g: Tensor, scores: Tensor, reduction: int) -> Tensor:
    """Spread the loss's gradient over the samples."""
    return g.reshape(-1, 1) / scores.shape[0] if reduction == _MEAN else g.reshape(-1, 1)


MARGIN_LOSSES = {
    "MultiMarginLossBackward0": Operation(("self",), _multi_margin, "multi_margin_loss_backward"),
    "MultilabelMarginLossBackward0": Operation(
        ("self",), _multilabel_margin, "multilabel_margin_loss_backward"
    ),
}
