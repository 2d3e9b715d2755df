"""The optimizers whose steps are measured, by name.

They use such a small learning rate that the weights hardly change. So every step does the same
work.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sgdph import SGDPH, param_groups
from sgdph.lab.cost.authors import AuthorsSGDPH
from sgdph.lab.cost.figures import BASE, MATH_BASE
from sgdph.lab.errors import LabError, unknown_name
from sgdph.lab.optimizers.baseline import is_installed
from sgdph.lab.optimizers.build import make_optimizer
from sgdph.lab.optimizers.registry import BASELINES
from sgdph.lab.run.step import backward_with_graph, go_to
from sgdph.names import Estimator

LR, WEIGHT_DECAY = 1e-4, 5e-4
# The same rates for all parts of an optimizer that has several.
_RATES: Mapping[str, float] = {
    **dict.fromkeys(("lr", "newton_lr", "adamw_lr"), LR),
    **dict.fromkeys(("weight_decay", "newton_weight_decay", "adamw_wd"), WEIGHT_DECAY),
}

# A step with second derivatives, or one without.
Kind = Literal["refresh", "plain"]


@dataclass(frozen=True)
class System:
    """One optimizer with its settings and its backward pass.

    Attributes:
        name: Its name on the command line.
        label: Its name in tables.
        build: Builds the optimizer for a model.
        backward: Computes gradients (and second derivatives) of a loss, for a kind of step.
        refresh: Parameters that a refresh takes second derivatives for: ``"none"``, one parameter
            after another (``"cyclic"``), or ``"all"`` at once.
        interval: Second derivatives are taken at every ``interval``-th step.
        estimator: Estimator of the Newton steps; ``None`` for other optimizers.
        requires: The optional package that it comes from; ``None`` if it needs none.
        math_attention: The kind of step that computes attention by plain products instead of
            torch's default; ``None`` if neither does.
    """

    name: str
    label: str
    build: Callable[[nn.Module], torch.optim.Optimizer]
    backward: Callable[[Any, Tensor, Kind], None]
    refresh: Literal["none", "cyclic", "all"] = "none"
    interval: int = 1
    estimator: Estimator | None = None
    requires: str | None = None
    math_attention: Kind | None = None

    @property
    def weights(self) -> Mapping[Kind, float]:
        """The kinds of step of this system, with the share of each among a run's steps."""
        if self.refresh == "none":
            return {"plain": 1.0}
        if self.interval == 1:
            return {"refresh": 1.0}
        return {"refresh": 1 / self.interval, "plain": 1 - 1 / self.interval}

    def compiles(self, kind: Kind) -> bool:
        """Return whether a compiled model runs compiled in a kind of step.

        A compiled model has no second derivatives, and its attention is fixed at compilation.
        """
        return kind == "plain" and kind != self.math_attention

    def attention(self, kind: Kind) -> AbstractContextManager[object]:
        """Return the context manager that selects the attention for a kind of step."""
        if kind != self.math_attention:
            return contextlib.nullcontext()
        context: AbstractContextManager[object] = sdpa_kernel(SDPBackend.MATH)
        return context

    def go_to(self, optimizer: torch.optim.Optimizer, cursor: int, kind: Kind) -> None:
        """Set the kind of the next step; a cyclic refresh is of the ``cursor``-th parameter."""
        go_to(optimizer, cursor, due=kind == "refresh" if self.interval > 1 else None)


def _ordinary(optimizer: torch.optim.Optimizer, loss: Tensor, kind: Kind) -> None:
    loss.backward()  # type: ignore[no-untyped-call]


def _shared(optimizer: SGDPH, loss: Tensor, kind: Kind) -> None:
    optimizer.backward(loss)


def _separate(optimizer: SGDPH, loss: Tensor, kind: Kind) -> None:
    optimizer.update_hessian(loss)
    loss.backward()  # type: ignore[no-untyped-call]


def _create_graph(optimizer: torch.optim.Optimizer, loss: Tensor, kind: Kind) -> None:
    if kind == "refresh":
        backward_with_graph(loss)
    else:
        loss.backward()  # type: ignore[no-untyped-call]


def _sgdph(name: str, label: str, backward: Any = _shared, **settings: Any) -> System:
    def build(model: nn.Module) -> torch.optim.Optimizer:
        return SGDPH(param_groups(model, weight_decay=WEIGHT_DECAY), lr=LR, **settings)

    return System(
        name,
        f"SGD-PH{label}",
        build,
        backward,
        settings.get("refresh", "cyclic"),
        settings.get("hessian_interval", 1),
        settings.get("estimator", "row_sum"),
    )


