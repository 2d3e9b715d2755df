r"""Summaries of a parameter's dense blocks :math:`H_b`, and the estimators' errors from them.

The reference is the diagonal :math:`d` of the mean of the second half of the blocks. The estimates
use the first half, so none of them uses a batch of the reference. Both estimate and reference are
rectified (replaced by their absolute values) before they are compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sgdph import EstimateError
from sgdph.curvature.probes import rademacher_probe
from sgdph.lab.run.start import derive_seed

# In the order of tables and pictures.
ONE_BATCH = ("row_sum_one", "hutchinson_one", "exact_one")
AVERAGES = ("row_sum_average", "hutchinson_average", "exact_average", "held")
ESTIMATES = (*ONE_BATCH, *AVERAGES, "constant")
MEASURES = ("relative_error", "cosine")


class BlockSketch:
    """A summary of one parameter's dense blocks, which are added batch by batch.

    Args:
        batches: Number of blocks that will be added; even.
        probes: Number of simulated optimizers with ``hutchinson``. Each has its own probe for each
            visit.
        seed: Seed of the probes.
        index: Index of the parameter, so that each parameter has its own probes.

    Attributes:
        mean: Mean of the blocks so far ``(n, n)``, float64.
        shares: For each block, the off-diagonal share of its Frobenius norm.
        negatives: For each block, the share of negative diagonal entries.
    """

    def __init__(self, batches: int, probes: int, seed: int, index: int) -> None:
        self.batches, self.index = batches, index
        self.seeds = [derive_seed(seed, f"probes {i}") for i in range(probes)]
        self.mean = torch.zeros(())
        self.shares: list[float] = []
        self.negatives: list[float] = []
        self._diagonals: list[Tensor] = []
        self._row_sums: list[Tensor] = []
        self._hutchinson: list[Tensor] = []

    def add(self, block: Tensor) -> None:
        """Add the block ``(n, n)`` of the next batch."""
        block = block.detach().double().cpu()
        seen = len(self.shares)
        self.mean = block.clone() if seen == 0 else self.mean + (block - self.mean) / (seen + 1)
        diagonal = block.diagonal().clone()
        self.shares.append(off_diagonal_share(block))
        self.negatives.append((diagonal < 0).double().mean().item())
        self._diagonals.append(diagonal)
        if seen < self.batches // 2:
            # The same probes as the optimizer's at its successive visits.
            draws = [rademacher_probe(s, seen, self.index, diagonal) for s in self.seeds]
            z = torch.stack(draws)
            self._row_sums.append(block.sum(1))
            self._hutchinson.append(z * (z @ block.T))

    @property
    def reference(self) -> Tensor:
        """The diagonal of the mean block over the second half of the batches ``(n,)``."""
        return torch.stack(self._diagonals[self.batches // 2 :]).mean(0)

    def row_sum_average(self, beta2: float) -> Tensor:
        """Return the average of an optimizer with row sums after visits on the first half."""
        return running_average([h.abs() for h in self._row_sums], beta2)

    def errors(self, beta2: float, held: Tensor | None) -> dict[str, EstimateError | None]:
        """Compare every estimate with the reference.

        Args:
            beta2: The decay factor of the running averages.
            held: The average that an optimizer holds ``(n,)``; ``None`` if it holds none.

        Returns:
            Maps the names of :data:`ESTIMATES` to errors; ``None`` if there is no such estimate.
            Errors of one-batch estimates are means over batches. Errors of Hutchinson's estimates
            are also means over probes.
        """
        d = self.reference

        def of(estimates: Sequence[Tensor]) -> EstimateError:
            return EstimateError.mean([EstimateError.of(each, d) for each in estimates])

        diagonals = self._diagonals[: self.batches // 2]
        by_probe = torch.stack(self._hutchinson, 1).unbind()
        return {
            "row_sum_one": of(self._row_sums),
            "hutchinson_one": of([each for h in self._hutchinson for each in h]),
            "exact_one": of(diagonals),
            "row_sum_average": of([self.row_sum_average(beta2)]),
            # Rectified only after averaging. Otherwise the probes' noise would become a bias.
            "hutchinson_average": of([running_average(h.unbind(), beta2) for h in by_probe]),
            "exact_average": of([running_average([h.abs() for h in diagonals], beta2)]),
            "held": None if held is None else of([held]),
            "constant": of([d.abs().mean().expand_as(d)]),
        }


def off_diagonal_share(block: Tensor) -> float:
    """Return the share of a block's Frobenius norm off its diagonal, 0 to 1; NaN if it is zero."""
    whole = block.norm()
    off = (block - block.diagonal().diag()).norm()
    return (off / whole).item() if whole > 0 else math.nan


def running_average(visits: Sequence[Tensor], beta2: float) -> Tensor:
    """Average like the optimizer: ``D <- beta2 D + (1 - beta2) h`` from 0, bias-corrected."""
    average = torch.zeros_like(visits[0])
    for h in visits:
        average = beta2 * average + (1 - beta2) * h
    return average / (1 - beta2 ** len(visits))


def flat(errors: Mapping[str, EstimateError | None]) -> dict[str, float | None]:
    """Flatten errors to names like ``row_sum_one_cosine``; values not finite become ``None``."""
    return {
        f"{name}_{measure}": None if error is None else finite(getattr(error, measure))
        for name, error in errors.items()
        for measure in MEASURES
    }


def finite(value: float) -> float | None:
    """Return the value, or ``None`` if it is not finite, which JSON cannot represent."""
    return value if math.isfinite(value) else None
