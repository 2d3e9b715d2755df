"""A step's curvature and gradients equal plain torch's, for many small networks."""

from __future__ import annotations

import pytest
import torch
from property_nets import NETS, build
from property_oracle import (
    WAYS,
    Outcome,
    assert_curvature,
    assert_gradients,
    assert_outcome,
    newton_count,
    optimizer_of,
    plain_curvature,
    plain_micro_batches,
    plain_outcome,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:estimator=.hutchinson. with refresh=.all.", "ignore:.*weight_norm.* is deprecated"
)


def check(name: str, way: str, setting: str, k: int, dtype: torch.dtype, tolerance: float) -> None:
    what = f"{setting}, parameter {k}"
    case = build(name, dtype)
    newton = case.newton()
    optimizer = optimizer_of(case, setting, k)
    loss = case.loss()
    WAYS[way](optimizer, loss)
    assert_outcome(Outcome.of(case), plain_outcome(name, dtype), what, tolerance)
    optimizer.step()
    expected = plain_curvature(name, setting, k, dtype)
    assert_curvature(optimizer, newton, expected, setting, what, tolerance)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NETS)
def test_step_equals_plain_torch(name: str, way: str) -> None:
    count = newton_count(name)
    # Only the vector of the product differs, so every other parameter is enough.
    probed = [("hutchinson", k) for k in range(len(name) % 2 % count, count, 2)]
    runs = {
        "backward": [*(("row_sum", k) for k in range(count)), *probed],
        "two_calls": [
            ("row_sum" if k % 4 < 2 else "hutchinson", k)
            for k in range((len(name) + 1) % 2 % count, count, 2)
        ],
        # The same order as two calls, so every third is enough.
        "low_memory": [("row_sum", k) for k in range(len(name) % 3 % count, count, 3)],
    }
    for setting, k in [*runs[way], ("joint", 0)]:
        check(name, way, setting, k, torch.float64, 1e-12)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["residual", "weight_norm", "attention"])
def test_the_exact_diagonal_equals_plain_torch(name: str, way: str) -> None:
    for k in range(newton_count(name)):
        check(name, way, "exact", k, torch.float64, 1e-12)


@pytest.mark.parametrize("name", NETS)
def test_a_float32_step_equals_plain_torch(name: str) -> None:
    for k in range(0, newton_count(name), 2):
        check(name, "backward", "row_sum", k, torch.float32, 1e-4)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NETS)
def test_micro_batches_add_up(name: str, way: str) -> None:
    """The second one subtracts a part, so only the signed sum is right."""
    count = newton_count(name)
    for k in {0, count // 2} if way == "backward" else {count // 3}:
        plain, expected = plain_micro_batches(name, k)
        case = build(name)
        newton = case.newton()
        optimizer = optimizer_of(case, "row_sum", k)
        WAYS[way](optimizer, case.loss())
        before = {name: leaf.grad for name, leaf in case.leaves().items()}
        WAYS[way](optimizer, -0.4 * case.loss())
        after = Outcome.of(case).gradients
        for leaf, gradient in before.items():
            assert after[leaf] is gradient, f"{leaf}'s gradient was replaced, not added to"
        assert_gradients(after, plain.gradients, f"parameter {k}")
        optimizer.step()
        assert_curvature(optimizer, newton, expected, "row_sum", f"parameter {k}")
