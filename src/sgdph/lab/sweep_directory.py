"""The directory of a sweep: what was asked for, its runs, its report.

| file | content |
|---|---|
| ``sweep.yaml`` | recipe, scale, what deviates from it, layout, seeds, each cell's configuration |
| ``<cell>-seed<k>/`` | a run (:mod:`sgdph.lab.runs`) |
| ``logs/`` | ``worker-<k>.log`` of parallel workers, ``<run>.error.txt`` of what failed |
| ``sweep.lock`` | held while a process writes here; means nothing otherwise |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import yaml
from filelock import FileLock, Timeout

from sgdph.lab.config import LabError, RunConfig, differences, from_mapping, to_yaml
from sgdph.lab.files import write_text
from sgdph.lab.layout import layout_from
from sgdph.lab.plan import Plan
from sgdph.lab.report import REPORT_FILES
from sgdph.lab.runs import RecordDirectory, RunDirectory
from sgdph.lab.sweep import LOGS

FORMAT = "sgdph-sweep-1"
SWEEP, LOCK = "sweep.yaml", "sweep.lock"
# Writing a sweep.yaml or a report takes a second or so.
LOCK_TIMEOUT = 120.0


class SweepDirectory(RecordDirectory):
    """The directory of a sweep.

    Args:
        path: The directory; it need not exist yet.
    """

    what, files = "sweep", (*REPORT_FILES, SWEEP)

    def recognise(self) -> None:
        """Raise LabError if what is there is not a sweep."""
        self.read()

    def inner_runs(self) -> list[RunDirectory]:
        """List the directories of the runs; they need not exist."""
        if not (self.path / SWEEP).is_file():
            return []
        return [RunDirectory(self.path / planned.name) for planned in self.read().runs()]

    def clear(self) -> None:
        """Delete the sweep's files, its runs' and its logs, no others.

        Raises:
            LabError: As :meth:`check_clearable`, or one of its runs is being trained; before
                anything is deleted.
        """
        super().clear()
        logs = self.path / LOGS
        for pattern in ("*.log", "*.error.txt"):
            for file in logs.glob(pattern):
                file.unlink()
        if logs.is_dir() and not any(logs.iterdir()):
            logs.rmdir()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from writing the sweep's own files, for as long as this lasts.

        Raises:
            LabError: If another process goes on writing for minutes.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path / LOCK, timeout=LOCK_TIMEOUT):
                yield
        except Timeout as error:
            raise LabError(
                f"another process has been writing in {self.path} for {LOCK_TIMEOUT:.0f} s; wait "
                "for it or stop it, then run the same command again"
            ) from error

    def read(self) -> Plan:
        """Read what the sweep is.

        Raises:
            LabError: If there is none, or the file is not one of ours.
        """
        file = self.path / SWEEP
        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise LabError(f"{file} cannot be read: {error}") from error
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            raise LabError(f"{file} is not a sweep's: expected 'format: {FORMAT}' in it")
        try:
            cells = {
                name: from_mapping({**cell, "seed": 0}, f"{file}, cell {name}")
                for name, cell in values["cells"].items()
            }
            return Plan(
                recipe=values["recipe"],
                scale=values["scale"],
                overrides=values["overrides"],
                layout=layout_from(values["layout"]),
                cells=cells,
                seeds=tuple(values["seeds"]),
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise LabError(f"{file} is not laid out like a sweep's: {error!r}") from error

    def write(self, plan: Plan) -> None:
        """Record what the sweep is."""
        content = {
            "format": FORMAT,
            "recipe": plan.recipe,
            "scale": plan.scale,
            "overrides": dict(plan.overrides),
            "layout": {
                "title": plan.layout.title,
                "rows": list(plan.layout.rows),
                "columns": list(plan.layout.columns),
                "turned": plan.layout.turned,
            },
            "seeds": list(plan.seeds),
            "cells": {name: _cell(config) for name, config in plan.cells.items()},
        }
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        write_text(self.path / SWEEP, text)

    def agreed(self, plan: Plan, place: Mapping[str, Any]) -> Plan:
        """Return the sweep that is there, or where none is, the one that is asked for.

        Args:
            plan: What is asked for.
            place: Where it is to be computed now; what is not said here is as at the beginning.

        Raises:
            LabError: If another sweep, or something else, lies in the directory.
        """
        if self.path.exists() and not self.path.is_dir():
            raise LabError(f"{self.path} is a file; --out must name a directory")
        if not (self.path / SWEEP).exists():
            if self.found():
                raise LabError(
                    f"{self.path} holds {', '.join(self.found())} of something that is no sweep; "
                    "name another --out"
                )
            return plan
        saved = self.read()
        problems = sweep_differences(plan, saved)
        if problems:
            raise LabError(
                f"what is asked for disagrees with the sweep that lies in {self.path}:\n  "
                + "\n  ".join(problems)
                + "\nask for the same to carry it on, name another --out, or delete it with "
                "--overwrite"
            )
        return saved.placed(place)

    def join(self, plan: Plan, place: Mapping[str, Any]) -> None:
        """Record the sweep, or take part in the one that another process recorded just now.

        Args:
            plan: What is asked for.
            place: Where it is to be computed now.

        Raises:
            LabError: As :meth:`agreed`.
        """
        with self.alone():
            self.agreed(plan, place)
            if not (self.path / SWEEP).exists():
                self.write(plan)


def _cell(config: RunConfig) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(to_yaml(config))
    return {name: value for name, value in values.items() if name not in ("format", "seed")}


def sweep_differences(asked: Plan, saved: Plan) -> list[str]:
    """List where a sweep that is asked for disagrees with a saved one, place excepted."""
    problems = [
        f"{name}: the sweep has {getattr(saved, name)!r}, asked for is {getattr(asked, name)!r}"
        for name in ("recipe", "scale", "overrides", "seeds")
        if getattr(saved, name) != getattr(asked, name)
    ]
    if problems:
        return problems
    # The same words, and still other runs: the recipe itself has changed since.
    for name in dict.fromkeys([*saved.cells, *asked.cells]):
        if name not in saved.cells or name not in asked.cells:
            who = "asked for" if name in asked.cells else "in the sweep"
            problems.append(f"cell {name}: only {who}")
            continue
        found = differences(vars(asked.cells[name]), saved.cells[name])
        problems += [f"cell {name}: {line}" for line in found]
    return problems
