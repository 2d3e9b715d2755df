"""The statistics of a block, against their definitions in plain Python."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small import bn_net, loss_of, train
from torch import Tensor, nn

import sgdph
from sgdph import Diagonality, EstimateError

Matrix = list[list[float]]


def norm(values: list[float]) -> float:
    return math.sqrt(sum(v * v for v in values))


def error(h: list[float], d: list[float]) -> tuple[float, float]:
    h, d = [abs(v) for v in h], [abs(v) for v in d]
    cosine = sum(a * b for a, b in zip(h, d, strict=True)) / (norm(h) * norm(d))
    return cosine, norm([a - b for a, b in zip(h, d, strict=True)]) / norm(d)


def diagonal(block: Matrix) -> list[float]:
    return [block[i][i] for i in range(len(block))]


def draw(block: Matrix, z: list[float]) -> list[float]:
    return [
        s * sum(a * b for a, b in zip(row, z, strict=True)) for s, row in zip(z, block, strict=True)
    ]


def figures(e: EstimateError) -> tuple[float, float]:
    return e.cosine, e.relative_error


def drawn_block(n: int = 6, seed: int = 0, diagonal: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, n, generator=generator, dtype=torch.float64)
    return a + a.T + diagonal * torch.eye(n, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(3))
def test_the_statistics_of_a_block_follow_their_definitions(seed: int) -> None:
    block = drawn_block(seed=seed)
    average = torch.arange(1.0, 7.0)
    found = Diagonality.of_block(block, name="w", shape=(6, 1, 1), average=average)
    rows: Matrix = block.tolist()
    d = diagonal(rows)
    off = [rows[i][j] for i in range(6) for j in range(6) if i != j]
    assert (found.name, found.shape, found.probes) == ("w", (6, 1, 1), 16)
    assert found.off_diagonal_share == pytest.approx(norm(off) / norm([*off, *d]))
    assert found.negative_share == sum(v < 0 for v in d) / 6
    assert figures(found.row_sum) == pytest.approx(error([sum(row) for row in rows], d))
    mean = sum(map(abs, d)) / 6
    assert figures(found.constant) == pytest.approx(error([mean] * 6, d))
    assert found.average is not None
    assert figures(found.average) == pytest.approx(error(average.tolist(), d))
    assert Diagonality.of_block(block, name="w").average is None
    assert Diagonality.of_block(block, name="w").shape == (6,)


def test_with_one_probe_the_mean_equals_the_single_draw() -> None:
    rows: Matrix = drawn_block().tolist()
    d = diagonal(rows)
    possible = [error(draw(rows, list(z)), d) for z in itertools.product((1.0, -1.0), repeat=6)]
    for seed in range(5):
        found = Diagonality.of_block(drawn_block(), name="w", probes=1, seed=seed)
        assert found.hutchinson == found.hutchinson_mean
        assert any(figures(found.hutchinson) == pytest.approx(e) for e in possible)


@pytest.mark.parametrize("dominant", [0.0, 40.0])
def test_the_error_of_one_draw_is_the_mean_over_all_sign_vectors(dominant: float) -> None:
    block = drawn_block(diagonal=dominant)
    rows: Matrix = block.tolist()
    d, probes = diagonal(rows), 4000
    every = torch.tensor(
        [error(draw(rows, list(z)), d) for z in itertools.product((1.0, -1.0), repeat=6)]
    ).double()
    standard_error = every.std(dim=0) / probes**0.5
    found = Diagonality.of_block(block, name="w", probes=probes)
    difference = torch.tensor(figures(found.hutchinson)).double() - every.mean(dim=0)
    assert (difference.abs() <= 5 * standard_error + 1e-12).all()
    if dominant:
        # Signs never change, so the squared error has a closed form (Bekas et al., 2007).
        off = block - block.diagonal().diag()
        expected = float(off.pow(2).sum() / block.diagonal().pow(2).sum())
        assert float(every[:, 1].pow(2).mean()) == pytest.approx(expected)


def test_draws_are_averaged_with_their_signs() -> None:
    # Small diagonal, large rest: the mean of absolute values would stay far off.
    block = drawn_block()
    block.diagonal().mul_(0.05)
    few = Diagonality.of_block(block, name="w", probes=10)
    many = Diagonality.of_block(block, name="w", probes=10_000)
    assert many.hutchinson.relative_error > 5
    assert few.hutchinson_mean.relative_error > 2 * many.hutchinson_mean.relative_error
    assert many.hutchinson_mean.relative_error < 0.03 * many.hutchinson.relative_error


def test_seeds_change_the_draws() -> None:
    # Fewer draws than columns: a walk over all columns has the same errors for many signs.
    found = [
        Diagonality.of_block(drawn_block(), name="w", probes=2, seed=s).hutchinson_mean
        for s in (0, 0, 1, 2, 3)
    ]
    assert found[0] == found[1]
    assert len(set(found)) > 1


def test_estimates_of_a_diagonal_block_are_exact() -> None:
    found = Diagonality.of_block(torch.diag(torch.tensor([1.0, -2.0, 3.0])), name="w")
    assert found.off_diagonal_share == 0
    assert found.negative_share == pytest.approx(1 / 3)
    for e in (found.row_sum, found.hutchinson, found.hutchinson_mean):
        assert figures(e) == pytest.approx((1.0, 0.0), abs=1e-15)
        assert e.cosine <= 1
    assert found.constant.relative_error > 0.3


@pytest.mark.parametrize("value", [0.0, 2.5, -2.5])
def test_estimates_of_a_block_with_one_entry_are_exact(value: float) -> None:
    found = Diagonality.of_block(torch.tensor([[value]]), name="w", shape=())
    assert found.shape == ()
    assert found.off_diagonal_share == 0
    assert found.negative_share == (value < 0)
    for e in (found.row_sum, found.hutchinson, found.hutchinson_mean, found.constant):
        assert figures(e) == (1.0, 0.0)


def test_estimates_of_a_block_of_zeros_are_exact() -> None:
    found = Diagonality.of_block(torch.zeros(3, 3), name="w", average=torch.ones(3))
    assert (found.off_diagonal_share, found.negative_share) == (0, 0)
    for e in (found.row_sum, found.hutchinson, found.hutchinson_mean, found.constant):
        assert figures(e) == (1.0, 0.0)
    assert found.average == EstimateError(0.0, math.inf)


def test_a_diagonal_of_zeros_has_infinite_relative_error() -> None:
    found = Diagonality.of_block(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), name="w")
    assert found.off_diagonal_share == 1
    assert found.row_sum == found.hutchinson == EstimateError(0.0, math.inf)
    assert EstimateError.of(torch.zeros(2), torch.ones(2)) == EstimateError(0.0, 1.0)


def test_no_cosine_is_above_one() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(200, 7, generator=generator)
    assert all(EstimateError.of(v, v).cosine <= 1 for v in vectors)


def test_float32_blocks_are_evaluated_in_float64() -> None:
    block = drawn_block().float()
    single = Diagonality.of_block(block, name="w")
    assert single == Diagonality.of_block(block.double(), name="w")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"block": torch.ones(2, 3)}, r"square.*got \(2, 3\)"),
        ({"block": torch.ones(4)}, r"square.*got \(4,\)"),
        ({"block": torch.ones(0, 0)}, r"at least 1 x 1"),
        ({"block": torch.full((2, 2), math.nan)}, "of w has entries that are not finite"),
        ({"block": torch.full((2, 2), math.inf)}, "not finite"),
        ({"probes": 0}, "at least 1, got 0"),
        ({"shape": (3,)}, r"does not belong to a parameter of shape \(3,\)"),
        ({"average": torch.ones(3)}, r"got shapes \(3,\) and \(2,\)"),
    ],
)
def test_bad_blocks_raise_an_error(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Diagonality.of_block(**{"block": torch.eye(2), "name": "w", **arguments})


def newton(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(n, p) for n, p in model.named_parameters() if n in ("0.bias", "1.weight", "1.bias")]


def names(found: list[Diagonality]) -> list[str]:
    return [f.name for f in found]


@pytest.mark.parametrize("chunk_size", [None, 1, 3])
def test_each_parameter_is_evaluated_by_its_own_block(chunk_size: int | None) -> None:
    model = bn_net(torch.float64)
    loss = loss_of(model)
    found = sgdph.diagonality(loss, newton(model), seed=5, chunk_size=chunk_size)
    assert names(found) == ["0.bias", "1.weight", "1.bias"]
    for f, (name, p) in zip(found, newton(model), strict=True):
        alone = Diagonality.of_block(sgdph.hessian_block(loss, p), name=name, seed=5)
        assert (f.shape, f.average) == ((4,), None)
        if name == "0.bias":  # batch norm removes it, and only rounding is left
            continue
        for field in ("off_diagonal_share", "negative_share"):
            assert getattr(f, field) == pytest.approx(getattr(alone, field), rel=1e-9)
        assert figures(f.row_sum) == pytest.approx(figures(alone.row_sum), rel=1e-9)


def test_each_parameter_has_its_own_draws() -> None:
    p, q = (torch.ones(16, dtype=torch.float64, requires_grad=True) for _ in range(2))
    loss = p.exp().prod() + q.exp().prod()
    first, second = sgdph.diagonality(loss, [p, q], probes=2)
    assert first.row_sum == second.row_sum
    assert first.hutchinson_mean != second.hutchinson_mean


def test_the_joint_block_comes_last() -> None:
    model = bn_net(torch.float64)
    loss = loss_of(model)
    named = newton(model)[1:]
    single = sgdph.diagonality(loss, named)
    *parts, whole = sgdph.diagonality(loss, named, joint=True)
    for a, b in zip(parts, single, strict=True):
        assert (a.name, a.shape) == (b.name, b.shape)
        assert a.off_diagonal_share == pytest.approx(b.off_diagonal_share, rel=1e-9)
        assert figures(a.hutchinson) == pytest.approx(figures(b.hutchinson), rel=1e-9)
    block = sgdph.hessian_block(loss, [p for _, p in named])
    alone = Diagonality.of_block(block, name="joint")
    assert (whole.name, whole.shape, whole.average) == ("joint", (8,), None)
    assert whole.off_diagonal_share == pytest.approx(alone.off_diagonal_share, rel=1e-9)
    assert figures(whole.row_sum) == pytest.approx(figures(alone.row_sum), rel=1e-9)
    assert whole.off_diagonal_share > max(f.off_diagonal_share for f in single)


def test_each_kind_of_parameter_argument_gives_its_names() -> None:
    model = bn_net()
    loss = loss_of(model)
    w, b = model[1].weight, model[1].bias
    named = sgdph.SGDPH(sgdph.param_groups(model))
    bare = sgdph.SGDPH(model.parameters())
    cases: list[tuple[Any, sgdph.SGDPH | None, list[str]]] = [
        (w, None, ["0"]),
        ([w, b], None, ["0", "1"]),
        (iter([w, ("shift", b)]), None, ["0", "shift"]),
        ([b, w], named, ["1.bias", "1.weight"]),
        ([w, ("shift", b)], named, ["1.weight", "shift"]),
        ([w], bare, ["0.2"]),
        ([w], sgdph.SGDPH([b]), ["0"]),
        (model, None, ["0.bias", "1.weight", "1.bias"]),
    ]
    for params, optimizer, expected in cases:
        assert names(sgdph.diagonality(loss, params, optimizer=optimizer)) == expected


def test_a_modules_frozen_parameters_are_left_out() -> None:
    model = bn_net()
    model[1].weight.requires_grad_(False)
    assert names(sgdph.diagonality(loss_of(model), model)) == ["0.bias", "1.bias"]


@pytest.mark.filterwarnings("ignore:estimator=.hutchinson. with refresh=.all.")
@pytest.mark.parametrize("estimator", ["row_sum", "hutchinson", "exact"])
def test_the_average_is_the_one_that_the_optimizer_uses(estimator: Any) -> None:
    model = bn_net(torch.float64)
    optimizer = sgdph.SGDPH(sgdph.param_groups(model), lr=1e-3, estimator=estimator, refresh="all")
    train(model, optimizer, range(4))
    loss = loss_of(model, 4)
    for f, (name, p) in zip(
        sgdph.diagonality(loss, newton(model), optimizer=optimizer), newton(model), strict=True
    ):
        in_use = optimizer.state[p]["hessian"].abs() / (1 - 0.9**4)
        d = sgdph.hessian_block(loss, p).diagonal()
        assert f.average is not None
        if name != "0.bias":
            expected = error(in_use.tolist(), d.tolist())
            assert figures(f.average) == pytest.approx(expected, rel=1e-6)


def test_a_parameter_that_was_not_refreshed_has_no_average() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(sgdph.param_groups(model), lr=0.0)
    train(model, optimizer, range(2))  # 0.bias and 1.weight have been refreshed
    found = sgdph.diagonality(loss_of(model), model, optimizer=optimizer, joint=True)
    assert [f.average is not None for f in found] == [True, True, False, False]
    train(model, optimizer, range(2, 3))
    found = sgdph.diagonality(loss_of(model), model, optimizer=optimizer, joint=True)
    assert all(f.average is not None for f in found)


def test_a_dropped_refresh_leaves_no_average() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(sgdph.param_groups(model), lr=0.0)
    optimizer.update_hessian(loss_of(model) * math.inf)  # not finite: the step drops it
    loss_of(model).backward()
    optimizer.step()
    found = sgdph.diagonality(loss_of(model), model[0].bias, optimizer=optimizer)
    assert found[0].average is None


@pytest.mark.filterwarnings("ignore:estimator=.hutchinson. with refresh=.all.")
def test_the_joint_draws_equal_the_optimizer_s() -> None:
    # At beta2 = 0 its average is its last draw, so both errors are of the same vector.
    model = bn_net(torch.float64)
    settings: dict[str, Any] = {"lr": 0.0, "hessian_momentum": 0.0, "seed": 7}
    optimizer = sgdph.SGDPH(
        sgdph.param_groups(model), estimator="hutchinson", refresh="all", **settings
    )
    train(model, optimizer, range(1))
    whole = sgdph.diagonality(
        loss_of(model), model, probes=1, seed=7, optimizer=optimizer, joint=True
    )[-1]
    assert whole.average is not None
    assert figures(whole.average) == pytest.approx(figures(whole.hutchinson), rel=1e-9)


def test_diagonality_changes_nothing_else() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    train(model, optimizer, range(3))
    model.zero_grad()
    loss = loss_of(model)
    rng = torch.get_rng_state()
    before = optimizer.multipliers()
    due = optimizer.hessian_due
    sgdph.diagonality(loss, model, optimizer=optimizer, joint=True)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[n], m) for n, m in optimizer.multipliers().items())
    assert optimizer.hessian_due == due
    assert not optimizer.state.keys() - set(model.parameters())
    loss.backward()


def test_diagonality_creates_no_optimizer_state() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    sgdph.diagonality(loss_of(model), model, optimizer=optimizer)
    assert not optimizer.state


def test_results_can_be_stored() -> None:
    model = bn_net()
    found = sgdph.diagonality(loss_of(model), model)[1]
    stored = dataclasses.asdict(found)
    assert stored["row_sum"].keys() == {"cosine", "relative_error"}
    assert stored["name"] == "1.weight"


UNUSED = torch.ones(2, requires_grad=True)


@pytest.mark.parametrize(
    ("choose", "error", "match"),
    [
        (lambda _: 3, TypeError, "expected a tensor or several, got int"),
        (lambda _: ["w"], TypeError, "got str at place 0"),
        (lambda m: [m[1].weight, ("w",)], TypeError, "got tuple at place 1"),
        (lambda _: [("w", 3)], TypeError, "got int w"),
        (lambda _: [], ValueError, "at least one parameter, got none"),
        (lambda _: [("scale", UNUSED)], RuntimeError, r"parameter scale of shape \(2,\): it was"),
        (lambda _: [("scale", torch.ones(2))], ValueError, "parameter scale .* is frozen"),
        (lambda m: nn.Sequential(nn.Embedding(2, 2)), ValueError, "no trainable channel-wise"),
        (
            lambda m: [("big", torch.ones(20_000, requires_grad=True))],
            ValueError,
            "the parameter big .* 20,000 products",
        ),
    ],
)
def test_bad_parameters_raise_an_error(
    choose: Callable[[nn.Module], Any], error: type[Exception], match: str
) -> None:
    model = bn_net()
    with pytest.raises(error, match=match):
        sgdph.diagonality(loss_of(model), choose(model))


def test_a_loss_that_is_not_finite_raises_an_error() -> None:
    model = bn_net()
    with pytest.raises(ValueError, match=r"block of 0\.bias has entries that are not finite"):
        sgdph.diagonality(loss_of(model) * math.inf, model)
