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
| adam | lr | 1e-3 | the SGD-PH paper's experiments on CIFAR |
| adam | weight_decay | 5e-4 (in the gradient) | AdaBelief's authors for Adam on CIFAR |
| adamw | lr | 1e-3 | the SGD-PH paper's experiments on CIFAR |
| adamw | weight_decay | 0.05 | not the paper's; a usual value for AdamW on images |
| adam, adamw | betas, eps | (0.9, 0.999), 1e-8 | Kingma & Ba, ICLR 2015; torch's defaults |
| adabelief | lr | 1e-3 | the SGD-PH paper's experiments on CIFAR |
| adabelief | all others | weight decay 5e-4 in the gradient, eps 1e-8 | its authors' for CIFAR |
| adahessian | lr | 0.15 | its authors' for CIFAR-10 (the SGD-PH paper's is lost) |
| adahessian | weight_decay | 3.3e-3 | the same: 5e-4 over lr, as theirs is outside lr |
| adahessian | betas, eps, hessian_power | (0.9, 0.999), 1e-4, 1 | the same |
| adahessian | avg_conv_kernel, update_each, n_samples | true, 1, 1 | Yao et al., AAAI 2021 |
| apollo | lr, weight_decay | 0.01, 2.5e-4 in the gradient | its author's for CIFAR-10 (as above) |
| apollo | warmup_steps, init_lr, eps, beta | 500, 1e-5, 1e-4, 0.9 | the same |
| sophiah | all but weight_decay | lr 0.06, betas (0.96, 0.99), p 0.01 … | its library's defaults |
| sophiah | weight_decay | 5e-4 | ours: lr times it is about SGDM's |
| muon | lr, weight_decay | 0.02, 0.01 | Jordan et al., 2024 |
| muon | momentum, nesterov, ns_steps | 0.95, true, 5 | the same |
| muon | adamw_lr, adamw_wd, adamw_betas | 3e-4, 0.01, (0.9, 0.95) | the same |
| soap | all | lr 3e-3, weight decay 0.01, betas (0.95, 0.95) … | Vyas et al., ICLR 2025 |
| sgdph-mean, sgdph-shuffled | all | as sgdph | :mod:`sgdph.lab.optimizers.controls` |
| sgdph-fixed1, sgdph-fixed10 | lr, weight_decay, momentum | as sgdph | there |
| sgdph-fixed | those, second_order_lr, eps | as sgdph | :mod:`sgdph.lab.optimizers.controls` |

The ``sgdph-…`` are controls: SGD-PH with something else in place of its multipliers.

