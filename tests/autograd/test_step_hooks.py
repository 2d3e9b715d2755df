"""In a step, the user's hooks see and change the same as under plain ``loss.backward()``."""

from __future__ import annotations

import functools
from collections import defaultdict
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
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook

pytestmark = pytest.mark.filterwarnings(
    "ignore:estimator=.hutchinson. with refresh=.all.", "ignore:.*weight_norm.* is deprecated"
)

# Networks with leaves before and after every parameter: used twice, tied, computed, sliced.
NETWORKS = [
    "residual",
    "conv_twice",
    "norm_twice",
    "weight_in_three_convs",
    "tied_linear",
    "unet",
    "weight_norm_alone",
    "checkpointed",
    "sliced_input",
]

Log = dict[str, list[Tensor]]
Attach = Callable[[Case, Log], Any]
"""Hangs hooks on a case, and returns what must stay alive."""


def trainable(case: Case) -> dict[str, Tensor]:
    return {name: leaf for name, leaf in case.leaves().items() if leaf.requires_grad}


def note(log: Log, name: str, gradient: Tensor) -> None:
    assert not gradient.requires_grad, "a hook saw a graph that plain backward does not make"
    assert not torch.is_grad_enabled()
    log[name].append(gradient.clone())


def observing(case: Case, log: Log) -> None:
    for name, leaf in trainable(case).items():
        leaf.register_hook(lambda g, name=name: note(log, name, g))


def changing_in_order(case: Case, log: Log) -> None:
    for name, leaf in trainable(case).items():
        leaf.register_hook(lambda g: g + 1)
        leaf.register_hook(lambda g, name=name: note(log, name, g))
        leaf.register_hook(lambda g: g * 2)
        leaf.register_hook(lambda g, name=name: note(log, name, g))


def after_accumulation(case: Case, log: Log) -> None:
    for name, leaf in trainable(case).items():
        leaf.register_post_accumulate_grad_hook(lambda leaf, name=name: note(log, name, leaf.grad))


def clamp(leaf: Tensor) -> None:
    leaf.grad.clamp_(-0.02, 0.02)


def changing_after_accumulation(case: Case, log: Log) -> None:
    for leaf in trainable(case).values():
        leaf.register_post_accumulate_grad_hook(clamp)


def on_accumulating_nodes(case: Case, log: Log) -> list[Any]:
    nodes = []
    for name, leaf in trainable(case).items():
        node = leaf.expand_as(leaf).grad_fn.next_functions[0][0]
        node.register_prehook(lambda gs, name=name: note(log, f"before {name}", gs[0]))
        node.register_hook(lambda *_, name=name: note(log, name, torch.ones(())))
        nodes.append(node)
    return nodes


def on_several_at_once(case: Case, log: Log) -> Any:
    names = list(trainable(case))
    leaves = list(trainable(case).values())

    def all_came(gradients: Any) -> None:
        for name, g in zip(names, gradients, strict=True):
            note(log, name, torch.zeros(()) if g is None else g)

    return [
        register_multi_grad_hook(leaves, all_came),
        register_multi_grad_hook(leaves, lambda g: note(log, "any", torch.ones(())), mode="any"),
    ]


def removing_itself(case: Case, log: Log) -> None:
    for name, leaf in trainable(case).items():
        handles: list[Any] = []

        def once(g: Tensor, name: str = name, handles: list[Any] = handles) -> Tensor:
            handles.pop().remove()
            note(log, name, g)
            return g * 3

        handles.append(leaf.register_hook(once))


LEAF_HOOKS: list[Attach] = [
    observing,
    changing_in_order,
    after_accumulation,
    changing_after_accumulation,
    on_accumulating_nodes,
    on_several_at_once,
    removing_itself,
]


def two_backwards(case: Case, attach: Attach, backward: Callable[[Tensor], Any]) -> tuple[Any, Log]:
    log: Log = defaultdict(list)
    alive = attach(case, log)
    for factor in (1.0, 0.5):
        backward(factor * case.loss())
    del alive
    return Outcome.of(case).gradients, log


def assert_same_log(found: Log, expected: Log, what: str) -> None:
    assert found.keys() == expected.keys(), what
    for name, values in expected.items():
        assert len(found[name]) == len(values), f"{name} fired {len(found[name])} times, {what}"
        for actual, value in zip(found[name], values, strict=True):
            assert_near(actual, value, f"{name} as a hook saw it, {what}")


@pytest.mark.parametrize("attach", LEAF_HOOKS, ids=lambda attach: attach.__name__)
@pytest.mark.parametrize("name", NETWORKS)
def test_hooks_on_leaves_act_as_in_a_plain_backward(name: str, attach: Attach) -> None:
    gradients, log = two_backwards(build(name), attach, lambda loss: loss.backward())
    assert log or attach is changing_after_accumulation
    count = newton_count(name)
    # Half of the parameters with each kind of hook, the other half with the next kind.
    places = range(LEAF_HOOKS.index(attach) % 2, count, 2)
    runs = [("backward", "row_sum", k) for k in places]
    runs += [("backward", "joint", 0), ("low_memory", "row_sum", 0), ("two_calls", "row_sum", 0)]
    for way, setting, k in runs:
        case, what = build(name), f"{way}, {setting}, parameter {k}"
        optimizer = optimizer_of(case, setting, k)
        found, seen = two_backwards(case, attach, functools.partial(WAYS[way], optimizer))
        assert_gradients(found, gradients, what)
        assert_same_log(seen, log, what)


