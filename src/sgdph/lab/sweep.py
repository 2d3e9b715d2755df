"""Many runs, one after another: every optimizer with every seed, in one directory.

At the top of the directory ``comparison.yaml`` keeps what was asked for, so that ``--resume`` needs
no other option; each run lies in ``<optimizer>-seed<k>``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from sgdph.lab.baselines import BASELINES
from sgdph.lab.config import PLACE_FIELDS, LabError, RunConfig, differences
from sgdph.lab.data import Dataset
from sgdph.lab.options import resolve_many
from sgdph.lab.progress import Reporter
from sgdph.lab.report import REPORT_FILES
from sgdph.lab.runs import RecordDirectory, RunDirectory, write_text
from sgdph.lab.start import prepare
from sgdph.lab.training import describe_outcome, train_run

FORMAT = "sgdph-comparison-1"
COMPARISON = "comparison.yaml"
COMPARISON_FILES = (*REPORT_FILES, COMPARISON)


@dataclass(frozen=True)
class Comparison:
    """What a comparison is.

    Attributes:
        optimizers: Names of the optimizers.
        seeds: The seeds.
        given: The options that were set, as :func:`sgdph.lab.options.resolve_many` takes them.
    """

    optimizers: tuple[str, ...]
    seeds: tuple[int, ...]
    given: Mapping[str, Any]

    def runs(self) -> list[RunConfig]:
        """Resolve the runs, all optimizers of a seed in a row."""
        return resolve_many(self.given, self.optimizers, self.seeds)

    def extended(self, other: Comparison) -> Comparison:
        """Add another's optimizers and seeds to these, and let its options go before these."""
        return Comparison(
            tuple(dict.fromkeys(self.optimizers + other.optimizers)),
            tuple(dict.fromkeys(self.seeds + other.seeds)),
            {**self.given, **other.given},
        )


class ComparisonDirectory(RecordDirectory):
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

    def run(self, config: RunConfig) -> RunDirectory:
        """Return the directory of one of the runs."""
        return RunDirectory(self.path / f"{config.optimizer}-seed{config.seed}")

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
        file = self.path / COMPARISON
        if not file.is_file():
            raise LabError(
                f"{self.path} holds no comparison to resume (no {COMPARISON}); name another --out, "
                "or start one there without --resume"
            )
        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise LabError(f"{file} is not valid YAML: {error}") from error
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise LabError(f"{file} is not a comparison's: expected 'format: {FORMAT}' in it")
        given = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values["options"].items()
        }
        return Comparison(tuple(values["optimizers"]), tuple(values["seeds"]), given)

    def write(self, comparison: Comparison) -> None:
        """Make the directory and record what the comparison is."""
        self.path.mkdir(parents=True, exist_ok=True)
        options = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in comparison.given.items()
        }
        content = {
            "format": FORMAT,
            "optimizers": list(comparison.optimizers),
            "seeds": list(comparison.seeds),
            "options": options,
        }
        write_text(self.path / COMPARISON, yaml.safe_dump(content, sort_keys=False))


def check_agreement(directory: ComparisonDirectory, configs: Sequence[RunConfig]) -> None:
    """Raise LabError where runs that were begun differ from what is asked for now."""
    problems = []
    for config in configs:
        run = directory.run(config)
        if run.exists():
            asked = {
                name: value for name, value in vars(config).items() if name not in PLACE_FIELDS
            }
            problems += [
                f"{run.path.name}: {line}" for line in differences(asked, run.read_config())
            ]
    if problems:
        raise LabError(
            f"the options disagree with runs that lie in {directory.path}:\n  "
            + "\n  ".join(problems)
            + "\nleave these options out to carry on, or name another --out"
        )


def check_all(configs: Sequence[RunConfig], data: Dataset) -> None:
    """Raise LabError now, not after an hour, where a later run's settings would be refused."""
    for config in {config.optimizer: config for config in configs}.values():
        prepare(config, data)


def run_all(
    directory: ComparisonDirectory,
    configs: Sequence[RunConfig],
    data: Dataset,
    reporter: Reporter,
) -> None:
    """Train every run that is not at its end, each from its checkpoint where it has one.

    Args:
        directory: Where the runs lie.
        configs: The runs.
        data: Their data set.
        reporter: What is told of the progress.
    """
    for config in configs:
        run = directory.run(config)
        if run.status() in ("finished", "diverged"):
            reporter.run_finished(run.path.name, f"kept; {describe_outcome(run.read_summary())}")
            continue
        prepared = prepare(config, data)
        if not run.exists():
            run.create(config)
        train_run(prepared, run, reporter)
