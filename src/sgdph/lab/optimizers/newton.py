"""Newton steps in the comparison: in SGD-PH, beside another optimizer, and in controls of both.

A control replaces the multipliers by something else. Each control exists for SGD-PH, like
``sgdph-mean``, and for every optimizer that can take the first-order steps, like
``adamw-ph-mean``. This module does not import torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from sgdph.lab.optimizers.baseline import Baseline, newton_name

MultiplierName: TypeAlias = Literal["curvature", "mean", "shuffled", "fixed1", "fixed10", "fixed"]
CURVATURE: MultiplierName = "curvature"
NEWTON_LR = newton_name("lr")

SETTINGS: Mapping[str, Any] = {
    # From the paper's experiments on CIFAR.
    "lr": 0.01,
    "weight_decay": 5e-3,
    # From the paper, whose algorithm is row_sum, cyclic, at every step.
    "momentum": 0.9,
    "second_order_lr": 1e-3,
    "hessian_momentum": 0.9,
    "eps": 1e-4,
    "estimator": "row_sum",
    "refresh": "cyclic",
    "hessian_interval": 1,
}
# The laboratory's name of an option or argument to its name in ``PartialHessian``.
_ARGUMENTS = {newton_name(name): name for name in (*SETTINGS, "maximize", "foreach", "eps_warmup")}
_OF_FIXED = ("lr", "weight_decay", "momentum")
_OF_CAP = (*_OF_FIXED, "second_order_lr", "eps")
_CONTROLS = "sgdph.lab.optimizers.controls"


@dataclass(frozen=True)
class Multiplier:
    """A kind of multiplier for Newton steps.

    Attributes:
        words: Suffix of an optimizer's label.
        alone: Dotted path of ``sgdph.SGDPH`` or of the class that replaces it.
        beside: Dotted path of ``sgdph.PartialHessian`` or of the class that replaces it.
        settings: The names in :data:`SETTINGS` that it uses.
    """

    words: str
    alone: str
    beside: str
    settings: tuple[str, ...] = tuple(SETTINGS)

    @property
    def defaults(self) -> dict[str, Any]:
        """The values of its settings."""
        return {name: SETTINGS[name] for name in self.settings}


def _control(words: str, name: str, settings: tuple[str, ...] = tuple(SETTINGS)) -> Multiplier:
    return Multiplier(
        f", {words}", f"{_CONTROLS}.{name}Multiplier", f"{_CONTROLS}.{name}Beside", settings
    )


MULTIPLIERS: Mapping[MultiplierName, Multiplier] = {
    CURVATURE: Multiplier("", "sgdph.SGDPH", "sgdph.PartialHessian"),
    "mean": _control("mean multiplier", "Mean"),
    "shuffled": _control("shuffled multipliers", "Shuffled"),
    "fixed1": _control("multiplier 1", "Fixed", _OF_FIXED),
    "fixed10": _control("multiplier 10", "Tenfold", _OF_FIXED),
    "fixed": _control("multiplier τ/ε", "Cap", _OF_CAP),
}
CONTROLS = tuple(name for name in MULTIPLIERS if name != CURVATURE)


def named(name: str, multiplier: MultiplierName) -> str:
    """Return the name of an optimizer whose Newton steps use a multiplier."""
    return name if multiplier == CURVATURE else f"{name}-{multiplier}"


def without_curvature(multiplier: str | None) -> frozenset[str]:
    """Return the settings of Newton steps that a multiplier does not use, because it is fixed."""
    own = (each.settings for name, each in MULTIPLIERS.items() if name == multiplier)
    idle = frozenset(SETTINGS) - frozenset(next(own, SETTINGS))
    return idle | {"eps_warmup"} if "estimator" in idle else idle


def sgdph_with(multiplier: MultiplierName) -> Baseline:
    """Return the definition of SGD-PH with a multiplier."""
    chosen = MULTIPLIERS[multiplier]
    return Baseline(
        label=f"SGD-PH{chosen.words}",
        constructor=chosen.alone,
        defaults=chosen.defaults,
        build="sgdph",
        multiplier=multiplier,
    )


def divided(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide settings into those of the first-order steps and those of the Newton steps.

    Returns:
        The settings of the first-order steps, and the settings of the Newton steps under the names
        of ``PartialHessian``'s arguments.
    """
    first_order = {name: value for name, value in settings.items() if name not in _ARGUMENTS}
    newton = {argument: settings[name] for name, argument in _ARGUMENTS.items() if name in settings}
    return first_order, newton


def beside(first_order: Baseline, multiplier: MultiplierName) -> Baseline:
    """Return the definition of an optimizer beside Newton steps on the channel-wise parameters.

    The Newton steps have SGD-PH's settings, whatever the first-order optimizer. Of these,
    ``newton_lr`` and those that no first-order optimizer has become settings. The others become
    arguments.
    """
    chosen = MULTIPLIERS[multiplier]
    newton = {newton_name(name): value for name, value in chosen.defaults.items()}
    arguments = {
        name: newton.pop(name)
        for name in [*newton]
        if name.startswith("newton_") and name != NEWTON_LR
    }
    return dataclasses.replace(
        first_order,
        label=f"{first_order.label} + partial Hessian{chosen.words}",
        constructor=chosen.beside,
        defaults={**first_order.defaults, **newton},
        arguments={**first_order.arguments, **arguments},
        multiplier=multiplier,
        first_order=first_order,
    )
