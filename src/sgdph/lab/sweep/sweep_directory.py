"""The directory of a sweep: what was asked for, its runs, its report.

| file | content |
|---|---|
| ``sweep.yaml`` | recipe, scale, deviations from it, layout, seeds, each cell's configuration |
| ``<cell>-seed<k>/`` | a run (:mod:`sgdph.lab.run.directory`) |
| ``logs/`` | ``worker-<k>.log`` of parallel workers, ``<run>.error.txt`` of failed runs |
| ``sweep.lock`` | held while a process writes here; has no meaning otherwise |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import yaml

from sgdph.lab.config.run_config import RunConfig, differences
from sgdph.lab.config.yaml import from_mapping, to_yaml, with_lists
from sgdph.lab.errors import LabError
from sgdph.lab.files import read_marked, write_text
from sgdph.lab.reports.layout import SWEEP, layout_from
from sgdph.lab.reports.report import FORMER, REPORT_FILES, REPORT_MARKS
from sgdph.lab.run.directory import DirectoryOfRuns, RunDirectory
from sgdph.lab.sweep.plan import Plan

FORMAT = "sgdph-sweep-1"


class SweepDirectory(DirectoryOfRuns):
    """The directory of a sweep.

    Args:
        path: The directory; it need not exist yet.
    """

    what, files = "sweep", (*REPORT_FILES, SWEEP)
    marks, former = REPORT_MARKS, FORMER

    def recognise(self) -> None:
        """Raise LabError if the directory does not hold a sweep."""
        self.read()

    def inner_runs(self) -> list[RunDirectory]:
        """List the directories of the runs; they need not exist."""
        if not (self.path / self.files[-1]).is_file():
            return []
        return [RunDirectory(self.path / planned.name) for planned in self.read().runs()]

    def read(self) -> Plan:
        """Read the sweep's plan.

        Raises:
            LabError: If there is no such file, or it does not describe a sweep.
        """
        file = self.path / SWEEP
        values = read_marked(file, FORMAT, "a sweep's")
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
            raise LabError(f"{file} does not describe a sweep: {error!r}") from error

    def write(self, plan: Plan) -> None:
        """Record the sweep's plan."""
        content = {
            "format": FORMAT,
            "recipe": plan.recipe,
            "scale": plan.scale,
            "overrides": dict(plan.overrides),
            "layout": with_lists(dataclasses.asdict(plan.layout)),
            "seeds": list(plan.seeds),
            "cells": {name: _cell(config) for name, config in plan.cells.items()},
        }
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        write_text(self.path / SWEEP, text)

    def agreed(self, plan: Plan, place: Mapping[str, Any]) -> Plan:
        """Return the requested plan, with each existing cell as it was recorded.

        A sweep may grow by cells and by seeds: nothing that was trained is lost.

        Args:
            plan: The requested plan.
            place: Where to compute it now; other place fields stay as recorded.

        Raises:
            LabError: If the directory holds another sweep, a larger one, or something else.
        """
        if self.path.exists() and not self.path.is_dir():
            raise LabError(f"{self.path} is a file; --out must name a directory")
        self.check_own()
        if not (self.path / SWEEP).exists():
            return plan
        saved = self.read()
        problems = sweep_differences(plan, saved)
        if problems:
            raise LabError(
                f"this call disagrees with the sweep in {self.path}:\n  "
                + "\n  ".join(problems)
                + "\nto continue it, ask for the same or for more cells or seeds; "
                "otherwise name another --out, or delete it with --overwrite"
            )
        return dataclasses.replace(plan, cells={**plan.cells, **saved.placed(place).cells})

    def join(self, plan: Plan, place: Mapping[str, Any]) -> None:
        """Record the sweep, or join the one that another process has just recorded.

        Args:
            plan: The requested plan.
            place: Where to compute it now.

        Raises:
            LabError: As for :meth:`agreed`.
        """
        with self.alone():
            agreed = self.agreed(plan, place)
            saved = self.read() if (self.path / SWEEP).exists() else None
            # Unless the sweep has grown, keep the record of where it was computed first.
            if saved is None or len(agreed.runs()) > len(saved.runs()):
                self.write(agreed)
            elif agreed.layout != saved.layout:
                # Such as another title in the recipe.
                self.write(dataclasses.replace(saved, layout=agreed.layout))


def _cell(config: RunConfig) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(to_yaml(config))
    return {name: value for name, value in values.items() if name not in ("format", "seed")}


def sweep_differences(asked: Plan, saved: Plan) -> list[str]:
    """List how a requested sweep differs from a saved one, apart from place and growth."""
    problems = [
        f"{name}: the sweep has {old!r}, this call {new!r}"
        for name, old, new in (
            ("recipe", saved.recipe, asked.recipe),
            ("scale", saved.scale, asked.scale),
            ("overrides", _without_seeds(saved), _without_seeds(asked)),
        )
        if old != new
    ]
    if not set(saved.seeds) <= set(asked.seeds):
        problems.append(f"seeds: the sweep has {saved.seeds!r}, this call {asked.seeds!r}")
    if problems:
        return problems
    # The same request can still mean other runs, if the recipe itself has changed since.
    for name, config in saved.cells.items():
        if name not in asked.cells:
            problems.append(f"cell {name}: only in the sweep")
            continue
        found = differences(vars(asked.cells[name]), config)
        problems += [f"cell {name}: {line}" for line in found]
    return problems


def _without_seeds(plan: Plan) -> dict[str, Any]:
    return {name: value for name, value in plan.overrides.items() if name != "seeds"}
