"""A GradScaler without ``loss_scale``: the curvature is right, or an error explains why not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from reference.algorithm1 import dense_hessian
from reference.drive import update_then_backward
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import sgdph
from sgdph.autograd.graph import TELLS_PACKED

F64 = torch.float64
SCALE = 1024.0
Feed = Callable[[sgdph.SGDPH, Callable[[], Tensor]], None]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).to(F64)


def plain_loss(model: nn.Module, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 5, generator=generator, dtype=F64)
    return functional.cross_entropy(model(x), torch.arange(8) % 3)


def by_update(optimizer: sgdph.SGDPH, loss: Callable[[], Tensor]) -> None:
    scaled = loss()
    optimizer.update_hessian(scaled)
    scaled.backward()


def by_closure(optimizer: sgdph.SGDPH, loss: Callable[[], Tensor]) -> None:
    optimizer.update_hessian(closure=loss)
    loss().backward()


FEEDS: dict[str, Feed] = {
    "update_hessian": by_update,
    "backward": lambda optimizer, loss: optimizer.backward(loss()),
    "create_graph": lambda optimizer, loss: loss().backward(create_graph=True),
    "closure": by_closure,
}


def measuring(model: nn.Sequential) -> sgdph.SGDPH:
    """Return an optimizer that keeps only the first bias's newest curvature and never moves it."""
    groups = [{"params": [model[0].bias], "channelwise": True}]
    return sgdph.SGDPH(groups, lr=0.0, hessian_momentum=0.0, estimator="exact")


def curvature(optimizer: sgdph.SGDPH) -> Tensor:
    (state,) = optimizer.state.values()
    found: Tensor = state["hessian"]
    return found


def oracle(model: nn.Sequential, loss: Tensor) -> Tensor:
    """Return the absolute values of the dense Hessian's diagonal."""
    p = model[0].bias
    gradients = torch.autograd.grad(loss, [p], create_graph=True)
    return dense_hessian(gradients, [p]).diagonal().abs()


def scaler_of(scale: float = SCALE) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=scale)


# What users write at the end of a loss. Each also multiplies it by 1/2.
ENDS: dict[str, Callable[[torch.amp.GradScaler, Tensor], Tensor]] = {
    "weight inside": lambda scaler, loss: scaler.scale(0.5 * loss),
    "divided after": lambda scaler, loss: scaler.scale(loss) / 2,
    "weight is a tensor": lambda scaler, loss: scaler.scale(loss * torch.tensor(0.5)),
    "divided by a tensor": lambda scaler, loss: scaler.scale(loss) / torch.tensor(2.0),
    "scale times loss": lambda scaler, loss: scaler.scale(0 * loss) + scaler._scale * loss / 2,
    "mean of scaled ones": lambda scaler, loss: torch.stack(
        [scaler.scale(loss), scaler.scale(0 * loss)]
    ).mean(),
    "sum of scaled ones": lambda scaler, loss: sum(  # type: ignore[return-value]
        scaler.scale(part) for part in (loss / 4, loss / 4)
    ),
    "weighted samples": lambda scaler, loss: (
        scaler.scale(loss.expand(8)) * torch.linspace(0.25, 0.75, 8, dtype=F64)
    ).mean(),
    "chosen samples": lambda scaler, loss: (
        scaler.scale(loss.repeat(8))[2:6][torch.tensor([True, False, True, False])].mean() / 2
    ),
    "dot product": lambda scaler, loss: (
        scaler.scale(loss.expand(4)) @ torch.full((4,), 1 / 8, dtype=F64)
    ),
    "halved by a sum, often": lambda scaler, loss: _often(scaler.scale(loss)) / 2,
    "cast and shaped": lambda scaler, loss: scaler.scale(loss.view(1)).to(torch.float32).mean() / 2,
}


def _often(loss: Tensor) -> Tensor:
    for _ in range(30):
        loss = (loss + loss) / 2
    return loss


@pytest.mark.parametrize("way", FEEDS)
@pytest.mark.parametrize("end", ENDS)
def test_curvature_is_divided_by_the_scaler_s_scale(way: str, end: str) -> None:
    model, scaler = network(), scaler_of()
    optimizer = measuring(model)
    FEEDS[way](optimizer, lambda: ENDS[end](scaler, plain_loss(model)))
    scaler.step(optimizer)
    tolerance = 1e-3 if way == "closure" else 1e-5 if end == "cast and shaped" else 1e-10
    expected = oracle(model, plain_loss(model) / 2)
    torch.testing.assert_close(curvature(optimizer), expected, rtol=tolerance, atol=1e-12)


