from __future__ import annotations

import pytest

from sgdph.lab.errors import LabError
from sgdph.lab.inspect.choice import make_plan, spread, spread_over_kinds
from sgdph.lab.inspect.figures import Candidate


def candidates(*seconds: float) -> list[Candidate]:
    """Make scales and shifts in turn, as in a network with norm layers."""
    kinds = ("bn scale", "bn shift")
    return [
        Candidate(f"layer{i // 2}.{('weight', 'bias')[i % 2]}", f"l{i}", kinds[i % 2], 16, each)
        for i, each in enumerate(seconds)
    ]


def test_spread_takes_the_ends_first_and_then_the_farthest() -> None:
    assert spread(9) == [0, 8, 4, 2, 6, 1, 3, 5, 7]
    assert [spread(n) for n in range(4)] == [[], [0], [0, 1], [0, 2, 1]]


def test_kinds_take_turns_and_each_is_spread() -> None:
    names = [each.name for each in spread_over_kinds(candidates(*[1.0] * 6))]
    ends = ["layer0.weight", "layer0.bias", "layer2.weight", "layer2.bias"]
    assert names == [*ends, "layer1.weight", "layer1.bias"]


def test_a_budget_for_all_blocks_takes_all_in_their_order() -> None:
    plan = make_plan(candidates(*[1.0] * 10), 10.0, None)
    assert plan.chosen == tuple(each.name for each in plan.candidates)
    assert plan.left_out == []
    assert len(plan.pictured) == 4
    assert set(plan.pictured) <= set(plan.chosen)


def test_the_budget_holds_and_a_costly_block_does_not_exclude_others() -> None:
    plan = make_plan(candidates(8.0, 9.0, 1.0, 1.0, 1.0, 1.0), 10.0, None)
    assert plan.chosen == ("layer1.weight", "layer1.bias", "layer2.weight", "layer2.bias")
    assert [each.name for each in plan.left_out] == ["layer0.weight", "layer0.bias"]
    # The rest of the budget is used for a costly block.
    plan = make_plan(candidates(6.0, 9.0, 1.0, 1.0, 1.0, 1.0), 10.0, None)
    assert "layer0.weight" in plan.chosen
    assert sum(e.estimated_seconds for e in plan.candidates if e.name in plan.chosen) <= 10.0


def test_the_error_on_a_small_budget_names_the_quickest_block() -> None:
    with pytest.raises(LabError, match=r"no block fits --budget 1 s: the quickest, l1.*about 2 s"):
        make_plan(candidates(3.0, 2.0), 1.0, None)


def test_named_layers_are_taken_whatever_they_cost() -> None:
    plan = make_plan(candidates(*[99.0] * 6), 1.0, "layer1.*, *2.bias")
    assert plan.chosen == ("layer1.weight", "layer1.bias", "layer2.bias")


def test_the_error_on_an_unmatched_pattern_lists_the_parameters() -> None:
    with pytest.raises(LabError, match=r"--layers 'conv\*' fits no Newton parameter.*layer0\.bias"):
        make_plan(candidates(1.0, 1.0), 9.0, "layer0.*,conv*")
