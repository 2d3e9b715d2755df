"""Batch norm's second derivative as one expression, in training and in evaluation."""

from __future__ import annotations

from typing import Any

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
    per_channel,
)

BATCH_NORMS = ("NativeBatchNormBackward0", "CudnnBatchNormBackward0")


def batch_norm_hook(node: Node, region: Region, once: bool) -> Hook | None:
    """Return the hook that gives batch norm's gradients a lean derivative.

    Torch's derivative is kept if the input was packed (:func:`is_packed`).

    Args:
        node: One of ``BATCH_NORMS``.
        region: The nodes between the loss and the parameters of a product.
        once: Whether only one product will be taken; it then frees the tensors kept for it.
    """
    if is_packed(node, "input"):
        return None
    training = getattr(node, "_saved_training", False)
    leads_on = [region.leads_on(node, place) for place in range(3)]

    def hook(grad_inputs: Gradients, grad_outputs: Gradients) -> Gradients | None:
        grad_output = grad_outputs[0]
        if grad_output is None or not grad_output.requires_grad:
            return None
        try:
            x, weight = node._saved_input, node._saved_weight
            if training:
                mean, inverse_std = node._saved_result1, node._saved_result2
            else:
                mean, variance = _exact(node._saved_running_mean, node._saved_running_var)
                mean, inverse_std = mean.clone(), (variance + _epsilon(node)).rsqrt()
        except (AttributeError, RuntimeError):
            return None
        plain = list(map(detached, grad_inputs))
        function = _BatchNormGradients if training else _EvaluationGradients
        lean = function.apply(
            grad_output,
            x if leads_on[0] else x.detach(),
            weight if leads_on[1] else detached(weight),
            mean,
            inverse_std,
            plain,
            once,
        )
        return tuple(new if on else old for on, new, old in zip(leads_on, lean, plain, strict=True))

    return hook


