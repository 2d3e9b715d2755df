"""The optimizers that are compared: each by name, with its settings, their defaults and sources.

| optimizer | setting | default | where it is from |
|---|---|---|---|
| sgdm | lr | 0.1 | the SGD-PH paper's experiments on CIFAR |
| sgdm | momentum | 0.9 | the SGD-PH paper |
| sgdm | weight_decay | 5e-4 | common practice on CIFAR; the paper's value is not known to us |
| sgdph | lr, weight_decay | 0.01, 5e-3 | the SGD-PH paper's experiments on CIFAR |
| sgdph | momentum, hessian_momentum | 0.9, 0.9 | the SGD-PH paper |
| sgdph | second_order_lr, eps | 1e-3, 1e-4 | the SGD-PH paper |
| sgdph | estimator, refresh, hessian_interval | row_sum, cyclic, 1 | the SGD-PH paper's algorithm |
| adamw | lr | 1e-3 | the SGD-PH paper's experiments on CIFAR |
| adamw | weight_decay | 0.05 | not the paper's; a usual value for AdamW on images |
| sgdph-mean, sgdph-shuffled | all | as sgdph | :mod:`sgdph.lab.controls` |
| sgdph-fixed1, sgdph-fixed10 | lr, weight_decay, momentum | as sgdph | :mod:`sgdph.lab.controls` |
| adamw | betas | 0.9, 0.999 | Kingma & Ba, "Adam", ICLR 2015; torch's default |

The ``sgdph-…`` are controls: SGD-PH with something else in place of its multipliers.

On ``mnist5k`` lr and weight decay have other defaults, found on held-out training images by
``benchmarks/tune_small.py`` (the controls take sgdph's); elsewhere nothing was tuned here. Weight
decay applies to every parameter of every optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from sgdph import SGDPH, param_groups
from sgdph.lab.config import LabError, RunConfig
from sgdph.lab.controls import (
    FixedMultiplier,
    MeanMultiplier,
    ShuffledMultiplier,
    TenfoldMultiplier,
)


@dataclass(frozen=True)
class Baseline:
    """One optimizer of the comparison.

    Attributes:
        defaults: Setting to default value; its keys are all the settings that the optimizer has.
        build: Makes the optimizer from the model, all settings and the run's seed.
    """

    defaults: Mapping[str, Any]
    build: Callable[[nn.Module, Mapping[str, Any], int], torch.optim.Optimizer]


def _sgdm(model: nn.Module, settings: Mapping[str, Any], seed: int) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), **settings)


def _adamw(model: nn.Module, settings: Mapping[str, Any], seed: int) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), **settings)


def _sgdph(
    model: nn.Module, settings: Mapping[str, Any], seed: int, kind: type[SGDPH] = SGDPH
) -> torch.optim.Optimizer:
    rest = {name: value for name, value in settings.items() if name != "weight_decay"}
    groups = param_groups(model, weight_decay=settings["weight_decay"])
    return kind(groups, seed=seed, **rest)


_OF_SGDPH: Mapping[str, Any] = {
    "lr": 0.01,
    "weight_decay": 5e-3,
    "momentum": 0.9,
    "second_order_lr": 1e-3,
    "hessian_momentum": 0.9,
    "eps": 1e-4,
    "estimator": "row_sum",
    "refresh": "cyclic",
    "hessian_interval": 1,
}
_OF_FIXED = {name: _OF_SGDPH[name] for name in ("lr", "weight_decay", "momentum")}

BASELINES: Mapping[str, Baseline] = {
    "sgdph": Baseline(_OF_SGDPH, _sgdph),
    "sgdm": Baseline({"lr": 0.1, "weight_decay": 5e-4, "momentum": 0.9}, _sgdm),
    "adamw": Baseline({"lr": 1e-3, "weight_decay": 0.05, "betas": (0.9, 0.999)}, _adamw),
    "sgdph-mean": Baseline(_OF_SGDPH, partial(_sgdph, kind=MeanMultiplier)),
    "sgdph-shuffled": Baseline(_OF_SGDPH, partial(_sgdph, kind=ShuffledMultiplier)),
    "sgdph-fixed1": Baseline(_OF_FIXED, partial(_sgdph, kind=FixedMultiplier)),
    "sgdph-fixed10": Baseline(_OF_FIXED, partial(_sgdph, kind=TenfoldMultiplier)),
}

# The paper's learning rates are for 200 epochs of CIFAR; a few hundred steps are too few for them.
# Found on held-out training images with equal budgets: results/tuning-mnist5k.
TUNED: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "mnist5k": {
        **{
            name: {"lr": 0.1, "weight_decay": 5e-3}
            for name in ("sgdph", "sgdph-mean", "sgdph-shuffled", "sgdph-fixed1", "sgdph-fixed10")
        },
        "sgdm": {"lr": 0.1, "weight_decay": 5e-3},
        "adamw": {"lr": 0.01, "weight_decay": 0.05},
    }
}

SETTINGS: frozenset[str] = frozenset().union(*(b.defaults for b in BASELINES.values()))


def owners(setting: str) -> list[str]:
    """Name the optimizers that have a setting."""
    return [name for name, baseline in BASELINES.items() if setting in baseline.defaults]


def check_name(optimizer: str) -> None:
    """Raise LabError unless the optimizer is known."""
    if optimizer not in BASELINES:
        raise LabError(f"optimizer must be one of {', '.join(BASELINES)}; got {optimizer!r}")


def flag(setting: str) -> str:
    """Return the command-line flag of a setting."""
    return "--" + setting.replace("_", "-")


def resolve_settings(optimizer: str, dataset: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fill an optimizer's settings with its defaults.

    Args:
        optimizer: Its name.
        dataset: The data set's name: some have defaults of their own.
        given: Setting to value, only those that were given.

    Returns:
        Every setting that the optimizer has, to its value.

    Raises:
        LabError: If the name is unknown, or a setting was given that the optimizer does not have.
    """
    check_name(optimizer)
    defaults = BASELINES[optimizer].defaults
    for name in given:
        if name not in defaults:
            raise LabError(
                f"{optimizer} has no setting {flag(name)} (got {given[name]!r}); "
                f"{', '.join(owners(name)) or 'no optimizer'} has it, and {optimizer} has "
                f"{', '.join(flag(own) for own in defaults)}"
            )
    tuned = TUNED.get(dataset, {}).get(optimizer, {})
    return {**defaults, **tuned, **given}


def build_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """Make the run's optimizer over all parameters of a model that already lies on its device.

    Raises:
        LabError: If the optimizer refuses a value.
    """
    baseline = BASELINES[config.optimizer]
    settings = {name: getattr(config, name) for name in baseline.defaults}
    try:
        return baseline.build(model, settings, config.seed)
    except ValueError as error:
        raise LabError(f"{config.optimizer} refuses its settings: {error}") from error
