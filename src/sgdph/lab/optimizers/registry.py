"""The optimizers in the comparison: each by name, with its label, settings and their sources.

Every optimizer is defined only here. Its package is imported when it is built. This module does not
import torch, so that a command's help is fast.

The ``sgdph-…`` are controls: SGD-PH with something else in place of its multipliers. ``adamw-ph``
is AdamW beside the partial Hessian, and ``adamw-ph-…`` are its controls. Such names exist for
every optimizer that can take the first-order steps (:mod:`sgdph.lab.optimizers.newton`).

On ``mnist5k``, lr and weight decay of SGDM, SGD-PH, the controls and AdamW have other defaults.
They were found on held-out training images (``results/tuning-mnist5k``); the controls take those
of sgdph. No other defaults were tuned here. Weight decay applies to every parameter of every
optimizer. Muon has one for its hidden weights and one for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias

from sgdph.lab.errors import LabError, unknown_name
from sgdph.lab.optimizers.baseline import Baseline, is_installed, newton_name
from sgdph.lab.optimizers.newton import (
    CONTROLS,
    CURVATURE,
    MULTIPLIERS,
    NEWTON_LR,
    MultiplierName,
    beside,
    named,
    sgdph_with,
    without_curvature,
)
from sgdph.lab.optimizers.newton import SETTINGS as OF_NEWTON

# Kingma & Ba, ICLR 2015; torch's defaults.
_ADAM = {"betas": (0.9, 0.999), "eps": 1e-8}
_LIBRARY = "pytorch_optimizer"

_OTHERS: Mapping[str, Baseline] = {
    "sgdm": Baseline(
        label="SGDM",
        constructor="torch.optim.SGD",
        # lr and momentum: the SGD-PH paper's on CIFAR. Weight decay: common practice on CIFAR,
        # because we do not know the paper's value.
        defaults={"lr": 0.1, "weight_decay": 5e-4, "momentum": 0.9},
    ),
    "adam": Baseline(
        label="Adam",
        constructor="torch.optim.Adam",
        # lr: the SGD-PH paper's on CIFAR. Weight decay, added to the gradient: what AdaBelief's
        # authors use for Adam on CIFAR.
        defaults={"lr": 1e-3, "weight_decay": 5e-4, **_ADAM},
    ),
    "adamw": Baseline(
        label="AdamW",
        constructor="torch.optim.AdamW",
        # lr: the SGD-PH paper's on CIFAR. Weight decay: our choice, a usual value for images.
        defaults={"lr": 1e-3, "weight_decay": 0.05, **_ADAM},
    ),
    "adabelief": Baseline(
        label="AdaBelief",
        constructor="pytorch_optimizer.AdaBelief",
        # lr: the SGD-PH paper's on CIFAR. All others: AdaBelief's authors' on CIFAR.
        defaults={"lr": 1e-3, "weight_decay": 5e-4, **_ADAM},
        arguments={
            "weight_decouple": False,
            "fixed_decay": False,
            "rectify": False,
            "ams_bound": False,
        },
        requires=_LIBRARY,
    ),
    "adahessian": Baseline(
        label="AdaHessian",
        constructor="sgdph.lab.optimizers.adahessian.Adahessian",
        # Its authors' for CIFAR-10, because the SGD-PH paper's are lost. Weight decay: 5e-4 / lr,
        # because theirs is not multiplied by lr. The arguments: Yao et al., AAAI 2021.
        defaults={"lr": 0.15, "weight_decay": 3.3e-3, "betas": (0.9, 0.999), "eps": 1e-4},
        arguments={
            "hessian_power": 1.0,
            "update_each": 1,
            "n_samples": 1,
            "avg_conv_kernel": True,
        },
        build="adahessian",
        create_graph=True,
        requires="timm",
    ),
    "apollo": Baseline(
        label="Apollo",
        constructor="pytorch_optimizer.ApolloDQN",
        # Its author's for CIFAR-10, because the SGD-PH paper's are lost.
        defaults={"lr": 0.01, "weight_decay": 2.5e-4, "eps": 1e-4},
        arguments={
            "init_lr": 1e-5,
            "beta": 0.9,
            "rebound": "constant",
            "weight_decay_type": "l2",
            "warmup_steps": 500,
        },
        requires=_LIBRARY,
    ),
    "sophiah": Baseline(
        label="SophiaH",
        constructor="sgdph.lab.optimizers.sophia.SophiaH",
        # Its library's defaults. Weight decay: our choice; times lr, it is about SGDM's.
        defaults={"lr": 0.06, "weight_decay": 5e-4, "betas": (0.96, 0.99), "eps": 1e-12},
        arguments={
            "weight_decouple": True,
            "fixed_decay": False,
            "p": 0.01,
            "update_period": 10,
            "num_samples": 1,
            "hessian_distribution": "gaussian",
        },
        create_graph=True,
        requires=_LIBRARY,
    ),
    "muon": Baseline(
        label="Muon",
        constructor="pytorch_optimizer.Muon",
        # Jordan et al., 2024.
        defaults={"lr": 0.02, "weight_decay": 0.01, "momentum": 0.95},
        arguments={
            "weight_decouple": True,
            "nesterov": True,
            "ns_steps": 5,
            "use_adjusted_lr": False,
            "adamw_lr": 3e-4,
            "adamw_betas": (0.9, 0.95),
            "adamw_wd": 0.01,
            "adamw_eps": 1e-10,
        },
        build="muon",
        requires=_LIBRARY,
    ),
    "soap": Baseline(
        label="SOAP",
        constructor="pytorch_optimizer.SOAP",
        # Vyas et al., ICLR 2025.
        defaults={"lr": 3e-3, "weight_decay": 0.01, "betas": (0.95, 0.95), "eps": 1e-8},
        arguments={
            "precondition_frequency": 10,
            "max_precondition_dim": 10000,
            "merge_dims": False,
            "precondition_1d": False,
            "correct_bias": True,
            "normalize_gradient": False,
        },
        requires=_LIBRARY,
    ),
}
_SGDPH: Mapping[str, Baseline] = {named("sgdph", each): sgdph_with(each) for each in MULTIPLIERS}

# The optimizers that can take the first-order steps beside the partial Hessian.
FIRST_ORDER = tuple(name for name, baseline in _OTHERS.items() if baseline.can_be_first_order)


def _with_newton_steps(name: str) -> dict[str, Baseline]:
    """Return an optimizer, followed by its combinations with Newton steps."""
    baseline = _OTHERS[name]
    kinds = MULTIPLIERS if name in FIRST_ORDER else ()
    return {name: baseline, **{named(f"{name}-ph", each): beside(baseline, each) for each in kinds}}


BASELINES: Mapping[str, Baseline] = {
    "sgdph": _SGDPH["sgdph"],
    **{key: each for name in _OTHERS for key, each in _with_newton_steps(name).items()},
    **_SGDPH,
}
# The names as the help shows them.
PATTERNS = (
    *(name for name, baseline in BASELINES.items() if baseline.first_order is None),
    "{" + ",".join(FIRST_ORDER) + "}-ph[" + ",".join(f"-{each}" for each in CONTROLS) + "]",
)

# The names as a type: ``str`` for type checkers, the registry's names at runtime.
if TYPE_CHECKING:
    OptimizerName: TypeAlias = str
else:
    OptimizerName = Literal[tuple(BASELINES)]

# The paper's learning rates are for 200 epochs of CIFAR, not for a few hundred steps. These values
# were found on held-out training images with equal budgets: results/tuning-mnist5k.
_FOUND: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "mnist5k": {
        "adamw": {"lr": 0.01, "weight_decay": 0.05},
        "sgdm": {"lr": 0.1, "weight_decay": 5e-3},
        "sgdph": {"lr": 0.1, "weight_decay": 5e-3},
    }
}


def _shared(found: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    """Use SGD-PH's values for its controls, and its lr for Newton steps beside other optimizers."""
    tuned = {**found, **dict.fromkeys(_SGDPH, found["sgdph"])}
    lr = {NEWTON_LR: found["sgdph"]["lr"]}
    for name in FIRST_ORDER:
        both = {**found.get(name, {}), **lr}
        tuned |= {named(f"{name}-ph", each): both for each in MULTIPLIERS}
    return tuned


