"""Curvature between loss and step: which gradients it belongs to, and how long it is kept."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from small import WAYS, assert_same_bits, batch, bn_net, by_backward, by_update, loss_of, train
from torch import Tensor, nn

import sgdph


@pytest.fixture(autouse=True)
def _what_was_before_is_not_collected() -> Iterator[None]:
    """With all objects of torch and pytest, one garbage collection takes longer than a test."""
    gc.freeze()
    yield
    gc.unfreeze()


def live_tensors() -> int:
    gc.collect()
    # By type, because isinstance would ask lazily imported modules about their attributes.
    return sum(issubclass(type(o), Tensor) for o in gc.get_objects())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "settings", [{}, {"estimator": "hutchinson", "refresh": "all", "hessian_momentum": 0.99}]
)
def test_the_number_of_live_tensors_stays_constant(way: str, settings: dict[str, object]) -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters(), **settings)  # type: ignore[arg-type]
    train(model, optimizer, range(5), WAYS[way])
    before = live_tensors()
    train(model, optimizer, range(50), WAYS[way])
    assert live_tensors() <= before


class Sentinel:
    """Lives as long as the autograd node that holds it."""


class Watched(torch.autograd.Function):
    """The identity, with a sentinel on its node: nodes themselves take no weak references."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sentinel: Sentinel) -> Tensor:
        ctx.sentinel = sentinel
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g, None


def watched(loss: Tensor) -> tuple[Tensor, weakref.ref[Sentinel]]:
    sentinel = Sentinel()
    return Watched.apply(loss, sentinel), weakref.ref(sentinel)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("interval", [1, 3])
def test_no_graph_outlives_the_step(way: str, interval: int) -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters(), hessian_interval=interval)
    for step in range(4):
        loss, graph = watched(loss_of(model, step))
        assert graph() is not None
        WAYS[way](optimizer, loss)
        optimizer.step()
        # Without zero_grad: .grad itself must not hold the graph either.
        del loss
        gc.collect()
        assert graph() is None
        assert all(p.grad is None or p.grad.grad_fn is None for p in model.parameters())


def test_no_graph_outlives_a_step_that_was_skipped() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    loss, graph = watched(loss_of(model))
    loss.backward(create_graph=True)
    del loss
    optimizer.zero_grad()
    assert graph() is None


def test_the_model_does_not_keep_the_optimizer_alive() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    train(model, optimizer, range(2))
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    loss_of(model).backward()


def test_a_deleted_optimizer_leaves_no_hooks() -> None:
    """A hyperparameter search builds many optimizers for one model."""
    model = bn_net()
    kept = sgdph.SGDPH(model.parameters())
    own = len(model[1].weight._backward_hooks), len(model[1].weight._post_accumulate_grad_hooks)
    assert own == (1, 1)
    for step in range(3):
        train(model, sgdph.SGDPH(model.parameters()), range(step, step + 1))
    gc.collect()
    for p in (model[0].bias, model[1].weight, model[1].bias):
        assert (len(p._backward_hooks), len(p._post_accumulate_grad_hooks)) == own
    # The hooks that are left belong to the optimizer in use.
    train(model, kept, range(3, 6))
    assert kept.state[model[1].bias]["refreshes"].item() == 1
    # An optimizer deleted between its product and the backward does not affect the other.
    loss = loss_of(model)
    sgdph.SGDPH(model.parameters()).update_hessian(loss)
    gc.collect()
    by_backward(kept, loss)
    kept.step()


@pytest.mark.parametrize("way", WAYS)
def test_a_step_does_not_change_the_gradients(way: str) -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters(), weight_decay=0.1, maximize=True)
    WAYS[way](optimizer, loss_of(model))
    before = [p.grad.detach().clone() for p in model.parameters() if p.grad is not None]
    optimizer.step()
    for p, g in zip(model.parameters(), before, strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, g)


def test_update_hessian_sets_no_gradients() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    loss = loss_of(model)
    optimizer.update_hessian(loss)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("way", WAYS)
