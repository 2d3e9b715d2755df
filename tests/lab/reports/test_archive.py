"""Runs that are archived in two files give the same report as their directories."""

import csv
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lab.conftest import snapshot, tiny_config
from lab.folders import check_folder
from lab.made_runs import lay_down, write_run
from sgdph.lab.cli import main
from sgdph.lab.errors import LabError
from sgdph.lab.reports.folder import TABLE, TEXT
from sgdph.lab.reports.layout import saved_layout
from sgdph.lab.reports.report import TARGETS
from sgdph.lab.run.archive import EPOCHS, RUNS, ArchivedRun, read_archive, write_archive
from sgdph.lab.run.records import read_run, read_runs

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.usefixtures("without_pictures")


def lay_down_all(directory: Path) -> list[Path]:
    """Write runs with all kinds of statuses, labels, paths and values, one without an epoch."""
    runs = [lay_down(directory, "sgdm", seed, 0.8 + seed / 7) for seed in range(2)]
    runs += [lay_down(directory / "τ", "sgdph", 0, 0.1 + 0.2, label="SGD-PH, τ, tuned")]
    runs += [lay_down(directory, "sgdm", 2, None, status="diverged")]
    runs += [lay_down(directory, "adamw", 0, 0.7, validation_size=10)]
    config = tiny_config(
        optimizer="apollo", lr=1e-08, optimizer_args=(("beta", 1e-9), ("rebound", "belief"))
    )
    runs += [write_run(directory / "begun", config, [], status="running")]
    with (runs[2] / "metrics.jsonl").open("a") as file:
        line = {"epoch": 3, "train_loss": 5e-324, "test_accuracy": 1, "reached": None, "ok": True}
        file.write(json.dumps({**line, "newton_multiplier": {"min": 1 / 3, "refreshed": 2}}) + "\n")
    summary = json.loads((runs[2] / "summary.json").read_text())
    summary |= {"epochs": 3, "final_test_accuracy": 1}
    (runs[2] / "summary.json").write_text(json.dumps(summary))
    return runs


def archive(runs: Path, out: Path) -> None:
    assert main(["report", str(runs), "--out", str(out), "--archive"]) == 0


def test_an_archive_holds_everything_from_the_directories(tmp_path: Path) -> None:
    runs = lay_down_all(tmp_path / "runs")
    out = tmp_path / "kept"
    archive(tmp_path / "runs", out)
    found = {out / run.name: run for run in read_archive(out)}
    assert len(found) == len(runs)
    for path in runs:
        record, kept = read_run(path), found[out / path.relative_to(tmp_path / "runs")]
        assert kept.config == record.config
        for one, other in (
            (kept.summary, record.summary),
            (kept.metrics, record.metrics),
            (kept.env, record.env),
        ):
            # Compared as text, because 1, 1.0 and True are equal.
            assert json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    with (out / EPOCHS).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows].count("diverged") == 2
    assert {row["system"] for row in rows} == {"sgdm", "SGD-PH, τ, tuned", "adamw"}
    assert [row["test_accuracy"] for row in rows if row["epoch"] == "2" and "τ" in row["run"]] == [
        repr(0.1 + 0.2)
    ]


