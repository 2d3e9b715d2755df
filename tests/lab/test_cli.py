"""The command line in a subprocess, as a user calls it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sgdph import __version__
from sgdph.lab import cli
from sgdph.lab.data.dataset import Dataset
from sgdph.lab.run.directory import RunDirectory

from .apart import started_apart
from .conftest import TINY, Command, checkpoint_of, same_bits, start, tiny_config, without_seconds

COMMAND = [sys.executable, "-m", "sgdph.lab.cli"]
SMALL = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
PATIENCE = 120


def call(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    words = [*COMMAND, *map(str, arguments)]
    return subprocess.run(
        words, capture_output=True, text=True, timeout=PATIENCE, check=False, cwd=cwd
    )


def test_version_is_printed() -> None:
    # The entry point of the installed command, which works without the laboratory too.
    done = subprocess.run(
        [sys.executable, "-m", "sgdph.lab", "--version"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, f"sgdph {__version__}\n")


HELP = """
import sys
from sgdph.lab import cli
words = ["--version"], ["--help"], ["train", "--epoch", "3"], *([c, "--help"] for c in cli.COMMANDS)
codes = [cli.main(each) for each in words]
heavy = "torch torchvision numpy scipy sklearn mlxtend matplotlib optuna timm pytorch_optimizer"
print(codes, [name for name in f"{heavy} rich pydantic".split() if name in sys.modules])
"""


def test_version_help_and_a_wrong_option_import_no_heavy_package() -> None:
    words = [sys.executable, "-c", HELP]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0] []"
    assert "unknown option '--epoch'; did you mean --epochs?" in done.stderr
    assert "None" not in done.stdout


@pytest.mark.parametrize("wrong", [["--optimizer", "sgd"], ["--epochs", "x"], ["--leanring", "1"]])
def test_a_wrong_option_exits_with_2_and_writes_nothing(tmp_path: Path, wrong: list[str]) -> None:
    done = call("train", *wrong, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "run").exists()


def test_an_error_prints_one_message_without_a_traceback(tmp_path: Path) -> None:
    done = call("train", "--dataset", "cifar10", "--data-dir", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("sgdph: error: cifar10: found neither cifar-10-batches-py")
    assert done.stdout == ""


def test_an_interrupted_report_prints_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("sgdph.lab.reports.command.report", interrupted)
    assert cli.main(["report", "some-run"]) == 130
    assert capsys.readouterr() == ("", "sgdph: interrupted\n")


def test_compare_on_digits_prints_where_its_files_are(tmp_path: Path) -> None:
    name = "a-long-name-" * 16
    options = ["--optimizers", "sgdm,sgdph", "--seeds", "0,2", "--epochs", "1", "--out", name]
    done = call("compare", *SMALL, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    # Paths are absolute, and are not broken across lines.
    assert lines[-4:] == [
        f"report {tmp_path / name / 'report.md'}",
        f"table  {tmp_path / name / 'table.csv'}",
        f"plot   {tmp_path / name / 'comparison.png'}",
        f"runs   {tmp_path / name}",
    ]
    assert sum("epoch 1/1" in line for line in lines) == 4
    summary = json.loads((tmp_path / name / "sgdph-seed2" / "summary.json").read_text())
    assert summary["status"] == "finished"


def stop_after_first_epoch(arguments: list[str], how: signal.Signals) -> tuple[int | None, str]:
    """Start the command, signal it after it prints its first epoch, and wait for its end."""
    with started_apart(*arguments) as command:
        said = ""
        for line in command.output:
            said += line
            if line.startswith("epoch"):
                command.signal(how)
                break
        said += command.output.read()
        command.process.join(PATIENCE)
    return command.process.exitcode, said


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_resuming_a_stopped_run_gives_the_same_bits(
    sgdph: Command, tmp_path: Path, digits: Dataset, how: signal.Signals
) -> None:
    # Long enough that the signal always comes before the end.
    options = ["train", *SMALL, "--epochs", "12", "--seed", "1"]
    code, said = stop_after_first_epoch([*options, "--out", str(tmp_path / "broken")], how)
    broken = RunDirectory(tmp_path / "broken")
    if how == signal.SIGINT:
        assert code == 130
        assert f"sgdph train --out {broken.path} --resume" in said
        assert broken.status() == "interrupted"
    else:
        assert code == -signal.SIGKILL
        assert broken.status() == "running"
    code, said, errors = sgdph("train", "--out", broken.path, "--resume")
    assert code == 0, errors
    assert "carrying on after epoch" in said
    start(tiny_config(epochs=12, seed=1), tmp_path / "whole", digits)
    assert same_bits(checkpoint_of(broken.path), checkpoint_of(tmp_path / "whole"))
    expected = RunDirectory(tmp_path / "whole").read_metrics()
    assert without_seconds(broken.read_metrics()) == without_seconds(expected)
