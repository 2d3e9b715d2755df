"""The choice of the next settings: Optuna's studies, one per optimizer, and trials from them.

A trial belongs to one process at a time, which holds the claim on its run directory. A claim ends
with its process. So if Optuna calls a trial running but no process claims it, its process has died.
The next process that looks for work continues this trial first. Trials are taken under the tuning's
lock, so the budget is exact even if processes join or are killed.

Each trial gets a new sampler with a seed of its own. So its suggestions depend only on the seed and
on the earlier trials, not on how often the search was interrupted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState

from sgdph.lab.errors import LabError
from sgdph.lab.run.claims import Claimed
from sgdph.lab.run.directory import RunDirectory
from sgdph.lab.run.start import derive_seed
from sgdph.lab.tune.record import DATABASE, JOURNAL, TuneDirectory, Tuning
from sgdph.lab.tune.space import grid

# This many trials are drawn at random before the sampler models them, and this many must finish
# before any is pruned.
STARTUP = 5
# The storages of studies, besides a database with a URL.
SQLITE, JOURNAL_FILE = "sqlite", "journal"
# Seconds that a process waits for others to release the database.
PATIENCE = 120


@dataclass(frozen=True)
class TrialInHand:
    """A trial that this process has claimed.

    Attributes:
        optimizer: Its optimizer.
        settings: The searched settings' values.
        run: Its run directory, claimed.
        trial: Optuna's object for it.
    """

    optimizer: str
    settings: dict[str, float]
    run: RunDirectory
    trial: Trial

    @property
    def name(self) -> str:
        """Its name in printed messages."""
        return f"{self.optimizer} {self.run.path.name}"

    def report(self, epoch: int, accuracy: float) -> None:
        """Report a finished epoch's accuracy (0 to 1) to the study, if it does not have it yet."""
        trials = self.trial.study.get_trials(deepcopy=False)
        if epoch not in trials[self.trial.number].intermediate_values:
            self.trial.report(accuracy, epoch)

    def finish(self, status: str, accuracy: float | None) -> None:
        """Tell the study how the trial ended.

        A diverged trial gets the worst possible accuracy, 0. With Optuna's own state for failures,
        the sampler would ignore the trial and try the same settings again.
        """
        self.trial.set_user_attr("status", status)
        if status == "pruned":
            self.trial.study.tell(self.trial, state=TrialState.PRUNED)
        else:
            self.trial.study.tell(self.trial, accuracy or 0.0)


class Studies:
    """The studies of a tuning.

    Args:
        directory: The tuning's directory; it must contain ``tune.yaml``.

    Raises:
        LabError: If the storage cannot be opened.
    """

    def __init__(self, directory: TuneDirectory) -> None:
        self.directory = directory
        tuning = directory.read()
        with directory.lock():
            self._storage = open_storage(tuning.storage, directory.path)

    @contextmanager
    def take(self) -> Iterator[TrialInHand | None]:
        """Claim a trial for the duration of the context.

        Yields:
            A trial that was left unfinished, or else a new one; ``None`` if the budget is used up,
            or other processes hold all trials that are left.
        """
        with ExitStack() as claim:
            with self.directory.lock():
                # Read again each time: the budget may have been raised meanwhile.
                tuning = self.directory.read()
                hand = self._take_left(tuning, claim) or self._take_new(tuning, claim)
            yield hand

    def running(self) -> int:
        """Count the trials that have not ended."""
        return len(self._trials(TrialState.RUNNING))

    def without_run(self) -> list[str]:
        """Name the trials that have ended, but whose run directories are gone."""
        ended = self._trials(TrialState.COMPLETE, TrialState.PRUNED)
        return [f"{run.path.parent.name}/{run.path.name}" for run in ended if not run.exists()]

    def _trials(self, *states: TrialState) -> list[RunDirectory]:
        tuning = self.directory.read()
        with self.directory.lock():
            studies = {each: self._study(tuning, each) for each in tuning.optimizers}
        return [
            self.directory.trial(optimizer, trial.number)
            for optimizer, study in studies.items()
            for trial in study.get_trials(deepcopy=False, states=states)
        ]

    def _study(self, tuning: Tuning, optimizer: str) -> optuna.Study:
        return optuna.create_study(
            study_name=f"{tuning.name}/{optimizer}",
            storage=self._storage,
            direction="maximize",
            load_if_exists=True,
            pruner=make_pruner(tuning),
        )

    def _take_left(self, tuning: Tuning, claim: ExitStack) -> TrialInHand | None:
        for optimizer in tuning.optimizers:
            study = self._study(tuning, optimizer)
            for left in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                run = self.directory.trial(optimizer, left.number)
                try:
                    claim.enter_context(run.claim())
                except Claimed:
                    continue
                if study.trials[left.number].state is not TrialState.RUNNING:
                    # Its process ended it between the two checks.
                    claim.close()
                    continue
                study.sampler = make_sampler(tuning, optimizer, left.number)
                # Optuna has no public way to get a trial that another process began.
                return self._hand(tuning, optimizer, run, Trial(study, left._trial_id))
        return None

    def _take_new(self, tuning: Tuning, claim: ExitStack) -> TrialInHand | None:
        studies = {optimizer: self._study(tuning, optimizer) for optimizer in tuning.optimizers}
        counts = {optimizer: count_begun(study) for optimizer, study in studies.items()}
        optimizer = min(counts, key=lambda each: counts[each])
        study, number = studies[optimizer], counts[optimizer]
        if number >= tuning.trials:
            return None
        study.sampler = make_sampler(tuning, optimizer, number)
        if tuning.sampler == "grid" and len(study.get_trials(deepcopy=False)) == number:
            study.enqueue_trial(grid(tuning.spaces[optimizer], tuning.trials)[number])
        trial = study.ask()
        run = self.directory.trial(optimizer, trial.number)
        claim.enter_context(run.claim())
        return self._hand(tuning, optimizer, run, trial)

    @staticmethod
    def _hand(tuning: Tuning, optimizer: str, run: RunDirectory, trial: Trial) -> TrialInHand:
        space = tuning.spaces[optimizer]
        values = {
            name: trial.suggest_float(name, each.low, each.high, log=each.log)
            for name, each in space.items()
        }
        settings = {name: space[name].rounded(value) for name, value in values.items()}
        return TrialInHand(optimizer, settings, run, trial)


