"""A step frees the loss's graph as plain torch does, keeps nothing else, and can share it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from property_nets import NETS, Case, build
from property_oracle import (
    BETA2,
    WAYS,
    Outcome,
    assert_curvature,
    assert_gradients,
    assert_near,
    curvature_in,
    newton_count,
    optimizer_of,
    plain_curvature,
    plain_outcome,
    signed_curvature,
)
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sgdph

pytestmark = pytest.mark.filterwarnings(
    "ignore:estimator=.hutchinson. with refresh=.all.", "ignore:.*weight_norm.* is deprecated"
)


class Storages(TorchDispatchMode):
    """Tracks the memory of every new tensor without keeping it alive."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and t.layout is torch.strided:
                ref = StorageWeakRef(t.untyped_storage())
                self._made.setdefault(ref.cdata, ref)
        return out

    def alive(self) -> list[bool]:
        """Return whether each piece of memory is still held, in the order of creation."""
        return [not ref.expired() for ref in self._made.values()]


@pytest.fixture(scope="module")
def _warm() -> None:
    # The first forward in a process imports modules, and that keeps frames alive.
    with Storages():
        build("plain").loss().backward()


@pytest.fixture
def _no_collector(_warm: None) -> Iterator[None]:
    """Memory that only the garbage collector would free counts as leaked."""
    gc.disable()
    yield
    gc.enable()


