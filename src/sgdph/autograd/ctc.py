r"""The second derivative of connectionist temporal classification (CTC), which torch lacks.

The loss is the negative logarithm of the summed probability of all alignments of a target (Graves
et al., 2006, "Connectionist Temporal Classification"). Torch's kernel returns the gradient of the
scores in front of the log-softmax,

.. math::
    G_{tk} = g \left( e^{\ell_{tk}} + \frac{\partial L}{\partial \ell_{tk}} \right),

as the gradient of the log-probabilities :math:`\ell`. The log-softmax's own derivative does not
change it, because :math:`\sum_k G_{tk} = 0`. Here :math:`L` is computed by the forward recursion,
with operations that torch can differentiate twice.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sgdph.autograd.graph import Hook, Node, Region
from sgdph.autograd.recomputed import Formula, Operation, Saved

# Replaces the logarithm of 0, so that its sums and their derivatives stay finite.
_LOG_ZERO = -1e30
CTC_WITHOUT_INPUTS = tuple(
    f"{library}CtcLossBackward{overload}"
    for library in ("Cudnn", "Miopen")
    for overload in ("", *range(10))
)


def _ctc(saved: Saved) -> Formula:
    """Return the gradient as a function of log-probabilities of shape (time, batch, class)."""
    zero_infinity = saved("zero_infinity")
    blank, targets = saved("blank"), saved("targets")
    input_lengths, target_lengths = saved("input_lengths"), saved("target_lengths")

    def gradient(g: Tensor, log_probs: Tensor) -> tuple[Tensor]:
        lengths = torch.as_tensor(input_lengths, device=log_probs.device)
        labels, target_ends = _labels(targets, target_lengths, blank, log_probs.device)
        log_probs = log_probs if log_probs.requires_grad else log_probs.clone().requires_grad_()
        losses = _losses(log_probs, lengths, labels, target_ends)
        impossible = losses.detach() > -0.5 * _LOG_ZERO
        possible = torch.where(impossible, 0, losses).sum()
        (slope,) = torch.autograd.grad(possible, log_probs, create_graph=True)
        time = torch.arange(len(log_probs), device=log_probs.device).unsqueeze(1)
        inside = time < lengths
        total = torch.where(inside.unsqueeze(2), log_probs.exp() + slope, 0)
        factor = torch.where(impossible, 0.0 if zero_infinity else torch.nan, 1.0).to(g.dtype)
        return ((factor * g).unsqueeze(1) * total,)

    return gradient


def _labels(
    targets: Tensor, target_lengths: object, blank: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Put blanks around each target's labels, and find where each target ends.

    Returns:
        The labels, of shape (batch, 2 * longest target + 1), and the positions of the last blanks.
    """
    lengths = torch.as_tensor(target_lengths, device="cpu")
    targets = targets.to(device).long()
    longest = int(lengths.max()) if len(lengths) else 0
    if targets.dim() == 1:
        pieces = list(torch.split(targets, lengths.tolist()))
        targets = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True, padding_value=blank)
    labels = targets.new_full((len(lengths), 2 * longest + 1), blank)
    labels[:, 1::2] = targets[:, :longest]
    return labels, 2 * lengths.to(device)


def _losses(
    log_probs: Tensor, input_lengths: Tensor, labels: Tensor, target_ends: Tensor
) -> Tensor:
    """Compute the loss of each sample by the forward recursion, in log space."""
    places = labels.expand(len(log_probs), *labels.shape)
    emitted = log_probs.clamp(min=_LOG_ZERO).gather(2, places)
    # A label may follow another one without a blank in between if the two are different.
    skips = labels[:, 2:] != labels[:, :-2]
    start = torch.arange(labels.shape[1], device=labels.device) < 2
    alpha = torch.where(start, emitted[0], _LOG_ZERO)
    for t in range(1, len(emitted)):
        before = functional.pad(alpha[:, :-1], (1, 0), value=_LOG_ZERO)
        two_before = torch.where(skips, alpha[:, :-2], _LOG_ZERO)
        two_before = functional.pad(two_before, (2, 0), value=_LOG_ZERO)[:, : labels.shape[1]]
        following = _log_sum(alpha, before, two_before) + emitted[t]
        alpha = torch.where((t < input_lengths).unsqueeze(1), following, alpha)
    last_blank = alpha.gather(1, target_ends.unsqueeze(1)).squeeze(1)
    last_label = alpha.gather(1, (target_ends - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
    last_label = torch.where(target_ends > 0, last_label, _LOG_ZERO)
    return -_log_sum(last_blank, last_label)


def _log_sum(*logarithms: Tensor) -> Tensor:
    """Return the logarithm of a sum, given the logarithms of its terms.

    The slopes sum to 1 even if all terms are the logarithm of 0. Those of torch's ``logsumexp`` are
    then 1 each, and would grow over time without bound.
    """
    terms = torch.stack(logarithms)
    highest = terms.detach().amax(0)
    return highest + (terms - highest).exp().sum(0).log()


CTC = {
    name: Operation(("log_probs",), _ctc, "_ctc_loss_backward")
    for name in ("CtcLossBackward0", "CtcLossBackward1")
}


def refuse_ctc_without_inputs(node: Node, region: Region, once: bool) -> Hook | None:
    """Raise an error for cuDNN's CTC, whose node saves only the gradient and none of its inputs.

    Torch treats that gradient as a constant, so the curvature of the loss would be lost silently.

    Raises:
        RuntimeError: Always.
    """
    raise RuntimeError(
        "no partial Hessian can be taken from this loss: cuDNN's CTC loss keeps its gradient "
        "as a constant. Compute the loss under torch.backends.cudnn.flags(enabled=False)"
    )
