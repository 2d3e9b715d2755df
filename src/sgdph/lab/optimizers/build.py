"""How the optimizers of the comparison are given a model's parameters."""

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
    """Make an optimizer over all parameters of a model that already lies on its device.

    Args:
        name: The optimizer's, in the registry.
        model: The model.
        settings: Arguments of its constructor, by name.
        seed: The run's, for an optimizer that draws.

    Raises:
        LabError: If the optimizer refuses a value, or its package is missing.
    """
    check_package(name)
    baseline = BASELINES[name]
    build = BUILDERS[baseline.build]
    try:
        if baseline.first_order is None:
            return build(baseline.load(), model, settings, seed)
        own, newton = divided(settings)
        first_order = build(baseline.first_order.load(), model, own, seed)
        return with_newton_steps(baseline.load(), first_order, model, newton, seed)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise LabError(f"{name} cannot use its settings: {error}") from error


def plain(
    make: Constructor, model: nn.Module, settings: Mapping[str, Any], seed: int
) -> torch.optim.Optimizer:
    """Give the optimizer all parameters alike."""
    return make(model.parameters(), **settings)


def sgdph(
    make: Constructor, model: nn.Module, settings: Mapping[str, Any], seed: int
) -> torch.optim.Optimizer:
    """Give SGD-PH the parameters by role, and its probes the run's seed."""
    rest = {name: value for name, value in settings.items() if name != "weight_decay"}
    groups = param_groups(model, weight_decay=settings["weight_decay"])
    return make(groups, seed=seed, **rest)


def with_newton_steps(
    make: Constructor,
    first_order: torch.optim.Optimizer,
    model: nn.Module,
    settings: Mapping[str, Any],
    seed: int,
) -> torch.optim.Optimizer:
    """Take the channel-wise parameters out of an optimizer, and give them Newton steps.

    Args:
        make: The class that stands for ``PartialHessian``.
        first_order: The optimizer, over all parameters of the model.
        model: The model.
        settings: Of the Newton steps.
        seed: The run's, for the probes.
    """
    return make(first_order, param_groups(model), seed=seed, **settings)


def adahessian(
    make: Constructor, model: nn.Module, settings: Mapping[str, Any], seed: int
) -> torch.optim.Optimizer:
    """Give AdaHessian all parameters, and its probes the run's seed."""
    optimizer: Any = make(model.parameters(), **settings)
    optimizer.seed_probes(seed)
    return cast(torch.optim.Optimizer, optimizer)


def muon(
    make: Constructor, model: nn.Module, settings: Mapping[str, Any], seed: int
) -> torch.optim.Optimizer:
    """Give Muon its hidden weights, and the others to its AdamW."""
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
