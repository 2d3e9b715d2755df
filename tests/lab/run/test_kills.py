"""Runs that the kernel kills at different moments, and runs on a full disk."""

import errno
import multiprocessing
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.conftest import checkpoint_of, same_bits, start, tiny_config, without_seconds
from sgdph.lab import cli
from sgdph.lab.data.dataset import Dataset
from sgdph.lab.errors import LabError
from sgdph.lab.files import PARTIAL_SUFFIX, WriteError
from sgdph.lab.options.resolution import resolve
from sgdph.lab.run.directory import CHECKPOINT, CONFIG, METRICS, RunDirectory

from . import killed_run


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a killed run for each moment; ``whole`` adds one that was not killed."""
    folder = tmp_path_factory.mktemp("killed")
    # Forks need a process that has imported everything and has not done anything else.
    process = multiprocessing.get_context("forkserver").Process(
        target=killed_run.main, args=(folder,)
    )
    process.start()
    process.join()
    found = (folder / killed_run.SIGNALS).read_text().split()
    signals = dict(zip(killed_run.MOMENTS, found, strict=True))
    assert signals.pop("within the checkpoint") == "SIGXFSZ"
    assert set(signals.values()) == {"SIGKILL"}
    return folder


@pytest.fixture(scope="module")
def whole(killed: Path, digits: Dataset) -> RunDirectory:
    start(resolve(killed_run.CONFIG), killed / "whole", digits)
    return RunDirectory(killed / "whole")


@pytest.mark.xdist_group("killed runs")
@pytest.mark.parametrize("moment", killed_run.MOMENTS)
def test_resuming_a_killed_run_gives_the_same_bits(
    moment: str, killed: Path, whole: RunDirectory, digits: Dataset
) -> None:
    run = RunDirectory(killed / moment)
    assert run.status() == "running"
    if moment == "within the checkpoint":
        assert (run.path / ("epoch-2.pt" + PARTIAL_SUFFIX)).stat().st_size == 100_000
    start(run.read_config(), run.path, digits)
    for name in (CHECKPOINT, "epoch-2.pt"):
        assert same_bits(checkpoint_of(run.path, name), checkpoint_of(whole.path, name))
    assert without_seconds(run.read_metrics()) == without_seconds(whole.read_metrics())
    assert {file.name for file in run.path.iterdir()} == {f.name for f in whole.path.iterdir()}


@contextmanager
def quota(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


SMALL = ["train", "--dataset=digits", "--train-size=100", "--batch-size=25", "--epochs=2"]


def test_on_a_full_disk_the_command_prints_an_error_and_loses_nothing(
    tmp_path: Path, digits: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(epochs=2)
    start(config, tmp_path / "whole", digits)
    run, out = RunDirectory(tmp_path / "run"), f"--out={tmp_path / 'run'}"
    with quota(100_000):
        assert cli.main([*SMALL, "--device=cpu", "--threads=1", out]) == 2
    errors = capsys.readouterr().err
    assert "last.pt could not be written (File too large); it takes 0." in errors
    assert "MB left. Everything saved before is intact. Free some space" in errors
    assert len(errors.splitlines()) == 1
    assert run.read_summary()["status"] == "interrupted"
    assert "last.pt could not be written" in run.read_summary()["reason"]
    assert not (run.path / (CHECKPOINT + PARTIAL_SUFFIX)).exists()
    assert cli.main(["train", out, "--resume"]) == 0
    assert same_bits(checkpoint_of(run.path), checkpoint_of(tmp_path / "whole"))


def full_device(path: Path) -> None:
    """Make writes to a path fail as on a full disk, with a link to ``/dev/full``."""
    path.symlink_to("/dev/full")


def test_if_the_metrics_no_longer_fit_on_the_disk_nothing_is_lost(
    tmp_path: Path, digits: Dataset
) -> None:
    config, run = tiny_config(optimizer="sgdm", epochs=2), RunDirectory(tmp_path / "run")
    start(config, tmp_path / "whole", digits)

    class Filling:
        """Fills the disk after the first epoch."""

        def __getattr__(self, name: str) -> object:
            return lambda *arguments, **options: None

        def epoch_finished(self, metrics: object, epochs: int) -> None:
            (run.path / METRICS).unlink()
            full_device(run.path / METRICS)

    with pytest.raises(WriteError, match=os.strerror(errno.ENOSPC)):
        start(config, run.path, digits, Filling())  # type: ignore[arg-type]
    start(config, run.path, digits)
    assert same_bits(checkpoint_of(run.path), checkpoint_of(tmp_path / "whole"))
    assert not (run.path / METRICS).is_symlink()
    expected = RunDirectory(tmp_path / "whole").read_metrics()
    assert without_seconds(run.read_metrics()) == without_seconds(expected)


def test_on_a_disk_that_is_full_from_the_start_no_run_is_created(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    full_device(tmp_path / (CONFIG + PARTIAL_SUFFIX))
    with pytest.raises(WriteError, match=rf"{CONFIG} could not be written \(No space left"):
        run.create(tiny_config())
    assert not run.exists()


def test_if_even_the_summary_cannot_be_written_the_error_is_still_raised(
    tmp_path: Path, digits: Dataset
) -> None:
    class Filling:
        def __getattr__(self, name: str) -> object:
            return lambda *arguments, **options: None

        def run_started(self, *arguments: object, **options: object) -> None:
            (tmp_path / "run" / "summary.json").unlink(missing_ok=True)
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))

    with quota(10**9), pytest.raises(LabError, match="could not be written"):
        start(tiny_config(), tmp_path / "run", digits, Filling())  # type: ignore[arg-type]
    assert RunDirectory(tmp_path / "run").status() is None
