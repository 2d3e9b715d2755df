"""What all pictures share."""

import pytest

from sgdph.lab.reports.plots import new_figure, title_figure, title_panel

TASK = "mnist5k, 800 training and 200 validation images, resnet8, 12 epochs "


@pytest.mark.parametrize("title", [TASK * 2, "What a step costs\n" + TASK * 2])
@pytest.mark.parametrize("width", [5.8, 12.0])
def test_a_title_lies_within_its_figure(width: float, title: str) -> None:
    figure = new_figure(width, 5.0)
    title_figure(figure, title)
    figure.canvas.draw()
    box = figure._suptitle.get_window_extent()
    assert figure.bbox.x0 < box.x0
    assert box.x1 < figure.bbox.x1


def test_a_line_of_its_own_stays_one() -> None:
    figure = new_figure(12.0, 5.0)
    title_figure(figure, "What a step costs\nresnet8")
    assert figure._suptitle.get_text() == "What a step costs\nresnet8"


def test_the_titles_of_panels_do_not_overlap() -> None:
    figure = new_figure(8.4, 4.0)
    panels = figure.subplots(1, 2)
    for axes in panels:
        title_panel(axes, TASK, 4.2)
    figure.canvas.draw()
    left, right = (axes.title.get_window_extent() for axes in panels)
    assert left.x1 < right.x0
