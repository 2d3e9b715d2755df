"""PartialHessian acts as one optimizer for schedulers, clipping, scalers, checkpoints and hooks.

The oracle trains a twin with two optimizers: AdamW for its first-order parameters and SGDPH for its
Newton parameters. Each has companions of its own. Both agree to the bit, in float64.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small import WAYS, Feed, assert_same_bits, bn_net, by_update, loss_of, stored, train
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn

import sgdph

NEWTON: dict[str, Any] = {"lr": 0.05, "weight_decay": 1e-2, "second_order_lr": 1e-2, "eps": 1e-2}
FIRST: dict[str, Any] = {"lr": 3e-3, "weight_decay": 0.1}


def by_shape(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the first-order and the Newton parameters of ``bn_net``."""
    newton = [model[0].bias, model[1].weight, model[1].bias]
    return [model[0].weight, model[4].weight, model[4].bias], newton


class Pair:
    """A model under PartialHessian over AdamW, and its twin under two separate optimizers."""

    def __init__(self, **settings: Any) -> None:
        self.model, self.twin = bn_net(torch.float64), bn_net(torch.float64)
        self.settings = NEWTON | settings
        self.optimizer = self.build(self.model)
        first, newton = by_shape(self.twin)
        groups = [{"params": newton, "channelwise": True}]
        self.newton = sgdph.SGDPH(groups, **self.settings)
        self.adamw = torch.optim.AdamW(first, **FIRST)

    def build(self, model: nn.Module) -> sgdph.PartialHessian:
        adamw = torch.optim.AdamW(model.parameters(), **FIRST)
        return sgdph.PartialHessian(adamw, model.parameters(), **self.settings)

    def follow(self, *steps: int, feed: Feed = by_update, clip: float | None = None) -> None:
        """Let the twin take a step on these batches; several are accumulated."""
        for step in steps:
            feed(self.newton, loss_of(self.twin, step))
        if clip is not None:
            first, newton = by_shape(self.twin)
            clip_grad_norm_(first + newton, clip)
        # SGDPH first: its step uses the graph of create_graph=True, made at these weights.
        for optimizer in (self.newton, self.adamw):
            optimizer.step()
            optimizer.zero_grad()

    def skip(self, *steps: int) -> None:
        """Run the batches without a step, because they change batch norm's averages."""
        for step in steps:
            loss_of(self.twin, step)

    def check(self) -> None:
        assert_same_bits(self.model, self.twin)
        for ours, theirs in zip(
            self.optimizer.multipliers().values(), self.newton.multipliers().values(), strict=True
        ):
            assert torch.equal(ours, theirs)


# ---- schedulers ----------------------------------------------------------------------------------
# Each is built from an optimizer and the peak learning rates of its groups.


def warm_up(optimizer: Any, peaks: list[float]) -> Any:
    return lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 5))


def cosine(optimizer: Any, peaks: list[float]) -> Any:
    return lr_scheduler.CosineAnnealingLR(optimizer, T_max=7)


def one_cycle(optimizer: Any, peaks: list[float]) -> Any:
    # It cycles the momentum that the defaults name: the Newton half's, and not AdamW's.
    cycles = not isinstance(optimizer, torch.optim.AdamW)
    return lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=20, cycle_momentum=cycles)


def plateau(optimizer: Any, peaks: list[float]) -> Any:
    return lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)


def averaging(optimizer: Any, peaks: list[float]) -> Any:
    return SWALR(optimizer, swa_lr=[peak / 3 for peak in peaks], anneal_epochs=5)


def in_sequence(optimizer: Any, peaks: list[float]) -> Any:
    parts = [warm_up(optimizer, peaks), lr_scheduler.ExponentialLR(optimizer, 0.8)]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[4])


def advance(scheduler: Any, step: int) -> None:
    scheduler.step(
        *([float(step % 3)] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else [])
    )


@pytest.mark.parametrize("schedule", [warm_up, cosine, one_cycle, plateau, averaging, in_sequence])
def test_a_schedule_reaches_both_halves_and_resumes(schedule: Callable[..., Any]) -> None:
    pair = Pair()
    peaks = [4e-3, 0.08]
    scheduler = schedule(pair.optimizer, peaks)
    halves = [schedule(pair.adamw, peaks[:1]), schedule(pair.newton, peaks[1:])]
    seen = set()
    for step in range(16):
        if step == 9:
            saved = [stored(each.state_dict()) for each in (pair.model, pair.optimizer)]
            # In older torch, the state of a scheduler may contain a function.
            saved.append(copy.deepcopy(scheduler.state_dict()))
            pair.model = bn_net(torch.float64, seed=1)
            pair.optimizer = pair.build(pair.model)
            scheduler = schedule(pair.optimizer, peaks)
            for each, state in zip((pair.model, pair.optimizer, scheduler), saved, strict=True):
                each.load_state_dict(state)
        train(pair.model, pair.optimizer, range(step, step + 1))
        pair.follow(step)
        for each in (scheduler, *halves):
            advance(each, step)
        pair.check()
        theirs = [group["lr"] for half in (pair.adamw, pair.newton) for group in half.param_groups]
        assert [group["lr"] for group in pair.optimizer.param_groups] == theirs
        seen.add(tuple(theirs))
    assert len(seen) > 3
    assert pair.optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    if schedule is one_cycle:
        assert pair.optimizer.param_groups[1]["momentum"] != 0.9


