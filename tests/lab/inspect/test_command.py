"""``sgdph inspect`` from the command line, in this process."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from lab.conftest import snapshot
from lab.folders import check_folder
from sgdph.lab.cli import main
from sgdph.lab.errors import LabError
from sgdph.lab.inspect import command, report
from sgdph.lab.inspect.figures import ERRORS
from sgdph.lab.inspect.options import quarters
from sgdph.lab.run.directory import RunDirectory

SMALL = (
    *("--dataset", "digits", "--train-size", "100", "--batch-size", "25", "--device", "cpu"),
    *("--threads", "1"),
)
TINY = ("--batches", "2", "--probes", "2", "--layers", "bn.weight,blocks.2.bn2.bias")
PNGS = ("shares.png", "errors.png", "multipliers.png", "blocks.png")

# All tests of this file run in one worker, so that the module's fixtures are made only once.
pytestmark = pytest.mark.xdist_group("inspect")


def inspect(*words: object) -> int:
    return main(["inspect", *map(str, words)])


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads((path / "inspect.json").read_text()))


def without_seconds(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k != "seconds"} for r in content["records"]]


@pytest.fixture
def blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write empty pictures, because drawing takes most of a report's time."""
    blank = dict.fromkeys(PNGS, lambda inspection, path: path.write_bytes(b""))
    monkeypatch.setattr(report, "DRAW", blank)


@pytest.fixture(scope="module")
def sgdm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train SGDM for 2 epochs, and keep the checkpoint of the start."""
    path = tmp_path_factory.mktemp("runs") / "sgdm"
    words = ("--epochs", "2", "--optimizer", "sgdm", "--keep-checkpoints", "0", "--out", path)
    assert main(["train", *SMALL, *map(str, words)]) == 0
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Make an inspection that trains its own run of 1 epoch; return its path and its output."""
    path, said = tmp_path_factory.mktemp("inspections") / "whole", io.StringIO()
    with contextlib.redirect_stdout(said):
        assert inspect(*SMALL, *TINY, "--epochs", "1", "--out", path) == 0
    return path, said.getvalue()


def test_inspect_trains_measures_and_writes_its_files(whole: tuple[Path, str]) -> None:
    tmp_path, said = whole
    for name in ("report.html", "table.csv", "inspect.json", *PNGS):
        assert str(tmp_path / name) in said
        assert (tmp_path / name).stat().st_size > 0
    content = read(tmp_path)
    assert [each["epoch"] for each in content["checkpoints"]] == [0, 1]
    records = content["records"]
    assert [(r["epoch"], r["name"]) for r in records] == [
        (epoch, name) for epoch in (0, 1) for name in ("bn.weight", "blocks.2.bn2.bias")
    ]
    for record in records:
        assert 0 < record["off_diagonal_share_batch"] <= 1
        assert set(ERRORS) <= set(record)
        assert (record["held_cosine"] is None) == (record["epoch"] == 0 or not record["refreshes"])
        fields = set(content["fields"]) | set(ERRORS)
        assert set(record) <= fields
    # Before the first step, nothing was visited. An epoch of four steps visits four parameters.
    assert [m["source"] for m in content["multipliers"]] == [
        "held" if m["refreshes"] else "unvisited" for m in content["multipliers"]
    ]
    assert sum(m["source"] == "held" for m in content["multipliers"]) == 4
    assert all(m["max"] == 1 for m in content["multipliers"] if m["source"] == "unvisited")
    count = len(content["plan"]["candidates"])
    assert f"At epoch 1, {count - 4} of {count} Newton parameters had no visit yet" in said
    # The 2B batches of 25 hold each of the 100 examples once.
    assert content["warnings"] == []
    assert "Warning" not in said
    assert len(content["plan"]["left_out"]) == len(content["plan"]["candidates"]) - 2
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == [record["name"] for record in records]
    assert float(rows[0]["row_sum_one_cosine"]) == records[0]["row_sum_one_cosine"]
    page = (tmp_path / "report.html").read_text()
    assert "hollow grey circle" in page
    check_folder(tmp_path)
    # The page opens offline: every picture is embedded, and nothing is fetched.
    assert page.count("data:image/png;base64,") == len(PNGS)
    assert not re.search(r"https?://|<script|<link|url\(|@import", page)
    assert not re.search(r'(src|href)="(?!data:)', page)


