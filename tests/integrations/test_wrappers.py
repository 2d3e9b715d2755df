"""Wrappers around our optimizers: what they pass on, and how to reach what they do not."""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Callable
from typing import Any

import pytest
import timm.optim.lookahead
import torch
from accelerate import Accelerator
from pytorch_optimizer import Lookahead
from small import assert_same_bits, bn_net, loss_of
from torch import Tensor, nn

import sgdph
from integrations.loops import KINDS, optimizer_of
from sgdph.integrations.accelerate import backward
from sgdph.integrations.wrapped import wrapped_sgdph
from sgdph.step import SecondOrderOptimizer

pytestmark = [
    pytest.mark.xdist_group("accelerate"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("no_accelerate_state"),
]
K, ALPHA = 3, 0.4


def accelerated(optimizer: Any) -> Any:
    return Accelerator(cpu=True).prepare(optimizer)


def lookahead(optimizer: SecondOrderOptimizer) -> Any:
    return Lookahead(optimizer, k=K, alpha=ALPHA)


def timms(optimizer: SecondOrderOptimizer) -> Any:
    return timm.optim.lookahead.Lookahead(optimizer, k=K, alpha=ALPHA)


WRAPPERS: dict[str, Callable[[SecondOrderOptimizer], Any]] = {
    "accelerate": accelerated,
    "pytorch_optimizer": lookahead,
    "timm": timms,
    "accelerate around lookahead": lambda optimizer: accelerated(lookahead(optimizer)),
}


def by_wrapped_backward(wrapper: Any, loss: Tensor, scale: float) -> None:
    wrapped_sgdph(wrapper).backward(loss, loss_scale=scale)


def by_wrapped_update(wrapper: Any, loss: Tensor, scale: float) -> None:
    wrapped_sgdph(wrapper).update_hessian(loss, loss_scale=scale)
    loss.backward()


def by_create_graph(wrapper: Any, loss: Tensor, scale: float) -> None:
    loss.backward(create_graph=True)


FEEDS = [by_wrapped_backward, by_wrapped_update, by_create_graph]


def train(
    model: nn.Module,
    wrapper: Any,
    steps: range,
    feed: Any = by_wrapped_backward,
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    for step in steps:
        wrapper.zero_grad()
        feed(wrapper, scaler.scale(loss_of(model, step)), scaler.get_scale())
        scaler.step(wrapper)
        scaler.update()


def expected_loop(
    count: int, name: str, feed: Any, kind: str
) -> tuple[nn.Module, SecondOrderOptimizer]:
    """The optimizer alone, and Lookahead's few lines by hand."""
    model = bn_net()
    optimizer = optimizer_of(model, kind)
    slow = [p.detach().clone() for p in model.parameters()]
    for step in range(count):
        train(model, optimizer, range(step, step + 1), feed)
        if name == "timm" and step + 1 == K:
            slow = [p.detach().clone() for p in model.parameters()]  # It starts at the first sync.
        elif name != "accelerate" and (step + 1) % K == 0:
            with torch.no_grad():
                for p, q in zip(model.parameters(), slow, strict=True):
                    q += ALPHA * (p - q)
                    p.copy_(q)
    return model, optimizer


@pytest.mark.parametrize("name", WRAPPERS)
@pytest.mark.parametrize("feed", FEEDS, ids=lambda feed: feed.__name__)
@pytest.mark.parametrize(("scaled", "kind"), [(False, "sgdph"), (True, "sgdph"), (True, "adamw")])
def test_a_wrapped_optimizer_takes_the_same_steps(
    name: str, feed: Any, scaled: bool, kind: str
) -> None:
    model = bn_net()
    wrapper = WRAPPERS[name](optimizer_of(model, kind))
    # A power of two, so that scaling and division are exact.
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if scaled else None
    train(model, wrapper, range(8), feed, scaler)
    other, optimizer = expected_loop(8, name, feed, kind)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    found, expected = wrapped_sgdph(wrapper).multipliers(), optimizer.multipliers()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6)
    counts = {k: s.refreshes for k, s in wrapped_sgdph(wrapper).multiplier_statistics().items()}
    assert counts == {k: s.refreshes for k, s in optimizer.multiplier_statistics().items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_optimizer_resumes_bit_for_bit(name: str, kind: str) -> None:
    whole, resumed = bn_net(), bn_net(seed=1)
    wrapper = WRAPPERS[name](optimizer_of(whole, kind))
    train(whole, wrapper, range(4))
    buffer = io.BytesIO()
    torch.save([whole.state_dict(), wrapper.state_dict()], buffer)
    buffer.seek(0)
    weights, state = torch.load(buffer, weights_only=name != "timm")
    resumed.load_state_dict(weights)
    other = WRAPPERS[name](optimizer_of(resumed, kind))
    other.load_state_dict(state)
    train(whole, wrapper, range(4, 9))
    train(resumed, other, range(4, 9))
    assert_same_bits(whole, resumed)


def test_our_accelerate_backward_finds_it_inside_lookahead() -> None:
    models = bn_net(), bn_net()
    accelerator = Accelerator(cpu=True)
    wrapper = accelerator.prepare(lookahead(optimizer_of(models[0])))
    for step in range(5):
        wrapper.zero_grad()
        backward(accelerator, wrapper, loss_of(models[0], step))
        wrapper.step()
    plain = lookahead(optimizer_of(models[1]))
    train(models[1], plain, range(5), by_wrapped_update)
    assert_same_bits(*models)


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_step_without_curvature_raises_an_error(name: str) -> None:
    model = bn_net()
    wrapper = WRAPPERS[name](optimizer_of(model))
    loss_of(model).backward()
    with pytest.raises(RuntimeError, match=r"needs a partial Hessian.*wrapped_sgdph"):
        wrapper.step()
    with pytest.raises(TypeError, match="around Adam"):
        wrapped_sgdph(WRAPPERS[name](torch.optim.Adam(model.parameters())))  # type: ignore[arg-type]


def test_the_error_for_a_forgotten_line_names_lines_that_exist() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = sgdph.SGDPH([{"params": [weight], "channelwise": True}])
    weight.square().sum().backward()
    with pytest.raises(RuntimeError, match=r"sgdph\.integrations") as info:
        optimizer.step()
    _, _, lines = str(info.value).partition("sgdph.integrations: ")
    named = re.findall(r"(lightning|accelerate|transformers|timm|wrapped|fsdp)\.(\w+)", lines)
    assert len(named) == 6
    for module, what in named:
        assert callable(getattr(importlib.import_module(f"sgdph.integrations.{module}"), what))
