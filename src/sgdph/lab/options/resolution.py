"""Completion of options to configurations: defaults and each optimizer's own settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.config.yaml import as_pairs, revived
from sgdph.lab.errors import LabError
from sgdph.lab.optimizers.baseline import Baseline, Setting, newton_name
from sgdph.lab.optimizers.newton import without_curvature
from sgdph.lab.optimizers.registry import (
    BASELINES,
    SETTINGS,
    TUNED,
    arguments,
    check_name,
    flag,
    owners,
    owners_in_words,
)
from sgdph.lab.options.defaults import defaults_for
from sgdph.lab.options.optimizer_args import overlaid, share_arguments

# Settings for which a comparison may take one value per optimizer.
PER_OPTIMIZER = ("lr", "weight_decay", "newton_lr")


def resolve(given: Mapping[str, Any]) -> RunConfig:
    """Complete the given values with the defaults, including the optimizer's settings.

    Raises:
        LabError: If a value is out of its bounds or not one of the optimizer's settings.
    """
    shared = {
        name: value
        for name, value in given.items()
        if name not in SETTINGS and name != "optimizer_args"
    }
    values = {**defaults_for(given), **shared}
    own = {name: value for name, value in given.items() if name in SETTINGS}
    further = dict(given.get("optimizer_args") or ())
    settings = resolve_settings(values["optimizer"], values["dataset"], own, further)
    return RunConfig(**values, **settings)


def check_settings(given: Iterable[str], optimizers: Iterable[str]) -> None:
    """Raise LabError if a setting is given that none of the optimizers has."""
    for name in given:
        if name in SETTINGS and not set(owners(name)) & set(optimizers):
            raise LabError(
                f"none of {', '.join(optimizers)} has the setting {flag(name)}; "
                f"it is one of {owners_in_words(name)}"
            )


def resolve_many(
    given: Mapping[str, Any],
    optimizers: tuple[str, ...],
    seeds: tuple[int, ...],
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[RunConfig]:
    """Return one configuration per seed and optimizer, ordered by seed, then by optimizer.

    Args:
        given: Option to value. The options of :data:`PER_OPTIMIZER` have the form that
            :func:`parse_per_optimizer` takes, ``optimizer_args`` that of
            :func:`sgdph.lab.options.optimizer_args.share_arguments`. A setting goes to each
            optimizer that has it.
        optimizers: Names of the optimizers.
        seeds: The seeds.
        settings: Optimizer to its settings. Given values take precedence.

    Raises:
        LabError: If a name is unknown, a value is out of its bounds, or a setting is given that
            none of the optimizers has.
    """
    for name in optimizers:
        check_name(name)
    check_settings(given, optimizers)
    per_optimizer = {
        name: parse_per_optimizer(str(given[name]), name, optimizers)
        for name in PER_OPTIMIZER
        if name in given
    }
    further = share_arguments(given.get("optimizer_args") or (), optimizers)
    configs = []
    for seed in seeds:
        for optimizer in optimizers:
            own = {
                name: value
                for name, value in given.items()
                if name not in per_optimizer and (name not in SETTINGS or optimizer in owners(name))
            }
            rates = {
                name: values[optimizer]
                for name, values in per_optimizer.items()
                if optimizer in values
            }
            asked = {**own, **rates, "optimizer_args": further[optimizer]}
            values = overlaid(revived((settings or {}).get(optimizer, {})), asked)
            configs.append(resolve({**values, "optimizer": optimizer, "seed": seed}))
    return configs


def resolve_settings(
    optimizer: str,
    dataset: str,
    given: Mapping[str, Any],
    given_arguments: Mapping[str, Setting] | None = None,
) -> dict[str, Any]:
    """Complete an optimizer's given settings with its defaults.

    Args:
        optimizer: The optimizer's name.
        dataset: The data set's name. Some data sets have their own defaults.
        given: Setting to value, only those that were given.
        given_arguments: Constructor argument to value, from ``--optimizer-args``.

    Returns:
        Each setting of the optimizer to its value. ``optimizer_args`` holds the other arguments
        that are set.

    Raises:
        LabError: If the name is unknown, the optimizer lacks a given setting or argument, or an
            option and an argument contradict each other.
    """
    check_name(optimizer)
    baseline, known = BASELINES[optimizer], BASELINES[optimizer].defaults
    for name in given:
        if name not in known:
            if name in without_curvature(baseline.multiplier):
                raise LabError(
                    f"{optimizer} has no setting {flag(name)} (got {given[name]!r}): its "
                    "multiplier is a fixed number and needs no curvature. Leave the option out; "
                    f"{optimizer} has {', '.join(flag(own) for own in known)}"
                )
            raise LabError(
                f"{optimizer} has no setting {flag(name)} (got {given[name]!r}); "
                f"it is one of {owners_in_words(name)}, and {optimizer} has "
                f"{', '.join(flag(own) for own in known)}{_of_newton_steps(baseline, name)}"
            )
    further = dict(given_arguments or {})
    if further:
        _check_arguments(optimizer, further, given)
    settings = {name: value for name, value in further.items() if name in known}
    others = {name: value for name, value in further.items() if name not in known}
    tuned = TUNED.get(dataset, {}).get(optimizer, {})
    return {
        **known,
        **tuned,
        **given,
        **settings,
        "optimizer_args": as_pairs({**baseline.arguments, **others}) or None,
    }


def _of_newton_steps(baseline: Baseline, name: str) -> str:
    """Return a hint on how to give a setting that only the optimizer's Newton steps have."""
    argument = newton_name(name)
    taken = argument in baseline.arguments
    return f"; for its Newton steps use --optimizer-args {argument}=…" if taken else ""


