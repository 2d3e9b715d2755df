"""The meaning of ``--out``, ``--resume`` and ``--overwrite``, the same for all commands."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console

from sgdph.lab.config.run_config import PLACE_FIELDS, RunConfig, differences
from sgdph.lab.errors import INTERRUPTED, LabError
from sgdph.lab.options.defaults import defaults_for
from sgdph.lab.output import shell_word
from sgdph.lab.progress import say
from sgdph.lab.run.distributed import ALONE, Team
from sgdph.lab.run.record_directory import RecordDirectory


def default_out(given: Mapping[str, Any], name: str) -> Path:
    """Return the default directory, for a command without ``--out``."""
    values = {**defaults_for(given), **given}
    return Path("runs") / ("{dataset}-{model}-" + name).format_map(values)


class TargetOptions(Protocol):
    """The options that say what to do with what already exists."""

    @property
    def resume(self) -> bool:
        """Whether to continue it."""

    @property
    def overwrite(self) -> bool:
        """Whether to delete it."""


def check_contradiction(options: TargetOptions) -> None:
    """Raise LabError if both ``--resume`` and ``--overwrite`` are set."""
    if options.resume and options.overwrite:
        raise LabError(
            "--resume and --overwrite contradict each other: one continues what is in --out, the "
            "other deletes it. Give only one of them"
        )


def check_target(directory: RecordDirectory, options: TargetOptions) -> None:
    """Raise LabError if the directory cannot be used in the way that the options ask."""
    check_contradiction(options)
    if options.overwrite:
        directory.check_clearable()
    elif options.resume:
        directory.check_own()
    else:
        directory.check_free()


def placed(saved: RunConfig, given: Mapping[str, Any], what: str, workaround: str) -> RunConfig:
    """Return a saved configuration with the :data:`PLACE_FIELDS` that are given now.

    Raises:
        LabError: If other given options disagree with it. The message names ``what`` they disagree
            with, and ends with the ``workaround``.
    """
    problems = differences(given, saved)
    if problems:
        raise LabError(disagreement(what, problems, workaround))
    place = {name: value for name, value in given.items() if name in PLACE_FIELDS}
    return dataclasses.replace(saved, **place)


def setting_differences(given: Mapping[str, Any], saved: object) -> list[str]:
    """List the given settings that differ from the attributes of ``saved`` with their names."""
    return [
        f"{name}: it has {getattr(saved, name)!r}, given {value!r}"
        for name, value in given.items()
        if getattr(saved, name) != value
    ]


def disagreement(what: str, problems: Sequence[str], workaround: str) -> str:
    """Return the message about options that disagree with what exists."""
    return "\n".join(
        [f"the options disagree with {what}:", *(f"  {p}" for p in problems), workaround]
    )


def report_interruption(
    console: Console, command: str, path: Path, begun: bool, team: Team = ALONE
) -> int:
    """Print how to continue, and return the exit code of an interrupted command."""
    if not begun:
        say(console, "Interrupted before anything was recorded.")
        return INTERRUPTED
    place = path.resolve()
    say(console, f"Interrupted. The finished part is in {place}; continue with:")
    program = "sgdph" if team.size == 1 else "torchrun … -m sgdph.lab"
    say(console, f"  {program} {command} --out {shell_word(place)} --resume")
    return INTERRUPTED
