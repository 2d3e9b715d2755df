import csv
import io
from pathlib import Path

import pytest

from lab.conftest import tiny_config
from lab.made_runs import write_run
from sgdph.lab.errors import LabError
from sgdph.lab.reports.csv_tables import figures_table, targets_table
from sgdph.lab.reports.measures import choose_target, parse_targets, shown_target, time_to
from sgdph.lab.reports.tables import make_tables

from .test_grid import grid_of


def lay_down_three(path: Path) -> None:
    """Write three runs that reach 80% after epoch 2 and 5 s, after epoch 3 and 6 s, and never."""
    write_run(path / "a", tiny_config(seed=0), [0.5, 0.8, 0.7], seconds=[2, 3, 1])
    write_run(path / "b", tiny_config(seed=1), [0.5, 0.6, 0.9], seconds=[2, 2, 2])
    write_run(path / "c", tiny_config(seed=2), [0.1, 0.2, 0.3], seconds=[1, 1, 1])


def test_epochs_and_seconds_until_the_target_is_first_reached(tmp_path: Path) -> None:
    lay_down_three(tmp_path)
    write_run(tmp_path / "d", tiny_config(seed=3), [0.9], status="diverged")
    write_run(tmp_path / "e", tiny_config(seed=4), [0.9], status="running")
    write_run(tmp_path / "f", tiny_config(seed=5), [0.9], status="pruned")
    found = time_to(grid_of(tmp_path).groups[0], 0.8)
    assert (found.reached, found.runs) == (2, 4)
    assert found.epochs.mean == 2.5
    assert found.epochs.std == pytest.approx(0.5**0.5)
    assert sorted(found.seconds) == [5, 6]
    (row,) = csv.DictReader(io.StringIO(targets_table([grid_of(tmp_path)], [0.8]).csv()))
    assert (row["optimizer"], row["reached"], row["runs"]) == ("sgdph", "2", "4")
    assert (float(row["target"]), float(row["epochs_mean"])) == (0.8, 2.5)
    assert (float(row["seconds_mean"]), float(row["seconds_median"])) == (5.5, 5.5)
    assert (row["dataset"], row["model"], row["evaluated"]) == ("digits", "resnet8", "test")


@pytest.mark.parametrize("models", [["resnet8"], ["resnet8", "resnet20"]])
def test_seconds_are_medians_that_one_slow_run_does_not_change(
    tmp_path: Path, models: list[str]
) -> None:
    """Two runs take 2 and 3 s per epoch. A third, slowed by other work, takes 100 s per epoch."""
    for model in models:
        for seed, seconds in enumerate((2, 3, 100)):
            config = tiny_config(seed=seed, model=model)
            write_run(tmp_path / f"{model}-{seed}", config, [0.5, 0.8], seconds=[seconds] * 2)
    grid = grid_of(tmp_path)
    texts = [table.markdown() for table in make_tables(grid, [0.8])]
    assert any("3.00 (2.00 to 100.00)" in text for text in texts)
    assert any("6.0 (4.0 to 200.0)" in text for text in texts)
    assert not any("±" in text and "35.00" in text for text in texts)
    row = next(csv.DictReader(io.StringIO(figures_table([grid]).csv())))
    assert float(row["seconds_per_epoch_mean"]) == 35
    assert float(row["seconds_per_epoch_median"]) == 3


def test_a_target_that_is_never_reached_has_no_mean(tmp_path: Path) -> None:
    lay_down_three(tmp_path)
    found = time_to(grid_of(tmp_path).groups[0], 0.95)
    assert (found.reached, found.epochs.mean, found.seconds) == (0, None, ())


def test_the_default_target_is_99_percent_of_the_best_mean(tmp_path: Path) -> None:
    lay_down_three(tmp_path)
    write_run(tmp_path / "f", tiny_config(seed=0, optimizer="sgdm"), [0.9, 0.65])
    grid = grid_of(tmp_path)
    # (0.7 + 0.9 + 0.3) / 3 is less than 0.65.
    assert choose_target(grid, 0) == pytest.approx(0.99 * 0.65)
    assert shown_target(choose_target(grid, 0)) == "64.35%"


def test_without_a_finished_run_there_is_no_default_target(tmp_path: Path) -> None:
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
