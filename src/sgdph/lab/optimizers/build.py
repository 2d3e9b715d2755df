"""Construction of the optimizers in the comparison, each with its grouping of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

import torch
from torch import nn

from sgdph import param_groups
from sgdph.lab.errors import LabError
from sgdph.lab.optimizers.muon import split_for_muon
from sgdph.lab.optimizers.newton import divided
from sgdph.lab.optimizers.registry import BASELINES, check_package

Constructor: TypeAlias = Callable[..., torch.optim.Optimizer]
"""An optimizer's class."""


def make_optimizer(
    name: str, model: nn.Module, settings: Mapping[str, Any], seed: int
) -> torch.optim.Optimizer:
    """Make an optimizer over all parameters of a model that is already on its device.

    Args:
        name: The optimizer's name in the registry.
        model: The model.
        settings: Arguments of its constructor, by name.
        seed: The run's seed, for an optimizer that draws random numbers.

    Raises:
        LabError: If the optimizer rejects a value, or its package is missing.
    """
    check_package(name)
    baseline = BASELINES[name]
    build = BUILDERS[baseline.build]
    try:
        if baseline.first_order is None:
            return build(baseline.load(), model, settings, seed)
        own, newton = divided(settings)
        first_order = build(baseline.first_order.load(), model, own, seed)
        with_newton_steps: Constructor = baseline.load()
        return with_newton_steps(first_order, param_groups(model), seed=seed, **newton)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise LabError(f"{name} cannot use its settings: {error}") from error


def plain(
    make: Constructor, model: nn.Module, settings: Mapping[str, Any], seed: int
) -> torch.optim.Optimizer:
    """Pass all parameters to the optimizer, in one group."""
    return make(model.parameters(), **settings)


def sgdph(
    make: Constructor, model: nn.Module, settings: Mapping[str, Any], seed: int
) -> torch.optim.Optimizer:
    """Pass the parameters to SGD-PH grouped by role, with the run's seed for its probes."""
    rest = {name: value for name, value in settings.items() if name != "weight_decay"}
    groups = param_groups(model, weight_decay=settings["weight_decay"])
    return make(groups, seed=seed, **rest)


def adahessian(
    make: Constructor, model: nn.Module, settings: Mapping[str, Any], seed: int
) -> torch.optim.Optimizer:
    """Pass all parameters to AdaHessian, with the run's seed for its probes."""
    optimizer: Any = make(model.parameters(), **settings)
    optimizer.seed_probes(seed)
    return cast(torch.optim.Optimizer, optimizer)


def muon(
    make: Constructor, model: nn.Module, settings: Mapping[str, Any], seed: int
) -> torch.optim.Optimizer:
    """Pass the hidden weights to Muon and all other parameters to its built-in AdamW."""
    hidden, others = split_for_muon(model)
    groups = [{"params": hidden, "use_muon": True}, {"params": others, "use_muon": False}]
    return make(groups, **settings)


Builder: TypeAlias = Callable[
    [Constructor, nn.Module, Mapping[str, Any], int], torch.optim.Optimizer
]
"""Makes an optimizer of its class, the model, all settings and the run's seed."""

BUILDERS: Mapping[str, Builder] = {
    "plain": plain,
    "sgdph": sgdph,
    "adahessian": adahessian,
    "muon": muon,
}
