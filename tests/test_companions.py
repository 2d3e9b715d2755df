"""Real loops: schedulers, clipping, scalers, averaged weights, closures, orders of the calls.

Each loop is compared with the slow reference. The reference gets only the outcome, such as a
learning rate, clipped gradients or a skipped step, and knows nothing of the companion.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pairwise import pairwise
from reference.algorithm1 import ReferenceSGDPH
from reference.drive import WAYS, package_probe, state_of
from reference.nets import batches, build, flat, loss_of
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import sgdph

NET = "layer_norm_mlp"
BOUND = 1e-12
SETTINGS: dict[str, Any] = {
    "lr": 5e-3,
    "weight_decay": 5e-3,
    "second_order_lr": 2e-2,
    "eps": 5e-3,
}
ESTIMATORS = ["row_sum", "exact", "hutchinson"]
REFRESHES = ["cyclic", "all"]

pytestmark = pytest.mark.filterwarnings("ignore:estimator=.hutchinson. with refresh=.all.")


class Pair:
    """A model under SGDPH and its twin under the reference."""

    def __init__(self, **settings: Any) -> None:
        settings = SETTINGS | settings
        self.model, self.twin = build(NET), build(NET)
        self.optimizer = sgdph.SGDPH(self.model.parameters(), **settings)
        self.reference = ReferenceSGDPH(self.twin.parameters(), probe=package_probe(), **settings)
        self.data = batches(NET)

    def loss(self, step: int) -> Tensor:
        """The loss of the optimizer's model on this step's batch."""
        return loss_of(self.model, self.data[step % len(self.data)])

    def follow(self, *steps: int, edit: Callable[[list[Tensor]], None] | None = None) -> None:
        """Let the reference take one step on these batches; several are accumulated."""
        losses = [
            functools.partial(loss_of, self.twin, self.data[s % len(self.data)]) for s in steps
        ]
        self.reference.step(losses, edit)

    def check(self, when: object, bound: float = BOUND) -> None:
        gap = (flat(self.model) - flat(self.twin)).abs().max()
        assert gap <= bound, f"{when}: off by {gap:.1e}"

    def check_state(self) -> None:
        """Check that averages and counts agree."""
        for p, w in zip(self.model.parameters(), self.reference.weights, strict=True):
            if w.newton and w.v:
                state = state_of(self.optimizer, p)
                assert float(state["refreshes"]) == w.v
                torch.testing.assert_close(state["hessian"], w.D, rtol=1e-9, atol=1e-12)


def overflow(model: nn.Module) -> Callable[[], None]:
    """Let every gradient of the next backward overflow; return a function that undoes this."""
    handles = [p.register_hook(lambda g: g * float("inf")) for p in model.parameters()]
    return lambda: [h.remove() for h in handles] and None


# ---- schedulers ----------------------------------------------------------------------------------


def step_lr(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.3)


def one_cycle(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=40)


@pairwise(schedule=[step_lr, one_cycle], way=WAYS, foreach=[True, False])
def test_schedulers(schedule: Any, way: str, foreach: bool) -> None:
    pair = Pair()
    pair.optimizer = sgdph.SGDPH(pair.model.parameters(), foreach=foreach, **SETTINGS)
    scheduler = schedule(pair.optimizer)
    # The same schedule over torch.optim.SGD gives the expected learning rates and momenta.
    sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=SETTINGS["lr"], momentum=0.9)
    model_schedule = schedule(sgd)
    seen = set()
    for step in range(40):
        ours, theirs = pair.optimizer.param_groups[0], sgd.param_groups[0]
        for key in ("lr", "momentum"):
            assert ours[key] == theirs[key]
            pair.reference.groups[0][key] = theirs[key]
        seen.add((theirs["lr"], theirs["momentum"]))
        pair.optimizer.zero_grad()
        WAYS[way](pair.optimizer, pair.loss(step))
        pair.optimizer.step()
        pair.follow(step)
        pair.check(step)
        if step < 39:
            sgd.step()
            scheduler.step()
            model_schedule.step()
    assert len(seen) > 5


# ---- clipping ------------------------------------------------------------------------------------


@pairwise(refreshed=[("cyclic", 1), ("cyclic", 2), ("all", 1)], estimator=ESTIMATORS, way=WAYS)
def test_clipping_changes_gradients_but_not_curvature(
    refreshed: tuple[str, int], estimator: str, way: str
) -> None:
    refresh, micro = refreshed
    max_norm, clipped = 0.2, 0

    def clip(gradients: list[Tensor]) -> None:
        nonlocal clipped
        norm = torch.stack([g.norm() for g in gradients]).norm()
        if norm > max_norm:
            clipped += 1
        for g in gradients:
            g *= min(1.0, max_norm / (float(norm) + 1e-6))

    pair = Pair(estimator=estimator, refresh=refresh)
    for step in range(14):
        pair.optimizer.zero_grad()
        steps = [micro * step + i for i in range(micro)]
        for s in steps:
            WAYS[way](pair.optimizer, pair.loss(s))
        clip_grad_norm_(pair.model.parameters(), max_norm)
        pair.optimizer.step()
        pair.follow(*steps, edit=clip)
        pair.check(step)
    assert clipped > 10
    pair.check_state()


@pytest.mark.parametrize("way", WAYS)
def test_replacing_gradients_before_the_step_keeps_the_curvature(way: str) -> None:
    # Some loops clip by assigning new tensors. The curvature is still that of the loss.
    def halve(gradients: list[Tensor]) -> None:
        for g in gradients:
            g *= 0.5

    pair = Pair()
    for step in range(12):
        pair.optimizer.zero_grad()
        WAYS[way](pair.optimizer, pair.loss(step))
        for p in pair.model.parameters():
            p.grad = p.grad.detach() * 0.5
        pair.optimizer.step()
        pair.follow(step, edit=halve)
        pair.check(step)
    pair.check_state()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_clipping_between_micro_batches_keeps_the_curvature(estimator: str, way: str) -> None:
    # Clipping to a bound that is never reached writes every gradient in place and changes none.
    # This does not count as clearing: the first micro-batch's curvature must stay.
    pair = Pair(estimator=estimator)
    for step in range(10):
        pair.optimizer.zero_grad()
        steps = [2 * step, 2 * step + 1]
        for s in steps:
            WAYS[way](pair.optimizer, pair.loss(s))
            clip_grad_norm_(pair.model.parameters(), 1e6)
        pair.optimizer.step()
        pair.follow(*steps)
        pair.check(step)
    pair.check_state()


# ---- GradScaler ----------------------------------------------------------------------------------


@pairwise(refresh=REFRESHES, estimator=ESTIMATORS, way=WAYS, unscale=[True, False])
def test_a_run_with_a_gradient_scaler_equals_the_unscaled_run(
    refresh: str, estimator: str, way: str, unscale: bool
) -> None:
    pair = Pair(estimator=estimator, refresh=refresh)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=5)
    scales = set()
    for step in range(17):
        scales.add(scaler.get_scale())
        pair.optimizer.zero_grad()
        WAYS[way](pair.optimizer, scaler.scale(pair.loss(step)), scaler.get_scale())
        if unscale:
            scaler.unscale_(pair.optimizer)
        scaler.step(pair.optimizer)
        scaler.update()
        pair.follow(step)
        pair.check(step)
    assert len(scales) > 3  # the scale grew during the run
    pair.check_state()


@pytest.mark.parametrize("way", WAYS)
def test_gradient_scaler_with_accumulation_and_clipping(way: str) -> None:
    def halve(gradients: list[Tensor]) -> None:
        for g in gradients:
            g *= 0.5

    pair = Pair(estimator="hutchinson")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(12):
        pair.optimizer.zero_grad()
        steps = [2 * step, 2 * step + 1]
        for s in steps:
            WAYS[way](pair.optimizer, scaler.scale(pair.loss(s)), scaler.get_scale())
        scaler.unscale_(pair.optimizer)
        for p in pair.model.parameters():
            p.grad.mul_(0.5) if not p.grad.requires_grad else p.grad.detach().mul_(0.5)
        scaler.step(pair.optimizer)
        scaler.update()
        pair.follow(*steps, edit=halve)
        pair.check(step)
    pair.check_state()


@pairwise(interval=[1, 3], refresh=REFRESHES, estimator=ESTIMATORS, way=WAYS)
def test_skipped_steps_have_no_effect(
    interval: int, refresh: str, estimator: str, way: str
) -> None:
    pair = Pair(estimator=estimator, refresh=refresh, hessian_interval=interval)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(24):
        skipped = step in (0, 5, 6, 13)
        pair.optimizer.zero_grad()
        loss = pair.loss(step)
        undo = overflow(pair.model) if skipped else None
        due = pair.optimizer.hessian_due
        WAYS[way](pair.optimizer, scaler.scale(loss), scaler.get_scale())
        if undo is not None:
            undo()
        before = flat(pair.model)
        scaler.unscale_(pair.optimizer)
        scaler.step(pair.optimizer)
        scaler.update()
        if skipped:
            assert torch.equal(flat(pair.model), before)
            assert pair.optimizer.hessian_due == due
        else:
            pair.follow(step)
        pair.check(step)
    pair.check_state()


@pytest.mark.parametrize("way", WAYS)
def test_a_float32_scale_that_starts_far_too_high_recovers(way: str) -> None:
    # A real overflow: the curvature is infinite as well, and must be dropped with its step.
    model, plain = build(NET, dtype=torch.float32), build(NET, dtype=torch.float32)
    optimizer = sgdph.SGDPH(model.parameters(), **SETTINGS)
    reference = ReferenceSGDPH(plain.parameters(), **SETTINGS)
    data = batches(NET, dtype=torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    skips = 0
    for step in range(30):
        batch = data[step % len(data)]
        scale = scaler.get_scale()
        optimizer.zero_grad()
        WAYS[way](optimizer, scaler.scale(loss_of(model, batch)), scale)
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() < scale:
            skips += 1
        else:
            reference.step([functools.partial(loss_of, plain, batch)])
    assert 0 < skips < 15
    # float32, over the whole run: the last bits depend on the processor.
    assert (flat(model) - flat(plain)).abs().max() < 3e-5


# ---- averages of the weights ---------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_ema_of_the_weights(way: str) -> None:
    pair = Pair()
    ema = AveragedModel(pair.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    expected = None
    for step in range(20):
        pair.optimizer.zero_grad()
        WAYS[way](pair.optimizer, pair.loss(step))
        pair.optimizer.step()
        ema.update_parameters(pair.model)
        pair.follow(step)
        weights = flat(pair.twin)
        expected = weights if expected is None else 0.9 * expected + 0.1 * weights
        assert (flat(ema.module) - expected).abs().max() < BOUND
        if step == 10:  # a second average, started while the optimizer has state
            late = AveragedModel(pair.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
            assert torch.equal(flat(late.module), flat(pair.model))
    assert all(p.grad is None for p in ema.parameters())
    pair.check("end")


# ---- closures ------------------------------------------------------------------------------------


@pairwise(interval=[1, 2], estimator=ESTIMATORS, way=WAYS, zero=["first", "after_loss"])
def test_step_with_a_closure(interval: int, estimator: str, way: str, zero: str) -> None:
    pair = Pair(estimator=estimator, hessian_interval=interval)
    for step in range(20):
        calls = []

        def closure(step: int = step, calls: list[Tensor] = calls) -> Tensor:
            assert torch.is_grad_enabled()
            if zero == "first":
                pair.optimizer.zero_grad()
            loss = pair.loss(step)
            if zero == "after_loss":
                pair.optimizer.zero_grad()
            WAYS[way](pair.optimizer, loss)
            calls.append(loss)
            return loss

        with torch.no_grad():
            returned = pair.optimizer.step(closure)
        assert len(calls) == 1
        assert returned is calls[0]
        pair.follow(step)
        pair.check(step)
    pair.check_state()


@pytest.mark.parametrize("way", WAYS)
def test_step_without_a_closure_returns_none(way: str) -> None:
    pair = Pair()
    WAYS[way](pair.optimizer, pair.loss(0))
    assert pair.optimizer.step() is None


@pairwise(refresh=REFRESHES, estimator=ESTIMATORS, way=WAYS)
def test_step_consumes_the_curvature(refresh: str, estimator: str, way: str) -> None:
    # The gradients are not cleared, so they add up over the steps. The curvature must not.
    earlier: list[Tensor] = []

    def add_earlier(gradients: list[Tensor]) -> None:
        for g, e in zip(gradients, earlier, strict=False):
            g += e
        earlier[:] = [g.clone() for g in gradients]

    pair = Pair(estimator=estimator, refresh=refresh, lr=1e-3)
    for step in range(10):
        WAYS[way](pair.optimizer, pair.loss(step))
        pair.optimizer.step()
        pair.follow(step, edit=add_earlier)
        pair.check(step)
    pair.check_state()


# ---- the orders of zero_grad, loss and backward --------------------------------------------------

POSITIONS = ["first", "after_loss", "after_curvature", "last"]
OWNERS = ["optimizer", "model"]
SKIPS = [(), (0,), (4,), (4, 5)]


def walk_in_order(
    pair: Pair,
    way: str,
    position: str,
    zero: Callable[[], None],
    *,
    skips: tuple[int, ...] | None = None,
    micro: int = 1,
    clip: bool = False,
    steps: int = 12,
) -> None:
    """Train with ``zero`` called at ``position``; ``skips`` are steps that a scaler skips."""
    optimizer = pair.optimizer
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=skips is not None)

    def halve(gradients: list[Tensor]) -> None:
        for g in gradients:
            g *= 0.5

    for step in range(steps):
        skipped = skips is not None and step in skips
        taken = [micro * step + i for i in range(micro)]
        if position == "first":
            zero()
        for i, s in enumerate(taken):
            loss = scaler.scale(pair.loss(s))
            if position == "after_loss" and i == 0:
                zero()
            undo = overflow(pair.model) if skipped and i == micro - 1 else None
            if way == "update_hessian" and position == "after_curvature":
                optimizer.update_hessian(loss, loss_scale=scaler.get_scale())
                if i == 0:
                    zero()
                loss.backward()
            else:
                WAYS[way](optimizer, loss, scaler.get_scale())
            if undo is not None:
                undo()
        if clip:
            scaler.unscale_(optimizer)
            with torch.no_grad():
                for p in pair.model.parameters():
                    p.grad.mul_(0.5)
        scaler.step(optimizer)
        scaler.update()
        if position == "last":
            zero()
        if not skipped:
            pair.follow(*taken, edit=halve if clip else None)
        pair.check(f"step {step}")
    pair.check_state()


# The way, and the position of zero_grad. Only the first way has a position between two calls.
PLACES = [
    (way, position)
    for way in WAYS
    for position in POSITIONS
    if way == "update_hessian" or position != "after_curvature"
]


def zero_of(pair: Pair, owner: str, none: bool) -> Callable[[], None]:
    return functools.partial(getattr(pair, owner).zero_grad, set_to_none=none)


@pytest.mark.parametrize("none", [True, False])
@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_every_call_order(place: tuple[str, str], owner: str, none: bool) -> None:
    way, position = place
    pair = Pair()
    walk_in_order(pair, way, position, zero_of(pair, owner, none))


@pairwise(place=PLACES, skips=SKIPS, owner=OWNERS, none=[True, False])
def test_every_call_order_with_skipped_steps(
    place: tuple[str, str], owner: str, none: bool, skips: tuple[int, ...]
) -> None:
    way, position = place
    pair = Pair()
    walk_in_order(pair, way, position, zero_of(pair, owner, none), skips=skips)


@pairwise(place=PLACES, owner=OWNERS, none=[True, False])
def test_every_call_order_with_skips_accumulation_and_clipping(
    place: tuple[str, str], owner: str, none: bool
) -> None:
    way, position = place
    pair = Pair(estimator="hutchinson", hessian_interval=2)
    zero = zero_of(pair, owner, none)
    walk_in_order(pair, way, position, zero, skips=(0, 4, 5), micro=2, clip=True)


@pairwise(place=PLACES, owner=OWNERS, none=[True, False])
def test_every_call_order_with_joint_draws(place: tuple[str, str], owner: str, none: bool) -> None:
    way, position = place
    pair = Pair(estimator="hutchinson", refresh="all")
    walk_in_order(pair, way, position, zero_of(pair, owner, none), skips=(0, 4, 5))
