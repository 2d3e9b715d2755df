from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from lab.conftest import tiny_config
from lab.made_runs import lay_down, write_run
from sgdph.lab.reports.curves import (
    MOST,
    accuracy_percent,
    band_over_epochs,
    band_over_seconds,
    chosen_rows,
    draw_band,
    dress,
    end_axis,
    legend_names,
)
from sgdph.lab.reports.styles import COLOURS, line_style, style_places
from sgdph.lab.run.records import Group, group_runs, read_runs

from .test_grid import grid_of


def group_of(path: Path) -> Group:
    (group,) = group_runs(read_runs([path]).records)
    return group


def test_a_line_is_the_mean_and_its_band_the_range_of_the_finished_runs(tmp_path: Path) -> None:
    for seed, final in enumerate((0.7, 0.8, 0.6)):
        lay_down(tmp_path, "sgdm", seed, final)
    lay_down(tmp_path, "sgdm", 3, None, status="diverged")
    axes = Figure().subplots()
    draw_band(axes, group_of(tmp_path), "accuracy", "epochs", 0)
    (line,) = axes.get_lines()
    assert np.asarray(line.get_xdata()).tolist() == [1, 2]
    assert np.asarray(line.get_ydata()).tolist() == pytest.approx([50, 70])
    (band,) = axes.collections
    heights = np.asarray(band.get_paths()[0].vertices)[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((50, 80))
    assert legend_names(grid_of(tmp_path), [0]) == {0: "SGDM, n = 3 (1 diverged)"}


def test_the_axis_of_a_single_epoch_has_one_tick(tmp_path: Path) -> None:
    write_run(tmp_path / "a", tiny_config(), [0.1])
    axes = Figure().subplots()
    draw_band(axes, group_of(tmp_path), "accuracy", "epochs", 0)
    dress(axes, "accuracy", "epochs", "test")
    low, high = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


def test_the_band_over_epochs_ends_with_the_shortest_run(tmp_path: Path) -> None:
    write_run(tmp_path / "a", tiny_config(seed=0), [0.1, 0.2, 0.3])
    write_run(tmp_path / "b", tiny_config(seed=1), [0.3, 0.4])
    band = band_over_epochs(group_of(tmp_path).finished, accuracy_percent)
    assert band is not None
    assert band.places.tolist() == [1, 2]
    assert band.mean.tolist() == pytest.approx([20, 30])


def test_the_band_over_seconds_by_hand(tmp_path: Path) -> None:
    # Epochs end at 1, 3, 5 s and at 2, 6, 10 s.
    write_run(tmp_path / "a", tiny_config(seed=0), [0.1, 0.5, 0.9], seconds=[1, 2, 2])
    write_run(tmp_path / "b", tiny_config(seed=1), [0.2, 0.6, 0.8], seconds=[2, 4, 4])
    band = band_over_seconds(group_of(tmp_path).finished, accuracy_percent)
    assert band is not None
    # Before 2 s, the second run has no epoch. After 5 s, the first run stays at 90.
    first = [30, 50, 90, 90, 90]
    second = [20, 30, 50, 60, 80]
    assert band.places.tolist() == [2, 3, 5, 6, 10]
    assert band.mean.tolist() == pytest.approx(
        [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    )
    assert band.lowest.tolist() == pytest.approx(list(map(min, first, second)))
    assert band.highest.tolist() == pytest.approx(list(map(max, first, second)))


def test_no_curve_without_epochs(tmp_path: Path) -> None:
    lay_down(tmp_path, "sgdm", 0, 0.5)
    (run,) = group_of(tmp_path).finished
    group = Group(run.config, (replace(run, metrics=[]),))
    assert band_over_epochs(group.finished, accuracy_percent) is None
    assert band_over_seconds(group.finished, accuracy_percent) is None
    axes = Figure().subplots()
    draw_band(axes, group, "loss", "seconds", 0)
    assert not axes.get_lines()


def test_no_two_systems_of_a_picture_look_alike() -> None:
    styles = [line_style(index) for index in range(2 * MOST)]
    assert len({style["color"] for style in styles[:MOST]}) == MOST == len(set(COLOURS))
    # Without colour, dashes and filled or hollow markers still distinguish the lines.
    shapes = [(s["linestyle"], s["marker"], s["markerfacecolor"] == "white") for s in styles]
    assert len(set(shapes[:MOST])) == MOST
    assert len({tuple(map(str, style.values())) for style in styles}) == 2 * MOST


def test_method_and_baseline_look_the_same_in_every_picture() -> None:
    assert style_places(["sgdm", "sgdph", "sgdph", "adam"]) == [0, 1, 2, 3]
    assert style_places(["adam", "sgdph", "sgdm", "sgdph"]) == [2, 1, 0, 3]
    assert style_places(["adam", "sgdph"]) == [2, 1]


def test_the_seconds_axis_ends_at_twice_the_median_and_names_longer_runs(tmp_path: Path) -> None:
    for k, seconds in enumerate((10.0, 12.0, 100.0)):
        config = tiny_config(label=f"system {k}")
        write_run(tmp_path / str(k), config, [0.1, 0.2], seconds=[seconds / 2] * 2)
    groups = {
        group.config.label or "": group for group in group_runs(read_runs([tmp_path]).records)
    }
    axes = Figure().subplots()
    end_axis(axes, groups)
    assert 24 <= axes.get_xlim()[1] < 25
    (said,) = [text.get_text() for text in axes.texts]
    assert said.splitlines()[1:] == ["system 2: to 100 s"]


@pytest.mark.filterwarnings("error")
def test_an_axis_of_zero_seconds_is_not_changed(tmp_path: Path) -> None:
    write_run(tmp_path / "a", tiny_config(), [0.1, 0.2], seconds=[0.0, 0.0])
    axes = Figure().subplots()
    before = axes.get_xlim()
    end_axis(axes, {"a": group_of(tmp_path)})
    assert axes.get_xlim() == before


@pytest.mark.parametrize("fixed", [[], ["sgdm"], ["sgdph"], ["sgdm", "sgdph"]])
def test_no_colour_repeats_in_a_picture(fixed: list[str]) -> None:
    places = style_places([*fixed, *["adamw"] * (MOST - len(fixed))])
    assert len({line_style(place)["color"] for place in places}) == MOST


def test_of_too_many_rows_only_sgdm_sgdph_and_the_best_are_drawn(tmp_path: Path) -> None:
    for k in range(MOST + 2):
        # The first ones are the worst. Rows 0 and 1 are those of SGDM and SGD-PH.
        optimizer = {0: "sgdm", 1: "sgdph"}.get(k, "adamw")
        lay_down(tmp_path, optimizer, 0, 0.1 + k / 20, name=f"{k:02}", label=f"system {k:02}")
    assert chosen_rows(grid_of(tmp_path)) == [0, 1, *range(4, MOST + 2)]
