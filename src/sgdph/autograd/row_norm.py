"""The second derivative of norms whose statistics are per row, as one expression."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from sgdph.autograd.graph import (
    Gradients,
    Hook,
    Node,
    Region,
    detached,
    exact_dtype,
    is_packed,
    keep_gradient,
    kept_gradient,
)


class RowNorm(NamedTuple):
    """The data that a norm's node saved in its forward.

    Attributes:
        x: The input, stored as rows of ``width`` entries.
        weight: The scale, or ``None``.
        mean: The mean of each row, or ``None`` if none is subtracted.
        inverse_std: The inverse standard deviation of each row.
        width: The number of entries that are normalised together.
        shape: The input's shape to which the scale is broadcast.
        scale_shape: The scale's shape for this broadcast.
        gradients: Computes the first gradients, given the output's gradient and which of the three
            are needed. ``None`` to use torch's gradients. It is set if torch uses another formula,
            which rounds differently, for gradients that will be differentiated.
    """

    x: Tensor
    weight: Tensor | None
    mean: Tensor | None
    inverse_std: Tensor
    width: int
    shape: tuple[int, ...]
    scale_shape: tuple[int, ...]
    gradients: Callable[[Tensor, list[bool]], Gradients] | None = None


def row_norm_hook(
    node: Node, region: Region, once: bool, saved: Callable[[Node], RowNorm]
) -> Hook | None:
    """Return the hook that gives a norm's gradients a lean derivative.

    Torch's derivative is kept if the input was packed (:func:`~sgdph.autograd.graph.is_packed`).

    Args:
        node: The norm's node.
        region: The nodes between the loss and the parameters of a product.
        once: Whether only one product will be taken; it then frees the tensors kept for it.
        saved: Reads the data that the node saved.
    """
    if is_packed(node, "input"):
        return None
    leads_on = [region.leads_on(node, place) for place in range(3)]

    def hook(grad_inputs: Gradients, grad_outputs: Gradients) -> Gradients | None:
        grad_output, *others = grad_outputs
        # In a loss that contains a gradient, gradients also pass through the statistics.
        if grad_output is None or any(other is not None for other in others):
            return None
        try:
            norm = saved(node)
        except RuntimeError:
            return None
        if norm.x.numel() == 0:
            return None
        plain = list(map(detached, grad_inputs))
        if norm.gradients is not None:
            with torch.no_grad():
                plain = list(norm.gradients(grad_output, [g is not None for g in plain]))
        lean = _RowNormGradients.apply(
            grad_output,
            norm.x if leads_on[0] else norm.x.detach(),
            norm.weight if leads_on[1] else detached(norm.weight),
            norm,
            plain,
            once,
        )
        pairs = zip(leads_on, lean, plain, strict=False)
        return tuple(new if on else old for on, new, old in pairs)

    return hook


class _RowNormGradients(Function):
    r"""A norm's gradients as functions of its output's gradient, its input and its scale.

    A row is :math:`D` entries that are normalised together, with mean :math:`\mu`. Let
    :math:`s = 1 / \sqrt{\sigma^2 + \epsilon}`, :math:`\hat x = s (x - \mu)`, and

    .. math:: L(u) = s (u - \bar u - \overline{u \hat x} \hat x).

    Bars are means over the row. The gradients are :math:`g_x = L(\gamma g)`, and the sums over rows
    :math:`g_\gamma = \sum g \hat x`, :math:`g_\beta = \sum g` (Ba et al., 2016, "Layer
    Normalization"; Wu & He, 2018, "Group Normalization"). For
    :math:`\varphi = \langle v, g_x \rangle + \langle v_\gamma, g_\gamma \rangle + \langle v_\beta,
    g_\beta \rangle`,
    with :math:`u = \gamma g`, :math:`a = \overline{v \hat x}`, :math:`b = \overline{u \hat x}` and
    :math:`c = \overline{v u} - \bar v \bar u - 3 a b`:

    .. math::
        \partial\varphi/\partial g &= \gamma L(v) + v_\gamma \hat x + v_\beta, \\
        \partial\varphi/\partial \gamma &= \sum g L(v), \\
        \partial\varphi/\partial x
        &= -s^2 (b (v - \bar v) + a (u - \bar u) + c \hat x) + L(v_\gamma g).

    RMS norm (Zhang & Sennrich, 2019) is the same without means: :math:`\mu = \bar u = \bar v = 0`,
    and no shift. Half precision is computed in float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        grad_output: Tensor,
        x: Tensor,
        weight: Tensor | None,
        norm: RowNorm,
        gradients: list[Tensor | None],
        once: bool,
    ) -> Gradients:
        ctx.save_for_backward(x, weight)
        keep_gradient(ctx, grad_output, once)
        # Without the saved tensors, which must be freed with the graph.
        ctx.norm = norm._replace(x=norm.x.new_empty(0), weight=None, gradients=None)
        ctx.set_materialize_grads(False)
        return tuple(gradients)

    @staticmethod
    def backward(ctx: Any, *vectors: Tensor | None) -> Gradients:
        x, weight = ctx.saved_tensors
        g = kept_gradient(ctx)
        found = _Rows(ctx.norm._replace(x=x, weight=weight)).derivatives(
            g, (*vectors, None)[:3], ctx.needs_input_grad
        )
        return *found, None, None, None


