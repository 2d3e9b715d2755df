"""How many threads a run takes, and how many runs are trained at once."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from lab.conftest import Command, checkpoint_of, same_bits, snapshot, tiny_config
from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.networks.models import build_model
from sgdph.lab.options.resolution import resolve
from sgdph.lab.run.directory import RunDirectory
from sgdph.lab.sweep import cores, sweep
from sgdph.lab.sweep.cores import default_jobs, default_threads
from sgdph.lab.sweep.engine import Place
from sgdph.lab.sweep.plan import PlannedRun
from sgdph.lab.sweep.shapes import SHAPES, image_flops
from sgdph.lab.sweep.worker import Task

MAKEFILE = Path(__file__).parents[3] / "Makefile"
# The command of `make demo`, except for its output directory.
DEMO = re.findall(r"^\t\$\(BIN\)/sgdph (compare .*) --out", MAKEFILE.read_text(), re.MULTILINE)[0]
DEMO_COMMAND = [*DEMO.split(), "--device", "cpu"]
TINY = ["--dataset=digits", "--train-size=100", "--epochs=2", "--device=cpu"]


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "available_cores", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


class Stop(Exception):  # noqa: N818 - not an error
    """Ends a command before it trains."""


@pytest.mark.parametrize(
    ("number", "flags", "jobs", "threads"),
    [
        (2, [], 2, 1),
        (8, [], 6, 1),
        (2, ["--jobs", "1"], 1, 1),
        (2, ["--jobs", "3"], 3, 1),
        (2, ["--threads", "2"], 1, 2),
        (8, ["--threads", "3"], 2, 3),
        (1, [], 1, 1),
    ],
)
def test_cores_and_flags_determine_the_jobs_and_threads_of_the_demo(
    sgdph: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    flags: list[str],
    jobs: int,
    threads: int,
) -> None:
    started: list[tuple[list[PlannedRun], Place]] = []

    def start(directory: Path, tasks: Iterable[Task], _: object, place: Place, *__: object) -> None:
        started.append(([task.train.args[1] for task in tasks], place))
        raise Stop

    monkeypatch.setattr(cores, "available_cores", lambda: number)
    monkeypatch.setattr(sweep, "compute", start)
    monkeypatch.setattr(sweep, "check_runs", lambda *_: None)
    with pytest.raises(Stop):
        sgdph(*DEMO_COMMAND, *flags, "--out", tmp_path)
    ((runs, place),) = started
    assert (len(runs), place.jobs) == (6, jobs)
    assert {planned.config.threads for planned in runs} == {threads}


def config(**options: Any) -> RunConfig:
    return resolve({"device": "cpu", **options})


CIFAR = {"dataset": "cifar10"}


@pytest.mark.parametrize(
    ("options", "number", "expected"),
    [
        ({}, 64, 1),
        ({**CIFAR, "batch_size": 128}, 64, 1),
        ({"dataset": "pydoc"}, 64, 1),
        ({**CIFAR, "model": "resnet18"}, 2, 2),
        ({**CIFAR, "model": "resnet18", "batch_size": 128}, 16, 16),
        # If the FLOPs cannot be counted, the network may be large.
        ({"model": "timm:no-such-network"}, 4, 4),
        ({"processes": 5}, 4, None),
        ({"device": "cuda"}, 4, None),
    ],
)
def test_threads_grow_with_the_work_of_a_batch(
    options: dict[str, Any], number: int, expected: int | None
) -> None:
    assert default_threads(config(**options), number) == expected


def test_omp_num_threads_limits_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    large = config(**CIFAR, model="resnet18")
    for named, expected in (("1", 1), ("3,2", 3), ("", 4), ("many", 4)):
        monkeypatch.setenv("OMP_NUM_THREADS", named)
        assert default_threads(large, 4) == expected


def test_flops_are_those_of_the_layers() -> None:
    # 3x3 convolutions, 2 FLOPs per multiplication: channels in, channels out, pixels.
    layers = [(1, 16, 784), (16, 16, 784), (16, 16, 784), (16, 32, 196), (32, 32, 196)]
    layers += [(32, 64, 49), (64, 64, 49)]
    expected = sum(18 * a * b * pixels for a, b, pixels in layers) + 2 * 64 * 10
    state = torch.get_rng_state()
    assert image_flops("resnet8", SHAPES["mnist5k"]) == expected
    assert torch.equal(torch.get_rng_state(), state)
    assert next(build_model("resnet8", in_channels=1, classes=10).parameters()).device.type == "cpu"


def test_processes_are_started_only_if_they_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def planned(**options: Any) -> list[PlannedRun]:
        configs = [config(threads=1, seed=seed, **options) for seed in range(3)]
        return [PlannedRun(f"run{each.seed}", each) for each in configs]

    small, demo = planned(dataset="digits", epochs=2), planned(dataset="digits")
    assert default_jobs(demo, demo) == 2
    assert default_jobs(demo, demo[:1]) == 1
    assert default_jobs(planned(), planned()) == 2
    assert default_jobs(demo, []) == 1
    assert default_jobs(small, small) == 1
    assert default_jobs(planned(processes=5), demo) == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    on_gpu = [PlannedRun("run", resolve({"threads": 1}))] * 2
    assert default_jobs(on_gpu, on_gpu) == 1


@pytest.mark.usefixtures("without_pictures", "forked_workers")
def test_parallel_runs_equal_sequential_runs(
    sgdph: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare, more = ["compare", *TINY, "--seeds=0"], ["--optimizers=sgdm,sgdph", "--seeds=0-1"]
    assert sgdph(*compare, *more, "--jobs=1", "--out", tmp_path / "one")[0] == 0
    assert sgdph(*compare, "--optimizers=sgdm", "--out", tmp_path / "two")[0] == 0
    monkeypatch.setattr(cores, "SECONDS_WORTH_PROCESSES", 0)
    code, said, _ = sgdph("compare", "--resume", *more, "--out", tmp_path / "two")
    assert code == 0
    assert "2 workers" in said
    # A run that had already ended is not reported again.
    assert "sgdm-seed0: epoch" not in said
    for name in ("sgdph-seed0", "sgdm-seed1", "sgdph-seed1"):
        assert f"{name}: epoch 1/2" in said
        assert f"{name}: epoch 2/2" in said
    for name in ("sgdm-seed0", "sgdph-seed0", "sgdm-seed1", "sgdph-seed1"):
        assert RunDirectory(tmp_path / "two" / name).read_config().threads == 1
        one, two = checkpoint_of(tmp_path / "one" / name), checkpoint_of(tmp_path / "two" / name)
        assert same_bits(one, two)


@pytest.mark.usefixtures("without_pictures")
def test_overwrite_deletes_only_the_logs_of_the_comparison(sgdph: Command, tmp_path: Path) -> None:
    compare = ["compare", *TINY, "--epochs=1", "--optimizers=sgdm", "--seeds=0", "--out", tmp_path]
    assert sgdph(*compare)[0] == 0
    logs = tmp_path / "logs"
    logs.mkdir()
    for name in ("worker-1.log", "sgdm-seed0.error.txt", "notes.txt"):
        (logs / name).write_text("mine")
    assert sgdph(*compare, "--overwrite")[0] == 0
    assert snapshot(logs) == {"notes.txt": b"mine"}


def test_a_run_begun_with_torchs_number_of_threads_keeps_it(tmp_path: Path) -> None:
    asked = [PlannedRun(name, tiny_config(threads=None)) for name in ("begun", "new")]
    RunDirectory(tmp_path / "begun").create(asked[0].config)
    runs, jobs = sweep.arranged(tmp_path, asked, None)
    assert ([planned.config.threads for planned in runs], jobs) == ([None, 1], 1)
    runs, jobs = sweep.arranged(tmp_path, asked, 2)
    assert ([planned.config.threads for planned in runs], jobs) == ([1, 1], 2)
    progress = sweep.train_all(tmp_path, asked[1:], Console(quiet=True))
    assert progress.ended == ("new",)
    assert RunDirectory(tmp_path / "new").read_config().threads == 1


def test_a_single_run_records_its_threads(sgdph: Command, tmp_path: Path) -> None:
    assert sgdph("train", *TINY, "--epochs=1", "--out", tmp_path)[0] == 0
    assert RunDirectory(tmp_path).read_config().threads == 1
