"""Ranges, their text form, and grids."""

import math

import pytest

from sgdph.lab.errors import LabError
from sgdph.lab.optimizers.registry import BASELINES
from sgdph.lab.tune.page import widened
from sgdph.lab.tune.space import Range, default_space, grid, parse_space


@pytest.mark.parametrize("optimizer", BASELINES)
def test_every_optimizer_is_searched_over_equally_many_decades(optimizer: str) -> None:
    defaults = BASELINES[optimizer].defaults
    space = default_space(optimizer)
    newton = ["newton_lr"] if BASELINES[optimizer].first_order else []
    assert list(space) == ["lr", "weight_decay", *newton]
    for name, each in space.items():
        assert each.log
        assert math.log10(each.high / each.low) == pytest.approx(math.log10(900), abs=0.03)
        middle = math.sqrt(each.low * each.high)
        assert middle == pytest.approx(defaults[name] or 5e-4, rel=0.05)


def test_ranges_are_parsed_from_a_text() -> None:
    text = "sgdm.lr=1e-3:1:log, sgdph.eps=1e-5:1e-3,momentum=0.5:0.99,weight_decay=0:0.1:linear"
    assert parse_space(text, ("sgdm", "sgdph", "adamw")) == {
        "sgdm": {
            "lr": Range(1e-3, 1.0, True),
            "momentum": Range(0.5, 0.99, False),
            "weight_decay": Range(0.0, 0.1, False),
        },
        "sgdph": {
            "eps": Range(1e-5, 1e-3, True),
            "momentum": Range(0.5, 0.99, False),
            "weight_decay": Range(0.0, 0.1, False),
        },
        "adamw": {"weight_decay": Range(0.0, 0.1, False)},
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr", "must be like sgdm.lr=1e-3:1:log"),
        ("sgdm.lr=", "must be like"),
        ("sgdm.lr=0.1", "must be like"),
        ("sgdm.lr=a:b", "must be like"),
        ("sgdm.lr=1:2:cubic", "must be like"),
        ("sgdm.lr=1:2:log:3", "must be like"),
        ("sgdm.lr=1:0.1", "smaller; got 1:0.1:log"),
        ("sgdm.lr=0.1:0.1", "smaller"),
        ("sgdm.lr=0:1", "above 0"),
        ("sgdm.lr=1:inf", "finite"),
        ("adamw.lr=0.1:1", "adamw, which is not tuned; the optimizers are sgdm, sgdph"),
        ("sgdm.tau=0.1:1", "cannot search tau of sgdm"),
        ("sgdph.estimator=0:1", "cannot search estimator of sgdph"),
        ("tau=0.1:1", "cannot search tau"),
        ("sgdm.lr=0.1:1,sgdm.lr=0.1:2", "twice"),
    ],
)
def test_an_invalid_text_raises_an_error(text: str, said: str) -> None:
    with pytest.raises(LabError) as error:
        parse_space(text, ("sgdm", "sgdph"))
    assert said in str(error.value)


def test_values_map_to_places_on_a_scale_and_to_its_edges() -> None:
    each = Range(0.001, 0.1, True)
    assert each.place(0.01) == pytest.approx(0.5)
    assert each.at(0.5) == pytest.approx(0.01)
    assert (each.at(0), each.at(1)) == (0.001, 0.1)
    assert Range(1.0, 3.0, False).at(0.25) == 1.5
    assert [each.edge(value) for value in (0.001, 0.0012, 0.0013, 0.01, 0.079, 0.08, 0.1)] == [
        "low",
        "low",
        None,
        None,
        None,
        "high",
        "high",
    ]


@pytest.mark.parametrize(
    ("name", "searched", "end", "wider"),
    [
        ("lr", Range(0.01, 0.1, True), "high", "0.01:0.32:log"),
        ("momentum", Range(0.5, 0.99, False), "high", "0.5:0.999:linear"),
        ("momentum", Range(0.5, 0.999, False), "high", None),
        ("weight_decay", Range(0.02, 0.1, False), "low", "0:0.1:linear"),
        ("weight_decay", Range(0.0, 0.1, False), "low", None),
    ],
)
def test_a_wider_range_has_only_allowed_values(
    name: str, searched: Range, end: str, wider: str | None
) -> None:
    assert widened(searched, end, name) == wider


def test_rounding_stays_within_the_bounds() -> None:
    each = Range(0.12345, 0.98765, False)
    assert each.rounded(0.123451) == 0.12345
    assert each.rounded(0.987649) == 0.98765
    assert each.rounded(0.456789) == 0.457


def test_a_grid_has_every_combination_once_and_the_ends() -> None:
    space = {"lr": Range(0.01, 1.0, True), "weight_decay": Range(0.0, 0.3, False)}
    points = grid(space, 12)
    assert [tuple(point.values()) for point in points] == [
        (lr, decay) for lr in (0.01, 0.0464, 0.215, 1.0) for decay in (0.0, 0.15, 0.3)
    ]


@pytest.mark.parametrize(
    ("trials", "sides"), [(16, [4, 4]), (20, [4, 5]), (14, [2, 7]), (28, [2, 2, 7])]
)
def test_a_grid_is_as_square_as_it_can_be(trials: int, sides: list[int]) -> None:
    names = ("lr", "weight_decay", "eps")[: len(sides)]
    space = dict.fromkeys(names, Range(0.01, 1.0, True))
    points = grid(space, trials)
    assert len(points) == trials
    assert sorted(len({point[name] for point in points}) for name in space) == sides


@pytest.mark.parametrize("trials", [1, 3, 7, 13])
def test_a_number_of_trials_that_makes_no_grid_raises_an_error(trials: int) -> None:
    space = {"lr": Range(0.01, 1.0, True), "weight_decay": Range(0.01, 1.0, True)}
    with pytest.raises(LabError, match="like 16 = 4 x 4"):
        grid(space, trials)
    with pytest.raises(LabError, match="like 64 = 4 x 4 x 4"):
        grid({**space, "eps": Range(0.01, 1.0, True)}, 6)
