"""Many runs in one directory, trained by several processes."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock
from rich.console import Console

from lab.conftest import (
    Silent,
    checkpoint_of,
    kill_in_the_middle,
    same_bits,
    start,
    tiny_config,
)
from sgdph.lab import cli
from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.data.dataset import Dataset
from sgdph.lab.errors import LabError
from sgdph.lab.run.claims import LOCK
from sgdph.lab.run.directory import RunDirectory
from sgdph.lab.sweep import cores, pool, sweep
from sgdph.lab.sweep.checks import check_agreement, check_runs
from sgdph.lab.sweep.engine import ThisProcess, run_tasks
from sgdph.lab.sweep.plan import PlannedRun
from sgdph.lab.sweep.pool import Pool, visible_device
from sgdph.lab.sweep.state import failures, note_failure, state_of
from sgdph.lab.sweep.sweep import arranged, as_begun, fit_one_gpu, task_of, train_all
from sgdph.lab.sweep.worker import ATTEMPTS, Task, Worker

PATIENCE = 240


def tiny_runs(count: int, **options: object) -> list[PlannedRun]:
    return [
        PlannedRun(f"run{k}", tiny_config(optimizer="sgdm", seed=k, **options))
        for k in range(count)
    ]


class Told(Silent):
    """Records which runs ended, and how."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def run_finished(self, name: str, message: str) -> None:
        self.lines.append(f"{name}: {message}")


def work(
    directory: Path, runs: list[PlannedRun], load: Callable[[RunConfig], Dataset], told: Told
) -> None:
    """Train runs in this process."""
    tasks = [task_of(directory, planned) for planned in runs]
    run_tasks(directory, tasks, ThisProcess(Worker(told, load)))


def test_a_finished_run_is_kept_and_its_data_are_not_loaded(
    tmp_path: Path, digits: Dataset
) -> None:
    runs = tiny_runs(1, epochs=1)
    start(runs[0].config, tmp_path / "run0", digits)

    def load(config: RunConfig) -> Dataset:
        raise AssertionError

    told = Told()
    work(tmp_path, runs, load, told)
    assert told.lines[0].startswith("run0: kept; final test accuracy")
    assert state_of(tmp_path, runs).ended == ("run0",)