def test_a_report_of_an_archive_equals_that_of_the_directories(tmp_path: Path) -> None:
    lay_down_all(tmp_path / "runs")
    layout = "layout:\n  title: Mine\n  rows: [lr]\n  columns: [dataset]\n"
    (tmp_path / "runs" / "sweep.yaml").write_text(layout)
    out, again = tmp_path / "kept", tmp_path / "again"
    archive(tmp_path / "runs", out)
    assert saved_layout(out) == saved_layout(tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs")
    first = {name: (out / name).read_text() for name in (EPOCHS, RUNS)}
    archive(out, again)
    assert {name: (again / name).read_text() for name in first} == first
    for name in (TABLE, TARGETS):
        assert (again / name).read_text() == (out / name).read_text()
    check_folder(again)
    page = (again / TEXT).read_text()
    assert "# Mine" in page
    # The runs are named without a link, because their directories are gone.
    assert "| ../kept/sgdm-seed0 | 0 | finished | 80.00 |" in page


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux alone")
def test_an_archive_holds_paths_that_are_not_utf8_and_any_character(tmp_path: Path) -> None:
    place = os.fsdecode(b"caf\xe9")
    data = {"data_dir": f"/τ/😀\\{place}", "label": "SGDM, τ, 😀"}
    lay_down(tmp_path / "runs" / place, "sgdm", 0, 0.8, **data)
    archive(tmp_path / "runs", tmp_path / "kept")
    assert "/τ/😀" in (tmp_path / "kept" / RUNS).read_text(encoding="utf-8")
    (record,) = read_runs([tmp_path / "kept"]).records
    assert (record.config.data_dir, record.config.label) == (data["data_dir"], data["label"])
    assert record.path.name == "sgdm-seed0"
    assert len(record.metrics) == 2


@pytest.mark.parametrize("break_", ["\u2028", "\u2029", "\u0085", "\x0b", "\x1c", "\n", "\r\n"])
def test_an_archive_holds_labels_with_any_line_break(tmp_path: Path, break_: str) -> None:
    run = read_run(lay_down(tmp_path / "runs", "sgdm", 0, 0.8))
    label = f"a{break_}b {break_} c{break_}"
    config = replace(run.config, label=label)
    write_archive(tmp_path, [ArchivedRun(label, config, run.summary, run.metrics, run.env)])
    (kept,) = read_archive(tmp_path)
    assert (kept.name, kept.config, kept.metrics) == (label, config, run.metrics)


def test_the_error_on_a_torn_archive_names_its_file(tmp_path: Path) -> None:
    lay_down(tmp_path / "runs", "sgdm", 0, 0.8)
    archive(tmp_path / "runs", tmp_path / "kept")
    path = tmp_path / "kept" / RUNS
    whole = path.read_text()
    path.write_text(whole[:-9])
    with pytest.raises(LabError, match=r"^\S*runs.jsonl cannot be read: .*write it again from"):
        saved_layout(tmp_path / "kept")
    path.write_text(whole.replace('"rows": ["system"]', '"rows": ["mood"]'))
    with pytest.raises(LabError, match=r"the layout in \S*runs.jsonl .*correct it under 'layout'"):
        saved_layout(tmp_path / "kept")


def test_a_run_in_an_archive_and_a_directory_is_counted_once(tmp_path: Path) -> None:
    lay_down_all(tmp_path / "runs")
    archive(tmp_path / "runs", tmp_path / "kept")
    for name in (EPOCHS, RUNS):
        shutil.copy(tmp_path / "kept" / name, tmp_path / "runs")
    shutil.rmtree(tmp_path / "runs" / "sgdm-seed0")
    runs = read_runs([tmp_path / "runs"])
    assert len(runs.records) == 6
    assert not runs.duplicates


def test_relative_and_absolute_paths_may_be_archived_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_down(tmp_path / "one", "sgdm", 0, 0.8)
    lay_down(tmp_path / "two", "sgdm", 1, 0.9)
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "kept"
    assert main(["report", "one", str(tmp_path / "two"), "--out", str(out), "--archive"]) == 0
    names = sorted(run.name for run in read_archive(out))
    assert names == ["one/sgdm-seed0", "two/sgdm-seed1"]


def test_an_archive_in_the_directory_of_the_runs_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_down(tmp_path / "runs", "sgdm", 0, 0.8)
    assert main(["report", str(tmp_path / "runs"), "--archive"]) == 2
    assert "name another --out" in capsys.readouterr().err
    assert not (tmp_path / "runs" / RUNS).exists()


def test_an_archive_of_other_runs_is_not_left_beside_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_down(tmp_path / "a", "sgdm", 0, 0.8)
    lay_down(tmp_path / "b", "sgdph", 0, 0.9)
    one, other, out = tmp_path / "a", tmp_path / "b", tmp_path / "kept"
    archive(one, out)
    before = snapshot(out)
    for paths in ([one, other], [other], [out, other]):
        assert main(["report", *map(str, paths), "--out", str(out)]) == 2
        assert "holds an archive of other runs (runs.csv, runs.jsonl)" in capsys.readouterr().err
        assert snapshot(out) == before
    # The same runs, from their directories and from the archive.
    for path in (one, out):
        assert main(["report", str(path), "--out", str(out)]) == 0
    (one / "sgdm-seed0" / "env.json").write_text("{}")
    assert main(["report", str(one), "--out", str(out)]) == 2
    assert main(["report", str(one), str(other), "--out", str(out), "--archive"]) == 0
    assert len(read_archive(out)) == 2


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        (RUNS, "sgdph-runs-1", "sgdph-runs-9", "expected the format sgdph-runs-1"),
        (RUNS, '"config"', '"konfig"', "lacks 'config'"),
        (RUNS, "finished", 'finished"', "cannot be read"),
        (RUNS, '"optimizer": "sgdm"', '"optimizer": "sdgm"', "line 2 of"),
        (RUNS, "final_test_accuracy", "other", "no number for final_test_accuracy"),
        (RUNS, '"sgdm-seed0"', '"elsewhere"', "lacks the runs sgdm-seed0"),
        (RUNS, '"epochs": 2', '"epochs": 3', "must have 3 lines, but 2 can be read"),
        (RUNS, '"final_test_accuracy": 0.8', '"final_test_accuracy": 0.9', "but has 0.8"),
        (EPOCHS, "run,system", "system", "cannot be read"),
        (EPOCHS, "finished,1,", "finished,one,", "cannot be read"),
        (EPOCHS, "finished,1,", "finished,1,1,1,1,1,1,", "cannot be read"),
        (EPOCHS, "train_loss", "loss", "lacks epoch, train_loss"),
    ],
)
def test_the_error_on_a_damaged_archive_gives_the_reason(
    tmp_path: Path, file: str, old: str, new: str, reason: str
) -> None:
    lay_down(tmp_path / "runs", "sgdm", 0, 0.8)
    archive(tmp_path / "runs", tmp_path / "kept")
    path = tmp_path / "kept" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(LabError, match="no run that can be read") as error:
        read_runs([tmp_path / "kept"])
    assert reason in str(error.value)
