"""Settings files, which give each optimizer's lr, weight decay and other arguments.

``sgdph tune`` writes one; ``compare`` and ``reproduce`` read one with ``--settings``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sgdph.lab.errors import LabError
from sgdph.lab.files import read_marked, write_text

FORMAT = "sgdph-settings-1"


def write_settings(
    path: Path, optimizers: Mapping[str, Mapping[str, Any]], source: Mapping[str, Any]
) -> None:
    """Write a settings file.

    Args:
        path: The file.
        optimizers: Optimizer to setting to value, under the names of the run's configuration.
        source: Where they come from (data set, network, command, budget), for human readers.
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
        LabError: If the file is missing or not a settings file.
    """
    values = read_marked(path, FORMAT, "a settings file")
    optimizers = values.get("optimizers")
    if not isinstance(optimizers, Mapping) or not all(
        isinstance(settings, Mapping) for settings in optimizers.values()
    ):
        raise LabError(f"{path} must map each optimizer's name under 'optimizers' to its settings")
    return {str(name): dict(settings) for name, settings in optimizers.items()}
