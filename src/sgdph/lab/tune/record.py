"""The definition of a tuning, and its directory.

| file | content |
|---|---|
| ``tune.yaml`` | what was asked for; its presence makes the directory a tuning |
| ``<optimizer>/trial-000`` … | one run directory per trial |
| ``study.db`` or ``study.log`` | Optuna's studies, one per optimizer |
| ``tune.lock`` | held while a process takes a trial, or writes ``tune.yaml`` or the files below |
| ``best.yaml``, ``tune.json``, the report, pictures | the results, computed from the runs |
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from filelock import BaseFileLock, FileLock

from sgdph.lab.config.run_config import PLACE_FIELDS, RunConfig, differences
from sgdph.lab.config.yaml import with_lists, with_tuples
from sgdph.lab.errors import LabError
from sgdph.lab.files import make_directory, remove_files, write_text
from sgdph.lab.optimizers.registry import BASELINES, SETTINGS, flag, owners
from sgdph.lab.options.optimizer_args import share_arguments
from sgdph.lab.options.resolution import check_settings, resolve
from sgdph.lab.reports.folder import PAGE_FILES, page_marks
from sgdph.lab.run.directory import DirectoryOfRuns, RunDirectory
from sgdph.lab.run.out import disagreement
from sgdph.lab.tune.space import Range, Space, complete, grid

FORMAT = "sgdph-tuning-1"
TUNING, LOCK = "tune.yaml", "tune.lock"
BEST, TRIALS = "best.yaml", "tune.json"
SENSITIVITY, BUDGET = "sensitivity.png", "budget.png"
DATABASE, JOURNAL = "study.db", "study.log"
DATABASE_FILES = (DATABASE, DATABASE + "-journal", JOURNAL, JOURNAL + ".lock")
GENERATOR, HEADING = "sgdph tune", "Tuning of "
# What earlier versions wrote.
WORKER_LOGS = "worker-*.log"
FORMER = {"tune.md": f"# {HEADING}"}
SEARCH_DEFAULTS: Mapping[str, Any] = {"trials": 20, "sampler": "tpe", "storage": "sqlite"}
DEFAULT_PRUNERS = {"tpe": "median", "random": "median", "grid": "none"}


@dataclass(frozen=True)
class Tuning:
    """What is searched, how, and with which budget.

    Attributes:
        name: Its unique name; its studies are named after it.
        spaces: Optimizer to setting to range.
        trials: Trials of each optimizer.
        sampler: ``"tpe"``, ``"random"`` or ``"grid"``.
        pruner: ``"median"`` or ``"none"``.
        storage: ``"sqlite"``, ``"journal"`` or a database's URL.
        given: The options of the runs that were set, by field of :class:`RunConfig`;
            ``validation_size`` and ``seed`` always are.
    """

    name: str
    spaces: Mapping[str, Space]
    trials: int
    sampler: str
    pruner: str
    storage: str
    given: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise LabError(f"--trials must be at least 1; got {self.trials}")
        check_settings(self.given, self.spaces)
        for name in self.given:
            searched = [each for each, space in self.spaces.items() if name in space]
            if searched:
                raise LabError(
                    f"{flag(name)} fixes what --space searches for {', '.join(searched)}; give "
                    "one of them"
                )
        for optimizer, space in self.spaces.items():
            own = own_options(self.given, optimizer, self.optimizers)
            for name in dict(own.get("optimizer_args", ())).keys() & space:
                raise LabError(
                    f"--optimizer-args {name} fixes what --space searches for {optimizer}; give "
                    "one of them"
                )
        if self.sampler == "grid":
            for space in self.spaces.values():
                grid(space, self.trials)

    @property
    def optimizers(self) -> tuple[str, ...]:
        """The optimizers that are tuned."""
        return tuple(self.spaces)

    @property
    def seed(self) -> int:
        """The seed of all trials."""
        return int(self.given["seed"])

    @property
    def budget(self) -> int:
        """The number of trials of all optimizers together."""
        return self.trials * len(self.spaces)

    def config(
        self,
        optimizer: str,
        settings: Mapping[str, float] | None = None,
        place: Mapping[str, Any] | None = None,
    ) -> RunConfig:
        """Return the configuration of a trial's run.

        Args:
            optimizer: Its optimizer.
            settings: The searched settings' values; ``None`` takes the middle of each range.
            place: The :data:`PLACE_FIELDS` that apply here and now.
        """
        space = self.spaces[optimizer]
        settings = settings or {name: each.rounded(each.at(0.5)) for name, each in space.items()}
        own = own_options({**self.given, **(place or {})}, optimizer, self.optimizers)
        return resolve({**with_settings(own, settings), "optimizer": optimizer})

    def fixed(self, optimizer: str) -> dict[str, Any]:
        """Return the settings of an optimizer that were given, and are not searched."""
        own = own_options(self.given, optimizer, self.optimizers)
        fixed = {name: value for name, value in own.items() if name in SETTINGS}
        if own.get("channelwise_decay", RunConfig.channelwise_decay) != RunConfig.channelwise_decay:
            fixed["channelwise_decay"] = own["channelwise_decay"]
        arguments = dict(own.get("optimizer_args", ()))
        return {**fixed, "optimizer_args": arguments} if arguments else fixed

    def joined(
        self,
        optimizers: Sequence[str],
        spaces: Mapping[str, Space],
        search: Mapping[str, Any],
        given: Mapping[str, Any],
    ) -> Tuning:
        """Return this tuning with what is asked for now: more trials, or more optimizers.

        Args:
            optimizers: The optimizers asked for; none means those of this tuning.
            spaces: Optimizer to setting to range, only those that were named.
            search: Those of ``trials``, ``sampler``, ``pruner``, ``storage`` that were set.
            given: The options of the runs that were set.

        Raises:
            LabError: If options disagree with this tuning.
        """
        problems = [
            f"{name}: it has {getattr(self, name)}, given {value}"
            for name, value in search.items()
            if name != "trials" and value != getattr(self, name)
        ]
        trials = search.get("trials", self.trials)
        if trials < self.trials:
            problems.append(
                f"trials: it has {self.trials}, this call gives {trials}; it can only grow"
            )
        if trials > self.trials and self.sampler == "grid":
            problems.append(f"trials: its grid has {self.trials} points, this call gives {trials}")
        for optimizer, space in self.spaces.items():
            problems += [
                f"space: it has {optimizer}.{name}={space.get(name, 'not searched')}, given {each}"
                for name, each in spaces.get(optimizer, {}).items()
                if each != space.get(name)
            ]
        known = tuple(dict.fromkeys((*self.optimizers, *optimizers)))
        for optimizer in self.optimizers:
            own = own_options(given, optimizer, known)
            problems += differences(own, self.config(optimizer))
        if problems:
            workaround = (
                "leave these options out to continue it, or name another --out for a new one"
            )
            found = [*dict.fromkeys(problems)]
            raise LabError(disagreement("the tuning in --out", found, workaround))
        more = [each for each in optimizers if each not in self.spaces]
        added = {each: complete(each, spaces.get(each, {})) for each in more}
        kept = {name: value for name, value in given.items() if name not in PLACE_FIELDS}
        if "optimizer_args" in given:
            words = (*self.given.get("optimizer_args", ()), *given["optimizer_args"])
            kept["optimizer_args"] = tuple(dict.fromkeys(words))
        return dataclasses.replace(
            self,
            spaces={**self.spaces, **added},
            trials=trials,
            given={**self.given, **kept},
        )


def with_settings(options: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Add settings to a run's options; those that are not options become optimizer arguments."""
    fields = {name: value for name, value in settings.items() if name in SETTINGS}
    further = {name: value for name, value in settings.items() if name not in SETTINGS}
    arguments = {**dict(options.get("optimizer_args", ())), **further}
    return {**options, **fields, **({"optimizer_args": arguments} if arguments else {})}


