"""Gradients that were moved, set, summed or clipped by hand, and the curvature that is theirs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small import WAYS, assert_same_bits, batch, bn_net, loss_of, train
from torch import Tensor, nn
from torch.nn import functional
from user_warnings import warns_here

import sgdph

MOVES: dict[str, Callable[[nn.Module, sgdph.SGDPH], list[Tensor]]] = {
    "taken away": lambda model, _: [_taken_away(p) for p in model.parameters()],
    "copied, zero_grad": lambda model, optimizer: _copied(model, optimizer.zero_grad),
    "copied, model.zero_grad": lambda model, _: _copied(model, model.zero_grad),
    "copied, zeroed": lambda model, _: _copied(
        model, lambda: [p.grad.zero_() for p in model.parameters() if p.grad is not None]
    ),
}


def _taken_away(p: Tensor) -> Tensor:
    gradient, p.grad = p.grad, None
    assert gradient is not None
    return gradient


def _copied(model: nn.Module, clear: Callable[[], object]) -> list[Tensor]:
    copies = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    clear()
    return copies


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("last_too", [True, False])
def test_gradients_combined_by_hand_raise_an_error(way: str, move: str, last_too: bool) -> None:
    """Their curvature cannot be known: that of the last backward alone would be wrong."""
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    moved = []
    for step in range(2):
        WAYS[way](optimizer, loss_of(model, step))
        if step == 0 or last_too:
            moved.append(MOVES[move](model, optimizer))
        else:
            moved.append([p.grad for p in model.parameters() if p.grad is not None])
    for p, *gradients in zip(model.parameters(), *moved, strict=True):
        p.grad = torch.stack([g.detach() for g in gradients]).sum(0)
    with pytest.raises(RuntimeError, match="set by hand after several backwards"):
        optimizer.step()


@pytest.mark.parametrize("size", [2, 3, 64])
def test_a_sum_by_hand_is_not_taken_for_a_clipped_gradient(size: int) -> None:
    """Two entries, or two among zeros, fit any factor and limit."""
    a = nn.Parameter(torch.zeros(size, dtype=torch.float64))
    optimizer = sgdph.SGDPH([{"params": [a], "channelwise": True}])
    total = torch.zeros_like(a)
    for first, second in ((2.0, 1.5), (1.0, 0.5)):
        slopes = torch.zeros_like(a)
        slopes[:2] = torch.tensor([first, second])
        optimizer.backward((slopes * (a + a.square())).sum())
        total += a.grad
        a.grad = None
    a.grad = total
    with pytest.raises(RuntimeError, match="set by hand after several backwards"):
        optimizer.step()


@pytest.mark.parametrize("keep_losses", [False, True])
def test_gradients_from_autograd_grad_for_several_losses(keep_losses: bool) -> None:
    """Right as long as their graphs live; without them, the curvature of the first is lost."""
    model, expected = bn_net(torch.float64), bn_net(torch.float64)
    optimizer = sgdph.SGDPH(model.parameters(), refresh="all")
    params = list(model.parameters())
    losses, gradients = [], []
    for step in range(2):
        loss = loss_of(model, step)
        optimizer.update_hessian(loss)
        gradients.append(torch.autograd.grad(loss, params))
        losses.append(loss)
        del loss
        if not keep_losses:
            losses.clear()
    for p, *each in zip(params, *gradients, strict=True):
        p.grad = torch.stack(each).sum(0)
    if not keep_losses:
        with pytest.raises(RuntimeError, match="set by hand after several backwards"):
            optimizer.step()
        return
    optimizer.step()
    other = sgdph.SGDPH(expected.parameters(), refresh="all")
    for step in range(2):
        other.backward(loss_of(expected, step))
    other.step()
    for p, q in zip(params, expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


@pytest.mark.parametrize("keep_losses", [False, True])
@pytest.mark.parametrize("clears", [False, True])
def test_curvature_of_losses_that_are_gone_is_missed(clears: bool, keep_losses: bool) -> None:
    """Their gradients come in a way that shows no difference from a skipped batch."""
    model, other = bn_net(torch.float64), bn_net(torch.float64)
    optimizer, expected = (sgdph.SGDPH(m.parameters(), refresh="all") for m in (model, other))
    losses = []
    for step in range(2):
        expected.backward(loss_of(other, step))
        loss = loss_of(model, step)
        optimizer.update_hessian(loss)
        losses.append(loss)
        del loss
        if not keep_losses:
            losses.clear()
    if clears:
        optimizer.zero_grad()
    # As torch.func.grad gives them.
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        p.grad = None if q.grad is None else q.grad.clone()
    if not keep_losses:
        with pytest.raises(RuntimeError, match="Keep the losses of all micro-batches"):
            optimizer.step()
        # What the message says helps.
        optimizer.zero_grad()
        loss = loss_of(model, 2)
        optimizer.update_hessian(loss)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        return
    optimizer.step()
    expected.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


@pytest.mark.parametrize("clear", ["in place", "to None"])
def test_an_auxiliary_backward_before_a_skipped_batch_changes_nothing(clear: str) -> None:
    model, other = bn_net(torch.float64), bn_net(torch.float64)
    for each, skipping in ((model, True), (other, False)):
        each.eval()
        optimizer = sgdph.SGDPH(each.parameters(), refresh="all")
        loss_of(each, 5).backward()
        if skipping:
            optimizer.update_hessian(100 * loss_of(each, 7))
        if clear == "to None":
            each.zero_grad()
        loss = loss_of(each, 0)
        optimizer.update_hessian(loss)
        loss.backward()
        optimizer.step()
    assert_same_bits(model, other)


def test_a_step_after_skipped_batches_alone_refreshes_nothing() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters(), lr=0.0)
    train(model, optimizer, range(1))
    before = {name: m.clone() for name, m in optimizer.multipliers().items()}
    optimizer.zero_grad(set_to_none=False)
    for step in range(2):
        optimizer.update_hessian(loss_of(model, step))
    optimizer.step()
    for name, multiplier in optimizer.multipliers().items():
        assert torch.equal(multiplier, before[name])


def test_a_skipped_batch_before_gradients_set_by_hand_leaves_no_curvature() -> None:
    models = bn_net(torch.float64), bn_net(torch.float64)
    for model, skipping in zip(models, (True, False), strict=True):
        model.eval()
        optimizer = sgdph.SGDPH(model.parameters(), refresh="all")
        for step in range(3):
            if skipping:
                optimizer.update_hessian(100 * loss_of(model, 7))
            optimizer.zero_grad()
            loss, values = loss_of(model, step), dict(model.named_parameters())
            optimizer.update_hessian(loss)

            def of_values(given: dict[str, Tensor], model: nn.Module, step: int) -> Tensor:
                x, y = batch(step, torch.float64)
                return functional.cross_entropy(torch.func.functional_call(model, given, (x,)), y)

            for name, gradient in torch.func.grad(of_values)(values, model, step).items():
                values[name].grad = gradient.detach()
            optimizer.step()
    assert_same_bits(*models)


@pytest.mark.parametrize("way", ["update_hessian", "closure"])
def test_a_batch_skipped_after_autograd_grad_leaves_no_curvature(way: str) -> None:
    models = bn_net(torch.float64), bn_net(torch.float64)
    for model, skipping in zip(models, (True, False), strict=True):
        model.eval()
        optimizer = sgdph.SGDPH(model.parameters(), refresh="all")
        params = list(model.parameters())
        for step in range(6):
            if step % 2 == 0 and not skipping:
                continue

            def loss_now(model: nn.Module = model, step: int = step) -> Tensor:
                return loss_of(model, step)

            if way == "closure":
                optimizer.update_hessian(closure=loss_now)
                loss = loss_now()
            else:
                loss = loss_now()
                optimizer.update_hessian(loss)
            gradients = torch.autograd.grad(loss, params)
            del loss
            if step % 2 == 0:
                continue
            for p, g in zip(params, gradients, strict=True):
                # As if clipped.
                p.grad = g * 0.5
            optimizer.step()
    assert_same_bits(*models)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_added_in_place_give_a_warning_and_no_refresh(way: str) -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    WAYS[way](optimizer, loss_of(model, 0))
    copies = _copied(model, optimizer.zero_grad)
    WAYS[way](optimizer, loss_of(model, 1))
    with torch.no_grad():
        for p, gradient in zip(model.parameters(), copies, strict=True):
            assert p.grad is not None
            p.grad += gradient.detach()
    with warns_here(r"0\.1 was changed by hand after its backward"):
        optimizer.step()
    assert "hessian" not in optimizer.state[model[0].bias]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("clip", ["in place", "replaced", "by value"])
def test_a_clipped_gradient_after_a_skipped_batch_keeps_its_curvature(way: str, clip: str) -> None:
    """A GradScaler usually skips its first steps. Some users clip by replacing gradients."""
    found = []
    for skipping in (True, False):
        model = bn_net(torch.float64)
        optimizer = sgdph.SGDPH(model.parameters(), lr=0.0)
        for step in range(3):
            if skipping:
                WAYS[way](optimizer, 100 * loss_of(model, 7))
                optimizer.zero_grad()
            WAYS[way](optimizer, loss_of(model, step))
            for p in model.parameters():
                assert p.grad is not None
                with torch.no_grad():
                    if clip == "in place":
                        p.grad *= 0.1
                    elif clip == "replaced":
                        p.grad = p.grad * 0.1
                    else:
                        nn.utils.clip_grad_value_(p, 0.5 * p.grad.abs().max().item())
            optimizer.step()
            optimizer.zero_grad()
        found.append(optimizer.multipliers())
    for name, multiplier in found[1].items():
        assert torch.equal(found[0][name], multiplier)
        assert not torch.equal(multiplier, torch.ones_like(multiplier))
