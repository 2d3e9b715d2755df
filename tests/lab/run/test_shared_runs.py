"""One run in several processes, as torchrun starts them."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lab.conftest import checkpoint_of, same_bits, start, tiny_config, without_seconds
from sgdph.lab import cli
from sgdph.lab.data.dataset import Dataset, Share
from sgdph.lab.data.loading import load_dataset
from sgdph.lab.errors import LabError
from sgdph.lab.run import distributed
from sgdph.lab.run.directory import RunDirectory
from sgdph.lab.run.distributed import EqualShare, Team
from sgdph.lab.run.processes import leave
from sgdph.lab.run.start import pick_device, prepare

from . import shared_run

# Without batch norm, because each process has its own statistics. 102 images leave 2 for the last
# batch: one for each of two processes, and too few for three.
OPTIONS = {"model": "resnet8-gn", "train_size": 102, "batch_size": 50, "epochs": 2}


def torchrun(processes: int, *program: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*command, f"--nproc-per-node={processes}", *program],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def program(folder: Path) -> list[str]:
    # Next to the tests, it would import our folder ``inspect`` instead of Python's module.
    copy = folder / "shared_run.py"
    copy.write_text(Path(shared_run.__file__).read_text())
    return [str(copy), str(folder / "runs"), "none"]


def ends(folder: Path, name: str, processes: int) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{name}-{rank}.end") for rank in range(processes)]


def test_joining_again_finds_no_addresses_of_the_previous_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With stale addresses, processes would wait for one that no longer exists."""
    shared, stores = dist.HashStore(), []
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed, "rendezvous", lambda _: iter([(shared, 0, 2)]))
    monkeypatch.setattr(dist, "init_process_group", lambda *_, store, **__: stores.append(store))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    for _ in range(2):
        with distributed.joined() as team:
            assert (team.rank, team.size) == (0, 2)
    first, second = stores
    first.set("address", "here")
    assert first.check(["address"])
    assert not second.check(["address"])


def test_one_of_several_processes_exits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """If Python shut down in the normal way, Gloo's threads would abort the process."""
    left: list[int] = []
    monkeypatch.setattr("os._exit", left.append)
    assert (leave(1), left) == (1, [])
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    leave(3)
    assert left == [3]


@pytest.mark.xdist_group("torchrun")
def test_two_processes_give_the_same_run_as_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for optimizer in ("sgdm", "sgdph"):
        config = tiny_config(**OPTIONS, optimizer=optimizer, processes=2)
        RunDirectory(tmp_path / "runs" / optimizer).create(config)
    small = ["--dataset=digits", "--train-size=100", "--epochs=1", "--device=cpu", "--threads=1"]
    command = ["train", *small, "--optimizer=sgdm", "--batch-size=20", "--out", "by-command"]
    done = torchrun(2, *program(tmp_path), *command, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "nowhere").exists()
    # Only the first process raises its own error; every other error is an ``Agreed``.
    for rank, heard in enumerate(
        ["LabError: no room, Agreed: process 1: no room", "Agreed: process 0: no room, Agreed"]
    ):
        assert (tmp_path / f"heard-{rank}").read_text().startswith(heard)
    for optimizer in ("sgdm", "sgdph"):
        data = load_dataset("digits", train_size=102)
        config = tiny_config(**OPTIONS, optimizer=optimizer)
        start(config, tmp_path / "alone" / optimizer, data)
        alone = checkpoint_of(tmp_path / "alone" / optimizer)
        shared = checkpoint_of(tmp_path / "runs" / optimizer)
        first, second = ends(tmp_path, optimizer, 2)
        assert same_bits(first["model"], second["model"])
        assert without_seconds(first["history"]) == without_seconds(second["history"])
        assert same_bits(dict(first["model"]), dict(shared["model"]))
        assert shared["step"] == alone["step"] == 6
        for name, value in alone["model"].items():
            torch.testing.assert_close(shared["model"][name], value, rtol=1e-4, atol=1e-5)
        for found, expected in zip(shared["history"], alone["history"], strict=True):
            for name in ("train_loss", "test_loss", "train_accuracy", "test_accuracy"):
                assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6)

    # The command prints everything once. A single process must not resume its run, because the
    # result would differ.
    assert done.stdout.count("The run lies in") == done.stdout.count("epoch 1/1") == 1
    run = RunDirectory(tmp_path / "by-command")
    assert run.read_config().processes == run.read_env()["processes"] == 2
    before = checkpoint_of(run.path)
    assert cli.main(["train", f"--out={run.path}", "--resume"]) == 2
    assert "resume it with torchrun --nproc-per-node 2" in capsys.readouterr().err
    assert same_bits(checkpoint_of(run.path), before)