def own_options(
    given: Mapping[str, Any], optimizer: str, optimizers: Sequence[str]
) -> dict[str, Any]:
    """Return those of all optimizers' options that apply to one of them.

    Args:
        given: The options, with ``optimizer_args`` as the words that were given.
        optimizer: The one optimizer.
        optimizers: All optimizers that are tuned.
    """
    own = {
        name: value
        for name, value in given.items()
        if name not in SETTINGS or optimizer in owners(name)
    }
    if "optimizer_args" in own:
        own["optimizer_args"] = share_arguments(own["optimizer_args"], optimizers)[optimizer]
    return own


class TuneDirectory(DirectoryOfRuns):
    """The directory of a tuning.

    Args:
        path: The directory; it need not exist yet.
    """

    what, former = "tuning", FORMER
    marks = page_marks(GENERATOR, f"# {HEADING}", "trial,optimizer,status,")
    files = (*PAGE_FILES, BEST, TRIALS, SENSITIVITY, BUDGET, *DATABASE_FILES, TUNING)

    @property
    def content(self) -> str:
        """What :meth:`exists` looks for."""
        return "a tuning or its runs"

    def recognise(self) -> None:
        """Raise LabError if the directory does not hold a tuning."""
        self.read()

    def lock(self) -> BaseFileLock:
        """Return the lock for taking a trial or writing a file here; acquiring it waits.

        The kernel holds the lock, so it is released when the process ends in any way.
        """
        make_directory(self.path)
        return FileLock(self.path / LOCK)

    def trial(self, optimizer: str, number: int) -> RunDirectory:
        """Return a trial's run directory, which need not exist."""
        return RunDirectory(self.path / optimizer / f"trial-{number:03d}")

    def inner_runs(self) -> list[RunDirectory]:
        """List the existing run directories of the trials."""
        names = [self.path / name for name in BASELINES]
        found = [path for folder in names if folder.is_dir() for path in sorted(folder.iterdir())]
        runs = [RunDirectory(path) for path in found if re.fullmatch(r"trial-\d+", path.name)]
        return [run for run in runs if run.exists()]

    def clear(self) -> None:
        """Delete the tuning's files, its runs and its processes' logs, and no others."""
        folders = {run.path.parent for run in self.inner_runs()}
        super().clear()
        remove_files(self.path, [path.name for path in self.path.glob(WORKER_LOGS)])
        for folder in folders:
            if not any(folder.iterdir()):
                folder.rmdir()

    def read(self) -> Tuning:
        """Read the tuning.

        Raises:
            LabError: If there is no such file, or it has another format.
        """
        values = self.read_record(TUNING, FORMAT)
        del values["format"]
        values["spaces"] = {
            optimizer: {name: Range(**bounds) for name, bounds in space.items()}
            for optimizer, space in values["spaces"].items()
        }
        values["given"] = with_tuples(values["given"])
        return Tuning(**values)

    def write(self, tuning: Tuning) -> None:
        """Create the directory and record the tuning."""
        make_directory(self.path)
        given = with_lists(tuning.given)
        spaces = {
            optimizer: {name: vars(each) for name, each in space.items()}
            for optimizer, space in tuning.spaces.items()
        }
        content = {"format": FORMAT, **vars(tuning), "spaces": spaces, "given": given}
        write_text(self.path / TUNING, yaml.safe_dump(content, sort_keys=False))