TUNED: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    dataset: _shared(found) for dataset, found in _FOUND.items()
}

SETTINGS: frozenset[str] = frozenset().union(*(b.defaults for b in BASELINES.values()))


def owners(setting: str) -> list[str]:
    """Return the names of the optimizers that have a setting."""
    return [name for name, baseline in BASELINES.items() if setting in baseline.defaults]


def owners_in_words(setting: str) -> str:
    """Return the names of the optimizers that have a setting, as text for a message."""
    first_orders = {name: BASELINES[name].first_order for name in owners(setting)}
    named = [name for name, first_order in first_orders.items() if first_order is None]
    if any(each is not None and setting not in each.defaults for each in first_orders.values()):
        fixed = [each for each in CONTROLS if setting in without_curvature(each)]
        but = f" but its controls {', '.join(fixed)}" if fixed else ""
        named.append(f"any with --partial-hessian{but}")
    return ", ".join(named) or "no optimizer"


def with_partial_hessian(optimizer: str | None, multiplier: MultiplierName = CURVATURE) -> str:
    """Return the name of an optimizer's combination with the partial Hessian.

    Args:
        optimizer: The optimizer that takes the first-order steps.
        multiplier: Name of the multiplier of the Newton steps.

    Raises:
        LabError: If the optimizer was not given, is unknown, or cannot take the first-order steps.
    """
    if optimizer in FIRST_ORDER:
        return named(f"{optimizer}-ph", multiplier)
    reason = "needs a first-order optimizer beside it"
    if optimizer is not None:
        check_name(optimizer)
        own = BASELINES[optimizer].multiplier is not None
        what = "Newton steps" if own else "curvature"
        reason = f"cannot be used with {optimizer}, which has {what} of its own"
    raise LabError(
        f"--partial-hessian {reason}; take --optimizer {', '.join(FIRST_ORDER[:-1])} or "
        f"{FIRST_ORDER[-1]}"
    )


def check_name(optimizer: str) -> None:
    """Raise LabError unless the optimizer is known."""
    if optimizer not in BASELINES:
        raise LabError(unknown_name("optimizer", optimizer, tuple(BASELINES)))


def check_package(optimizer: str) -> None:
    """Raise LabError unless the package that an optimizer comes from is installed."""
    package = BASELINES[optimizer].requires
    if package is not None and not is_installed(package):
        raise LabError(
            f"{optimizer} comes from {package}, which is not installed; install it with "
            f"'pip install {package}'"
        )


def flag(setting: str) -> str:
    """Return the command-line flag for a setting."""
    return "--" + setting.replace("_", "-")


def arguments(optimizer: str) -> tuple[str, ...]:
    """Return the names that ``--optimizer-args`` accepts: the settings, then the other arguments.

    Raises:
        LabError: If its package is missing.
    """
    check_package(optimizer)
    baseline = BASELINES[optimizer]
    # The settings of Newton steps that the optimizer, such as a control, does not use.
    idle = set(map(newton_name, OF_NEWTON)) - baseline.arguments.keys()
    refused = SETTINGS | idle | without_curvature(baseline.multiplier)
    others = (name for name in baseline.constructor_arguments() if name not in refused)
    return (*baseline.defaults, *others)