def test_hooks_fire_once_per_backward(way: str) -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters(), refresh="all")
    seen: list[tuple[str, str, Tensor]] = []
    for name, p in model.named_parameters():
        p.register_hook(lambda g, name=name: seen.append(("tensor", name, g.detach())))
        p.register_post_accumulate_grad_hook(
            lambda p, name=name: seen.append(("accumulated", name, p.grad.detach()))
        )
    WAYS[way](optimizer, loss_of(model))
    names = sorted(name for name, _ in model.named_parameters())
    for kind in ("tensor", "accumulated"):
        assert sorted(name for k, name, _ in seen if k == kind) == names
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for _, name, g in seen:
        assert torch.equal(g, gradients[name])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("first", [True, False], ids=["before the optimizer", "after it"])
@pytest.mark.parametrize(
    "hook",
    [lambda g: g.clamp(-1e-3, 1e-3), lambda g: g.mul_(0.5)],
    ids=["new tensor", "in place"],
)
def test_a_gradient_hook_does_not_change_the_curvature(
    hook: Callable[[Tensor], Tensor], first: bool, way: str
) -> None:
    plain, hooked = bn_net(), bn_net()
    averages = []
    for model in (plain, hooked):
        if model is hooked and first:
            model[0].bias.register_hook(hook)
        optimizer = sgdph.SGDPH(model.parameters(), refresh="all")
        if model is hooked and not first:
            model[0].bias.register_hook(hook)
        WAYS[way](optimizer, loss_of(model))
        optimizer.step()
        averages.append(optimizer.state[model[0].bias]["hessian"])
    assert torch.equal(*averages)


def test_gradient_penalty_is_not_taken_for_a_backward() -> None:
    """autograd.grad(create_graph=True) in the user's loss fires tensor hooks, but adds nothing."""
    # Batch norm has no third derivative; this loss needs one.
    models = bn_net(torch.float64), bn_net(torch.float64)
    for model, with_penalty in zip(models, (True, False), strict=True):
        model[1], model[2] = nn.GroupNorm(2, 4).double(), nn.Tanh()
        optimizer = sgdph.SGDPH(model.parameters())
        for step in range(6):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            if with_penalty:
                gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
                loss = loss + 0.0 * torch.stack([g.square().sum() for g in gradients]).sum()
            by_update(optimizer, loss)
            optimizer.step()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_two_ways_for_one_loss_count_once() -> None:
    models = bn_net(), bn_net()
    for model, both in zip(models, (True, False), strict=True):
        optimizer = sgdph.SGDPH(model.parameters())
        for step in range(4):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            optimizer.update_hessian(loss)
            loss.backward(create_graph=both)
            optimizer.step()
    assert_same_bits(*models)


def test_micro_batches_taken_different_ways_add_up() -> None:
    models = bn_net(torch.float64), bn_net(torch.float64)
    for model, feeds in zip(
        models,
        (["update_hessian"] * 3, ["create_graph", "update_hessian", "backward"]),
        strict=True,
    ):
        optimizer = sgdph.SGDPH(model.parameters())
        for step in range(4):
            optimizer.zero_grad()
            for k, feed in enumerate(feeds):
                WAYS[feed](optimizer, loss_of(model, 3 * step + k) / 3)
            optimizer.step()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_an_unfrozen_parameter_is_refreshed_in_every_way() -> None:
    for feed in WAYS.values():
        model = bn_net()
        model[0].bias.requires_grad_(False)
        optimizer = sgdph.SGDPH(model.parameters())
        train(model, optimizer, range(3), feed)
        assert optimizer.state[model[0].bias].get("refreshes") is None
        model[0].bias.requires_grad_(True)
        train(model, optimizer, range(3, 6), feed)
        assert optimizer.state[model[0].bias]["refreshes"].item() == 1


