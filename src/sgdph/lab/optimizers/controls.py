"""Controls: Newton steps whose multipliers lack some or all of the information on curvature.

Each control tests whether one kind of this information matters to training. If a control trains as
well as SGD-PH, the information that it lacks was not what helped. Each control exists for SGD-PH
(``sgdph-mean``) and for the partial Hessian beside another optimizer (``adamw-ph-mean``).

| name | multiplier of a Newton parameter | what is lost |
|---|---|---|
| ``-mean`` | mean over the channels, for every channel | the differences between channels |
| ``-shuffled`` | the same values, permuted over the channels | which channel has which value |
| ``-fixed1`` | 1 | all curvature: SGDM, with SGD-PH's weight decay |
| ``-fixed10`` | 10, the cap at the paper's settings | all curvature: a larger learning rate |
| ``-fixed`` | τ/ε, which can be tuned | all curvature: a larger learning rate |
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from sgdph import SGDPH, PartialHessian
from sgdph.step import SecondOrderOptimizer


class _Mean(SecondOrderOptimizer):
    """Newton steps in which each multiplier is replaced by its mean over the channels."""

    def newton_multiplier(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """Return the control's multiplier."""
        own = super().newton_multiplier(p, group)
        return own.mean().expand_as(own)


class _Shuffled(SecondOrderOptimizer):
    """Newton steps in which each multiplier is permuted over the channels, always in the same way.

    Each parameter's permutation is fixed by the optimizer's seed. A new permutation at every step
    would average out, over the steps, to the mean over the channels.
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
    """Newton steps with a fixed number as the multiplier, which never compute curvature."""

    multiplier = 1.0

    @property
    def hessian_due(self) -> bool:
        """Whether the next step needs curvature: never."""
        return False

    def newton_multiplier(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """Return the control's multiplier."""
        return torch.full_like(p, self.multiplier)


class _Tenfold(_Fixed):
    """Newton steps with multiplier 10, which is SGD-PH's cap at the paper's τ and ε."""

    multiplier = 10.0


class _Cap(_Fixed):
    """Newton steps with multiplier τ/ε, as if all curvature were 0: SGDM steps with another lr."""

    def newton_multiplier(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """Return the control's multiplier."""
        return torch.full_like(p, group["second_order_lr"] / group["eps"])


class MeanMultiplier(_Mean, SGDPH):
    """SGD-PH with the mean of each multiplier."""


class MeanBeside(_Mean, PartialHessian):
    """The partial Hessian beside an optimizer, with the mean of each multiplier."""


class ShuffledMultiplier(_Shuffled, SGDPH):
    """SGD-PH with multipliers permuted over the channels."""


class ShuffledBeside(_Shuffled, PartialHessian):
    """The partial Hessian beside an optimizer, with multipliers permuted over the channels."""


class FixedMultiplier(_Fixed, SGDPH):
    """SGD-PH with multiplier 1."""


class FixedBeside(_Fixed, PartialHessian):
    """The partial Hessian beside an optimizer, with multiplier 1."""


class TenfoldMultiplier(_Tenfold, SGDPH):
    """SGD-PH with multiplier 10."""


class TenfoldBeside(_Tenfold, PartialHessian):
    """The partial Hessian beside an optimizer, with multiplier 10."""


class CapMultiplier(_Cap, SGDPH):
    """SGD-PH with multiplier τ/ε."""


class CapBeside(_Cap, PartialHessian):
    """The partial Hessian beside an optimizer, with multiplier τ/ε."""
