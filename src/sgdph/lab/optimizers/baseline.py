"""What an optimizer of the comparison is, and how each kind is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import sgdph as core
from sgdph.lab.config.run_config import Setting
from sgdph.lab.optimizers.libraries import import_from

if TYPE_CHECKING:
    # The command line's help names the optimizers and their defaults, without torch.
    import torch
    from torch import nn

Constructor: TypeAlias = "Callable[..., torch.optim.Optimizer]"
"""An optimizer's class."""


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
    groups = core.param_groups(model, weight_decay=settings["weight_decay"])
    return make(groups, seed=seed, **rest)


def adahessian(
    make: Constructor, model: nn.Module, settings: Mapping[str, Any], seed: int
) -> torch.optim.Optimizer:
    """Give AdaHessian all parameters, and its probes the run's seed."""
    optimizer: Any = make(model.parameters(), **settings)
    optimizer.seed_probes(seed)
    return cast("torch.optim.Optimizer", optimizer)


def muon(
    make: Constructor, model: nn.Module, settings: Mapping[str, Any], seed: int
) -> torch.optim.Optimizer:
    """Give Muon its hidden weights, and the others to its AdamW."""
    from sgdph.lab.optimizers.muon import split_for_muon

    hidden, others = split_for_muon(model)
    groups = [{"params": hidden, "use_muon": True}, {"params": others, "use_muon": False}]
    return make(groups, **settings)


@dataclass(frozen=True)
class Baseline:
    """One optimizer of the comparison.

    Attributes:
        defaults: Setting to default value; its keys are all the settings that the optimizer has and
            that have a field in a run's configuration.
        constructor: Dotted path of its class, imported when it is built.
        arguments: Other arguments of the constructor that are set, to their values.
        apply: Makes the optimizer of its class, the model, all settings and the run's seed.
        create_graph: Whether it takes second derivatives from the gradients' graph.
        requires: The package that it comes from, where that is an optional one.
    """

    defaults: Mapping[str, Any]
    constructor: str
    arguments: Mapping[str, Setting] = field(default_factory=dict)
    apply: Callable[[Constructor, nn.Module, Mapping[str, Any], int], torch.optim.Optimizer] = plain
    create_graph: bool = False
    requires: str | None = None

    def build(
        self, model: nn.Module, settings: Mapping[str, Any], seed: int
    ) -> torch.optim.Optimizer:
        """Make the optimizer from the model, all settings and the run's seed."""
        return self.apply(import_from(self.constructor), model, settings, seed)