class _Rows:
    """A norm's input as a matrix ``(rows, D)``, with the statistics of each row."""

    def __init__(self, norm: RowNorm) -> None:
        self._norm = norm
        self._dtype = exact_dtype(norm.x.dtype)
        self._x = self._matrix(norm.x)
        self._mean = None if norm.mean is None else norm.mean.reshape(-1, 1).to(self._dtype)
        self._s = norm.inverse_std.reshape(-1, 1).to(self._dtype)

    def derivatives(
        self, grad_output: Tensor, vectors: Gradients, needs: tuple[bool, ...]
    ) -> Gradients:
        """Return the derivatives with respect to output gradient, input and scale, if needed."""
        needs_g, needs_x, needs_weight = needs[:3]
        g = self._matrix(grad_output)
        v = None if vectors[0] is None else self._matrix(vectors[0])
        _, v_weight, v_bias = vectors
        s = self._s
        to_g = to_x = to_weight = None
        if v is not None:
            v_mean = self._row_mean(v)
            a = self._dot_normalised(v, v_mean)
            to_g = self._combine([(s, v)], -s * a, -s * v_mean)
            if needs_weight:
                to_weight = self._sum_over_rows(g * to_g)
        if needs_g:
            to_g = (torch.zeros_like(g) if to_g is None else to_g).view(self._norm.shape)
            if self._norm.weight is not None:
                to_g.mul_(self._factor(self._norm.weight))
            if v_weight is not None:
                x_hat = self._combine([], torch.ones_like(s), torch.zeros_like(s))
                to_g.addcmul_(x_hat.view(self._norm.shape), self._factor(v_weight))
            if v_bias is not None:
                to_g.add_(self._factor(v_bias))
        if needs_x:
            terms: list[tuple[Tensor, Tensor]] = []
            of_x_hat = constant = torch.zeros_like(s)
            if v is not None:
                u = self._scaled(g, self._norm.weight)
                u_mean = self._row_mean(u)
                b = self._dot_normalised(u, u_mean)
                c = self._dot(v, u) - v_mean * u_mean - 3 * a * b
                square = s.square()
                terms = [(-square * b, v), (-square * a, u)]
                of_x_hat = -square * c
                constant = square * (b * v_mean + a * u_mean)
            if v_weight is not None:
                t = self._scaled(g, v_weight)
                t_mean = self._row_mean(t)
                terms.append((s, t))
                of_x_hat = of_x_hat - s * self._dot_normalised(t, t_mean)
                constant = constant - s * t_mean
            to_x = self._combine(terms, of_x_hat, constant) if terms else None
        likes = grad_output, self._norm.x, self._norm.weight
        return tuple(
            None if t is None or like is None else t.to(like.dtype).reshape(like.shape)
            for t, like in zip((to_g, to_x, to_weight), likes, strict=True)
        )

    def _matrix(self, t: Tensor) -> Tensor:
        return t.reshape(-1, self._norm.width).to(self._dtype)

    def _factor(self, scale: Tensor) -> Tensor:
        """Reshape the scale, or a tensor shaped like it, for broadcasting to the input."""
        return scale.reshape(self._norm.scale_shape).to(self._dtype)

    def _scaled(self, matrix: Tensor, scale: Tensor | None) -> Tensor:
        """Multiply a matrix by the scale, or a tensor shaped like it; ``None`` means 1."""
        if scale is None:
            return matrix
        return (matrix.view(self._norm.shape) * self._factor(scale)).view(matrix.shape)

    def _sum_over_rows(self, matrix: Tensor) -> Tensor:
        return matrix.view(self._norm.shape).sum_to_size(self._norm.scale_shape)

    def _row_mean(self, u: Tensor) -> Tensor | float:
        return 0.0 if self._mean is None else u.mean(1, keepdim=True)

    def _dot(self, u: Tensor, v: Tensor) -> Tensor:
        dots: Tensor = torch.linalg.vecdot(u, v)
        return dots.unsqueeze(1) / self._norm.width

    def _dot_normalised(self, u: Tensor, u_mean: Tensor | float) -> Tensor:
        """Return the row means of ``u`` times the normalised input."""
        dot = self._dot(u, self._x)
        return (dot if self._mean is None else dot - self._mean * u_mean) * self._s

    def _combine(
        self, terms: list[tuple[Tensor, Tensor]], of_x_hat: Tensor, constant: Tensor
    ) -> Tensor:
        """Sum matrices, the normalised input and 1, each times a factor per row."""
        of_x = of_x_hat * self._s
        total = self._x * of_x
        for factor, matrix in terms:
            total.addcmul_(matrix, factor)
        return total if self._mean is None else total.add_(constant - of_x * self._mean)