@pytest.mark.parametrize("way", FEEDS)
def test_micro_batches_add_up_and_a_skipped_step_leaves_nothing(way: str) -> None:
    model, scaler = network(), scaler_of()
    optimizer = measuring(model)

    def feed(weight: float) -> None:
        for seed in (0, 1):
            scaled = lambda seed=seed: weight * scaler.scale(plain_loss(model, seed) / 2)  # noqa: E731
            FEEDS[way](optimizer, scaled)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    feed(float("inf"))
    assert not optimizer.state
    assert scaler.get_scale() == SCALE / 2
    feed(1.0)
    expected = oracle(model, (plain_loss(model, 0) + plain_loss(model, 1)) / 2)
    tolerance = 1e-3 if way == "closure" else 1e-10
    torch.testing.assert_close(curvature(optimizer), expected, rtol=tolerance, atol=1e-12)


@pytest.mark.parametrize("change", ["none", "clip by value", "add in place", "add out of place"])
@pytest.mark.parametrize(
    ("way", "overflow"),
    # A gradient with a graph does not show the scale of its loss: if it was finite, it counts.
    [*((way, "everywhere") for way in FEEDS), *((way, "elsewhere") for way in list(FEEDS)[:2])],
)
def test_gradients_may_be_changed_after_a_skipped_step(
    way: str, change: str, overflow: str
) -> None:
    """What was skipped cannot be in them again, also where its gradient was finite."""
    model, scaler = network(), scaler_of()
    optimizer = measuring(model)
    optimizer.add_param_group({"params": [model[2].weight], "channelwise": False})
    for step in range(2):
        weight = float("inf") if step == 0 and overflow == "everywhere" else 1.0
        FEEDS[way](optimizer, lambda weight=weight: weight * scaler.scale(plain_loss(model)))
        bias = model[0].bias
        assert bias.grad is not None
        assert model[2].weight.grad is not None
        if step == 0 and overflow == "elsewhere":
            model[2].weight.grad.fill_(float("inf"))
        scaler.unscale_(optimizer)
        if change == "clip by value":
            nn.utils.clip_grad_value_(bias, 0.5 * bias.grad.abs().max().item())
        elif change == "add in place":
            bias.grad.add_(bias.detach(), alpha=0.1)
        elif change == "add out of place":
            bias.grad = bias.grad + 0.1 * bias.detach()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    tolerance = 1e-3 if way == "closure" else 1e-10
    expected = oracle(model, plain_loss(model))
    found = optimizer.state[model[0].bias]["hessian"]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=1e-12)