On ``mnist5k`` lr and weight decay of SGDM, SGD-PH, the controls and AdamW have other defaults,
found on held-out training images (``results/tuning-mnist5k``; the controls take sgdph's);
elsewhere nothing was tuned here. Weight decay applies to every parameter of every optimizer; Muon
has one for its hidden weights and one for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.errors import LabError
from sgdph.lab.optimizers.baseline import Baseline, adahessian, muon, sgdph
from sgdph.lab.optimizers.libraries import arguments_of, is_installed

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
_OF_CAP = {**_OF_FIXED, "second_order_lr": 1e-3, "eps": 1e-4}
_ADAM = {"betas": (0.9, 0.999), "eps": 1e-8}
_LIBRARY = "pytorch_optimizer"

BASELINES: Mapping[str, Baseline] = {
    "sgdph": Baseline(_OF_SGDPH, "sgdph.SGDPH", apply=sgdph),
    "sgdm": Baseline({"lr": 0.1, "weight_decay": 5e-4, "momentum": 0.9}, "torch.optim.SGD"),
    "adam": Baseline({"lr": 1e-3, "weight_decay": 5e-4, **_ADAM}, "torch.optim.Adam"),
    "adamw": Baseline({"lr": 1e-3, "weight_decay": 0.05, **_ADAM}, "torch.optim.AdamW"),
    "adabelief": Baseline(
        {"lr": 1e-3, "weight_decay": 5e-4, **_ADAM},
        "pytorch_optimizer.AdaBelief",
        {"weight_decouple": False, "fixed_decay": False, "rectify": False, "ams_bound": False},
        requires=_LIBRARY,
    ),
    "adahessian": Baseline(
        {"lr": 0.15, "weight_decay": 3.3e-3, "betas": (0.9, 0.999), "eps": 1e-4},
        "sgdph.lab.optimizers.adahessian.Adahessian",
        {"hessian_power": 1.0, "update_each": 1, "n_samples": 1, "avg_conv_kernel": True},
        adahessian,
        create_graph=True,
        requires="timm",
    ),
    "apollo": Baseline(
        {"lr": 0.01, "weight_decay": 2.5e-4, "eps": 1e-4},
        "pytorch_optimizer.ApolloDQN",
        {
            "init_lr": 1e-5,
            "beta": 0.9,
            "rebound": "constant",
            "weight_decay_type": "l2",
            "warmup_steps": 500,
        },
        requires=_LIBRARY,
    ),
    "sophiah": Baseline(
        {"lr": 0.06, "weight_decay": 5e-4, "betas": (0.96, 0.99), "eps": 1e-12},
        "sgdph.lab.optimizers.sophia.SophiaH",
        {
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
        {"lr": 0.02, "weight_decay": 0.01, "momentum": 0.95},
        "pytorch_optimizer.Muon",
        {
            "weight_decouple": True,
            "nesterov": True,
            "ns_steps": 5,
            "use_adjusted_lr": False,
            "adamw_lr": 3e-4,
            "adamw_betas": (0.9, 0.95),
            "adamw_wd": 0.01,
            "adamw_eps": 1e-10,
        },
        muon,
        requires=_LIBRARY,
    ),
    "soap": Baseline(
        {"lr": 3e-3, "weight_decay": 0.01, "betas": (0.95, 0.95), "eps": 1e-8},
        "pytorch_optimizer.SOAP",
        {
            "precondition_frequency": 10,
            "max_precondition_dim": 10000,
            "merge_dims": False,
            "precondition_1d": False,
            "correct_bias": True,
            "normalize_gradient": False,
        },
        requires=_LIBRARY,
    ),
    "sgdph-mean": Baseline(_OF_SGDPH, "sgdph.lab.optimizers.controls.MeanMultiplier", apply=sgdph),
    "sgdph-shuffled": Baseline(
        _OF_SGDPH, "sgdph.lab.optimizers.controls.ShuffledMultiplier", apply=sgdph
    ),
    "sgdph-fixed1": Baseline(
        _OF_FIXED, "sgdph.lab.optimizers.controls.FixedMultiplier", apply=sgdph
    ),
    "sgdph-fixed10": Baseline(
        _OF_FIXED, "sgdph.lab.optimizers.controls.TenfoldMultiplier", apply=sgdph
    ),
    "sgdph-fixed": Baseline(_OF_CAP, "sgdph.lab.optimizers.controls.CapMultiplier", apply=sgdph),
}

# The paper's learning rates are for 200 epochs of CIFAR; a few hundred steps are too few for them.
# Found on held-out training images with equal budgets: results/tuning-mnist5k.
TUNED: Mapping[str, Mapping[str, Mapping[str, float]]] = {
    "mnist5k": {
        **{
            name: {"lr": 0.1, "weight_decay": 5e-3}
            for name in (
                "sgdph",
                "sgdph-mean",
                "sgdph-shuffled",
                "sgdph-fixed1",
                "sgdph-fixed10",
                "sgdph-fixed",
            )
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


def check_package(optimizer: str) -> None:
    """Raise LabError unless the package that an optimizer comes from is installed."""
    package = BASELINES[optimizer].requires
    if package is not None and not is_installed(package):
        raise LabError(
            f"{optimizer} comes from {package}, which is not installed; install it with "
            f"'pip install {package}'"
        )


def flag(setting: str) -> str:
    """Return the command-line flag of a setting."""
    return "--" + setting.replace("_", "-")


def arguments(optimizer: str) -> tuple[str, ...]:
    """Name what ``--optimizer-args`` takes for an optimizer: its settings, then all else.

    Raises:
        LabError: If its package is missing.
    """
    check_package(optimizer)
    baseline = BASELINES[optimizer]
    others = (name for name in arguments_of(baseline.constructor) if name not in SETTINGS)
    return (*baseline.defaults, *others)


def build_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """Make the run's optimizer over all parameters of a model that already lies on its device.

    Raises:
        LabError: If the optimizer refuses a value, its package is missing, or it cannot be run in
            that way.
    """
    baseline = BASELINES[config.optimizer]
    check_package(config.optimizer)
    if baseline.create_graph:
        _check_second_order(config)
    # What a run that was begun before the setting had a field does not hold is the library's.
    fields = {name: getattr(config, name) for name in baseline.defaults}
    settings = {name: value for name, value in fields.items() if value is not None}
    try:
        return baseline.build(model, {**settings, **dict(config.optimizer_args or ())}, config.seed)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise LabError(f"{config.optimizer} refuses its settings: {error}") from error


def _check_second_order(config: RunConfig) -> None:
    """Raise LabError where gradients that carry their graph cannot be had, or not averaged."""
    if config.processes > 1:
        raise LabError(
            f"{config.optimizer} takes second derivatives of its own process's loss, and its "
            "library does not average them over processes; train it in one process, without "
            "torchrun"
        )
    if config.precision == "float16":
        raise LabError(
            f"{config.optimizer} differentiates the gradients, which --precision float16 scales; "
            "train it in float32 or bfloat16"
        )
