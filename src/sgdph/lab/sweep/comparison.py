"""A comparison: every optimizer with every seed, in one directory.

At the top of the directory ``comparison.yaml`` keeps what was asked for, so that ``--resume`` needs
no other option; each run lies in ``<optimizer>-seed<k>``. ``comparison.lock`` is held while a
process writes the directory's own files; it means nothing otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from sgdph.lab.config.yaml import with_lists, with_tuples
from sgdph.lab.files import write_text
from sgdph.lab.optimizers.registry import BASELINES, flag
from sgdph.lab.options.resolution import parse_per_optimizer, resolve_many
from sgdph.lab.reports.report import REPORT_FILES
from sgdph.lab.run.directory import DirectoryOfRuns, RunDirectory
from sgdph.lab.sweep.plan import PlannedRun

FORMAT = "sgdph-comparison-1"
COMPARISON = "comparison.yaml"
COMPARISON_FILES = (*REPORT_FILES, COMPARISON)


@dataclass(frozen=True)
class Comparison:
    """What a comparison is.

    Attributes:
        optimizers: Names of the optimizers.
        seeds: The seeds.
        given: The options that were set, as
            :func:`sgdph.lab.options.resolution.resolve_many` takes them.
        settings: Optimizer to settings, as a settings file has them; what was set goes before.
    """

    optimizers: tuple[str, ...]
    seeds: tuple[int, ...]
    given: Mapping[str, Any]
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def runs(self) -> list[PlannedRun]:
        """Resolve the runs, all optimizers of a seed in a row."""
        configs = resolve_many(self.given, self.optimizers, self.seeds, self.settings)
        return [PlannedRun(f"{each.optimizer}-seed{each.seed}", each) for each in configs]

    def extended(self, other: Comparison) -> Comparison:
        """Add another's optimizers and seeds to these, and let its options go before these.

        An option that says something of single optimizers replaces what it names, and no more.

        Raises:
            LabError: If lr or weight decay of one of them cannot be read.
        """
        optimizers = tuple(dict.fromkeys(self.optimizers + other.optimizers))
        given = {**self.given, **other.given}
        for name in set(self.given) & set(other.given):
            if name in ("lr", "weight_decay"):
                texts = (str(each.given[name]) for each in (self, other))
                both = [parse_per_optimizer(text, flag(name), optimizers) for text in texts]
                given[name] = _per_optimizer({**both[0], **both[1]})
            elif name == "optimizer_args":
                words = (*self.given[name], *other.given[name])
                given[name] = tuple({word.partition("=")[0]: word for word in words}.values())
        return Comparison(
            optimizers,
            tuple(dict.fromkeys(self.seeds + other.seeds)),
            given,
            {**self.settings, **other.settings},
        )


def _per_optimizer(values: Mapping[str, float]) -> str:
    """Write what :func:`sgdph.lab.options.resolution.parse_per_optimizer` reads."""
    return ",".join(f"{optimizer}={value!r}" for optimizer, value in values.items())


class ComparisonDirectory(DirectoryOfRuns):
    """The directory of a comparison.

    Args:
        path: The directory; it need not exist yet.
    """

    what, files = "comparison", COMPARISON_FILES

    @property
    def content(self) -> str:
        """What :meth:`exists` looks for."""
        return "a comparison or its runs"

    def recognise(self) -> None:
        """Raise LabError if what is there is not a comparison."""
        self.read()

    def inner_runs(self) -> list[RunDirectory]:
        """List the run directories that are there, by their names."""
        pattern = rf"({'|'.join(BASELINES)})-seed\d+"
        found = sorted(self.path.iterdir()) if self.path.is_dir() else []
        runs = [RunDirectory(path) for path in found if re.fullmatch(pattern, path.name)]
        return [run for run in runs if run.exists()]

    def read(self) -> Comparison:
        """Read what the comparison is.

        Raises:
            LabError: If there is none, or the file is not one of ours.
        """
        values = self.read_record(COMPARISON, FORMAT)
        return Comparison(
            tuple(values["optimizers"]),
            tuple(values["seeds"]),
            with_tuples(values["options"]),
            values.get("settings", {}),
        )

    def write(self, comparison: Comparison) -> None:
        """Make the directory and record what the comparison is."""
        self.path.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {
            "format": FORMAT,
            "optimizers": list(comparison.optimizers),
            "seeds": list(comparison.seeds),
            "options": with_lists(comparison.given),
        }
        if comparison.settings:
            content["settings"] = {name: dict(own) for name, own in comparison.settings.items()}
        write_text(self.path / COMPARISON, yaml.safe_dump(content, sort_keys=False))