class _BatchNormGradients(Function):
    r"""Batch norm's gradients as functions of its output's gradient, its input and its weight.

    Per channel, let :math:`\mu` be the batch's mean,
    :math:`s = 1 / \sqrt{\sigma^2 + \epsilon}`, :math:`\hat x = s (x - \mu)` and
    :math:`b = \overline{g \hat x}`. Bars are means over the channel's :math:`N` entries. The
    gradients are (Ioffe & Szegedy, 2015)

    .. math::
        g_x = \gamma s (g - \bar g - b \hat x), \quad g_\gamma = N b, \quad g_\beta = N \bar g.

    For :math:`\varphi = \langle v, g_x\rangle + v_\gamma g_\gamma + v_\beta g_\beta`, with
    :math:`a = \overline{v \hat x}` and :math:`c = \overline{v g} - \bar v \bar g - a b`, and with
    :math:`\partial s / \partial x = -s^2 \hat x / N` and
    :math:`N \, \partial b / \partial x = s (g - \bar g - b \hat x)`:

    .. math::
        \partial\varphi/\partial g
        &= \gamma s (v - \bar v - a \hat x) + v_\gamma \hat x + v_\beta, \\
        \partial\varphi/\partial \gamma &= N s c, \\
        \partial\varphi/\partial x
        &= -\gamma s^2 \left( b (v - \bar v) + a (g - \bar g) + (c - 2 a b) \hat x \right)
        + v_\gamma s (g - \bar g - b \hat x).

    Half precision is computed in float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        grad_output: Tensor,
        x: Tensor,
        weight: Tensor | None,
        mean: Tensor,
        inverse_std: Tensor,
        gradients: list[Tensor | None],
        once: bool,
    ) -> Gradients:
        _, weight_gradient, bias_gradient = gradients
        ctx.save_for_backward(x, weight, mean, inverse_std, weight_gradient, bias_gradient)
        keep_gradient(ctx, grad_output, once)
        ctx.set_materialize_grads(False)
        return tuple(gradients)

    @staticmethod
    def backward(
        ctx: Any, v: Tensor | None, v_weight: Tensor | None, v_bias: Tensor | None
    ) -> Gradients:
        g = kept_gradient(ctx)
        saved = ctx.saved_tensors
        likes = g, saved[0], saved[1]
        exact = _exact(*saved, g, v, v_weight, v_bias)
        x, weight, mean, s, sum_gx, sum_g, g, v, v_weight, v_bias = exact
        count = x.numel() // x.shape[1]
        needs_g, needs_x, needs_weight = ctx.needs_input_grad[:3]
        absent = torch.zeros_like(s)
        scale = s if weight is None else weight * s
        v_weight = absent if v_weight is None else v_weight
        v_bias = absent if v_bias is None else v_bias

        a = v_mean = absent
        if v is not None:
            sum_vx, sum_v = _channel_sums(v, x, mean, s)
            a, v_mean = sum_vx / count, sum_v / count
        to_g = to_x = to_weight = None
        if needs_g:
            of_x_hat = v_weight - scale * a
            constant = v_bias - scale * v_mean
            to_g = _combine([(scale, v)], of_x_hat, x, mean, s, constant)
        if needs_x or needs_weight:
            if sum_gx is None or sum_g is None:
                sum_gx, sum_g = _channel_sums(g, x, mean, s)
            b, g_mean = sum_gx / count, sum_g / count
            c = absent
            if v is not None:
                vg_mean = _channel_sums(v, g, absent, torch.ones_like(s))[0] / count
                c = vg_mean - v_mean * g_mean - a * b
            if needs_weight:
                to_weight = count * s * c
            if needs_x:
                of_v = -scale * s * b
                of_g = -scale * s * a + v_weight * s
                of_x_hat = -scale * s * (c - 2 * a * b) - v_weight * s * b
                constant = -of_v * v_mean - of_g * g_mean
                to_x = _combine([(of_v, v), (of_g, g)], of_x_hat, x, mean, s, constant)
        return *_like((to_g, to_x, to_weight), likes), None, None, None, None


class _EvaluationGradients(Function):
    r"""Batch norm's gradients in evaluation, where :math:`\mu` and :math:`s` are constants.

    The gradients are :math:`g_x = \gamma s g`, :math:`g_\gamma = \sum g \hat x` and
    :math:`g_\beta = \sum g`, and

    .. math::
        \partial\varphi/\partial g &= \gamma s v + v_\gamma \hat x + v_\beta, \\
        \partial\varphi/\partial \gamma &= s \sum v g, \\
        \partial\varphi/\partial x &= v_\gamma s g.
    """

    @staticmethod
    def forward(
        ctx: Any,
        grad_output: Tensor,
        x: Tensor,
        weight: Tensor | None,
        mean: Tensor,
        inverse_std: Tensor,
        gradients: list[Tensor | None],
        once: bool,
    ) -> Gradients:
        ctx.save_for_backward(x, weight, mean, inverse_std)
        # It is read only for derivatives with respect to the input or the weight.
        is_read = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        keep_gradient(ctx, grad_output if is_read else None, once)
        ctx.set_materialize_grads(False)
        return tuple(gradients)

    @staticmethod
    def backward(
        ctx: Any, v: Tensor | None, v_weight: Tensor | None, v_bias: Tensor | None
    ) -> Gradients:
        g = kept_gradient(ctx)
        saved = ctx.saved_tensors
        likes = saved[0], saved[0], saved[1]
        x, weight, mean, s, g, v, v_weight, v_bias = _exact(*saved, g, v, v_weight, v_bias)
        needs_g, needs_x, needs_weight = ctx.needs_input_grad[:3]
        to_g = to_x = to_weight = None
        if needs_g:
            scale = s if weight is None else weight * s
            of_x_hat = torch.zeros_like(s) if v_weight is None else v_weight
            constant = torch.zeros_like(s) if v_bias is None else v_bias
            if v_weight is not None:
                to_g = _combine([(scale, v)], of_x_hat, x, mean, s, constant)
            elif v is not None:
                to_g = (v * per_channel(scale, x.dim())).add_(per_channel(constant, x.dim()))
            else:
                to_g = per_channel(constant, x.dim()).expand(x.shape)
        if needs_weight and v is not None:
            others = [d for d in range(x.dim()) if d != 1]
            to_weight = s * (v * g).sum(others)
        if needs_x and v_weight is not None:
            to_x = g * per_channel(v_weight * s, x.dim())
        return *_like((to_g, to_x, to_weight), likes), None, None, None, None


def _epsilon(node: Node) -> float:
    epsilon: float = node._saved_epsilon if hasattr(node, "_saved_epsilon") else node._saved_eps
    return epsilon


def _exact(*tensors: Any) -> Any:
    """Convert half precision to float32."""
    return tuple(None if t is None else t.to(exact_dtype(t.dtype)) for t in tensors)


def _like(tensors: Gradients, likes: Gradients) -> Gradients:
    """Convert each derivative to the dtype of the tensor in ``likes``."""
    pairs = zip(tensors, likes, strict=True)
    return tuple(t if t is None or like is None else t.to(like.dtype) for t, like in pairs)


def _channel_sums(g: Tensor, x: Tensor, mean: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``Σ g s (x - mean)`` and ``Σ g`` per channel, in one pass of torch's kernel."""
    # The sums do not depend on the weight. But CUDA's kernel shapes them like it, so it needs one.
    weight = s
    _, dots, sums = torch.ops.aten.native_batch_norm_backward(
        g, x, weight, None, None, mean, s, True, 0.0, [False, True, True]
    )
    return dots, sums


def _combine(
    terms: list[tuple[Tensor, Tensor | None]],
    of_x_hat: Tensor,
    x: Tensor,
    mean: Tensor,
    s: Tensor,
    constant: Tensor,
) -> Tensor:
    """Sum tensors like ``x``, ``s (x - mean)`` and 1, each times a factor per channel."""
    of_x = of_x_hat * s
    total = x * per_channel(of_x, x.dim())
    for factor, tensor in terms:
        if tensor is not None:
            total.addcmul_(tensor, per_channel(factor, x.dim()))
    return total.add_(per_channel(constant - of_x * mean, x.dim()))