def _of_comparison(optimizer: str, suffix: str = "", label: str = "", **settings: Any) -> System:
    """Make a system from an optimizer of the comparison; only rates and ``settings`` differ."""
    baseline = BASELINES[optimizer]
    own = {**baseline.defaults, **baseline.arguments, **settings}
    own |= {name: rate for name, rate in _RATES.items() if name in own}

    def build(model: nn.Module) -> torch.optim.Optimizer:
        return make_optimizer(optimizer, model, own, seed=0)

    return System(
        optimizer + suffix,
        baseline.label + label,
        build,
        _ordinary if baseline.multiplier is None else _shared,
        own.get("refresh", "none"),
        own.get("hessian_interval", 1),
        own.get("estimator"),
        baseline.requires,
    )


# Torch has no second derivative of fused attention.
_BY_TORCH_ALONE: Mapping[str, Any] = {"math_attention": "refresh"}


def _from_package(package: str, path: str, **settings: Any) -> dict[str, Any]:
    """Return the arguments of a system from an optional package, which is imported when built."""

    def build(model: nn.Module) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = resolve_name(path)(
            model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY, **settings
        )
        return optimizer

    return {
        "build": build,
        "backward": _create_graph,
        "refresh": "all",
        "requires": package,
        **_BY_TORCH_ALONE,
    }


_JOINT: Mapping[str, Any] = {
    "estimator": "hutchinson",
    "refresh": "all",
    "hessian_momentum": 0.99,
}


def _sgdm(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=WEIGHT_DECAY)


_ALL = (
    System(BASE, "SGDM", _sgdm, _ordinary),
    System(MATH_BASE, "SGDM, math attention", _sgdm, _ordinary, math_attention="plain"),
    _of_comparison("adamw"),
    _of_comparison("adamw-ph"),
    _of_comparison("adamw-ph", "-interval10", ", interval 10", hessian_interval=10),
    _of_comparison("muon"),
    _of_comparison("muon-ph"),
    _of_comparison("muon-ph", "-interval10", ", interval 10", hessian_interval=10),
    _sgdph("sgdph", ""),
    _sgdph("sgdph-plain", ", update_hessian + backward", _separate),
    _sgdph("sgdph-interval10", ", interval 10", hessian_interval=10),
    _sgdph("sgdph-hutchinson", ", hutchinson", estimator="hutchinson"),
    _sgdph(
        "sgdph-hutchinson-interval10",
        ", hutchinson, interval 10",
        estimator="hutchinson",
        hessian_interval=10,
    ),
    _sgdph("sgdph-hutchinson-all", ", hutchinson, all", **_JOINT),
    _sgdph(
        "sgdph-hutchinson-all-interval10",
        ", hutchinson, all, interval 10",
        hessian_interval=10,
        **_JOINT,
    ),
    _sgdph("sgdph-create-graph", ", create_graph", _create_graph),
    _sgdph("sgdph-row-sum-all", ", row_sum, all", refresh="all"),
    _sgdph("sgdph-exact", ", exact", estimator="exact"),
    System(
        "authors",
        "SGD-PH, the authors' way",
        lambda model: AuthorsSGDPH(model, LR, WEIGHT_DECAY),
        _create_graph,
        refresh="cyclic",
        estimator="row_sum",
        **_BY_TORCH_ALONE,
    ),
    System(
        "adahessian-timm",
        "AdaHessian (timm)",
        **_from_package("timm", "timm.optim.Adahessian", avg_conv_kernel=True),
    ),
    System(
        "adahessian",
        "AdaHessian (pytorch_optimizer)",
        **_from_package("pytorch_optimizer", "pytorch_optimizer.AdaHessian"),
    ),
    System(
        "sophiah",
        "SophiaH (pytorch_optimizer), interval 10",
        interval=10,
        **_from_package("pytorch_optimizer", "pytorch_optimizer.SophiaH", update_period=10),
    ),
)
SYSTEMS: Mapping[str, System] = {system.name: system for system in _ALL}

# Measured only if named: another base for the ratios, and systems that take one product per
# parameter, or per channel, at each step.
ONLY_NAMED = frozenset({MATH_BASE, "sgdph-row-sum-all", "sgdph-exact"})
USUAL = tuple(name for name in SYSTEMS if name not in ONLY_NAMED)


def choose_systems(names: Sequence[str]) -> list[System]:
    """Look up systems by name; SGDM always comes first, even if it is not named.

    Raises:
        LabError: If a name is unknown or given twice, or its package is not installed.
    """
    for name in names:
        if name not in SYSTEMS:
            listed = "docs/cost-command.md lists them"
            raise LabError(unknown_name("system", name, tuple(SYSTEMS), listed))
        needed = SYSTEMS[name].requires
        if needed is not None and not is_installed(needed):
            raise LabError(
                f"{name} comes from {needed}, which is not installed; install it with "
                f"'pip install {needed}', or leave {name} out of --systems"
            )
    if len(set(names)) < len(names):
        raise LabError(f"--systems names one twice: {','.join(names)}; name each once")
    return [SYSTEMS[BASE], *(SYSTEMS[name] for name in names if name != BASE)]
