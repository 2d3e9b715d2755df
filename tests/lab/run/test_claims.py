import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.conftest import start, tiny_config
from sgdph.lab import cli
from sgdph.lab.data.dataset import Dataset
from sgdph.lab.errors import LabError
from sgdph.lab.run.claims import LOCK, Claim, Claimed
from sgdph.lab.run.directory import RunDirectory

HOLDER = """
import sys
from pathlib import Path
from sgdph.lab.run.claims import Claim
with Claim(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the claim on ``tmp_path / "run"`` until its input closes."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_starting_a_claimed_run_raises_an_error_that_names_the_holder(
    holder: "subprocess.Popen[str]", tmp_path: Path, digits: Dataset
) -> None:
    with pytest.raises(Claimed, match=rf"another process \(host .*, pid {holder.pid}\)"):
        start(tiny_config(), tmp_path / "run", digits)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("end", ["kill -9", "orderly"])
def test_a_claim_ends_with_its_process(
    holder: "subprocess.Popen[str]", tmp_path: Path, end: str
) -> None:
    if end == "orderly":
        assert holder.stdin is not None
        holder.stdin.close()
    else:
        os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with Claim(tmp_path / "run"):
        assert str(os.getpid()) in (tmp_path / "run" / LOCK).read_text()


def test_a_claim_can_be_entered_again_but_a_second_claim_raises_an_error(tmp_path: Path) -> None:
    first, second = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "run")
    with first.claim():
        with first.claim():
            pass
        with pytest.raises(Claimed), second.claim():
            pass
    with second.claim():
        assert second.claim().held
    assert not second.claim().held


def test_a_run_can_be_created_and_cleared_in_a_claimed_directory(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with run.claim():
        assert not run.exists()
        run.create(tiny_config())
        run.clear()
        assert not run.exists()
        with pytest.raises(Claimed), RunDirectory(run.path).claim():
            pass


def test_overwrite_does_not_change_a_run_that_is_being_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(tmp_path / "run")
    run.create(tiny_config())
    with run.claim():
        before = {file.name: file.read_bytes() for file in run.path.iterdir()}
        assert cli.main(["train", "--out", str(run.path), "--overwrite"]) == 2
        assert {file.name: file.read_bytes() for file in run.path.iterdir()} == before
    assert "is being trained by another process" in capsys.readouterr().err


@pytest.mark.usefixtures("without_pictures")
def test_a_comparison_is_not_cleared_while_one_of_its_runs_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--dataset=digits", "--train-size=100", "--epochs=1", "--device=cpu"]
    command = ["compare", *small, "--optimizers=sgdm", "--seeds=0,1", f"--out={tmp_path}"]
    assert cli.main(command) == 0
    with RunDirectory(tmp_path / "sgdm-seed1").claim():
        assert cli.main([*command, "--overwrite"]) == 2
        assert (tmp_path / "sgdm-seed0" / "last.pt").exists()
        assert (tmp_path / "comparison.yaml").exists()
    capsys.readouterr()
    assert cli.main([*command, "--seeds=1", "--overwrite"]) == 0
    assert not (tmp_path / "sgdm-seed0").exists()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_raises_an_error(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*arguments: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(LabError, match="file system") as caught, Claim(tmp_path / "run"):
        pass
    assert not isinstance(caught.value, Claimed)


def test_a_path_that_cannot_be_written_to_raises_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LabError, match="cannot be locked"), Claim(tmp_path / "file" / "run"):
        pass
