"""Networks of operations that torch cannot differentiate twice, and plain versions of these."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from property_nets import IMAGES, NETS, Case, conv, conv_bn, head, sequential, stem
from property_surroundings import Checkpointed
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel


class _Hardsigmoid(torch.autograd.Function):
    """Torch's gradient kernel uses 1/6 rounded to float32, also in float64."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x + 3).clamp(0, 6) / 6

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        sixth = torch.tensor(1 / 6, dtype=torch.float32).to(x.dtype)
        return torch.where(x.abs() < 3, g * sixth, 0)


def plain_hardsigmoid(x: Tensor, inplace: bool = False) -> Tensor:
    return _Hardsigmoid.apply(x)


def plain_weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    others = [d for d in range(v.dim()) if d != dim % v.dim()]
    return v * (g / torch.linalg.vector_norm(v, dim=others, keepdim=True))


def plain_attention(*arguments: Any, **named: Any) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return fused_attention(*arguments, **named)


fused_attention = functional.scaled_dot_product_attention


def plain_hardswish(x: Tensor, inplace: bool = False) -> Tensor:
    return x * (x + 3).clamp(0, 6) / 6


def plain_multi_margin_loss(
    x: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    losses = []
    for scores, y in zip(x, target.tolist(), strict=True):
        others = [k for k in range(len(scores)) if k != y]
        slack = (margin - scores[y] + scores[others]).clamp(min=0)
        losses.append(slack.pow(p).sum() / len(scores) * (1 if weight is None else weight[y]))
    return _reduced(torch.stack(losses), reduction)


def plain_multilabel_margin_loss(x: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    losses = []
    for scores, ys in zip(x, target.tolist(), strict=True):
        ys = ys[: ys.index(-1)] if -1 in ys else ys
        others = [k for k in range(len(scores)) if k not in ys]
        slack = 1 - scores[ys].unsqueeze(1) + scores[others]
        losses.append(slack.clamp(min=0).sum() / len(scores))
    return _reduced(torch.stack(losses), reduction)


def plain_ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Sequence[int],
    target_lengths: Sequence[int],
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """Compute with probabilities of alignments, not their logarithms, one sample at a time."""
    target_lengths = torch.as_tensor(target_lengths).tolist()
    if targets.dim() == 1:
        pieces = list(targets.split(target_lengths))
    else:
        pieces = [row[:n] for row, n in zip(targets, target_lengths, strict=True)]
    losses = []
    for i, n in enumerate(torch.as_tensor(input_lengths).tolist()):
        p = _probability(log_probs[:n, i].exp(), pieces[i].tolist(), blank)
        impossible = zero_infinity and p.item() == 0
        losses.append(torch.zeros_like(p) if impossible else -p.log())
    loss = torch.stack(losses)
    if reduction == "mean":
        loss = loss / torch.tensor(target_lengths).clamp(min=1)
    return _reduced(loss, reduction)


def _probability(probs: Tensor, target: list[int], blank: int) -> Tensor:
    labels = [blank, *(label for y in target for label in (y, blank))]
    zero = torch.zeros((), dtype=probs.dtype)
    alpha = [probs[0, label] if s < 2 else zero for s, label in enumerate(labels)]
    for now in probs[1:]:
        before = [zero, zero, *alpha]
        alpha = []
        for s, label in enumerate(labels):
            ways = before[s + 2] + before[s + 1]
            if label != blank and s >= 2 and labels[s - 2] != label:
                ways = ways + before[s]
            alpha.append(ways * now[label])
    return sum(alpha[-2:], zero)


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    return {"mean": losses.mean, "sum": losses.sum, "none": lambda: losses}[reduction]()


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """Let forwards inside the context use operations that torch can differentiate twice."""
    plain: dict[str, Any] = {
        "hardsigmoid": plain_hardsigmoid,
        "hardswish": plain_hardswish,
        "multi_margin_loss": plain_multi_margin_loss,
        "multilabel_margin_loss": plain_multilabel_margin_loss,
        "ctc_loss": plain_ctc_loss,
        "scaled_dot_product_attention": plain_attention,
    }
    module = sys.modules["torch.nn.utils.weight_norm"]
    with (
        mock.patch.multiple(functional, **plain),
        mock.patch.object(torch, "_weight_norm", plain_weight_norm),
        mock.patch.object(module, "_weight_norm", plain_weight_norm),
    ):
        yield


# MobileNetV3's activations.
class SqueezeExcite(nn.Module):
    def __init__(self, gain: float = 4.0, inplace: bool = False) -> None:
        super().__init__()
        self.squeeze = conv(4, 3, 1, bias=True)
        self.excite = conv(3, 4, 1, bias=True)
        self.gate = nn.Hardsigmoid(inplace=inplace)
        self.gain = gain  # so that all three pieces of the gate are used

    def forward(self, x: Tensor) -> Tensor:
        pooled = functional.adaptive_avg_pool2d(x, 1)
        return x * self.gate(self.gain * self.excite(self.squeeze(pooled).relu()))


def _inverted_residual(inplace: bool = False) -> nn.Module:
    depthwise = conv_bn(4, 4, nn.Hardswish(inplace=inplace), groups=4)
    return nn.Sequential(depthwise, SqueezeExcite(inplace=inplace), conv_bn(4, 4, kernel=1))


def _checkpointed_gate() -> nn.Module:
    layers = conv(4, 4, bias=True), nn.GroupNorm(2, 4), nn.Hardswish(), SqueezeExcite()
    return Checkpointed(nn.Sequential(*layers))


sequential("mobile", IMAGES, stem, _inverted_residual, _inverted_residual, nn.Hardswish, head)
sequential("mobile_in_place", IMAGES, stem, lambda: _inverted_residual(True), head)
sequential("mobile_checkpointed", IMAGES, stem, _checkpointed_gate, _checkpointed_gate, head)
sequential("gates", IMAGES, stem, nn.Hardsigmoid, lambda: conv_bn(4, 4, nn.Hardsigmoid()))


# Losses.
def _loss(name: str, loss_of: Callable[[nn.Module, Tensor], Tensor]) -> None:
    def make() -> Case:
        return Case(nn.Sequential(stem(), conv_bn(4, 4), head()), (torch.randn(IMAGES),), loss_of)

    NETS[name] = make


_Y = torch.tensor([1, 0, 2])


def _margin(model: nn.Module, x: Tensor) -> Tensor:
    scores = 2 * model(x)
    weight = torch.tensor([0.5, 2.0, 1.0], dtype=x.dtype)
    flat = functional.multi_margin_loss(scores, _Y, margin=2.0)
    squared = functional.multi_margin_loss(scores, _Y, p=2, weight=weight, reduction="none")
    return flat.square() + squared.exp().mean()


def _multilabel(model: nn.Module, x: Tensor) -> Tensor:
    targets = torch.tensor([[0, 2, -1], [1, -1, 0], [-1, 0, 0]])
    return functional.multilabel_margin_loss(2 * model(x), targets).exp()


def _on_cpu(model: nn.Module, x: Tensor) -> Tensor:
    with save_on_cpu():
        scores = model(x)
        gates = functional.hardsigmoid(4 * scores).square().sum()
        return gates + functional.multi_margin_loss(scores, _Y, p=2)


_loss("squared_margin", lambda m, x: functional.multi_margin_loss(m(x), _Y, p=2, reduction="sum"))
_loss("margins", _margin)
_loss("multilabel_margin", _multilabel)
_loss("kernels_saved_on_cpu", _on_cpu)


def _speech(name: str, loss_of: Callable[..., Tensor]) -> None:
    def make() -> Case:
        layers = nn.Conv1d(2, 4, 3, padding=1), nn.BatchNorm1d(4), nn.Tanh(), nn.Conv1d(4, 4, 1)
        model = nn.Sequential(*layers, nn.LayerNorm(6))
        return Case(model, (torch.randn(3, 2, 6),), lambda m, x: loss_of(2 * m(x).permute(2, 0, 1)))

    NETS[name] = make


def _plain_ctc(scores: Tensor) -> Tensor:
    targets = torch.tensor([[1, 2, 3], [2, 2, 1], [3, 0, 0]])
    return functional.ctc_loss(scores.log_softmax(2), targets, (6, 5, 4), (3, 3, 1))


def _corners_of_ctc(scores: Tensor) -> Tensor:
    """An empty target, one with a repeated label that does not fit its frames, another blank."""
    lengths = torch.tensor([6, 2, 5]), torch.tensor([0, 2, 3])
    losses = functional.ctc_loss(
        scores.log_softmax(2),
        torch.tensor([1, 1, 2, 0, 2]),
        *lengths,
        blank=3,
        reduction="none",
        zero_infinity=True,
    )
    return losses.square().mean()


_speech("ctc", _plain_ctc)
_speech("ctc_corners", _corners_of_ctc)
