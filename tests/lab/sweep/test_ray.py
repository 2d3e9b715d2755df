"""Many runs on a local Ray; one of its workers is killed in the middle of a run."""

import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.conftest import (
    TINY,
    Command,
    checkpoint_of,
    kill_in_the_middle,
    same_bits,
    start,
    without_seconds,
)
from sgdph.lab.data.dataset import Dataset
from sgdph.lab.run.directory import RunDirectory

WORDS = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
NAMES = ["sgdm-seed0", "sgdph-seed0"]


@pytest.fixture
def _ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Gives Ray a folder with a short path: its socket names may have at most 107 bytes."""
    pytest.importorskip("ray")
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield


def kill_once_begun(directory: RunDirectory, stop: threading.Event) -> None:
    """Kill the process that trains a run, in the middle of the run."""
    while not stop.wait(0.01):
        if kill_in_the_middle(directory):
            return


@pytest.mark.skipif(sys.platform != "linux", reason="signals are POSIX's")
@pytest.mark.usefixtures("_ray_folder", "without_pictures")
def test_killing_a_ray_worker_loses_nothing(
    sgdph: Command, tmp_path: Path, digits: Dataset
) -> None:
    victim, stop = RunDirectory(tmp_path / "out" / NAMES[1]), threading.Event()
    killer = threading.Thread(target=kill_once_begun, args=(victim, stop))
    killer.start()
    try:
        code, said, errors = sgdph(
            *("compare", *WORDS, "--seeds=0", "--ray=local", "--jobs=2"),
            *("--out", tmp_path / "out"),
        )
    finally:
        stop.set()
        killer.join()
    assert code == 0, said + errors
    # Only the killed run was resumed, and no epoch was trained twice.
    resumed = {name for name in NAMES if "resumed" in read(tmp_path, name).read_env()}
    assert resumed == {victim.path.name}
    for name in NAMES:
        run = read(tmp_path, name)
        start(run.read_config(), tmp_path / "alone" / name, digits)
        alone = RunDirectory(tmp_path / "alone" / name)
        assert same_bits(checkpoint_of(run.path), checkpoint_of(alone.path))
        assert without_seconds(run.read_metrics()) == without_seconds(alone.read_metrics())
        assert len(re.findall(rf"^{name}: epoch [123]/3 ", said, re.MULTILINE)) == 3
        assert f"{name}: final test accuracy" in said


def read(tmp_path: Path, name: str) -> RunDirectory:
    return RunDirectory(tmp_path / "out" / name)
