"""The common parts of all pictures."""

from pathlib import Path

import pytest

from lab.conftest import tiny_config
from lab.made_runs import write_run
from sgdph.lab.reports.curves import end_axis
from sgdph.lab.reports.figure import figure, legend_below, make_panels, new_figure, title_panel
from sgdph.lab.run.records import group_runs, read_runs

TASK = "mnist5k, 800 training and 200 validation images, resnet8, 12 epochs "


@pytest.mark.parametrize("title", [TASK * 2, "What a step costs\n" + TASK * 2])
@pytest.mark.parametrize("width", [5.8, 12.0])
def test_a_title_fits_in_its_figure(width: float, title: str) -> None:
    made = new_figure(width, 5.0, title)
    made.canvas.draw()
    box = made._suptitle.get_window_extent()
    assert made.bbox.x0 < box.x0
    assert box.x1 < made.bbox.x1


def test_a_line_break_in_a_title_is_kept() -> None:
    made = new_figure(12.0, 5.0, "What a step costs\nresnet8")
    assert made._suptitle.get_text() == "What a step costs\nresnet8"


@pytest.mark.parametrize("text", ["cost $5 vs $10", r"$\unknown{$", "$x_1$", r"\$5"])
def test_dollar_signs_are_not_read_as_formulas(tmp_path: Path, text: str) -> None:
    for k, seconds in enumerate((1.0, 1.0, 99.0)):
        write_run(tmp_path / str(k), tiny_config(lr=0.1 + k), [0.5], seconds=[seconds])
    made = new_figure(12.0, 5.0, text)
    (axes,) = make_panels(made, 1, 1)
    title_panel(axes, text, 12.0)
    axes.plot([1, 2], label=text)
    axes.set_yscale("log")
    groups = group_runs(read_runs([tmp_path]).records)
    end_axis(axes, {f"{text} {k}": group for k, group in enumerate(groups)})
    legend_below(made)
    made.canvas.draw()
    texts = [made._suptitle, axes.title, *axes.texts, *made.legends[0].get_texts()]
    assert len(texts) == 4
    for each in texts:
        shown, formula = each._preprocess_math(each.get_text())
        assert text in shown
        assert formula is False


def test_panel_titles_do_not_overlap() -> None:
    made = new_figure(8.4, 4.0, "")
    panels = make_panels(made, 2, 2)
    for axes in panels:
        title_panel(axes, TASK, 4.2)
    made.canvas.draw()
    left, right = (axes.title.get_window_extent() for axes in panels)
    assert left.x1 < right.x0


@pytest.mark.parametrize("width", [4.0, 6.0])
def test_no_legend_is_cut_off(width: float) -> None:
    made = new_figure(width, 3.0, "a title")
    (axes,) = make_panels(made, 1, 1)
    for k in range(14):
        axes.plot([k], label=f"a system with a long name, interval 10, number {k}")
    legend_below(made)
    made.canvas.draw()
    box = made.legends[0].get_window_extent()
    assert box.x0 > -1
    assert box.x1 < made.bbox.width + 1
    assert box.y0 >= 0
    # The panel keeps its height.
    assert axes.get_window_extent().height / made.dpi > 2


def test_a_figure_has_the_common_style_and_is_not_written_on_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with figure(path, 5.0, 3.0, "a title") as made:
        for axes, label in zip(make_panels(made, 3, 2), "bab", strict=True):
            axes.plot([1, 2], label=label)
            assert not axes.spines["top"].get_visible()
            assert axes.get_xgridlines()[0].get_visible()
        legend_below(made, order="abc")
    assert [text.get_text() for text in made.legends[0].get_texts()] == ["a", "b"]
    assert [axes.get_visible() for axes in made.axes] == [True, True, True, False]
    assert path.read_bytes().startswith(b"\x89PNG")
    before = path.read_bytes()
    with pytest.raises(KeyError), figure(path, 1.0, 1.0, ""):
        raise KeyError
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
