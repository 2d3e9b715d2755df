"""What a settings file has an effect on: cells of a recipe, optimizers of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sgdph.lab.errors import LabError
from sgdph.lab.reports.numbers import listed
from sgdph.lab.sweep.scale import Options


def check_effect(file: Path, settings: Mapping[str, Options], optimizers: Sequence[str]) -> None:
    """Raise LabError if a settings file has no settings of the optimizers that are compared.

    Args:
        file: The file.
        settings: Optimizer to settings, as in the file.
        optimizers: Names of the compared optimizers.
    """
    owners = [name for name, own in settings.items() if own]
    if not set(owners) & set(optimizers):
        raise LabError(
            f"--settings has no effect on this comparison: {file} has no settings of "
            f"{', '.join(optimizers)}; it has those of {', '.join(owners) or 'no optimizer'}. "
            "Change --optimizers or the file, or leave out --settings"
        )


def describe_limits(
    recipe: str, cells: Mapping[str, tuple[str, Options]], settings: Mapping[str, Options]
) -> str:
    """Say which cells keep values of the recipe although there is a settings file.

    Args:
        recipe: The recipe's name.
        cells: Each cell's name to its optimizer and its own options, which the file does not
            replace.
        settings: Optimizer to settings, as in the file.

    Returns:
        A sentence; empty if the file applies to all cells.

    Raises:
        LabError: If no cell uses a value of the file.
    """
    used, limits = False, []
    for optimizer in dict.fromkeys(optimizer for optimizer, _ in cells.values()):
        in_file = _names(settings.get(optimizer, {}))
        fixed = {
            cell: in_file & _names(own) for cell, (each, own) in cells.items() if each == optimizer
        }
        used |= any(in_file - names for names in fixed.values())
        keeping = [cell for cell, names in fixed.items() if names]
        if keeping:
            names = listed(sorted(set().union(*fixed.values())))
            which = f"all cells of {optimizer}" if len(keeping) == len(fixed) else listed(keeping)
            limits.append(f"the recipe fixes {names} for {which}")
    missing = dict.fromkeys(each for each, _ in cells.values() if not settings.get(each))
    if missing:
        limits.append(f"the file has no settings of {', '.join(missing)}")
    if not used:
        raise LabError(f"--settings has no effect on {recipe}: {'; '.join(limits)}")
    return f"--settings does not replace everything: {'; '.join(limits)}." if limits else ""


def _names(options: Mapping[str, Any]) -> set[str]:
    """Return the names of options and optimizer arguments."""
    return {*options, *dict(options.get("optimizer_args") or ())} - {"optimizer_args"}