def _as_rank(rank: int, processes: int, port: int, folder: Path, doomed: str) -> None:
    """Do what one process of torchrun does."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    shared_run.main(folder / "runs", doomed)
    leave(0)


def on_ranks(processes: int, folder: Path, doomed: str = "none") -> None:
    """Train the runs of a folder; if one process dies, the others are terminated."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    mp.start_processes(  # type: ignore[no-untyped-call]
        _as_rank,
        (processes, port, folder, doomed),
        nprocs=processes,
        start_method="forkserver",
    )


def test_resuming_after_one_of_three_processes_died_gives_the_same_bits(tmp_path: Path) -> None:
    config = tiny_config(**{**OPTIONS, "batch_size": 51, "model": "resnet8"}, processes=3)
    whole, killed = (RunDirectory(tmp_path / "runs" / name) for name in ("1-whole", "2-killed"))
    for run in (whole, killed):
        run.create(config)
    with pytest.raises(mp.ProcessExitedException, match="signal SIGKILL"):
        on_ranks(3, tmp_path, "2-killed")
    assert (whole.status(), killed.read_summary()["epochs"]) == ("finished", 1)
    assert killed.status() in ("running", "interrupted")
    on_ranks(3, tmp_path)
    found, expected = checkpoint_of(killed.path), checkpoint_of(whole.path)
    assert same_bits(found, expected)
    # All processes have batch norm's running statistics of the first process.
    first, *others = ends(tmp_path, "2-killed", 3)
    for other in others:
        assert same_bits(first["model"], other["model"])
    assert len({tuple(g["torch"].tolist()) for g in expected["generators"]}) == 3


def test_training_a_run_of_several_processes_in_one_raises_an_error(
    tmp_path: Path, digits: Dataset
) -> None:
    with pytest.raises(LabError, match="is a run of 5 processes, but 1"):
        start(tiny_config(processes=5), tmp_path / "run", digits)


def test_a_batch_that_the_processes_cannot_share_equally_raises_an_error(digits: Dataset) -> None:
    with pytest.raises(LabError, match="cannot be divided among 2; take a multiple of 2"):
        prepare(tiny_config(batch_size=25, processes=2), digits)


def test_other_commands_raise_an_error_in_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["compare", f"--out={tmp_path}"]) == 2
    assert "is for sgdph train only" in capsys.readouterr().err


def test_one_gpu_for_several_processes_raises_an_error() -> None:
    with pytest.raises(LabError, match="is one GPU, and 2 processes need one each"):
        pick_device("cuda:1", Team(rank=0, size=2))


@pytest.mark.parametrize("count", [11, 12, 13, 14])
def test_training_shares_are_equal_and_evaluation_shares_are_complete(count: int) -> None:
    items = torch.arange(count)
    equal = [EqualShare(rank, 3).of(items) for rank in range(3)]
    assert {len(part) for part in equal} == {count // 3}
    assert sorted(torch.cat(equal).tolist()) == list(range(count - count % 3))
    whole = torch.cat([Share(rank, 3).of(items) for rank in range(3)])
    assert sorted(whole.tolist()) == list(range(count))


@pytest.mark.parametrize(
    ("count", "size", "processes", "steps"),
    [(100, 25, 1, 4), (101, 25, 1, 5), (101, 50, 2, 2), (102, 50, 2, 3), (102, 51, 3, 2)],
)
def test_only_batches_with_an_image_for_every_process_count_as_steps(
    count: int, size: int, processes: int, steps: int
) -> None:
    assert Team(size=processes).steps(count, size) == steps
