"""How far a Hessian block is from diagonal, and how far each estimate is from its diagonal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sgdph.curvature.probes import rademacher_probe


@dataclass(frozen=True)
class EstimateError:
    """How far an estimate ``h`` is from a block's diagonal ``d``, without regard to signs.

    The Newton step divides by absolute values, so absolute values are compared.

    If ``h`` is zero except for rounding, such as the row sum of a bias before a softmax, the
    relative error is 1. The cosine is then that of the rounding errors and means nothing.

    Attributes:
        cosine: The cosine between ``|h|`` and ``|d|``, in [0, 1]: whether the channels have the
            right proportions. 1 if both are zero, 0 if one is.
        relative_error: ``‖|h| - |d|‖ / ‖d‖``: whether the size is right too. 0 if both are zero,
            infinite if only ``d`` is.
    """

    cosine: float
    relative_error: float

    @classmethod
    def of(cls, estimate: Tensor, diagonal: Tensor) -> EstimateError:
        """Compare two tensors with the same number of entries, in float64.

        Raises:
            ValueError: The numbers of entries differ.
        """
        if estimate.numel() != diagonal.numel():
            raise ValueError(
                "an estimate must have as many entries as the diagonal; got shapes "
                f"{tuple(estimate.shape)} and {tuple(diagonal.shape)}"
            )
        # On the CPU, because not every device has float64.
        h, d = (v.detach().to("cpu", torch.float64).flatten().abs() for v in (estimate, diagonal))
        norm_h, norm_d, distance = (float(v.norm()) for v in (h, d, h - d))
        if norm_d == 0:
            return cls(1.0, 0.0) if norm_h == 0 else cls(0.0, float("inf"))
        if norm_h == 0:
            return cls(0.0, 1.0)
        cosine = float((h / norm_h) @ (d / norm_d))
        return cls(cosine=min(cosine, 1.0), relative_error=distance / norm_d)

    @classmethod
    def mean(cls, errors: Sequence[EstimateError]) -> EstimateError:
        """Average each figure over several errors, at least one."""
        return cls(
            cosine=sum(e.cosine for e in errors) / len(errors),
            relative_error=sum(e.relative_error for e in errors) / len(errors),
        )


@dataclass(frozen=True)
class Diagonality:
    """How diagonal a Hessian block ``H`` is, and how well its diagonal is estimated.

    All figures are computed in float64, for a block of any precision.

    Attributes:
        name: The parameter's name, or ``"joint"`` for all of them together.
        shape: The parameter's shape; ``(n,)`` for several.
        off_diagonal_share: ``‖H - diag(H)‖ / ‖H‖`` in Frobenius norms: 0 if the block is diagonal
            or zero, 1 if the diagonal is zero.
        negative_share: The share of diagonal entries below zero.
        row_sum: The error of ``|H 1|``, which the estimator ``row_sum`` takes.
        hutchinson: The error of one draw ``z ⊙ Hz`` with Rademacher ``z``, which the estimator
            ``hutchinson`` takes: the mean of the errors of ``probes`` single draws.
        hutchinson_mean: The error of the signed mean of the ``probes`` draws. Like the optimizer's,
            successive draws are orthogonal (:mod:`sgdph.curvature.probes`). So for a block of n
            rows, n draws (rounded up to a power of two) give the diagonal itself.
        probes: The number of draws.
        constant: The error of an estimate with the mean of ``|d|`` in every entry, which says
            nothing about single channels. An estimate that is not better is worth no more than a
            learning rate.
        average: The error of the running average ``D̂`` of an optimizer, which also contains other
            batches and weights; ``None`` if there is none, or the parameter was not refreshed.
    """

    name: str
    shape: tuple[int, ...]
    off_diagonal_share: float
    negative_share: float
    row_sum: EstimateError
    hutchinson: EstimateError
    hutchinson_mean: EstimateError
    probes: int
    constant: EstimateError
    average: EstimateError | None

    @classmethod
    def of_block(
        cls,
        block: Tensor,
        *,
        name: str,
        shape: Sequence[int] | None = None,
        probes: int = 16,
        seed: int = 0,
        average: Tensor | None = None,
    ) -> Diagonality:
        """Measure one block.

        Args:
            block: A matrix of shape ``(n, n)``, with ``n`` at least 1.
            name: The name for the result.
            shape: The parameter's shape; ``None`` is ``(n,)``.
            probes: The number of Hutchinson draws, at least 1.
            seed: The seed of the draws. The global generator is never used.
            average: An estimate of the diagonal from elsewhere, with ``n`` entries.

        Raises:
            ValueError: ``block`` is not square, is empty or has entries that are not finite, or
                another argument does not fit.
        """
        check_probes(probes)
        if block.ndim != 2 or block.shape[0] != block.shape[1] or block.numel() == 0:
            raise ValueError(
                f"a Hessian block is a square matrix of at least 1 x 1, got {tuple(block.shape)}"
            )
        shape = block.shape[:1] if shape is None else shape
        if math.prod(shape) != len(block):
            raise ValueError(
                f"a block of {len(block)} rows does not belong to a parameter of shape "
                f"{tuple(shape)}"
            )
        draws = rademacher_draws(probes, seed, 0, block[0])
        return judge(block, Subject(name, tuple(shape), draws, average))


class Subject(NamedTuple):
    """The name and shape of a block's parameter, with the draws and average to judge."""

    name: str
    shape: tuple[int, ...]
    draws: Tensor
    average: Tensor | None


def judge(block: Tensor, subject: Subject) -> Diagonality:
    """Measure a block; see :meth:`Diagonality.of_block`.

    Args:
        block: A matrix of shape ``(n, n)``.
        subject: The block's parameter, with draws and average of ``n`` entries.

    Raises:
        ValueError: ``block`` has entries that are not finite.
    """
    # On the CPU, because not every device has float64.
    block = block.detach().to("cpu", torch.float64)
    name, shape, z, average = subject
    if not block.isfinite().all():
        raise ValueError(
            f"the Hessian block of {name} has entries that are not finite: the loss overflows or "
            "is not smooth here; look at its value, or use a wider dtype"
        )
    diagonal = block.diagonal()
    norm = float(block.norm())
    draws = z * (z @ block.T)
    return Diagonality(
        name=name,
        shape=shape,
        off_diagonal_share=float((block - diagonal.diag()).norm()) / norm if norm > 0 else 0.0,
        negative_share=float((diagonal < 0).double().mean()),
        row_sum=EstimateError.of(block.sum(dim=1), diagonal),
        hutchinson=EstimateError.mean([EstimateError.of(h, diagonal) for h in draws]),
        hutchinson_mean=EstimateError.of(draws.mean(dim=0), diagonal),
        probes=len(draws),
        constant=EstimateError.of(diagonal.abs().mean().expand_as(diagonal), diagonal),
        average=None if average is None else EstimateError.of(average, diagonal),
    )


def rademacher_draws(probes: int, seed: int, index: int, p: Tensor) -> Tensor:
    """Draw ``probes`` Rademacher vectors, of shape ``(probes, n)``."""
    like = torch.empty(p.numel(), dtype=torch.float64, device="cpu")
    return torch.stack([rademacher_probe(seed, draw, index, like) for draw in range(probes)])


def check_probes(probes: int) -> None:
    """Raise a ``ValueError`` unless ``probes`` is a whole number of at least 1."""
    if not isinstance(probes, int) or isinstance(probes, bool) or probes < 1:
        raise ValueError(f"probes must be a whole number of at least 1, got {probes!r}")
