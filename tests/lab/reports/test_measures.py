import csv
import io
from pathlib import Path

import pytest

from lab.conftest import tiny_config
from lab.made_runs import write_run
from sgdph.lab.errors import LabError
from sgdph.lab.reports.csv_tables import targets_table
from sgdph.lab.reports.measures import choose_target, parse_targets, shown_target, time_to

from .test_grid import grid_of


def lay_down_three(path: Path) -> None:
    """Reach 80% at the end of the second epoch after 5 s, of the third after 6 s, and never."""
    write_run(path / "a", tiny_config(seed=0), [0.5, 0.8, 0.7], seconds=[2, 3, 1])
    write_run(path / "b", tiny_config(seed=1), [0.5, 0.6, 0.9], seconds=[2, 2, 2])
    write_run(path / "c", tiny_config(seed=2), [0.1, 0.2, 0.3], seconds=[1, 1, 1])


def test_epochs_and_seconds_until_it_is_first_reached(tmp_path: Path) -> None:
    lay_down_three(tmp_path)
    write_run(tmp_path / "d", tiny_config(seed=3), [0.9], status="diverged")
    write_run(tmp_path / "e", tiny_config(seed=4), [0.9], status="running")
    write_run(tmp_path / "f", tiny_config(seed=5), [0.9], status="pruned")
    found = time_to(grid_of(tmp_path).groups[0], 0.8)
    assert (found.reached, found.runs) == (2, 4)
    assert found.epochs.mean == 2.5
    assert found.epochs.std == pytest.approx(0.5**0.5)
    assert found.seconds.mean == 5.5
    (row,) = csv.DictReader(io.StringIO(targets_table([grid_of(tmp_path)], [0.8]).csv()))
    assert (row["optimizer"], row["reached"], row["runs"]) == ("sgdph", "2", "4")
    assert (float(row["target"]), float(row["epochs_mean"])) == (0.8, 2.5)
    assert (row["dataset"], row["model"], row["evaluated"]) == ("digits", "resnet8", "test")


def test_never_reached_has_no_mean(tmp_path: Path) -> None:
    lay_down_three(tmp_path)
    found = time_to(grid_of(tmp_path).groups[0], 0.95)
    assert (found.reached, found.epochs.mean, found.seconds.mean) == (0, None, None)


def test_the_default_is_99_percent_of_the_best_mean(tmp_path: Path) -> None:
    lay_down_three(tmp_path)
    write_run(tmp_path / "f", tiny_config(seed=0, optimizer="sgdm"), [0.9, 0.65])
    grid = grid_of(tmp_path)
    # (0.7 + 0.9 + 0.3) / 3 is less than 0.65.
    assert choose_target(grid, 0) == pytest.approx(0.99 * 0.65)
    assert shown_target(choose_target(grid, 0)) == "64.35%"


def test_no_run_finished_no_target(tmp_path: Path) -> None:
    write_run(tmp_path / "d", tiny_config(), [0.9], status="diverged")
    assert choose_target(grid_of(tmp_path), 0) is None
    assert targets_table([grid_of(tmp_path)], []).csv() == "\n"


def test_targets_are_read_from_a_list() -> None:
    assert parse_targets("0.9, 0.95,0.9") == (0.9, 0.95)
    for text in ("90", "0", "-0.1", "nan"):
        with pytest.raises(LabError, match=r"0\.9 is 90%"):
            parse_targets(text)
    with pytest.raises(LabError, match=r"like 0\.9,0\.95"):
        parse_targets("high")
