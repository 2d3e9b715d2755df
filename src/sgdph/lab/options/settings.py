"""Settings files: the lr, weight decay and other arguments that each optimizer is to be run with.

``sgdph tune`` writes one; ``compare`` and ``reproduce`` read one with ``--settings``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sgdph.lab.errors import LabError
from sgdph.lab.files import write_text

FORMAT = "sgdph-settings-1"


def write_settings(
    path: Path, optimizers: Mapping[str, Mapping[str, Any]], source: Mapping[str, Any]
) -> None:
    """Write a settings file.

    Args:
        path: The file.
        optimizers: Optimizer to setting to value, under the names of the run's configuration.
        source: Where they come from (data set, network, command, budget), for who reads the file.
    """
    content = {
        "format": FORMAT,
        "source": dict(source),
        "optimizers": {name: dict(settings) for name, settings in optimizers.items()},
    }
    write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def read_settings(path: Path) -> dict[str, dict[str, Any]]:
    """Read a settings file.

    Returns:
        Optimizer to setting to value.

    Raises:
        LabError: If the file is missing or not one of ours.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise LabError(f"--settings {path} cannot be read: {error}") from error
    if not isinstance(values, Mapping) or values.get("format") != FORMAT:
        raise LabError(f"{path} is not a settings file: expected 'format: {FORMAT}' in it")
    optimizers = values.get("optimizers")
    if not isinstance(optimizers, Mapping) or not all(
        isinstance(settings, Mapping) for settings in optimizers.values()
    ):
        raise LabError(f"{path} must map each optimizer's name under 'optimizers' to its settings")
    return {str(name): dict(settings) for name, settings in optimizers.items()}
