from pathlib import Path

import pytest

from lab.made_runs import lay_down
from sgdph.lab.reports.sensitivity import Line, Surface, find_sensitivity
from sgdph.lab.reports.sensitivity_pictures import _colours, _is_map, draw_lines, draw_surfaces

from .test_grid import grid_of


def found(path: Path) -> tuple[list[Surface], list[Line]]:
    return find_sensitivity(grid_of(path))


def test_two_varying_numbers_make_a_surface(tmp_path: Path) -> None:
    for lr, decay, final in ((0.1, 1e-3, 0.8), (0.1, 1e-2, 0.7), (0.01, 1e-3, 0.6)):
        for seed in range(2):
            name = f"-{lr}-{decay}"
            final += 0.02 * seed
            lay_down(tmp_path, "sgdm", seed, final, name=name, lr=lr, weight_decay=decay)
    bad = {"lr": 0.01, "weight_decay": 1e-2}
    lay_down(tmp_path, "sgdm", 5, None, status="diverged", **bad)
    (surface,), lines = found(tmp_path)
    assert not lines
    assert (surface.title, surface.x, surface.y) == (
        "SGDM, digits, ResNet8",
        "lr",
        "weight decay",
    )
    points = {(point.x, point.y): point for point in surface.points}
    assert set(points) == {(0.1, 1e-3), (0.1, 1e-2), (0.01, 1e-3), (0.01, 1e-2)}
    assert points[0.1, 1e-3].accuracy.mean == pytest.approx(0.81)
    assert points[0.1, 1e-3].accuracy.n == 2
    assert (points[0.01, 1e-2].accuracy.mean, points[0.01, 1e-2].diverged) == (None, 1)
    assert _is_map(surface)
    draw_surfaces([surface], tmp_path / "map.png", "a title")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_settings_that_do_not_fill_a_grid_are_not_a_map(tmp_path: Path) -> None:
    for k in range(4):
        options = {"lr": 0.1 / (k + 1), "weight_decay": 0.0 if k == 3 else 0.001 * (k + 1)}
        lay_down(tmp_path, "sgdm", 0, 0.5 + k / 10, name=str(k), **options)
    (surface,), _ = found(tmp_path)
    assert not _is_map(surface)
    draw_surfaces([surface, surface], tmp_path / "points.png", "a title")
    assert (tmp_path / "points.png").exists()


def test_systems_with_the_same_shown_name_have_lines_of_their_own(tmp_path: Path) -> None:
    for label in (None, "SGDM"):
        for size in (25, 50):
            name = f"{label}{size}"
            lay_down(tmp_path, "sgdm", 0, size / 100, name=name, label=label, batch_size=size)
    _, lines = found(tmp_path)
    assert [line.name for line in lines] == ["SGDM (without a label)", "SGDM (label SGDM)"]


def test_one_varying_number_makes_a_line_per_system_and_task(tmp_path: Path) -> None:
    for size in (50, 25):
        for optimizer in ("sgdm", "sgdph"):
            lay_down(tmp_path, optimizer, 0, size / 100, name=str(size), batch_size=size)
        lay_down(tmp_path, "sgdm", 1, 0.3, name=f"v{size}", batch_size=size, model="vgg11")
    surfaces, lines = found(tmp_path)
    assert not surfaces
    assert [(line.panel, line.name, line.x) for line in lines] == [
        ("digits, ResNet8", "SGDM", "batch size"),
        ("digits, ResNet8", "SGD-PH", "batch size"),
        ("digits, VGG11", "SGDM", "batch size"),
    ]
    assert [(point.x, point.accuracy.mean) for point in lines[0].points] == [(25, 0.25), (50, 0.5)]
    draw_lines(lines, tmp_path / "lines.png", "a title")
    assert (tmp_path / "lines.png").read_bytes().startswith(b"\x89PNG")


def test_systems_that_differ_in_a_text_setting_have_separate_lines(tmp_path: Path) -> None:
    for tau in (0.1, 0.01):
        for estimator in ("row_sum", "hutchinson"):
            options = {"second_order_lr": tau, "estimator": estimator}
            lay_down(tmp_path, "sgdph", 0, 0.5, name=f"{tau}{estimator}", **options)
    names = [line.name for line in found(tmp_path)[1]]
    assert names == ["SGD-PH (estimator hutchinson)", "SGD-PH (estimator row_sum)"]


def test_runs_that_lack_a_setting_have_a_line_of_their_own(tmp_path: Path) -> None:
    for k, lr in enumerate((0.1, 0.2)):
        lay_down(tmp_path, "sgdm", 0, 0.5 + k / 10, name=str(lr), lr=lr)
        older = lay_down(tmp_path, "sgdm", 0, 0.7 + k / 10, name=f"older{lr}", lr=lr)
        config = (older / "config.yaml").read_text()
        assert "momentum: 0.9\n" in config
        (older / "config.yaml").write_text(config.replace("momentum: 0.9\n", ""))
    surfaces, lines = found(tmp_path)
    assert not surfaces
    means = {line.name: [point.accuracy.mean for point in line.points] for line in lines}
    assert means == {
        "SGDM": pytest.approx([0.5, 0.6]),
        "SGDM (momentum none)": pytest.approx([0.7, 0.8]),
    }
    assert {line.x for line in lines} == {"lr"}


def test_with_three_varying_numbers_a_line_varies_only_one(tmp_path: Path) -> None:
    centre = {"lr": 0.1, "weight_decay": 1e-3, "momentum": 0.9}
    others = [{"lr": 0.2}, {"lr": 0.4}, {"weight_decay": 0.01}, {"momentum": 0.8}]
    for k, change in enumerate([{}, *others]):
        lay_down(tmp_path, "sgdm", 0, 0.5, name=str(k), **{**centre, **change})
    surfaces, lines = found(tmp_path)
    assert not surfaces
    # Weight decay and momentum have only two values, so they have no line.
    assert [(line.x, line.name) for line in lines] == [
        ("lr", "SGDM at weight decay 0.001, momentum 0.9")
    ]
    assert [point.x for point in lines[0].points] == [0.1, 0.2, 0.4]


def test_settings_that_do_not_vary_within_a_task_are_not_drawn(tmp_path: Path) -> None:
    for seed in range(2):
        lay_down(tmp_path, "sgdm", seed, 0.5)
        lay_down(tmp_path, "sgdm", seed, 0.5, model="vgg11", name="v", lr=0.3)
    assert found(tmp_path) == ([], [])


def test_a_setting_that_fails_does_not_widen_the_colour_scale(tmp_path: Path) -> None:
    finals = (0.90, 0.91, 0.92, 0.93, 0.10)
    for k, final in enumerate(finals):
        options = {"lr": 0.1 * (1 + k % 3), "weight_decay": 0.01 * (1 + k // 3)}
        lay_down(tmp_path, "sgdm", 0, final, name=str(k), **options)
    (surface,), _ = found(tmp_path)
    scale = _colours(surface.points).norm
    # The scale starts below the best, by three times the distance from the best to the median, 91.
    assert (scale.vmin, scale.vmax) == pytest.approx((87, 93))