@pytest.mark.parametrize("name", NETWORKS)
def test_hooks_on_leaves_do_not_change_the_curvature(name: str) -> None:
    for k in range(newton_count(name)):
        case = build(name)
        optimizer = optimizer_of(case, "row_sum", k)
        for leaf in trainable(case).values():
            leaf.register_hook(lambda g: g * 2)
        optimizer.backward(case.loss())
        optimizer.step()
        expected = plain_curvature(name, "row_sum", k)
        assert_curvature(optimizer, case.newton(), expected, "row_sum", f"parameter {k}")


def test_hooks_removed_between_steps_have_no_effect() -> None:
    for k in range(newton_count("residual")):
        case = build("residual")
        optimizer = optimizer_of(case, "row_sum", k)
        before = [p.register_hook(lambda g: g * 2) for p in case.model.parameters()]
        optimizer.update_hessian(case.loss())
        for handle in before:
            handle.remove()
        optimizer.backward(case.loss())
        after = [p.register_hook(lambda g: g * 3) for p in case.model.parameters()]
        optimizer.zero_grad()
        optimizer.backward(case.loss())
        for handle in after:
            handle.remove()
        optimizer.zero_grad()
        optimizer.backward(case.loss())
        expected = plain_outcome("residual").gradients
        assert_gradients(Outcome.of(case).gradients, expected, f"parameter {k}")


# Hooks on tensors between the leaves and the loss.
def _on_output(out: Tensor) -> None:
    out.register_hook(lambda g: g * 0.5)


def _on_node(out: Tensor) -> None:
    out.grad_fn.register_prehook(lambda gs: tuple(None if g is None else g + 1e-3 for g in gs))
    out.grad_fn.register_hook(lambda ins, _: tuple(None if g is None else g * 0.7 for g in ins))


def _watch(out: Tensor, log: Log, name: str) -> None:
    out.register_hook(lambda g: log[name].append(g.detach()))


def _layers(model: nn.Module) -> list[nn.Module]:
    return [
        m for m in model.modules() if not isinstance(m, nn.ModuleList | nn.ModuleDict | nn.Identity)
    ]


def with_hook_at(case: Case, place: int, hang: Callable[[Tensor], Any]) -> None:
    """Add a hook to the output of the module at ``place``; the last place is the loss itself."""

    def on_output(module: nn.Module, inputs: Any, out: Tensor) -> None:
        hang(out)

    layers = _layers(case.model)
    if place < len(layers):
        layers[place].register_forward_hook(on_output)
    else:
        loss_of = case.loss_of

        def hooked(*args: Any) -> Tensor:
            loss = loss_of(*args)
            hang(loss)
            return loss

        case.loss_of = hooked


@pytest.mark.parametrize("hang", [_on_output, _on_node])
@pytest.mark.parametrize("name", ["residual", "unet", "conv_twice", "pre_activation", "attention"])
def test_hooks_on_intermediate_tensors_act_as_in_a_plain_backward(
    name: str, hang: Callable[[Tensor], None]
) -> None:
    count = newton_count(name)
    for place in range(len(_layers(build(name).model)) + 1):
        plain = build(name)
        with_hook_at(plain, place, hang)
        plain.loss().backward()
        expected = Outcome.of(plain).gradients
        few = [place % 2 * (count // 2)]
        runs = [
            ("backward", k) for k in (range(place % 3, count, 3) if name == "residual" else few)
        ]
        for way, k in [*runs, ("low_memory", place % count), ("two_calls", place // 2 % count)]:
            case = build(name)
            with_hook_at(case, place, hang)
            WAYS[way](optimizer_of(case, "row_sum", k), case.loss())
            found = Outcome.of(case).gradients
            assert_gradients(found, expected, f"hook at {place}, {way}, parameter {k}")


@pytest.mark.parametrize("name", ["residual", "unet", "attention"])
def test_observing_hooks_on_intermediate_tensors_change_nothing(name: str) -> None:
    for k in range(newton_count(name)):
        case = build(name)
        seen: Log = defaultdict(list)
        for place in range(len(_layers(case.model)) + 1):
            with_hook_at(case, place, functools.partial(_watch, log=seen, name=str(place)))
        optimizer = optimizer_of(case, "row_sum", k)
        optimizer.backward(case.loss())
        assert len(seen) == len(_layers(case.model)) + 1
        assert_gradients(Outcome.of(case).gradients, plain_outcome(name).gradients, f"{k}")
        optimizer.step()
        expected = plain_curvature(name, "row_sum", k)
        assert_curvature(optimizer, case.newton(), expected, "row_sum", f"parameter {k}")


def _full_hooks(model: nn.Module) -> None:
    for module in _layers(model):
        module.register_full_backward_pre_hook(lambda m, outs: tuple(g * 1.1 for g in outs))
        module.register_full_backward_hook(
            lambda m, ins, outs: tuple(None if g is None else g * 0.9 for g in ins)
        )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["residual", "group_norm", "conv_twice", "dense"])
def test_full_backward_hooks_act_as_in_a_plain_backward(name: str, way: str) -> None:
    plain = build(name)
    _full_hooks(plain.model)
    plain.loss().backward()
    expected = Outcome.of(plain).gradients
    for k in range(newton_count(name)):
        case = build(name)
        _full_hooks(case.model)
        WAYS[way](optimizer_of(case, "row_sum", k), case.loss())
        assert_gradients(Outcome.of(case).gradients, expected, f"parameter {k}")
