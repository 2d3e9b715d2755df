"""The defaults of a run's fields, and their text in the help."""

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
    """Return the defaults of fields that are not optimizer settings.

    A field with a default in :class:`RunConfig` is left out, unless the requested data set has its
    own default for it.
    """
    dataset = given.get("dataset", DEFAULTS["dataset"])
    return {**DEFAULTS, **(DATASETS[dataset].defaults if dataset in DATASETS else {})}


def default_text(name: str) -> str:
    """Describe the default of a run's field: one value, or one per optimizer or data set."""
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
    """List each optimizer's default, then the values that were tuned on single data sets."""
    defaults = {key: BASELINES[key].defaults[name] for key in owners(name)}
    texts = [_joined(defaults)]
    for dataset, tuned in TUNED.items():
        other = {key: values[name] for key, values in tuned.items() if name in values}
        other = {key: value for key, value in other.items() if value != defaults[key]}
        if other:
            texts.append(f"on {dataset} {_joined(other)}")
    return texts


def _joined(values: Mapping[str, Any]) -> str:
    """List each optimizer's value, except for optimizers that take it from another one.

    A control takes SGD-PH's values. An optimizer such as ``adamw-ph`` takes SGD-PH's values for its
    Newton steps and AdamW's for the first-order steps.
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
