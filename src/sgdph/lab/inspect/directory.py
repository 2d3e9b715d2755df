"""The directory of an inspection.

| file | content |
|---|---|
| ``inspect.json`` | settings, the run, the plan, and the results of every finished checkpoint |
| ``blocks.npz`` | mean blocks of the pictured parameters |
| ``report.html``, ``report.md`` | the report |
| ``table.csv`` | one row per checkpoint and parameter |
| ``shares.png``, ``errors.png``, ``multipliers.png``, ``blocks.png`` | the pictures |
| ``run/`` | the run, if the inspection trained it |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgdph.lab.config.yaml import from_mapping, with_tuples
from sgdph.lab.errors import LabError
from sgdph.lab.files import make_directory, write_atomically, write_json
from sgdph.lab.inspect.figures import (
    ESTIMATE_FIELDS,
    FIELDS,
    CheckpointFigures,
    Inspection,
    InspectSettings,
    MultiplierRecord,
    block_from_plain,
    plan_from_plain,
    plan_to_plain,
    record_to_plain,
)
from sgdph.lab.reports.folder import PAGE_FILES, page_marks
from sgdph.lab.run.directory import DirectoryOfRuns, RunDirectory

FORMAT = "sgdph-inspect-1"
FIGURES, BLOCKS = "inspect.json", "blocks.npz"
SHARES, ERRORS, MULTIPLIERS, HEAT_MAPS = "shares.png", "errors.png", "multipliers.png", "blocks.png"
PICTURES = (SHARES, ERRORS, MULTIPLIERS, HEAT_MAPS)
CHECKPOINT_FIELDS = ("epoch", "step", "seconds", "environment", "examples")
# The results are deleted last, so that a partly deleted directory is still recognised.
INSPECT_FILES = (*PAGE_FILES, *PICTURES, BLOCKS, FIGURES)
GENERATOR, TITLE = "sgdph inspect", "What the Hessian blocks look like"
HOLDS = {
    ERRORS: "how far each estimate is from the diagonal",
    SHARES: "how far from diagonal the blocks are",
    MULTIPLIERS: "the Newton multipliers of each layer",
    HEAT_MAPS: "mean blocks of a few parameters",
    FIGURES: "settings, the run, and every figure; --resume reads it",
    BLOCKS: "the mean blocks that are drawn, as arrays of numpy",
    "run": "the run that was inspected",
}


class InspectDirectory(DirectoryOfRuns):
    """The files of one inspection.

    Args:
        path: The directory. It need not exist yet.
    """

    what, files = "inspection", INSPECT_FILES
    marks = page_marks(GENERATOR, f"# {TITLE}\n", "epoch,name,")

    @property
    def content(self) -> str:
        """A description of what :meth:`exists` looks for."""
        return "an inspection or its run"

    @property
    def own_run(self) -> RunDirectory:
        """The directory of the run that the inspection trains, if it trains one."""
        return RunDirectory(self.path / "run")

    def inner_runs(self) -> list[RunDirectory]:
        """Return a list with the directory of the run that the inspection trains."""
        return [self.own_run]

    def recognise(self) -> None:
        """Raise LabError if the directory contains no readable inspection."""
        self.read_record(FIGURES, FORMAT)

    def write(self, inspection: Inspection) -> None:
        """Write the current state of the inspection, in place of the former one."""
        make_directory(self.path)
        # Blocks first: if the process is killed in between, only unused blocks are left over.
        self._write_blocks(inspection)
        checkpoints = inspection.checkpoints
        content = {
            "format": FORMAT,
            "run": inspection.run,
            "config": dataclasses.asdict(inspection.config),
            "settings": dataclasses.asdict(inspection.settings),
            "plan": None if inspection.plan is None else plan_to_plain(inspection.plan),
            "fields": {**FIELDS, "estimates": ESTIMATE_FIELDS},
            "warnings": inspection.warnings,
            "checkpoints": [
                {name: getattr(each, name) for name in CHECKPOINT_FIELDS} for each in checkpoints
            ],
            "records": [record_to_plain(block) for each in checkpoints for block in each.blocks],
            "multipliers": [record_to_plain(m) for each in checkpoints for m in each.multipliers],
        }
        write_json(self.path / FIGURES, content)

    def read(self) -> Inspection:
        """Read the state of the inspection.

        Raises:
            LabError: If there is none, or the file is not an inspection that can be read.
        """
        content = self.read_record(FIGURES, FORMAT)
        try:
            plan = content["plan"]
            return Inspection(
                from_mapping(content["config"], self.path / FIGURES),
                content["run"],
                InspectSettings(**with_tuples(content["settings"])),
                None if plan is None else plan_from_plain(plan),
                self._checkpoints(content),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise LabError(
                f"{self.path / FIGURES} was written by another version of sgdph and cannot be read "
                f"({error!r}); name another --out, or inspect anew with --overwrite"
            ) from error

    def _checkpoints(self, content: Mapping[str, Any]) -> list[CheckpointFigures]:
        blocks = [block_from_plain(each) for each in content["records"]]
        multipliers = [MultiplierRecord(**each) for each in content["multipliers"]]
        pictures = self._read_blocks()
        return [
            CheckpointFigures(
                **each,
                blocks=[block for block in blocks if block.epoch == each["epoch"]],
                multipliers=[m for m in multipliers if m.epoch == each["epoch"]],
                pictures=pictures.get(each["epoch"], {}),
            )
            for each in content["checkpoints"]
        ]

    def _write_blocks(self, inspection: Inspection) -> None:
        arrays = {
            f"{each.epoch}/{name}": block.float().numpy()
            for each in inspection.checkpoints
            for name, block in each.pictures.items()
        }
        if arrays:
            write_atomically(
                self.path / BLOCKS,
                lambda file: np.savez_compressed(file, **arrays),  # type: ignore[arg-type]
            )

    def _read_blocks(self) -> dict[int, dict[str, Tensor]]:
        file = self.path / BLOCKS
        found: dict[int, dict[str, Tensor]] = {}
        if file.is_file():
            with np.load(file) as arrays:
                for key in arrays.files:
                    epoch, _, name = key.partition("/")
                    found.setdefault(int(epoch), {})[name] = torch.from_numpy(arrays[key])
        return found