@pytest.mark.usefixtures("blank_pictures")
def test_only_overwrite_replaces_an_inspection_and_epoch_0_is_not_trained(
    tmp_path: Path, whole: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(whole[0], out)
    (out / "notes.txt").write_text("mine")
    words = (*SMALL, *TINY, "--checkpoints", "0", "--out", out)
    assert inspect(*words) == 2
    assert "already holds an inspection" in capsys.readouterr().err
    assert inspect(*words, "--overwrite") == 0
    assert {file.name for file in (out / "run").iterdir()} == {"config.yaml", "epoch-0.pt"}
    assert (out / "notes.txt").exists()
    assert [each["epoch"] for each in read(out)["checkpoints"]] == [0]


def test_overwriting_the_inspected_run_is_an_error(
    tmp_path: Path, whole: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(whole[0], out)
    before = snapshot(out)
    assert inspect("--run", out / "run", "--out", out, "--overwrite", "--batches", "3") == 2
    assert "the run that is to be inspected" in capsys.readouterr().err
    assert snapshot(out) == before


@pytest.mark.usefixtures("blank_pictures")
def test_resuming_an_inspection_gives_the_same_results(
    tmp_path: Path,
    whole: tuple[Path, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = (*SMALL, *TINY, "--epochs", "1")
    measured: list[int] = []
    measure = command.measure_checkpoint

    def counted(*arguments: Any) -> Any:
        if measured == [0]:
            measured.append(-1)
            raise KeyboardInterrupt
        figures = measure(*arguments)
        measured.append(figures.epoch)
        return figures

    monkeypatch.setattr(command, "measure_checkpoint", counted)
    broken = tmp_path / "broken"
    assert inspect(*words, "--out", broken) == 130
    assert f"sgdph inspect --out {broken} --resume" in capsys.readouterr().out
    assert (broken / "report.html").exists()
    assert inspect("--out", broken, "--resume", "--batches", "3") == 2
    assert "batches: it has 2, given 3" in capsys.readouterr().err
    assert inspect("--out", broken, "--resume", "--lr", "3") == 2
    assert "lr: the run has" in capsys.readouterr().err
    assert inspect("--out", broken, "--resume") == 0
    assert "epoch 0: kept" in capsys.readouterr().out
    assert measured == [0, -1, 1]
    assert without_seconds(read(broken)) == without_seconds(read(whole[0]))


def test_a_run_of_sgdm_has_all_results_but_the_held_average(
    tmp_path: Path, sgdm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file.name: file.read_bytes() for file in sgdm.iterdir()}
    assert inspect("--run", sgdm, *TINY, "--float64", "--out", tmp_path) == 0
    said = capsys.readouterr().out
    assert "No average was held" in said
    assert "sgdm has no Newton multipliers" in said
    content = read(tmp_path)
    assert [each["epoch"] for each in content["checkpoints"]] == [0, 2]
    for record in content["records"]:
        assert record["held_cosine"] is None
        assert record["row_sum_average_relative_error"] > 0
    assert {m["source"] for m in content["multipliers"]} == {"row_sum_average"}
    assert {file.name: file.read_bytes() for file in sgdm.iterdir()} == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--run", "nowhere"), "--run nowhere holds no run (no config.yaml)"),
        (
            ("--run", "RUN", "--checkpoints", "0,1"),
            "no checkpoint of epoch 1; it has those of epoch 0, 2",
        ),
        (("--run", "RUN", "--lr", "3"), "lr: the run has 0.1, given 3.0"),
        (("--run", "RUN", "--layers", "conv.*"), "--layers 'conv.*' fits no Newton parameter"),
        ((*SMALL, "--epochs", "2", "--checkpoints", "3"), "between 0 and the 2 epochs; got 3"),
        ((*SMALL, "--checkpoints", "last"), "--checkpoints must be epochs like 0,3,12"),
        ((*SMALL, "--batches", "0"), "--batches must be at least 1"),
        ((*SMALL, "--budget", "0"), "--budget must be above 0 seconds"),
        (("--resume",), "holds no inspection to resume"),
    ],
)
def test_a_wrong_option_is_one_message_and_writes_nothing(
    tmp_path: Path,
    sgdm: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
) -> None:
    out = tmp_path / "out"
    assert inspect(*(sgdm if word == "RUN" else word for word in words), "--out", out) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_resume_can_raise_a_budget_that_is_too_small(
    tmp_path: Path, sgdm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--run", sgdm, "--batches", "1", "--checkpoints", "0", "--out", tmp_path)
    assert inspect(*words, "--budget", "1e-9") == 2
    assert "no block fits --budget 1e-09 s: the quickest, " in capsys.readouterr().err
    layer = ("--budget", "99", "--layers", "bn.bias")
    assert inspect("--out", tmp_path, "--resume", *layer) == 0
    assert [record["name"] for record in read(tmp_path)["records"]] == ["bn.bias"]
    said = capsys.readouterr().out
    assert "one makes the estimates, the other the reference" in " ".join(said.split())
    assert not re.search(r"\b1 (visits|batches)", said)


def test_default_checkpoints_are_start_quarter_half_and_end() -> None:
    assert quarters(12) == (0, 3, 6, 12)
    assert quarters(1) == (0, 1)


@pytest.mark.usefixtures("blank_pictures")
def test_resume_after_the_run_was_changed_is_an_error(
    tmp_path: Path, sgdm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(sgdm, run)
    words = ("--batches", "1", "--probes", "1", "--layers", "bn.bias", "--checkpoints", "0")
    assert inspect("--run", run, *words, "--out", out) == 0
    before = (out / "inspect.json").read_bytes()
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("lr: 0.1", "lr: 0.2").replace("cpu", "auto"))
    capsys.readouterr()
    assert inspect("--out", out, "--resume") == 2
    said = capsys.readouterr().err
    assert "lr: 0.1 in the inspection, 0.2 in the run" in said
    assert "--overwrite" in said
    assert "device" not in said
    config.unlink()
    assert inspect("--out", out, "--resume") == 2
    assert "is no longer in" in capsys.readouterr().err
    assert (out / "inspect.json").read_bytes() == before


def test_a_run_that_diverges_before_any_checkpoint_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*SMALL, *TINY, "--epochs", "2", "--lr", "1e30", "--optimizer", "sgdm")
    assert inspect(*words, "--checkpoints", "1,2", "--out", tmp_path) == 2
    said = capsys.readouterr().err
    assert "diverged after epoch 0, before any checkpoint that was asked for (1, 2)" in said
    assert "it has none" in said
    run = RunDirectory(tmp_path / "run")
    assert command.reached(run, [1], [1, 2]) == (1,)
    with pytest.raises(LabError, match=r"it has those of epoch 1\. inspect them with --run"):
        command.reached(run, [1], [2])


def test_batches_that_share_examples_and_controls_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--optimizer", "sgdph-fixed10", "--checkpoints", "0", "--layers", "bn.bias")
    assert inspect(*SMALL, *words, "--batches", "3", "--probes", "1", "--out", tmp_path) == 0
    said = " ".join(capsys.readouterr().out.split())
    warning = "the batches hold 150 examples, but there are only 100 to train on"
    content = read(tmp_path)
    (recorded,) = content["warnings"]
    assert warning in recorded
    assert warning in said
    assert warning in (tmp_path / "report.html").read_text()
    assert {(m["source"], m["median"]) for m in content["multipliers"]} == {("control", 10)}
    assert "sgdph-fixed10 is a control: its multipliers are its own" in said