def count_begun(study: optuna.Study) -> int:
    """Count the trials that any process has taken, including those that have ended."""
    states = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    return len(study.get_trials(deepcopy=False, states=states))


def make_sampler(tuning: Tuning, optimizer: str, number: int) -> BaseSampler:
    """Return the sampler of one trial.

    TPE is the tree-structured Parzen estimator (Bergstra et al., "Algorithms for Hyper-Parameter
    Optimization", NeurIPS 2011). It models all settings jointly. Running trials count as bad ones,
    so that processes do not all search in one place.
    """
    seed = derive_seed(tuning.seed, f"trial {number} of {optimizer}") % 2**32
    if tuning.sampler == "tpe":
        return TPESampler(
            n_startup_trials=STARTUP, multivariate=True, constant_liar=True, seed=seed
        )
    # On a grid, each trial is enqueued with its point, so the sampler has nothing left to choose.
    return RandomSampler(seed=seed)


def make_pruner(tuning: Tuning) -> optuna.pruners.BasePruner:
    """Return the pruner: the median rule from a third of the epochs on, or none."""
    if tuning.pruner == "none":
        return optuna.pruners.NopPruner()
    epochs = tuning.config(tuning.optimizers[0]).epochs
    # Epochs count from 1, so the pruner already judges at the end of the first third.
    return optuna.pruners.MedianPruner(STARTUP, n_warmup_steps=ceil(epochs / 3))


def open_storage(storage: str, folder: Path) -> BaseStorage:
    """Open the studies' storage.

    Args:
        storage: ``"sqlite"`` or ``"journal"``, a file in the folder; or a database's URL.
        folder: The tuning's directory, locked.

    Raises:
        LabError: If it cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if storage == JOURNAL_FILE:
        cut_torn_line(folder / JOURNAL)
        return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
    url = f"sqlite:///{(folder / DATABASE).resolve()}" if storage == SQLITE else storage
    wait = {"connect_args": {"timeout": PATIENCE}} if url.startswith("sqlite:") else {}
    try:
        return RDBStorage(url, engine_kwargs=wait)
    except Exception as error:
        # Errors of SQLAlchemy, the driver and Optuna have no common base class.
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LabError(
            f"--storage {storage} cannot be opened: {first}; expected sqlite, journal, or the URL "
            "of a database whose driver is installed, like postgresql+psycopg://host/name"
        ) from error


def cut_torn_line(journal: Path) -> None:
    """Remove a last line that a full disk or a crash left incomplete: it would stop Optuna."""
    if not journal.is_file():
        return
    with journal.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
