from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from sgdph.lab.plots import COLOURS, draw_band, legend
from sgdph.lab.records import group_runs, load_runs

from .test_report import lay_down


def test_a_line_is_the_mean_and_its_band_the_range_of_the_finished_runs(tmp_path: Path) -> None:
    for seed, final in enumerate((0.7, 0.8, 0.6)):
        lay_down(tmp_path, "sgdm", seed, final)
    lay_down(tmp_path, "sgdm", 3, None, status="diverged")
    (group,) = group_runs(load_runs(tmp_path))
    axes = Figure().subplots()
    draw_band(axes, group, "test_accuracy", 100.0, 0)
    (line,) = axes.get_lines()
    assert np.asarray(line.get_xdata()).tolist() == [1, 2]
    assert np.asarray(line.get_ydata()).tolist() == pytest.approx([50, 70])
    (band,) = axes.collections
    heights = np.asarray(band.get_paths()[0].vertices)[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((50, 80))
    assert line.get_label() == legend(group) == "sgdm, n = 3 (1 diverged)"


def test_the_colours_are_all_different() -> None:
    assert len(set(COLOURS)) == len(COLOURS)
