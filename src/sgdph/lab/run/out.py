"""What ``--out``, ``--resume`` and ``--overwrite`` mean, the same for all commands."""

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
    """Name the directory of what was not given one."""
    values = {**defaults_for(given), **given}
    return Path("runs") / ("{dataset}-{model}-" + name).format_map(values)


class TargetOptions(Protocol):
    """The options about what is there already."""

    @property
    def resume(self) -> bool:
        """Carry it on."""

    @property
    def overwrite(self) -> bool:
        """Delete it."""


def check_contradiction(options: TargetOptions) -> None:
    """Raise LabError if what is there is to be both carried on and deleted."""
    if options.resume and options.overwrite:
        raise LabError(
            "--resume and --overwrite contradict each other: one continues what is in --out, the "
            "other deletes it. Give only one of them"
        )


def check_target(directory: RecordDirectory, options: TargetOptions) -> None:
    """Raise LabError if the directory may not be used in the way the options say."""
    check_contradiction(options)
    if options.overwrite:
        directory.check_clearable()
    elif options.resume:
        directory.check_own()
    else:
        directory.check_free()


def placed(saved: RunConfig, given: Mapping[str, Any], what: str, workaround: str) -> RunConfig:
    """Return a saved configuration at the place asked for now.

    Raises:
        LabError: If other options disagree with it; the message names ``what`` has it and ends
            with the ``workaround``.
    """
    problems = differences(given, saved)
    if problems:
        raise LabError(disagreement(what, problems, workaround))
    place = {name: value for name, value in given.items() if name in PLACE_FIELDS}
    return dataclasses.replace(saved, **place)


def setting_differences(given: Mapping[str, Any], saved: object) -> list[str]:
    """List where the settings that were given disagree with saved ones, which have their names."""
    return [
        f"{name}: it has {getattr(saved, name)!r}, given {value!r}"
        for name, value in given.items()
        if getattr(saved, name) != value
    ]


def disagreement(what: str, problems: Sequence[str], workaround: str) -> str:
    """Say how the options disagree with what is there."""
    return "\n".join(
        [f"the options disagree with {what}:", *(f"  {p}" for p in problems), workaround]
    )


def report_interruption(
    console: Console, command: str, path: Path, begun: bool, team: Team = ALONE
) -> int:
    """Say how to carry on, and return the exit code of an interrupted command."""
    if not begun:
        say(console, "Interrupted before anything was recorded.")
        return INTERRUPTED
    place = path.resolve()
    say(console, f"Interrupted. The finished part is in {place}; continue with:")
    program = "sgdph" if team.size == 1 else "torchrun … -m sgdph.lab"
    say(console, f"  {program} {command} --out {shell_word(place)} --resume")
    return INTERRUPTED