def test_clearing_between_micro_batches_drops_earlier_curvature() -> None:
    """A step given up by hand: model.zero_grad() and start again."""

    def new_zeros(model: nn.Module) -> None:
        for p in model.parameters():
            p.grad = torch.zeros_like(p)

    for clear in (nn.Module.zero_grad, lambda model: model.zero_grad(False), new_zeros):
        for feed in WAYS.values():
            models = bn_net(), bn_net()
            for model, false_start in zip(models, (True, False), strict=True):
                optimizer = sgdph.SGDPH(model.parameters())
                for step in range(4):
                    if false_start:
                        feed(optimizer, 100 * loss_of(model, 50 + step))
                        clear(model)
                    feed(optimizer, loss_of(model, step))
                    optimizer.step()
                    clear(model)
            # Batch norm's running statistics have seen the false starts.
            for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
                assert torch.equal(p, q)


def _replace_gradients(model: nn.Module) -> None:
    for p in model.parameters():
        assert p.grad is not None
        p.grad = torch.nan_to_num(p.grad).clamp(-1e-3, 1e-3)


def _detach_and_clip(model: nn.Module) -> None:
    for p in model.parameters():
        assert p.grad is not None
        p.grad = p.grad.detach()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)


CLIPS: dict[str, Callable[[nn.Module], object]] = {
    "detached, then in place": _detach_and_clip,
    "in place": lambda model: torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3),
    "replaced": _replace_gradients,
    "replaced without gradients": torch.no_grad()(_replace_gradients),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("clip", CLIPS)
def test_clipping_between_micro_batches_keeps_earlier_curvature(clip: str, way: str) -> None:
    averages = []
    for clipping in (True, False):
        model = bn_net()
        optimizer = sgdph.SGDPH(model.parameters(), refresh="all")
        for k in range(2):
            WAYS[way](optimizer, loss_of(model, k))
            if clipping:
                CLIPS[clip](model)
        optimizer.step()
        averages.append(optimizer.state[model[1].weight]["hessian"])
    torch.testing.assert_close(*averages)


