"""A step in unusual conditions: gradient modes, threads, autocast, failing hooks, other steps."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from property_nets import Case, build
from property_oracle import (
    WAYS,
    Outcome,
    assert_curvature,
    assert_gradients,
    assert_near,
    newton_count,
    optimizer_of,
    plain_curvature,
    plain_outcome,
)
from torch import Tensor

NETWORKS = ["residual", "weight_norm", "unet"]


def assert_step_is_right(case: Case, optimizer: Any, name: str, k: int, what: str) -> None:
    what = f"{what}, parameter {k}"
    assert_gradients(Outcome.of(case).gradients, plain_outcome(name).gradients, what)
    optimizer.step()
    expected = plain_curvature(name, "row_sum", k)
    assert_curvature(optimizer, case.newton(), expected, "row_sum", what)


MODES: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "one_thread": lambda: torch.autograd.set_multithreading_enabled(False),
    "one_thread_no_grad": lambda: _both(
        torch.autograd.set_multithreading_enabled(False), torch.no_grad()
    ),
    "hooks_on_saved_tensors": lambda: torch.autograd.graph.saved_tensors_hooks(
        lambda t: t.clone(), lambda t: t
    ),
}


@contextlib.contextmanager
def _both(first: Any, second: Any) -> Any:
    with first, second:
        yield


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_in_each_autograd_mode_is_right(name: str, mode: str) -> None:
    for k in range(newton_count(name)):
        for way in WAYS if k == 1 else ["backward"]:
            case = build(name)
            optimizer = optimizer_of(case, "row_sum", k)
            loss = case.loss()
            with MODES[mode]():
                before = torch.is_grad_enabled()
                WAYS[way](optimizer, loss)
                assert torch.is_grad_enabled() == before
            assert_step_is_right(case, optimizer, name, k, way)


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_under_anomaly_detection_is_right(name: str) -> None:
    for k in range(newton_count(name)):
        case = build(name)
        optimizer = optimizer_of(case, "row_sum", k)
        with torch.autograd.set_detect_anomaly(True):
            optimizer.backward(case.loss())
        assert_step_is_right(case, optimizer, name, k, "anomaly")


def _in_threads(*calls: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def guarded(call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_in_another_thread_is_right(name: str) -> None:
    for k in range(newton_count(name)):
        case = build(name)
        optimizer = optimizer_of(case, "row_sum", k)
        loss = case.loss()
        _in_threads(lambda optimizer=optimizer, loss=loss: optimizer.backward(loss))
        assert_step_is_right(case, optimizer, name, k, "another thread")


def test_steps_in_two_threads_at_once_are_right() -> None:
    for k in range(newton_count("residual")):
        cases = [build("residual") for _ in range(2)]
        optimizers = [optimizer_of(case, "row_sum", k) for case in cases]
        losses = [case.loss() for case in cases]
        pairs = zip(optimizers, losses, strict=True)
        _in_threads(*[lambda o=o, loss=loss: o.backward(loss) for o, loss in pairs])
        for case, optimizer in zip(cases, optimizers, strict=True):
            assert_step_is_right(case, optimizer, "residual", k, "two threads")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "name", ["residual", "group_norm", "perceptron", "attention", "conv_bias_alone", "conv_twice"]
)
def test_a_step_under_bfloat16_autocast_is_near_plain_torch(name: str, way: str) -> None:
    def loss_of(case: Case) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return case.loss()

    plain = build(name, torch.float32)
    loss_of(plain).backward()
    for k in range(newton_count(name)):
        case = build(name, torch.float32)
        optimizer = optimizer_of(case, "row_sum", k)
        WAYS[way](optimizer, loss_of(case))
        gradients = Outcome.of(case).gradients
        for leaf, expected in Outcome.of(plain).gradients.items():
            found = gradients[leaf]
            assert (found is None) == (expected is None), leaf
            if found is not None and expected is not None:
                scale = float(expected.abs().max())
                assert found.dtype == expected.dtype
                assert float((found - expected).abs().max()) <= 2e-2 * scale + 1e-3, leaf
        optimizer.step()
        state = optimizer.state[case.newton()[k]]
        assert state["refreshes"] == 1
        assert state["hessian"].isfinite().all()


class StopError(Exception):
    """What a user's hook raises."""