@pytest.mark.filterwarnings("error")  # Torch warns if a scheduler steps first.
def test_a_scheduler_of_an_inner_optimizer_changes_only_its_half() -> None:
    pair = Pair()
    inner = pair.optimizer.first_order[0]
    schedulers = [cosine(optimizer, []) for optimizer in (inner, pair.adamw)]
    for step in range(10):
        train(pair.model, pair.optimizer, range(step, step + 1))
        pair.follow(step)
        for scheduler in schedulers:
            scheduler.step()
        pair.check()
    assert pair.optimizer.param_groups[0]["lr"] == pair.adamw.param_groups[0]["lr"] != FIRST["lr"]
    assert pair.optimizer.param_groups[1]["lr"] == NEWTON["lr"]
    # Loading replaces the groups' dicts; the inner optimizer then has the same ones.
    pair.optimizer.load_state_dict(stored(pair.optimizer.state_dict()))
    schedulers[0].step()
    assert pair.optimizer.param_groups[0]["lr"] == inner.param_groups[0]["lr"]


# ---- clipping, gradient scalers, averages --------------------------------------------------------


def overflow(model: nn.Module) -> list[Any]:
    return [p.register_hook(lambda g: g * float("inf")) for p in model.parameters()]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("estimator", ["row_sum", "hutchinson"])
def test_scaling_accumulation_clipping_skips_and_averages_together(
    estimator: str, way: str
) -> None:
    pair = Pair(estimator=estimator, hessian_interval=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=3)
    averages = [
        AveragedModel(each, multi_avg_fn=get_ema_multi_avg_fn(0.8))
        for each in (pair.model, pair.twin)
    ]
    scales = set()
    for step in range(14):
        skipped = step in (0, 5, 6)
        scales.add(scaler.get_scale())
        for micro in (2 * step, 2 * step + 1):
            loss = scaler.scale(loss_of(pair.model, micro))
            hooks = overflow(pair.model) if skipped else []
            WAYS[way](pair.optimizer, loss)
            for hook in hooks:
                hook.remove()
        scaler.unscale_(pair.optimizer)
        # The norm's last bit depends on the order of the parameters.
        clip_grad_norm_([p for g in pair.optimizer.param_groups for p in g["params"]], 0.3)
        scaler.step(pair.optimizer)
        scaler.update()
        pair.optimizer.zero_grad()
        if skipped:
            pair.skip(2 * step, 2 * step + 1)
        else:
            pair.follow(2 * step, 2 * step + 1, feed=WAYS[way], clip=0.3)
        for average, model in zip(averages, (pair.model, pair.twin), strict=True):
            average.update_parameters(model)
        pair.check()
        assert_same_bits(*averages)
    assert scales == {2.0**10, 2.0**11, 2.0**12}
    assert [s["step"] for s in pair.adamw.state.values()] == [11.0] * 3
    assert {float(s["step"]) for s in pair.optimizer.first_order[0].state.values()} == {11.0}


# ---- hooks, copies -------------------------------------------------------------------------------


def over_two(model: nn.Module) -> sgdph.PartialHessian:
    body, head = torch.optim.AdamW([model[0].weight]), torch.optim.RMSprop(model[4].parameters())
    return sgdph.PartialHessian([body, head], sgdph.param_groups(model), **NEWTON)


def test_hooks_see_one_step_and_state_and_inner_hooks_their_own() -> None:
    model = bn_net()
    optimizer = over_two(model)
    seen: list[str] = []

    def noting(word: str, result: Any = None) -> Callable[..., Any]:
        return lambda *_: seen.append(word) or result

    optimizer.register_step_pre_hook(noting("before"))
    optimizer.first_order[1].register_step_post_hook(noting("within"))
    optimizer.register_step_post_hook(noting("after"))
    train(model, optimizer, range(2))
    assert seen == ["before", "within", "after"] * 2

    def with_a_note(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        assert len(state["state"]) == 6
        return {**state, "note": len(state["param_groups"])}

    def without_it(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        assert state["note"] == len(optimizer.param_groups)
        return {name: value for name, value in state.items() if name != "note"}

    optimizer.register_state_dict_pre_hook(noting("save"))
    optimizer.first_order[0].register_state_dict_pre_hook(noting("save within"))
    optimizer.register_state_dict_post_hook(with_a_note)
    optimizer.register_load_state_dict_pre_hook(without_it)
    optimizer.first_order[0].register_load_state_dict_post_hook(noting("load within"))
    optimizer.register_load_state_dict_post_hook(noting("load"))
    seen.clear()
    twin = copy.deepcopy(model)
    other = over_two(twin)
    saved = optimizer.state_dict()
    other.load_state_dict({name: value for name, value in saved.items() if name != "note"})
    optimizer.load_state_dict(saved)
    assert seen == ["save", "save within", "load within", "load"]
    train(model, optimizer, range(2, 8))
    train(twin, other, range(2, 8))
    assert_same_bits(model, twin)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_scheduler_is_copied_with_its_optimizer(copied: Callable[[Any], Any]) -> None:
    model = bn_net()
    optimizer = over_two(model)
    scheduler = cosine(optimizer, [])
    train(model, optimizer, range(3))
    scheduler.step()
    twin, other, its_scheduler = copied((model, optimizer, scheduler))
    assert its_scheduler.optimizer is other
    for each, its_optimizer, schedule in (
        (model, optimizer, scheduler),
        (twin, other, its_scheduler),
    ):
        for step in range(3, 9):
            train(each, its_optimizer, range(step, step + 1))
            schedule.step()
    assert optimizer.first_order[0].param_groups[0]["lr"] < 1e-3
    assert_same_bits(model, twin)