def _check_arguments(
    optimizer: str, further: Mapping[str, Setting], given: Mapping[str, Any]
) -> None:
    """Raise LabError if an argument is unknown, is not true or false, or contradicts an option."""
    taken, booleans = arguments(optimizer), BASELINES[optimizer].boolean_arguments()
    for name, value in further.items():
        if name not in taken:
            raise LabError(
                f"{optimizer} has no argument {name!r} (got {value!r} in --optimizer-args); it has "
                f"{', '.join(taken)}"
            )
        # Constructors do not check this: for them, any text is true.
        optional = booleans.get(name, True)
        if name in booleans and not isinstance(value, bool) and not (value is None and optional):
            choices = "true, false or none" if optional else "true or false"
            raise LabError(f"{optimizer}'s argument {name} must be {choices}; got {value!r}")
        if given.get(name, value) != value:
            raise LabError(
                f"{flag(name)} {given[name]} and --optimizer-args {name}={value} contradict each "
                "other; give one of them"
            )


def parse_per_optimizer(text: str, setting: str, optimizers: tuple[str, ...]) -> dict[str, float]:
    """Parse ``"0.1"``, one value for all, or ``"sgdm=0.1,sgdph=0.01"``, one value each.

    Args:
        text: The text.
        setting: The setting's name. One value for all goes to the optimizers that have the setting.
        optimizers: The optimizers to compare.

    Returns:
        Optimizer to value, without optimizers that the text does not name.

    Raises:
        LabError: If the text has another form, or names an optimizer twice or one that is not
            compared.
    """
    name, having = flag(setting), [each for each in optimizers if each in owners(setting)]
    try:
        if "=" not in text:
            return dict.fromkeys(having, float(text))
        words = [part.split("=") for part in text.split(",")]
        pairs = [(key.strip(), float(value)) for key, value in words]
    except ValueError as error:
        raise LabError(
            f"{name} must be a number or like {','.join(f'{each}=0.1' for each in having[:2])}; "
            f"got {text!r}"
        ) from error
    values = dict(pairs)
    if len(values) < len(pairs):
        raise LabError(f"{name} names an optimizer twice: {text!r}; name each once")
    strangers = [key for key in values if key not in optimizers]
    if strangers:
        raise LabError(
            f"{name} names {', '.join(strangers)}, which is not compared; the optimizers are "
            f"{', '.join(optimizers)}; got {text!r}"
        )
    return values
