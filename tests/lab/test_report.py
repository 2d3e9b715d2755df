import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sgdph.lab.config import LabError, to_yaml
from sgdph.lab.records import group_runs, load_runs
from sgdph.lab.report import PLOT, REPORT, TABLE, verdict, write_report
from sgdph.lab.table import Spread, cells, to_csv

from .conftest import tiny_config


def lay_down(
    directory: Path,
    optimizer: str,
    seed: int,
    final: float | None,
    *,
    status: str = "finished",
    **options: Any,
) -> Path:
    """Write a run's directory by hand: two epochs, the best accuracy 0.01 above the last."""
    path = directory / f"{optimizer}-seed{seed}"
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(
        to_yaml(tiny_config(optimizer=optimizer, seed=seed, **options))
    )
    summary = {
        "status": status,
        "epochs": 2,
        "seconds": 3.0 + seed,
        "final_test_accuracy": final,
        "best_test_accuracy": None if final is None else final + 0.01,
        "best_epoch": 1,
        "final_train_loss": None if final is None else 1 - final,
        "train_images": 100,
        "test_images": 500,
    }
    (path / "summary.json").write_text(json.dumps(summary))
    (path / "env.json").write_text(json.dumps({"cpu": "a cpu", "command": "sgdph compare"}))
    lines = [
        {"epoch": epoch, "test_accuracy": accuracy, "train_loss": 1 - accuracy}
        for epoch, accuracy in ((1, 0.5), (2, final or 0.1))
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_mean_and_sample_deviation() -> None:
    spread = Spread.of([0.8, 0.9, 1.0])
    assert spread.mean == pytest.approx(0.9)
    assert spread.std == pytest.approx(0.1)
    assert spread.show(100, 2) == "90.00 ± 10.00"
    assert Spread.of([0.8]).show(100, 2) == "80.00 ± –"
    assert Spread.of([]).show(100, 2) == "–"


def test_the_table_is_of_the_directories_alone(tmp_path: Path) -> None:
    for seed, final in enumerate((0.8, 0.9, 1.0)):
        lay_down(tmp_path, "sgdph", seed, final)
    lay_down(tmp_path, "sgdm", 0, 0.7)
    (tmp_path / "notes").mkdir()
    headings, rows = cells(group_runs(load_runs(tmp_path)))
    assert headings[:4] == ["optimizer", "n", "final test accuracy, %", "best test accuracy, %"]
    assert rows == [
        ["sgdm", "1", "70.00 ± –", "71.00 ± –", "0.3000 ± –", "1.50 ± –"],
        ["sgdph", "3", "90.00 ± 10.00", "91.00 ± 10.00", "0.1000 ± 0.1000", "2.00 ± 0.50"],
    ]


def test_diverged_and_unfinished_runs_are_counted_and_kept_out(tmp_path: Path) -> None:
    lay_down(tmp_path, "sgdm", 0, 0.8)
    lay_down(tmp_path, "sgdm", 1, None, status="diverged")
    lay_down(tmp_path, "sgdm", 2, None, status="interrupted")
    (lay_down(tmp_path, "sgdm", 3, None) / "summary.json").unlink()
    groups = group_runs(load_runs(tmp_path))
    headings, rows = cells(groups)
    assert headings[-2:] == ["diverged", "unfinished"]
    assert rows[0][:3] == ["sgdm", "1", "80.00 ± –"]
    assert rows[0][-2:] == ["1", "2"]
    page = write_report(tmp_path) and (tmp_path / REPORT).read_text()
    assert "1 run(s) diverged" in page


def test_only_diverged_runs_still_make_a_report(tmp_path: Path) -> None:
    lay_down(tmp_path, "sgdm", 0, None, status="diverged")
    write_report(tmp_path)
    assert "| sgdm | 0 | – | – | – | – | 1 |" in (tmp_path / REPORT).read_text()


def test_the_csv_has_full_precision_and_gaps(tmp_path: Path) -> None:
    lay_down(tmp_path, "sgdm", 0, 0.123456789)
    (row,) = csv.DictReader(io.StringIO(to_csv(group_runs(load_runs(tmp_path)))))
    assert float(row["final_test_accuracy_mean"]) == 0.123456789
    assert row["final_test_accuracy_std"] == ""
    assert (row["n"], row["diverged"], row["unfinished"]) == ("1", "0", "0")


def test_a_tie_is_called_a_tie(tmp_path: Path) -> None:
    for seed in range(2):
        lay_down(tmp_path, "sgdm", seed, 0.90 + 0.02 * seed)
        lay_down(tmp_path, "sgdph", seed, 0.91 + 0.02 * seed)
    text = verdict(group_runs(load_runs(tmp_path)))
    assert text.startswith("A tie in final test accuracy between sgdph and sgdm")
    write_report(tmp_path)
    assert "**" not in (tmp_path / REPORT).read_text()


def test_a_difference_beyond_the_spread_is_said_with_its_limits(tmp_path: Path) -> None:
    for seed in range(2):
        lay_down(tmp_path, "sgdm", seed, 0.90 + 0.02 * seed)
        lay_down(tmp_path, "sgdph", seed, 0.95 + 0.02 * seed)
    text = verdict(group_runs(load_runs(tmp_path)))
    assert "sgdph lies above sgdm" in text
    assert "this task and these settings" in text


def test_single_seeds_are_not_compared(tmp_path: Path) -> None:
    lay_down(tmp_path, "sgdm", 0, 0.5)
    lay_down(tmp_path, "sgdph", 0, 0.9)
    assert "no comparison is drawn" in verdict(group_runs(load_runs(tmp_path)))


def test_runs_of_one_optimizer_with_other_settings_are_not_mixed(tmp_path: Path) -> None:
    lay_down(tmp_path, "sgdm", 0, 0.5, lr=0.1)
    lay_down(tmp_path, "sgdm", 1, 0.9, lr=0.2)
    labels = {group.label for group in group_runs(load_runs(tmp_path))}
    assert labels == {"sgdm (lr=0.1)", "sgdm (lr=0.2)"}


def test_runs_on_other_machines_are_of_one_group(tmp_path: Path) -> None:
    lay_down(tmp_path, "sgdm", 0, 0.5, threads=1)
    lay_down(tmp_path, "sgdm", 1, 0.9, threads=2, device="cuda")
    (group,) = group_runs(load_runs(tmp_path))
    assert len(group.finished) == 2


def test_the_page_the_table_and_the_picture(tmp_path: Path) -> None:
    first = tmp_path / "first"
    for seed in range(2):
        lay_down(first, "sgdm", seed, 0.8)
        lay_down(first, "sgdph", seed, 0.9)
    write_report(first)
    page = (first / REPORT).read_text()
    assert "digits, 100 training and 500 test images, resnet8; epochs 3, batch size 25" in page
    assert f"]({PLOT})" in page
    assert "second_order_lr 0.001" in page
    assert "[sgdph-seed1](sgdph-seed1/) | 1 | finished | 90.00 | 91.00 (1)" in page
    assert (first / PLOT).read_bytes().startswith(b"\x89PNG")
    # Moved elsewhere, the same directories give the same report.
    second = tmp_path / "second"
    shutil.copytree(first, second)
    for name in (REPORT, TABLE, PLOT):
        (second / name).unlink()
    write_report(second)
    assert (second / REPORT).read_text() == page
    assert (second / TABLE).read_text() == (first / TABLE).read_text()
    assert (second / PLOT).read_bytes() == (first / PLOT).read_bytes()


def test_nothing_to_report_is_said(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="holds no run"):
        write_report(tmp_path)