def test_a_run_of_another_process_is_taken_over_only_when_that_process_dies(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tiny_runs(2, epochs=1)
    other = RunDirectory(tmp_path / "run0").claim()
    told = Told()

    def dies(seconds: float) -> None:
        # Nothing was begun in the run that the other process holds.
        assert not (tmp_path / "run0" / "config.yaml").exists()
        other.__exit__()

    monkeypatch.setattr(sweep, "time", SimpleNamespace(sleep=dies))
    with other:
        work(tmp_path, runs, lambda config: digits, told)
    assert [line.split(":")[0] for line in told.lines] == ["run1", "run0"]
    assert state_of(tmp_path, runs).ended == ("run0", "run1")


def test_a_run_that_ends_just_before_it_is_claimed_is_not_trained_again(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    (planned,) = runs = tiny_runs(1, epochs=1)
    claim = RunDirectory.claim

    def slow_claim(run: RunDirectory) -> object:
        monkeypatch.setattr(RunDirectory, "claim", claim)
        start(planned.config, run.path, digits)
        return claim(run)

    monkeypatch.setattr(RunDirectory, "claim", slow_claim)
    told = Told()
    work(tmp_path, runs, lambda config: digits, told)
    assert "resumed" not in RunDirectory(tmp_path / "run0").read_env()


@pytest.mark.parametrize("ended", [True, False])
def test_a_run_that_another_command_began_with_other_settings_is_not_taken(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    (planned,) = runs = tiny_runs(1, epochs=1)
    claim, other = RunDirectory.claim, tiny_config(**{**same(planned), "lr": 0.5})

    def slow_claim(run: RunDirectory) -> object:
        monkeypatch.setattr(RunDirectory, "claim", claim)
        run.create(other)
        return claim(run)

    if ended:
        start(other, tmp_path / "run0", digits)
    else:
        monkeypatch.setattr(RunDirectory, "claim", slow_claim)
    before = RunDirectory(tmp_path / "run0").read_summary() if ended else {}
    told = Told()
    work(tmp_path, runs, lambda config: digits, told)
    assert "failed: LabError" in told.lines[0]
    assert "run0: lr: the run has 0.5, given 0.1" in told.lines[0]
    assert list(state_of(tmp_path, runs).failed) == ["run0"]
    assert RunDirectory(tmp_path / "run0").read_summary() == before


def test_a_failed_run_is_not_tried_again_by_another_worker(tmp_path: Path, digits: Dataset) -> None:
    runs = tiny_runs(2, epochs=1)
    note_failure(tmp_path, "run0", "Traceback\nRuntimeError: broken")
    work(tmp_path, runs, lambda config: digits, Told())
    progress = state_of(tmp_path, runs)
    assert progress.ended == ("run1",)
    assert progress.failed == {"run0": "RuntimeError: broken"}


def test_the_error_lists_runs_that_were_begun_with_other_options(
    tmp_path: Path, digits: Dataset
) -> None:
    (planned,) = tiny_runs(1, epochs=1)
    start(planned.config, tmp_path / "run0", digits)
    check_agreement(tmp_path, [PlannedRun("run0", tiny_config(**{**same(planned), "threads": 2}))])
    other = PlannedRun("run0", tiny_config(**{**same(planned), "lr": 0.5}))
    with pytest.raises(LabError, match=r"run0: lr: the run has 0\.1, given 0\.5"):
        check_agreement(tmp_path, [other])


def same(planned: PlannedRun) -> dict[str, object]:
    return {"optimizer": "sgdm", "seed": planned.config.seed, "epochs": planned.config.epochs}


def test_missing_data_and_invalid_settings_raise_an_error_before_training(
    digits: Dataset,
) -> None:
    runs = [*tiny_runs(1), PlannedRun("late", tiny_config(optimizer="sgdph", eps=-1.0))]
    with pytest.raises(LabError, match="sgdph cannot use its settings"):
        check_runs(runs, lambda config: digits)

    def load(config: RunConfig) -> Dataset:
        raise LabError("no data")

    with pytest.raises(LabError, match="no data"):
        check_runs(runs, load)


def test_workers_share_the_cores_if_runs_do_not_set_their_threads(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cores, "available_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    # Large enough to use more threads than each worker has cores.
    large = {"dataset": "cifar10", "model": "resnet18", "train_size": None, "threads": None}
    open_run = PlannedRun("open", tiny_config(**large))
    shared, _ = arranged(tmp_path, [open_run, *tiny_runs(1)], 3)
    assert [planned.config.threads for planned in shared] == [2, 1]
    assert arranged(tmp_path, [open_run], 20)[0][0].config.threads == 1


def test_workers_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert visible_device(0) == {} or pool.torch.cuda.is_available()
    monkeypatch.setattr(pool.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(pool.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = [visible_device(k)["CUDA_VISIBLE_DEVICES"] for k in range(3)]
    assert found == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert visible_device(1)["CUDA_VISIBLE_DEVICES"] == "7"


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"device": "cuda"}, True),
        ({"device": "cuda:1"}, False),
        ({"processes": 2}, False),
    ],
)
def test_gpus_are_not_split_if_a_run_names_one_or_needs_several(
    changes: dict[str, Any], fits: bool
) -> None:
    other = PlannedRun("other", tiny_config(**{"batch_size": 24, **changes}))
    assert fit_one_gpu([*tiny_runs(1), other]) is fits


def test_a_resumed_run_keeps_the_threads_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "available_cores", lambda: 8)
    asked = [PlannedRun(name, tiny_config(threads=None)) for name in ("begun", "new")]
    for planned in (sweep.with_threads(asked[0], 2),):
        RunDirectory(tmp_path / planned.name).create(planned.config)
    # Resumed by a single process, which would take all cores.
    begun, new = as_begun(tmp_path, asked)
    assert (begun.config.threads, new.config.threads) == (2, None)
    other = [PlannedRun("begun", tiny_config(threads=3))]
    assert as_begun(tmp_path, other) == other


SWEEP = [
    *("reproduce", "table7", "--scale=cpu", "--dataset=digits", "--train-size=100", "--epochs=6"),
    *("--seeds=0-1", "--threads=1", "--device=cpu"),
]
NAMES = [
    f"digits-resnet8-hessian-momentum{beta}-sgdph-seed{seed}"
    for seed in (0, 1)
    for beta in (0.8, 0.9, 0.99)
]


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A sweep of six runs by two workers, in its own process."""
    words = [sys.executable, "-m", "sgdph.lab", *SWEEP, "--jobs=2", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as process:
        yield process
        process.kill()


def next_end(process: subprocess.Popen[str]) -> str:
    """Wait until the parent reports the end of a run; return the run's name."""
    assert process.stdout is not None
    for line in process.stdout:
        name, _, message = line.partition(": ")
        if message.startswith("final test accuracy"):
            return name
    raise AssertionError("the sweep ended before")


def kill_a_worker(directory: Path) -> int:
    """Kill a worker in the middle of a run; return its process ID."""
    while True:
        for name in NAMES:
            if killed := kill_in_the_middle(RunDirectory(directory / name)):
                return killed


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_killing_a_worker_and_the_parent_loses_nothing(
    tmp_path: Path,
    parent: subprocess.Popen[str],
    digits: Dataset,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = next_end(parent)
    assert kill_a_worker(tmp_path) != parent.pid
    # The other worker continues, and takes over the killed worker's run later.
    second = next_end(parent)
    parent.kill()
    parent.wait(PATIENCE)
    for name in NAMES:
        # A worker without its parent stops, and so releases its run.
        if (tmp_path / name).is_dir():
            with FileLock(tmp_path / name / LOCK, timeout=PATIENCE):
                pass
    runs = [RunDirectory(tmp_path / name) for name in NAMES]
    assert {run.status() for run in runs} != {"finished"}
    assert cli.main([*SWEEP, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert {run.status() for run in runs} == {"finished"}
    for name in (first, second):
        assert f"{name}: kept" in said
    for run in runs:
        # The history has no gaps or repetitions. Resumed runs have the bits of a run trained alone.
        assert [line["epoch"] for line in run.read_metrics()] == list(range(1, 7))
    broken = [run for run in runs if "resumed" in run.read_env()]
    assert broken
    for run in broken:
        start(run.read_config(), tmp_path / "alone", digits)
        assert same_bits(checkpoint_of(run.path), checkpoint_of(tmp_path / "alone"))
        RunDirectory(tmp_path / "alone").clear()


@pytest.mark.usefixtures("forked_workers")
def test_two_workers_give_the_same_runs_as_one_process(tmp_path: Path, digits: Dataset) -> None:
    runs = tiny_runs(3, epochs=2)
    progress = train_all(tmp_path / "many", runs, Console(quiet=True), jobs=2)
    assert progress.ended == ("run0", "run1", "run2")
    work(tmp_path / "one", runs, lambda config: digits, Told())
    for planned in runs:
        first, second = tmp_path / "many" / planned.name, tmp_path / "one" / planned.name
        assert same_bits(checkpoint_of(first), checkpoint_of(second))
        assert "resumed" not in RunDirectory(first).read_env()


def kill_worker(file: Path, worker: Worker) -> bool:
    """A task that kills its process."""
    with file.open("a") as deaths:
        deaths.write("died")
    os._exit(9)


@pytest.mark.usefixtures("forked_workers")
def test_a_run_whose_worker_keeps_dying_is_reported_and_others_are_trained(
    tmp_path: Path,
) -> None:
    (good,) = tiny_runs(1, epochs=1)
    tasks = [Task("deadly", partial(kill_worker, tmp_path / "deaths")), task_of(tmp_path, good)]
    with Pool(2, tmp_path / "logs", split_gpus=False) as pool:
        run_tasks(tmp_path, tasks, pool)
    assert (tmp_path / "deaths").read_text() == "died" * ATTEMPTS
    assert state_of(tmp_path, [good]).ended == ("run0",)
    assert f"its process died {ATTEMPTS} times" in failures(tmp_path)["deadly"]
    # The other run was not disturbed.
    assert "resumed" not in RunDirectory(tmp_path / "run0").read_env()


def test_without_ray_the_error_names_the_package_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LabError, match="pip install 'ray"):
        train_all(tmp_path, tiny_runs(1), Console(quiet=True), ray="local")
