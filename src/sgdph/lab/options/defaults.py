"""The defaults of a run's fields, and how the help shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sgdph.lab.config.option import options_of
from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.data.registry import DATASETS
from sgdph.lab.optimizers.registry import BASELINES, SETTINGS, TUNED, flag, owners

DEFAULTS: Mapping[str, Any] = {
    name: option.default
    for name, (_, option) in options_of(RunConfig).items()
    if option.default is not None
}


def defaults_for(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of all that is no optimizer's setting, for the data set that is asked."""
    dataset = given.get("dataset", DEFAULTS["dataset"])
    return {**DEFAULTS, **(DATASETS[dataset].defaults if dataset in DATASETS else {})}


def default_text(name: str) -> str:
    """Say what a field of a run is where it is not given: one value, or one of each optimizer."""
    option = options_of(RunConfig)[name][1]
    if option.shown:
        return option.shown
    if name in SETTINGS:
        return "; ".join(_per_optimizer(name))
    own = getattr(RunConfig, name, option.default)
    if own is True:
        return flag(name)
    elsewhere = {k: each.defaults[name] for k, each in DATASETS.items() if name in each.defaults}
    return "; ".join([_text(own), *(f"{key} {_text(value)}" for key, value in elsewhere.items())])


def _per_optimizer(name: str) -> list[str]:
    """Name each optimizer with its default, and what was tuned on single data sets."""
    defaults = {key: BASELINES[key].defaults[name] for key in owners(name)}
    texts = [_joined(defaults)]
    for dataset, tuned in TUNED.items():
        other = {key: values[name] for key, values in tuned.items() if name in values}
        other = {key: value for key, value in other.items() if value != defaults[key]}
        if other:
            texts.append(f"on {dataset} {_joined(other)}")
    return texts


def _joined(values: Mapping[str, Any]) -> str:
    """Write a value of each optimizer, but for those that have it from another one.

    A control and whatever is beside Newton steps have SGD-PH's, and that of the first-order half.
    """
    own = {key: value for key, value in values.items() if BASELINES[key].first_order is None}
    texts = [
        f"{key} {_text(value)}"
        for key, value in own.items()
        if not (key.startswith("sgdph-") and own.get("sgdph") == value)
    ]
    if not own:
        texts = [
            f"{_text(value)} with --partial-hessian" for value in dict.fromkeys(values.values())
        ]
    return ", ".join(texts)


def _text(value: Any) -> str:
    return " ".join(map(_text, value)) if isinstance(value, tuple) else str(value)