def _raise(*_: Any) -> None:
    raise StopError


def _on_every_leaf(case: Case) -> list[Any]:
    return [p.register_hook(_raise) for p in case.model.parameters()]


def _on_one_leaf(case: Case) -> list[Any]:
    return [next(case.model.parameters()).register_hook(_raise)]


def _after_accumulation(case: Case) -> list[Any]:
    last = list(case.model.parameters())[-1]
    return [last.register_post_accumulate_grad_hook(_raise)]


def _in_between(case: Case) -> list[Any]:
    def hang(module: Any, inputs: Any, out: Tensor) -> None:
        out.register_hook(_raise)

    return [case.model.get_submodule("0").register_forward_hook(hang)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("attach", [_on_every_leaf, _on_one_leaf, _after_accumulation, _in_between])
def test_an_error_in_a_hook_propagates_and_leaves_nothing_behind(attach: Any, way: str) -> None:
    for k in range(newton_count("residual")):
        case = build("residual")
        counted: list[int] = []
        for p in case.model.parameters():
            p.register_hook(lambda g, counted=counted: counted.append(1))
        optimizer = optimizer_of(case, "row_sum", k)
        handles = attach(case)
        with pytest.raises(StopError):
            WAYS[way](optimizer, case.loss())
        for handle in handles:
            handle.remove()
        optimizer.zero_grad()
        counted.clear()
        optimizer.backward(case.loss())
        assert len(counted) == len(list(case.model.parameters()))
        expected = plain_outcome("residual").gradients
        assert_gradients(Outcome.of(case).gradients, expected, f"parameter {k}")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [*NETWORKS, "input_wants_a_gradient"])
def test_weights_may_be_stepped_inside_the_backward(name: str, way: str) -> None:
    """As users do to free each gradient as soon as it is computed."""

    def step_at_once(case: Case) -> list[Any]:
        newton = {id(p) for p in case.newton()}
        inner = {p: torch.optim.SGD([p], lr=0.1) for p in case.model.parameters()}

        def hook(p: Tensor) -> None:
            assert p.grad is not None
            inner[p].step()
            inner[p].zero_grad()

        weights = [p for p in case.model.parameters() if id(p) not in newton]
        return [p.register_post_accumulate_grad_hook(hook) for p in weights]

    plain = build(name)
    step_at_once(plain)
    plain.loss().backward()
    for k in range(newton_count(name)):
        case = build(name)
        step_at_once(case)
        optimizer = optimizer_of(case, "row_sum", k)
        WAYS[way](optimizer, case.loss())
        found, expected = Outcome.of(case), Outcome.of(plain)
        assert_gradients(found.gradients, expected.gradients, f"parameter {k}")
        for leaf, value in plain.leaves().items():
            assert_near(case.leaves()[leaf], value, f"{leaf}, parameter {k}")
        optimizer.step()
        curvature = plain_curvature(name, "row_sum", k)
        assert_curvature(optimizer, case.newton(), curvature, "row_sum", f"parameter {k}")


@pytest.mark.parametrize("way", WAYS)
def test_gradients_cleared_in_place_are_filled_in_place(way: str) -> None:
    for k in range(newton_count("residual")):
        case = build("residual")
        optimizer = optimizer_of(case, "row_sum", k)
        for p in case.model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.zero_grad(set_to_none=False)
        before = [p.grad for p in case.model.parameters()]
        WAYS[way](optimizer, case.loss())
        for p, gradient in zip(case.model.parameters(), before, strict=True):
            assert p.grad is gradient
        assert_step_is_right(case, optimizer, "residual", k, way)
