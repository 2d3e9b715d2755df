"""Controls: Newton steps whose multipliers have lost what curvature could have put in them.

Each answers one question of whether curvature matters to training. If a control trains as well as
SGD-PH, that which it lacks was not what helped. Each comes as SGD-PH (``sgdph-mean``) and beside
another optimizer (``adamw-ph-mean``).

| name | multiplier of a Newton parameter | what is lost |
|---|---|---|
| ``-mean`` | its mean over the channels, in each | the differences between channels |
| ``-shuffled`` | its own, each channel's given to another | which channel has which |
| ``-fixed1`` | 1 | all curvature: SGDM, with SGD-PH's weight decay |
| ``-fixed10`` | 10, the cap at the paper's settings | all curvature: a larger learning rate |
| ``-fixed`` | τ/ε, to be tuned | the same |
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from sgdph import SGDPH, PartialHessian
from sgdph.step import SecondOrderOptimizer


class _Mean(SecondOrderOptimizer):
    """Each parameter's multiplier is replaced by its mean over the channels."""

    def newton_multiplier(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """Return the control's multiplier."""
        own = super().newton_multiplier(p, group)
        return own.mean().expand_as(own)


class _Shuffled(SecondOrderOptimizer):
    """Each parameter's multiplier is permuted over its channels, always in the same way.

    The permutation is drawn once for each parameter, from the optimizer's seed. A new one at every
    step would average out over the steps to the mean.
    """

    def newton_multiplier(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """Return the control's multiplier."""
        own = super().newton_multiplier(p, group)
        place = next(i for i, other in enumerate(self.newton_parameters) if other is p)
        key = hashlib.blake2b(f"{group['seed']},{place}".encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key, "big"))
        order = torch.randperm(own.numel(), generator=generator)
        return own.flatten()[order.to(own.device)].view_as(own)


class _Fixed(SecondOrderOptimizer):
    """The multiplier is a number, and no curvature is ever taken."""

    multiplier = 1.0

    @property
    def hessian_due(self) -> bool:
        """Never."""
        return False

    def newton_multiplier(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """Return the control's multiplier."""
        return torch.full_like(p, self.multiplier)


class _Tenfold(_Fixed):
    """The multiplier is 10: where SGD-PH's is capped at the paper's τ and ε."""

    multiplier = 10.0


class _Cap(_Fixed):
    """The multiplier is τ/ε, as if every curvature were 0: SGDM with another lr on Newton ones."""

    def newton_multiplier(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """Return the control's multiplier."""
        return torch.full_like(p, group["second_order_lr"] / group["eps"])


class MeanMultiplier(_Mean, SGDPH):
    """SGD-PH, the mean of each multiplier."""


class MeanBeside(_Mean, PartialHessian):
    """The partial Hessian beside an optimizer, the mean of each multiplier."""


class ShuffledMultiplier(_Shuffled, SGDPH):
    """SGD-PH, multipliers permuted over the channels."""


class ShuffledBeside(_Shuffled, PartialHessian):
    """The partial Hessian beside an optimizer, multipliers permuted over the channels."""


class FixedMultiplier(_Fixed, SGDPH):
    """SGD-PH, multiplier 1."""


class FixedBeside(_Fixed, PartialHessian):
    """The partial Hessian beside an optimizer, multiplier 1."""


class TenfoldMultiplier(_Tenfold, SGDPH):
    """SGD-PH, multiplier 10."""


class TenfoldBeside(_Tenfold, PartialHessian):
    """The partial Hessian beside an optimizer, multiplier 10."""


class CapMultiplier(_Cap, SGDPH):
    """SGD-PH, multiplier τ/ε."""


class CapBeside(_Cap, PartialHessian):
    """The partial Hessian beside an optimizer, multiplier τ/ε."""