def test_an_unscaled_loss_before_a_scaled_backward_is_not_divided() -> None:
    model, scaler = network(), scaler_of()
    optimizer = measuring(model)
    loss = plain_loss(model) * torch.tensor(0.3)
    optimizer.update_hessian(loss)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    expected = oracle(model, 0.3 * plain_loss(model))
    torch.testing.assert_close(curvature(optimizer), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("given", [2.0, torch.tensor(2.0)])
def test_an_explicit_loss_scale_takes_precedence(given: float | Tensor) -> None:
    model, scaler = network(), scaler_of()
    optimizer = measuring(model)
    optimizer.backward(scaler.scale(plain_loss(model)), loss_scale=given)
    scaler.step(optimizer)
    expected = SCALE / 2 * oracle(model, plain_loss(model))
    torch.testing.assert_close(curvature(optimizer), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("way", ["update_hessian", "backward"])
def test_if_no_scaler_calls_step_a_factor_of_the_loss_is_kept(way: str) -> None:
    for factor in (SCALE, torch.tensor(SCALE), scaler_of(SCALE)):
        model = network()
        optimizer = measuring(model)
        if isinstance(factor, torch.amp.GradScaler):
            end = factor.scale
        else:
            end = lambda loss, factor=factor: factor * loss  # noqa: E731
        FEEDS[way](optimizer, lambda end=end, model=model: end(plain_loss(model)))  # type: ignore[misc]
        optimizer.step()
        expected = SCALE * oracle(model, plain_loss(model))
        torch.testing.assert_close(curvature(optimizer), expected, rtol=1e-6, atol=1e-9)


UNKNOWN: dict[str, Callable[[torch.amp.GradScaler, Tensor], Tensor]] = {
    "several at once": lambda scaler, loss: scaler.scale([loss])[0],
    "a copy": lambda scaler, loss: (scaler.scale(loss), loss * scaler._scale.clone())[1],
    "a number": lambda scaler, loss: (scaler.scale(loss), loss * scaler.get_scale())[1],
    "another scaler's": lambda scaler, loss: (scaler.scale(loss), scaler_of(64.0).scale(loss))[1],
    "a part": lambda scaler, loss: scaler.scale(loss) + loss,
    "an operation that is not linear": lambda scaler, loss: scaler.scale(loss).square().sqrt(),
    "a learned weight": lambda scaler, loss: (
        scaler.scale(loss) * torch.ones((), dtype=F64, requires_grad=True)
    ),
    "inside of a checkpoint": lambda scaler, loss: checkpoint(
        lambda x: scaler.scale(x) * 1, loss, use_reentrant=False
    ),
}


@pytest.mark.parametrize("way", ["update_hessian", "backward", "closure"])
@pytest.mark.parametrize("end", UNKNOWN)
def test_a_scale_that_cannot_be_found_raises_an_error(way: str, end: str) -> None:
    model, scaler = network(), scaler_of()
    optimizer = measuring(model)
    FEEDS[way](optimizer, lambda: UNKNOWN[end](scaler, plain_loss(model)))
    if end == "inside of a checkpoint" and not TELLS_PACKED:
        # Older torch reads through the checkpoint, and finds the scale itself.
        scaler.step(optimizer)
        expected = oracle(model, plain_loss(model))
        torch.testing.assert_close(curvature(optimizer), expected, rtol=1e-3, atol=1e-6)
        return
    with pytest.raises(RuntimeError, match=r"loss_scale=scaler.get_scale\(\)"):
        scaler.step(optimizer)


class OwnScaler(torch.amp.GradScaler):
    """A subclass with its own step."""

    def step(self, optimizer: torch.optim.Optimizer, *_: object, **__: object) -> None:
        self.unscale_(optimizer)
        optimizer.step()


@pytest.mark.parametrize("way", FEEDS)
def test_the_scaler_is_found_with_wrapped_steps_and_subclasses(way: str) -> None:
    for scaler, wrappers in ((scaler_of(), 20), (OwnScaler("cpu", init_scale=SCALE), 0)):
        model = network()
        optimizer = measuring(model)
        for _ in range(wrappers):
            step = optimizer.step
            optimizer.step = lambda *a, _step=step, **k: _step(*a, **k)  # type: ignore[method-assign]
        FEEDS[way](optimizer, lambda s=scaler, m=model: s.scale(plain_loss(m)))  # type: ignore[misc]
        scaler.step(optimizer)
        tolerance = 1e-3 if way == "closure" else 1e-10
        expected = oracle(model, plain_loss(model))
        torch.testing.assert_close(curvature(optimizer), expected, rtol=tolerance, atol=1e-12)


def test_a_flop_counter_mode_changes_nothing() -> None:
    model = network()
    optimizer = measuring(model)
    with FlopCounterMode(display=False):
        optimizer.backward(plain_loss(model) / 2)
    optimizer.step()
    torch.testing.assert_close(curvature(optimizer), oracle(model, plain_loss(model) / 2))


def test_a_scaler_as_loss_scale_raises_a_type_error() -> None:
    model = network()
    with pytest.raises(TypeError, match=r"scaler\.get_scale\(\)"):
        measuring(model).backward(plain_loss(model), loss_scale=scaler_of())  # type: ignore[arg-type]


def test_the_scale_is_found_in_a_sum_of_thousands_of_terms() -> None:
    model, scaler = network(), scaler_of()
    optimizer = measuring(model)
    part = plain_loss(model) / 3000
    total: Tensor = sum((part for _ in range(3000)), torch.zeros((), dtype=F64))
    optimizer.backward(scaler.scale(total))
    scaler.step(optimizer)
    torch.testing.assert_close(curvature(optimizer), oracle(model, plain_loss(model)))


def test_each_step_uses_its_own_scale() -> None:
    """update() changes the scale in place. What counts is the value that scaled the loss."""
    model = network()
    optimizer = measuring(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=1)
    for _ in range(3):
        optimizer.zero_grad()
        update_then_backward(optimizer, scaler.scale(plain_loss(model)), None)  # type: ignore[arg-type]
        scaler.step(optimizer)
        scaler.update()
        torch.testing.assert_close(curvature(optimizer), oracle(model, plain_loss(model)))
    assert scaler.get_scale() == 8 * SCALE