def test_a_failed_backward_leaves_no_curvature() -> None:
    averages = []
    for low_memory in (None, False, True):
        model = bn_net()
        optimizer = sgdph.SGDPH(model.parameters())
        if low_memory is not None:
            handle = model[1].weight.register_hook(lambda g: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                optimizer.backward(loss_of(model, 7), low_memory=low_memory)
            handle.remove()
            optimizer.zero_grad()
        optimizer.backward(loss_of(model, 0))
        optimizer.step()
        averages.append(optimizer.state[model[0].bias]["hessian"])
    assert torch.equal(averages[0], averages[1])
    assert torch.equal(averages[0], averages[2])


# The batch is skipped (a spike, out of memory). Its loss is freed before the next one is used.
SKIPS: dict[str, Callable[[nn.Module, sgdph.SGDPH], None]] = {
    "nothing": lambda model, optimizer: None,
    "optimizer.zero_grad": lambda model, optimizer: optimizer.zero_grad(),
    "model.zero_grad": lambda model, optimizer: model.zero_grad(),
}


@pytest.mark.parametrize("way", ["closure", *WAYS])
@pytest.mark.parametrize("clear", SKIPS)
@pytest.mark.parametrize("factor", [100.0, float("nan")])
def test_curvature_without_a_backward_is_replaced(way: str, clear: str, factor: float) -> None:
    models = bn_net(torch.float64), bn_net(torch.float64)
    for model, skipping in zip(models, (True, False), strict=True):
        optimizer = sgdph.SGDPH(model.parameters(), refresh="all")
        for step in range(3):
            optimizer.zero_grad()

            def loss(step: int = step, model: nn.Module = model) -> Tensor:
                return loss_of(model, step)

            if skipping:
                buffers = copy.deepcopy(dict(model.named_buffers()))
                if way == "closure":
                    optimizer.update_hessian(closure=lambda loss=loss: factor * loss())
                else:
                    optimizer.update_hessian(factor * loss())
                SKIPS[clear](model, optimizer)
                model.load_state_dict(buffers, strict=False)
            if way == "closure":
                optimizer.update_hessian(closure=loss)
                loss().backward()
            else:
                WAYS[way](optimizer, loss())
            optimizer.step()
    assert_same_bits(*models)


def test_recomputing_the_loss_for_its_backward_keeps_the_curvature() -> None:
    models = bn_net(torch.float64), bn_net(torch.float64)
    for model, anew in zip(models, (True, False), strict=True):
        model.eval()
        optimizer = sgdph.SGDPH(model.parameters())
        for step in range(4):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            optimizer.update_hessian(loss)
            if anew:
                del loss
                loss = loss_of(model, step)
            loss.backward()
            optimizer.step()
    assert_same_bits(*models)


def test_losses_of_one_graph_add_up_after_the_first_is_freed() -> None:
    model, whole = bn_net(torch.float64), bn_net(torch.float64)
    optimizer, other = (sgdph.SGDPH(m.parameters(), refresh="all") for m in (model, whole))
    out = model(batch(0, torch.float64)[0])
    optimizer.update_hessian(out.square().mean())
    optimizer.update_hessian(out.pow(4).mean())
    (out.square().mean() + out.pow(4).mean()).backward()
    optimizer.step()
    out = whole(batch(0, torch.float64)[0])
    other.backward(out.square().mean() + out.pow(4).mean())
    other.step()
    for p, q in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("clear", ["model", "zero_"])
def test_a_batch_cleared_in_place_leaves_no_curvature(way: str, clear: str) -> None:
    """Neither its curvature nor zeros in its place enter the average."""
    a, b = (nn.Parameter(torch.full((2,), value)) for value in (0.5, 1.5))
    optimizer = sgdph.SGDPH([{"params": [a, b], "channelwise": True}], lr=0.0, hessian_momentum=0.0)
    WAYS[way](optimizer, a.pow(4).sum())
    if clear == "model":
        nn.ParameterList([a, b]).zero_grad(set_to_none=False)
    else:
        assert a.grad is not None
        with torch.no_grad():
            a.grad = a.grad.detach() if way == "create_graph" else a.grad
            a.grad.zero_()
    WAYS[way](optimizer, b.pow(4).sum())
    optimizer.step()
    assert float(optimizer.state[a].get("refreshes", 0)) == 0
    torch.testing.assert_close(optimizer.state[b]["hessian"], 12 * b.detach().square())


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_cleared_through_data_leaves_no_curvature(way: str) -> None:
    """As in tutorials of old. Such a write does not change the version of the gradient."""
    a = nn.Parameter(torch.full((2,), 0.5))
    optimizer = sgdph.SGDPH([{"params": [a], "channelwise": True}], lr=0.0, hessian_momentum=0.0)
    WAYS[way](optimizer, a.pow(4).sum())
    assert a.grad is not None
    a.grad.data.zero_()
    WAYS[way](optimizer, a.pow(2).sum())
    optimizer.step()
    torch.testing.assert_close(optimizer.state[a]["hessian"], torch.full((2,), 2.0))


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_skipped_before_the_step_leaves_no_curvature(way: str) -> None:
    models = bn_net(torch.float64), bn_net(torch.float64)
    for model, skipping in zip(models, (True, False), strict=True):
        model.eval()
        optimizer = sgdph.SGDPH(model.parameters(), refresh="all")
        for step in range(3):
            optimizer.zero_grad()
            WAYS[way](optimizer, loss_of(model, step))
            if skipping:
                optimizer.update_hessian(100 * loss_of(model, 7))
            optimizer.step()
    assert_same_bits(*models)


@pytest.mark.parametrize("retained", [False, True])
def test_losses_count_one_by_one(retained: bool) -> None:
    """Also if one operation returns them, or if their backward has run before."""
    p = nn.Parameter(torch.full((3,), 0.5))
    optimizer = sgdph.SGDPH([{"params": [p], "channelwise": True}], lr=0.0, hessian_momentum=0.0)
    if retained:
        for factor in (1.0, 3.0):
            loss = factor * p.square().sum()
            loss.backward(retain_graph=True)
            optimizer.update_hessian(loss)
            del loss
    else:
        losses = torch.stack([p.square().sum(), 3 * p.square().sum()])
        first, second = losses
        optimizer.update_hessian(first)
        optimizer.update_hessian(second)
        optimizer.backward(second)
    optimizer.step()
    assert optimizer.state[p]["hessian"].tolist() == [8, 8, 8]


def _zeroed(params: Iterable[Tensor], how: str) -> None:
    for p in params:
        assert p.grad is not None
        with torch.no_grad():
            if how == "zero_":
                p.grad.detach_().zero_()
            elif how == "mul_":
                p.grad.mul_(0)
            else:
                p.grad = torch.zeros_like(p)


ZEROS: dict[str, Callable[[nn.Module, sgdph.SGDPH], None]] = {
    "model": lambda model, optimizer: model.zero_grad(set_to_none=False),
    "optimizer": lambda model, optimizer: optimizer.zero_grad(set_to_none=False),
    **{
        how: lambda model, optimizer, how=how: _zeroed(model.parameters(), how)
        for how in ("zero_", "mul_", "zeros_like")
    },
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("zero", ZEROS)
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_step_with_gradients_set_to_zero_is_sgds(way: str, zero: str, micro_batches: int) -> None:
    """Some reject a batch so, and step all the same, for schedulers and the other ranks."""
    ours, sgds = bn_net(torch.float64), bn_net(torch.float64)
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    optimizer = sgdph.SGDPH(ours.parameters(), refresh="all", **settings)
    sgd = torch.optim.SGD(sgds.parameters(), **settings)
    for step in range(micro_batches):
        WAYS[way](optimizer, loss_of(ours, step))
        loss_of(sgds, step).backward()
    ZEROS[zero](ours, optimizer)
    sgds.zero_grad(set_to_none=False)
    optimizer.step()
    sgd.step()
    assert all(bool(m.eq(1).all()) for m in optimizer.multipliers().values())
    for p, q in zip(ours.parameters(), sgds.parameters(), strict=True):
        # Decay does not go through the momentum of a Newton parameter: its first step is equal.
        torch.testing.assert_close(p, q)
    # The next batch counts as usual.
    optimizer.zero_grad()
    WAYS[way](optimizer, loss_of(ours, 5))
    optimizer.step()
    assert all(float(optimizer.state[p]["refreshes"]) == 1 for p in optimizer.newton_parameters)


def test_a_zero_gradient_keeps_its_curvature_if_it_is_clipped() -> None:
    p = nn.Parameter(torch.zeros(3))
    optimizer = sgdph.SGDPH([{"params": [p], "channelwise": True}], lr=0.0, hessian_momentum=0.0)
    optimizer.backward(p.square().sum())
    nn.utils.clip_grad_norm_([p], 1.0)
    optimizer.step()
    assert optimizer.state[p]["hessian"].tolist() == [2, 2, 2]


def test_the_first_closure_chooses_the_parameter_for_all_micro_batches() -> None:
    a, b = (nn.Parameter(torch.full((2,), value)) for value in (0.5, 1.5))
    optimizer = sgdph.SGDPH([{"params": [a, b], "channelwise": True}], lr=0.0, hessian_momentum=0.0)
    for loss in (lambda: a.pow(4).sum() + b.pow(4).sum(), lambda: b.pow(4).sum()):
        optimizer.update_hessian(closure=loss)
        loss().backward()
    optimizer.step()
    torch.testing.assert_close(
        optimizer.state[a]["hessian"], 12 * a.detach().square(), rtol=1e-2, atol=0
    )
    assert "hessian" not in optimizer.state[b]


def test_replaced_gradients_step_like_gradients_changed_in_place() -> None:
    models = bn_net(torch.float64), bn_net(torch.float64)
    for model, replace in zip(models, (True, False), strict=True):
        optimizer = sgdph.SGDPH(model.parameters())
        for step in range(3):
            optimizer.zero_grad()
            optimizer.backward(loss_of(model, step))
            for p in model.parameters():
                assert p.grad is not None
                if replace:
                    p.grad = p.grad * 0.1
                else:
                    p.grad.mul_(0.1)
            optimizer.step()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)
