"""The commands, called in this process."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lab.folders import check_folder
from sgdph.lab.errors import LabError
from sgdph.lab.options.resolution import resolve
from sgdph.lab.run import epoch
from sgdph.lab.run.directory import RunDirectory
from sgdph.lab.sweep.checks import check_agreement
from sgdph.lab.sweep.comparison import ComparisonDirectory
from sgdph.lab.sweep.plan import PlannedRun

from .conftest import TINY, Command, checkpoint_of, same_bits, snapshot, without_seconds

SMALL = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make the n-th optimizer step from now raise KeyboardInterrupt, as Ctrl-C does."""
    step = epoch.optimization_step

    def after(number: int) -> None:
        left = [number]

        def counted(*arguments: Any) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            step(*arguments)

        monkeypatch.setattr(epoch, "optimization_step", counted)

    return after


def test_train_writes_a_run_and_prints_its_path(sgdph: Command, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, said, _ = sgdph(
        "train",
        *SMALL,
        "--lr",
        "0.02",
        "--betas",
        "0.8",
        "0.99",
        "--optimizer",
        "adamw",
        "--out",
        out,
    )
    assert code == 0
    assert {file.name for file in out.iterdir()} == {
        "config.yaml",
        "env.json",
        "metrics.jsonl",
        "summary.json",
        "last.pt",
        "run.lock",
    }
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["lr"], config["betas"], config["optimizer"]) == (0.02, [0.8, 0.99], "adamw")
    assert said.count("epoch ") == 3 + 1  # One line per epoch, and the best epoch at the end.
    assert str(out) in said


def test_without_a_flag_an_existing_run_is_not_overwritten(sgdph: Command, tmp_path: Path) -> None:
    command = ["train", *SMALL, "--epochs", "1", "--optimizer", "sgdm", "--out", tmp_path / "run"]
    sgdph(*command)
    before = snapshot(tmp_path)
    code, _, errors = sgdph(*command)
    assert code == 2
    for word in ("--resume", "--overwrite", "--out"):
        assert word in errors
    assert snapshot(tmp_path) == before


def test_overwrite_deletes_only_the_run(sgdph: Command, tmp_path: Path) -> None:
    command = ["train", *SMALL, "--epochs", "1", "--optimizer", "sgdm", "--out", tmp_path / "run"]
    sgdph(*command)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    code, _, _ = sgdph(*command, "--seed", "4", "--overwrite")
    assert code == 0
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    assert RunDirectory(tmp_path / "run").read_config().seed == 4
    assert len(RunDirectory(tmp_path / "run").read_metrics()) == 1


@pytest.mark.parametrize(
    "wrong",
    [["--device", "cuda:77"], ["--batch-size", "101"], ["--eps", "-1"], ["--train-size", "5"]],
)
def test_overwrite_with_a_wrong_option_keeps_the_old_run(
    sgdph: Command, tmp_path: Path, wrong: list[str]
) -> None:
    out = tmp_path / "run"
    sgdph("train", *SMALL, "--epochs", "1", "--out", out)
    before = snapshot(tmp_path)
    code, _, errors = sgdph("train", *SMALL, *wrong, "--out", out, "--overwrite")
    assert code == 2
    assert errors.startswith("sgdph: error: ")
    assert snapshot(tmp_path) == before


