"""What all pictures share."""

import pytest

from sgdph.lab.plots import new_figure, title_figure


@pytest.mark.parametrize("width", [5.8, 12.0])
def test_a_title_lies_within_its_figure(width: float) -> None:
    figure = new_figure(width, 5.0)
    title_figure(figure, "mnist5k, 800 training and 200 validation images, resnet8, 12 epochs " * 2)
    figure.canvas.draw()
    box = figure._suptitle.get_window_extent()
    assert figure.bbox.x0 < box.x0
    assert box.x1 < figure.bbox.x1