def can_go_again(loss: Tensor) -> bool:
    try:
        loss.backward()
    except RuntimeError as error:
        assert "second time" in str(error), error  # noqa: PT017
        return False
    return True


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("name", NETS)
def test_graph_is_freed_as_by_plain_backward(name: str) -> None:
    plain = build(name)
    with Storages() as forward:
        loss = plain.loss()
    loss.backward()
    expected = forward.alive()
    again = can_go_again(loss)
    del loss
    expected_in_the_end = forward.alive()

    count = newton_count(name)
    runs = [("backward", 0), ("backward", count // 2), ("two_calls", 0), ("low_memory", 0)]
    for way, k in runs:
        case = build(name)
        optimizer = optimizer_of(case, "row_sum", k)
        with Storages() as forward:
            loss = case.loss()
        WAYS[way](optimizer, loss)
        held = [i for i, alive in enumerate(forward.alive()) if alive and not expected[i]]
        assert not held, f"held while the loss is, {way}, parameter {k}"
        assert can_go_again(loss) == again, f"{way}, parameter {k}"
        del loss
        assert forward.alive() == expected_in_the_end, f"held for ever, {way}, parameter {k}"


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize("setting", ["row_sum", "joint"])
@pytest.mark.parametrize("way", ["backward", "two_calls"])
@pytest.mark.parametrize(
    "name", ["residual", "unet", "conv_twice", "weight_norm", "checkpointed", "custom_function"]
)
def test_memory_does_not_grow(name: str, way: str, setting: str) -> None:
    case = build(name)
    optimizer = optimizer_of(case, setting)
    cycle = newton_count(name) if setting == "row_sum" else 2
    held = []
    with Storages() as storages:
        for step in range(2 * cycle):
            WAYS[way](optimizer, case.loss())
            optimizer.step()
            optimizer.zero_grad()
            if (step + 1) % cycle == 0:
                held.append(sum(storages.alive()))
    assert held[0] == held[1]


@pytest.mark.parametrize("setting", ["row_sum", "joint"])
@pytest.mark.parametrize("name", ["residual", "weight_in_three_convs", "attention", "random_3"])
def test_two_updates_on_one_graph_double_the_curvature(name: str, setting: str) -> None:
    for k in range(newton_count(name)):
        case = build(name)
        optimizer = optimizer_of(case, setting, k)
        loss = case.loss()
        optimizer.update_hessian(loss)
        optimizer.update_hessian(loss)
        loss.backward(retain_graph=True)
        assert_gradients(Outcome.of(case).gradients, plain_outcome(name).gradients, f"{k}")
        optimizer.step()
        expected = plain_curvature(name, setting, k)
        doubled = {i: None if h is None else 2 * h for i, h in expected.items()}
        assert_curvature(optimizer, case.newton(), doubled, setting, f"{k}")


@pytest.mark.parametrize("name", ["residual", "conv_twice", "group_norm", "input_wants_a_gradient"])
def test_a_user_s_own_second_derivative_is_unchanged(name: str) -> None:
    """Nothing used for the product stays on the graph and changes the user's derivatives."""

    def second_derivative(case: Case, loss: Tensor) -> Outcome:
        loss.backward(create_graph=True)
        params = [p for p in case.leaves().values() if p.requires_grad]
        gradients = [p.grad for p in params]
        for p in params:
            p.grad = None
        sum(g.square().sum() for g in gradients).backward()
        return Outcome.of(case)

    plain = build(name)
    expected = second_derivative(plain, plain.loss())
    for k in range(newton_count(name)):
        case = build(name)
        loss = case.loss()
        optimizer_of(case, "row_sum", k).update_hessian(loss)
        found = second_derivative(case, loss)
        assert_gradients(found.gradients, expected.gradients, f"parameter {k}")


def two_losses(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    features = model[0](x)
    return model[1](features).square().mean(), model[2](features.tanh()).cos().mean()


@pytest.mark.parametrize("way", WAYS)
def test_losses_with_a_shared_trunk_get_the_right_gradients(way: str) -> None:
    name = "two_losses"
    plain = build(name)
    first, second = two_losses(plain.model, *plain.inputs)
    second.backward(retain_graph=True)
    before = {
        key: None if g is None else g.clone() for key, g in Outcome.of(plain).gradients.items()
    }
    first.backward()
    expected = Outcome.of(plain).gradients
    for k in range(newton_count(name)):
        case = build(name)
        optimizer = optimizer_of(case, "row_sum", k)
        first, second = two_losses(case.model, *case.inputs)
        newton = case.newton()
        curvature = signed_curvature(first, newton, "row_sum", k)
        second.backward(retain_graph=True)
        assert_gradients(Outcome.of(case).gradients, before, f"first, parameter {k}")
        WAYS[way](optimizer, first)
        assert_gradients(Outcome.of(case).gradients, expected, f"both, parameter {k}")
        assert not can_go_again(second)
        optimizer.step()
        assert_curvature(optimizer, newton, curvature, "row_sum", f"parameter {k}")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("changed", ["activation", "parameter"])
def test_a_tensor_changed_after_the_forward_raises_an_error(changed: str, way: str) -> None:
    for k in range(newton_count("residual")):
        case = build("residual")
        seen: list[Tensor] = []
        case.model[0].register_forward_hook(lambda m, i, out, seen=seen: seen.append(out))
        optimizer = optimizer_of(case, "row_sum", k)
        loss = case.loss()
        with torch.no_grad():
            (seen[0] if changed == "activation" else case.model[2][0].body[1][0].weight).add_(0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            WAYS[way](optimizer, loss)
        optimizer.zero_grad()
        loss = case.loss()
        WAYS[way](optimizer, loss)
        expected = plain_outcome("residual").gradients
        assert_gradients(Outcome.of(case).gradients, expected, f"parameter {k}")


@pytest.mark.parametrize("name", ["residual", "tied_linear"])
def test_parameters_outside_the_optimizer_get_their_gradients(name: str) -> None:
    expected = plain_outcome(name).gradients
    for k in range(newton_count(name)):
        case = build(name)
        p = case.newton()[k]
        optimizer = sgdph.SGDPH([{"params": [p], "channelwise": True}], hessian_momentum=BETA2)
        optimizer.backward(case.loss())
        assert_gradients(Outcome.of(case).gradients, expected, f"parameter {k}")
        optimizer.step()
        h = plain_curvature(name, "row_sum", k)[k]
        assert h is not None
        assert_near(curvature_in(optimizer, p), h.abs(), f"parameter {k}")


def test_loss_scale_and_steps_without_refresh_give_exact_results() -> None:
    for k in range(newton_count("residual")):
        case = build("residual")
        optimizer = optimizer_of(case, "row_sum", k)
        optimizer.backward(8 * case.loss(), loss_scale=8.0)
        gradients = Outcome.of(case).gradients
        scaled = {key: None if g is None else g / 8 for key, g in gradients.items()}
        assert_gradients(scaled, plain_outcome("residual").gradients, f"parameter {k}")
        optimizer.step()
        expected = plain_curvature("residual", "row_sum", k)
        assert_curvature(optimizer, case.newton(), expected, "row_sum", f"parameter {k}")

        case = build("residual")
        optimizer = optimizer_of(case, "row_sum", k)
        for group in optimizer.param_groups:
            group.update(hessian_interval=2, step=1)
        optimizer.backward(case.loss())
        assert_gradients(Outcome.of(case).gradients, plain_outcome("residual").gradients, "not due")
        optimizer.step()
        assert_curvature(optimizer, case.newton(), {}, "row_sum", "not due")