def test_overwrite_does_not_delete_other_files(sgdph: Command, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine: true\n")
    (tmp_path / "report.md").write_text("mine")
    said = {"train": "not recognised as a run", "compare": "contains report.md but no comparison"}
    for command, message in said.items():
        code, _, errors = sgdph(command, *SMALL, "--out", tmp_path, "--overwrite")
        assert code == 2
        assert message in errors
    assert snapshot(tmp_path) == {"config.yaml": b"mine: true\n", "report.md": b"mine"}


def test_a_run_resumed_after_ctrl_c_has_the_same_bits(
    sgdph: Command, tmp_path: Path, interrupt: Callable[[int], None]
) -> None:
    command = ["train", *SMALL, "--seed", "2"]
    sgdph(*command, "--out", tmp_path / "whole")
    interrupt(7)
    code, said, _ = sgdph(*command, "--out", tmp_path / "broken")
    assert code == 130
    assert f"sgdph train --out {tmp_path / 'broken'} --resume" in said
    interrupt(0)
    code, said, _ = sgdph("train", "--out", tmp_path / "broken", "--resume")
    assert code == 0
    assert "carrying on after epoch 1" in said
    assert same_bits(checkpoint_of(tmp_path / "broken"), checkpoint_of(tmp_path / "whole"))
    before = snapshot(tmp_path)
    code, said, _ = sgdph("train", "--out", tmp_path / "broken", "--resume")
    assert code == 0
    assert "Nothing left to do" in said
    assert snapshot(tmp_path) == before


def test_resume_lists_the_options_that_differ_from_the_run(sgdph: Command, tmp_path: Path) -> None:
    out = tmp_path / "run"
    sgdph("train", *SMALL, "--epochs", "1", "--optimizer", "sgdm", "--out", out)
    code, _, errors = sgdph("train", "--out", out, "--resume", "--lr", "0.5", "--seed", "1")
    assert code == 2
    assert "lr: the run has 0.1, given 0.5" in errors
    assert "seed: the run has 0, given 1" in errors
    agreeing = ["--lr", "0.1", "--threads", "2", "--optimizer", "sgdm"]
    assert sgdph("train", "--out", out, "--resume", *agreeing)[0] == 0


def test_resume_without_a_run_is_an_error(sgdph: Command, tmp_path: Path) -> None:
    for command in ("train", "compare"):
        code, _, errors = sgdph(command, "--out", tmp_path / "nothing", "--resume")
        assert code == 2
        assert "to resume" in errors
    assert not (tmp_path / "nothing").exists()


def test_a_diverging_run_exits_with_1(sgdph: Command, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, said, _ = sgdph("train", *SMALL, "--optimizer=sgdm", "--lr=1e30", "--out", out)
    assert code == 1
    assert "diverged" in said
    code, said, _ = sgdph("train", "--out", out, "--resume")
    assert code == 1
    assert "diverged" in said


COMPARE = ["compare", *SMALL, "--optimizers", "sgdm,sgdph", "--seeds", "0-1", "--epochs", "2"]


def test_compare_writes_runs_report_table_and_plot(sgdph: Command, tmp_path: Path) -> None:
    out = tmp_path / "all"
    code, said, _ = sgdph(*COMPARE, "--lr", "sgdm=0.05", "--out", out)
    assert code == 0
    runs = ["sgdm-seed0", "sgdm-seed1", "sgdph-seed0", "sgdph-seed1"]
    files = ["comparison.lock", "comparison.png", "comparison.yaml", "report.html", "report.md"]
    files += ["seconds.png", "table.csv", "table.tex", "targets.csv"]
    assert sorted(path.name for path in out.iterdir()) == sorted(runs + files)
    check_folder(out)
    rates = [yaml.safe_load((out / run / "config.yaml").read_text())["lr"] for run in runs]
    assert rates == [0.05, 0.05, 0.01, 0.01]
    finals = [
        json.loads((out / f"sgdm-seed{seed}" / "summary.json").read_text())["final_test_accuracy"]
        for seed in (0, 1)
    ]
    rows = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    assert [(row["optimizer"], row["n"]) for row in rows] == [("sgdm", "2"), ("sgdph", "2")]
    assert float(rows[0]["final_test_accuracy_mean"]) == pytest.approx(sum(finals) / 2)
    assert "±" in said
    for name in ("report.md", "table.csv", "comparison.png", ""):
        assert str((out / name).resolve()) in said


@pytest.mark.usefixtures("without_pictures")
def test_a_compared_run_is_the_same_as_one_trained_alone(sgdph: Command, tmp_path: Path) -> None:
    sgdph(*COMPARE, "--out", tmp_path / "all")
    alone = [*SMALL, "--epochs", "2", "--seed", "1", "--out", tmp_path / "alone"]
    sgdph("train", "--optimizer", "sgdph", *alone)
    together = tmp_path / "all" / "sgdph-seed1"
    assert same_bits(checkpoint_of(together), checkpoint_of(tmp_path / "alone"))


@pytest.mark.usefixtures("without_pictures")
def test_a_comparison_resumed_after_ctrl_c_has_the_same_bits(
    sgdph: Command, tmp_path: Path, interrupt: Callable[[int], None]
) -> None:
    sgdph(*COMPARE, "--out", tmp_path / "whole")
    # The first run has 8 steps, so step 14 is in the second epoch of the second run.
    interrupt(14)
    code, said, _ = sgdph(*COMPARE, "--out", tmp_path / "broken")
    assert code == 130
    assert f"sgdph compare --out {tmp_path / 'broken'} --resume" in said
    assert not (tmp_path / "broken" / "report.md").exists()
    finished = snapshot(tmp_path / "broken" / "sgdm-seed0")
    interrupt(0)
    code, said, _ = sgdph("compare", "--out", tmp_path / "broken", "--resume")
    assert code == 0
    assert "sgdm-seed0: kept" in said
    assert "carrying on after epoch 1" in said
    assert snapshot(tmp_path / "broken" / "sgdm-seed0") == finished
    for run in ("sgdm-seed0", "sgdph-seed0", "sgdm-seed1", "sgdph-seed1"):
        broken, whole = tmp_path / "broken" / run, tmp_path / "whole" / run
        assert same_bits(checkpoint_of(broken), checkpoint_of(whole))
        lines = [without_seconds(RunDirectory(path).read_metrics()) for path in (broken, whole)]
        assert lines[0] == lines[1]


@pytest.mark.usefixtures("without_pictures")
def test_resume_adds_seeds_and_optimizers_to_a_finished_comparison(
    sgdph: Command, tmp_path: Path
) -> None:
    one = [*COMPARE, "--epochs", "1", "--out", tmp_path]
    sgdph(*one, "--optimizers", "sgdm", "--seeds", "0")
    before = snapshot(tmp_path / "sgdm-seed0")
    more = ["--optimizers", "sgdm,adamw", "--seeds", "2"]
    assert sgdph("compare", "--out", tmp_path, "--resume", *more)[0] == 0
    assert snapshot(tmp_path / "sgdm-seed0") == before
    runs = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert runs == {"sgdm-seed0", "sgdm-seed2", "adamw-seed0", "adamw-seed2"}
    assert RunDirectory(tmp_path / "adamw-seed2").read_config().epochs == 1


@pytest.mark.usefixtures("without_pictures")
def test_an_extended_comparison_keeps_the_settings_of_single_optimizers(
    sgdph: Command, tmp_path: Path
) -> None:
    one = [*COMPARE, "--epochs", "1", "--out", tmp_path, "--optimizers", "sgdm", "--seeds", "0"]
    assert sgdph(*one, "--lr", "sgdm=0.05", "--optimizer-args", "sgdm.nesterov=true")[0] == 0
    more = ["--optimizers", "adamw", "--lr", "adamw=1e-3", "--seeds", "1"]
    more += ["--optimizer-args", "adamw.amsgrad=true"]
    code, _, errors = sgdph("compare", "--out", tmp_path, "--resume", *more)
    assert code == 0, errors
    for seed in (0, 1):
        runs = [RunDirectory(tmp_path / f"{name}-seed{seed}") for name in ("sgdm", "adamw")]
        sgdm, adamw = (run.read_config() for run in runs)
        assert (sgdm.lr, dict(sgdm.optimizer_args or ())) == (0.05, {"nesterov": True})
        assert (adamw.lr, dict(adamw.optimizer_args or ())) == (1e-3, {"amsgrad": True})


def test_a_run_with_an_argument_that_is_no_longer_given_is_an_error(tmp_path: Path) -> None:
    with_argument = resolve({"optimizer": "sgdm", "optimizer_args": {"nesterov": True}})
    RunDirectory(tmp_path / "run").create(with_argument)
    with pytest.raises(LabError, match="run: nesterov: the run has True, this call gives none"):
        check_agreement(tmp_path, [PlannedRun("run", resolve({"optimizer": "sgdm"}))])
    check_agreement(tmp_path, [PlannedRun("run", with_argument)])


@pytest.mark.usefixtures("without_pictures")
def test_only_one_process_at_a_time_writes_a_comparisons_report(
    sgdph: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = [*COMPARE, "--epochs", "1", "--out", tmp_path, "--optimizers", "sgdm", "--seeds", "0"]
    assert sgdph(*one)[0] == 0
    monkeypatch.setattr("sgdph.lab.run.directory.LOCK_TIMEOUT", 0.1)
    with ComparisonDirectory(tmp_path).alone():
        code, _, errors = sgdph("compare", "--out", tmp_path, "--resume")
    assert code == 2
    assert "another process has been writing" in errors
    assert sgdph("compare", "--out", tmp_path, "--resume")[0] == 0


@pytest.mark.usefixtures("without_pictures")
def test_resuming_with_other_settings_is_an_error(sgdph: Command, tmp_path: Path) -> None:
    sgdph(*COMPARE, "--epochs", "1", "--optimizers", "sgdm", "--out", tmp_path)
    before = snapshot(tmp_path)
    code, _, errors = sgdph("compare", "--out", tmp_path, "--resume", "--lr", "0.3")
    assert code == 2
    assert "sgdm-seed1: lr: the run has 0.1, given 0.3" in errors
    assert snapshot(tmp_path) == before


@pytest.mark.usefixtures("without_pictures")
def test_only_overwrite_replaces_an_existing_comparison(sgdph: Command, tmp_path: Path) -> None:
    one = [*COMPARE, "--epochs", "1", "--optimizers", "sgdm", "--out", tmp_path]
    sgdph(*one)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "sgdm-seed0" / "notes.txt").write_text("mine too")
    before = snapshot(tmp_path)
    code, _, errors = sgdph(*one)
    assert code == 2
    for word in ("--resume", "--overwrite", "--out"):
        assert word in errors
    assert snapshot(tmp_path) == before
    code, _, _ = sgdph(*one, "--seeds", "5", "--overwrite")
    assert code == 0
    # The runs of the earlier seeds are gone. Otherwise they would appear in the new table.
    assert not (tmp_path / "sgdm-seed1").exists()
    assert [path.name for path in (tmp_path / "sgdm-seed0").iterdir()] == ["notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "sgdm-seed5" / "last.pt").exists()


@pytest.mark.usefixtures("without_pictures")
def test_a_diverging_run_does_not_stop_a_comparison(sgdph: Command, tmp_path: Path) -> None:
    rates = ["--lr", "sgdm=1e30,sgdph=0.01", "--epochs", "1"]
    code, said, _ = sgdph(*COMPARE, *rates, "--out", tmp_path)
    assert code == 0
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [(row["n"], row["diverged"]) for row in rows] == [("0", "2"), ("2", "0")]
    assert "diverged" in said
    code, said, _ = sgdph("compare", "--out", tmp_path, "--resume")
    assert code == 0
    assert "sgdm-seed0: kept; diverged" in said


def test_compare_checks_the_settings_of_all_runs_first(sgdph: Command, tmp_path: Path) -> None:
    code, _, errors = sgdph(*COMPARE, "--eps", "-1", "--out", tmp_path / "all")
    assert code == 2
    assert "sgdph cannot use its settings" in errors
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize("content", ["{muon: {lr: 0.1}}", "{muon: {lr: 0.1}, sgdm: {}}"])
def test_compare_with_a_settings_file_without_an_effect_is_an_error(
    sgdph: Command, tmp_path: Path, content: str
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(f"format: sgdph-settings-1\noptimizers: {content}\n")
    code, _, errors = sgdph(*COMPARE, "--settings", file, "--out", tmp_path / "all")
    assert code == 2
    assert f"no effect on this comparison: {file} has no settings of sgdm, sgdph;" in errors
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--optimizer", "adamw", "--momentum", "0.5"], "sgdph, sgdm, muon"),
        (["train", "--dataset", "cifar10"], "needs --data-dir"),
        (["train", "--epochs", "0"], "epochs must be at least 1"),
        (["train", "--resume", "--overwrite"], "contradict"),
        (["compare", "--optimizers", "sgdm", "--eps", "0.1"], "none of sgdm has the setting --eps"),
        (["compare", "--seeds", "2-0"], "whose end is before its start"),
        (["compare", "--lr", "adamw=0.1"], "names adamw"),
    ],
)
def test_the_error_on_wrong_usage_says_what_to_do(
    sgdph: Command, tmp_path: Path, arguments: list[str], message: str
) -> None:
    code, _, errors = sgdph(*arguments, "--out", tmp_path / "run")
    assert code == 2
    assert message in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "compare", "tune", "report"])
def test_an_out_that_cannot_be_made_is_an_error(
    sgdph: Command, tmp_path: Path, command: str
) -> None:
    (tmp_path / "file").touch()
    out = ["--out", tmp_path / "file" / "run"]
    small = {
        "train": [*SMALL, "--epochs=1"],
        "compare": [*SMALL, "--epochs=1", "--optimizers=sgdm", "--seeds=0"],
        "tune": [*SMALL, "--epochs=1", "--optimizers=sgdm", "--trials=1"],
        "report": [tmp_path],
    }[command]
    if command == "report":
        sgdph("train", *SMALL, "--epochs=1", "--optimizer=sgdm", "--out", tmp_path / "old")
    code, _, errors = sgdph(command, *small, *out)
    assert code == 2
    assert "Not a directory" in errors
    assert str(tmp_path / "file") in errors


def test_threads_sets_torchs_threads_and_is_recorded(sgdph: Command, tmp_path: Path) -> None:
    sgdph("train", *SMALL, "--epochs=1", "--threads=2", "--optimizer=sgdm", "--out", tmp_path)
    assert torch.get_num_threads() == 2
    assert RunDirectory(tmp_path).read_env()["threads"] == 2
