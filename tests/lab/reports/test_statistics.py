import math

import pytest
from scipy.stats import t as student
from scipy.stats import ttest_ind

from sgdph.lab.reports.statistics import Judgement, Spread, difference, holm, judge


def test_mean_and_sample_deviation() -> None:
    spread = Spread.of([0.8, 0.9, 1.0])
    assert spread.mean == pytest.approx(0.9)
    assert spread.std == pytest.approx(0.1)
    assert spread.n == 3
    assert spread.show(100, 2) == "90.00 ± 10.00"
    assert Spread.of([0.8]).show(100, 2) == "80.00"
    assert Spread.of([]).show(100, 2) == "–"


def welch(first: Spread, second: Spread) -> float | None:
    found = difference(first, second)
    return None if found is None else found.p


def test_welch_matches_the_textbook_formula() -> None:
    first, second = [90.1, 91.4, 90.7, 92.0], [88.0, 90.5, 89.9]
    means = [sum(values) / len(values) for values in (first, second)]
    # Squared standard errors.
    errors = [
        sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values)
        for values, mean in zip((first, second), means, strict=True)
    ]
    t = (means[0] - means[1]) / math.sqrt(sum(errors))
    freedom = sum(errors) ** 2 / (errors[0] ** 2 / 3 + errors[1] ** 2 / 2)
    p = welch(Spread.of(first), Spread.of(second))
    assert p == pytest.approx(2 * student.sf(abs(t), freedom), rel=1e-12)
    assert welch(Spread.of(second), Spread.of(first)) == pytest.approx(p)
    # It is not the test that assumes equal variances, which has 5 degrees of freedom.
    assert p != pytest.approx(2 * student.sf(abs(t), 5), rel=1e-3)


def test_a_sample_without_spread_gives_a_one_sample_test() -> None:
    # Student's one-sample test against 1: t = (2 - 1) / (1 / sqrt(3)), 2 degrees of freedom.
    p = welch(Spread.of([1.0, 1.0]), Spread.of([1.0, 2.0, 3.0]))
    assert p == pytest.approx(2 * student.sf(math.sqrt(3), 2))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([0.9], [0.8, 0.7], None),
        ([], [0.8, 0.7], None),
        ([0.1, 0.1, 0.1], [0.2, 0.2, 0.2], None),
        ([0.1, 0.1, 0.1], [0.1, 0.1], 1.0),
    ],
)
def test_p_is_none_or_1_if_no_test_is_possible(
    first: list[float], second: list[float], expected: float | None
) -> None:
    assert welch(Spread.of(first), Spread.of(second)) == expected


@pytest.mark.parametrize(
    ("first", "second"),
    [([90.1, 91.4, 90.7, 92.0], [88.0, 90.5, 89.9]), ([1.0, 1.0], [1.0, 2.0, 3.0])],
)
def test_the_interval_equals_scipys(first: list[float], second: list[float]) -> None:
    found = difference(Spread.of(first), Spread.of(second))
    assert found is not None
    expected = ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.n == (len(first), len(second))
    assert difference(Spread.of([0.9]), Spread.of(second)) is None


@pytest.mark.parametrize(
    ("second", "outcome"),
    [
        # By scipy.stats.ttest_ind: -0.20 to 0.40, -5.3 to 5.5, 4.7 to 5.3 points.
        ([0.899, 0.9], "tie"),
        ([0.895, 0.904], "not decided"),
        ([0.85, 0.851], "differs"),
    ],
)
def test_a_tie_needs_the_whole_interval_within_the_margin(
    second: list[float], outcome: str
) -> None:
    found = judge({0: Spread.of([0.9, 0.901]), 1: Spread.of(second)}, "higher")
    assert found.outcome(1) == outcome


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.6; times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.6.
    assert holm([0.03, 0.01, 0.6, 0.02]) == pytest.approx([0.06, 0.04, 0.6, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


BEST = Spread.of([0.90, 0.91, 0.92])
LEVEL = Spread.of([0.89, 0.91, 0.90])
LOW = Spread.of([0.50, 0.51, 0.52])
ALONE = Spread.of([0.8])


def test_the_best_is_clear_only_if_it_differs_from_all_others() -> None:
    tie = judge({0: LOW, 1: BEST, 2: LEVEL}, "higher")
    assert (tie.best, tie.level, tie.clear) == (1, (2,), False)
    expected = holm([welch(BEST, LOW) or 0, welch(BEST, LEVEL) or 0])
    assert [tie.adjusted[0], tie.adjusted[2]] == pytest.approx(expected)
    clear = judge({0: LOW, 1: BEST}, "higher")
    assert (clear.best, clear.level, clear.clear) == (1, (), True)


def test_lower_can_be_better() -> None:
    assert judge({0: LOW, 1: BEST}, "lower").best == 0


def test_the_correction_grows_with_the_number_of_comparisons() -> None:
    one = judge({0: BEST, 1: LEVEL}, "higher").adjusted[1]
    many = judge({0: BEST, 1: LEVEL, 2: LEVEL, 3: LEVEL}, "higher").adjusted[1]
    assert many == pytest.approx(min(1, 3 * one))


def test_an_entry_with_one_seed_is_untested_and_prevents_bold() -> None:
    found = judge({0: LOW, 1: BEST, 2: ALONE}, "higher")
    assert found.adjusted[0] < 0.05
    assert (found.level, found.untested, found.clear) == ((), (2,), False)


def test_an_entry_without_values_is_not_compared() -> None:
    assert judge({0: LOW, 1: BEST, 2: Spread.of([])}, "higher").clear
    assert judge({0: Spread.of([])}, "higher") == Judgement(None, {}, ())
    assert not judge({0: BEST}, "higher").clear
