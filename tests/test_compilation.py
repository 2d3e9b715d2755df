"""sgdph.compiled takes the uncompiled model's steps, and does not recompile between them."""

from __future__ import annotations

import copy
import functools
import io
import math
import shutil
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from compilations import Compilations
from small import WAYS, assert_same_bits, batch, bn_net, loss_of
from torch import Tensor, nn
from torch.nn import functional
from user_warnings import warns_here

import sgdph
from sgdph.step import SecondOrderOptimizer

BACKEND = "aot_eager"
STEPS = 12

LossOf = Callable[[Tensor, Tensor], Tensor]


def loss_by(model: Callable[[Tensor], Tensor]) -> LossOf:
    return lambda x, y: functional.cross_entropy(model(x), y)


class WithLoss(nn.Module):
    """A module of a custom class that returns its loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(self.model(x), y)


class WithLogits(nn.Module):
    """A module of a custom class: older versions of torch compile only these in place."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits


def a_module(model: nn.Module, optimizer: Any) -> LossOf:
    return loss_by(sgdph.compiled(model, optimizer, backend=BACKEND))


def a_module_with_loss(model: nn.Module, optimizer: Any) -> LossOf:
    return sgdph.compiled(WithLoss(model), optimizer, backend=BACKEND, fullgraph=True)


def a_function(model: nn.Module, optimizer: Any) -> LossOf:
    return sgdph.compiled(loss_by(model), optimizer, backend=BACKEND, fullgraph=True)


def a_partial(model: nn.Module, optimizer: Any) -> LossOf:
    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(net(x), y)

    return sgdph.compiled(functools.partial(loss, model), optimizer, backend=BACKEND)


def of_torch_compile(model: nn.Module, optimizer: Any) -> LossOf:
    return loss_by(sgdph.compiled(torch.compile(model, backend=BACKEND), optimizer))


def of_module_compile(model: nn.Module, optimizer: Any) -> LossOf:
    whole = WithLoss(model)
    whole.compile(backend=BACKEND)
    return sgdph.compiled(whole, optimizer)


def of_a_compiled_function(model: nn.Module, optimizer: Any) -> LossOf:
    loss = torch.compile(loss_by(model), backend=BACKEND, fullgraph=True)
    return sgdph.compiled(loss, optimizer)


def of_a_compiled_block(model: nn.Module, optimizer: Any) -> LossOf:
    whole = WithLoss(model)
    whole.model = torch.compile(model, backend=BACKEND)  # type: ignore[assignment]
    return sgdph.compiled(whole, optimizer)


def of_a_block_compiled_in_place(model: nn.Module, optimizer: Any) -> LossOf:
    block = WithLogits(model)
    block.compile(backend=BACKEND)
    return sgdph.compiled(WithLoss(block), optimizer)


def twice(model: nn.Module, optimizer: Any) -> LossOf:
    """Two calls with different optimizers, of which the second counts."""
    other = sgdph.SGDPH(bn_net().parameters(), hessian_interval=7)
    first = sgdph.compiled(model, other, backend=BACKEND)
    return loss_by(sgdph.compiled(first, optimizer))


def sgdph_of(model: nn.Module, interval: int, **settings: Any) -> SecondOrderOptimizer:
    return sgdph.SGDPH(sgdph.param_groups(model), lr=0.05, hessian_interval=interval, **settings)


def beside_adamw(model: nn.Module, interval: int) -> SecondOrderOptimizer:
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3)
    groups = sgdph.param_groups(model)
    return sgdph.PartialHessian(adamw, groups, lr=0.05, hessian_interval=interval)


OPTIMIZERS: dict[str, Callable[[nn.Module, int], SecondOrderOptimizer]] = {
    "SGDPH": sgdph_of,
    "all": functools.partial(sgdph_of, refresh="all"),
    "hutchinson": functools.partial(sgdph_of, estimator="hutchinson"),
    "PartialHessian": beside_adamw,
}


def train(
    loss_of_batch: LossOf,
    model: nn.Module,
    optimizer: Any,
    steps: range,
    way: str = "backward",
    accumulate: int = 1,
    scaled: bool = False,
    counted: Compilations | None = None,
) -> list[tuple[int, int]]:
    """Train, and after each step compute the loss without gradients, in evaluation mode.

    Returns:
        How many graphs had been compiled and had run, after each step.
    """
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=5, enabled=scaled)
    counts = []
    for step in steps:
        for micro in range(accumulate):
            x, y = batch(100 * step + micro)
            loss = scaler.scale(loss_of_batch(x, y) / accumulate)
            if way == "create_graph" and not optimizer.hessian_due:
                # Compiled code frees what create_graph needs; torch then raises an error.
                loss.backward()
            else:
                WAYS[way](optimizer, loss)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        model.eval()
        with torch.no_grad():
            loss_of_batch(*batch(0))
        model.train()
        if counted is not None:
            counts.append((counted.graphs, counted.runs))
    return counts


@pytest.mark.parametrize(
    ("what", "name", "interval", "way", "accumulate", "scaled"),
    [
        (a_module, "SGDPH", 2, "backward", 1, False),
        (a_module, "PartialHessian", 10, "update_hessian", 2, True),
        (a_module_with_loss, "all", 1, "update_hessian", 1, False),
        (a_function, "hutchinson", 2, "update_hessian", 2, False),
        (a_partial, "SGDPH", 10, "create_graph", 1, True),
        (of_torch_compile, "all", 2, "backward", 2, True),
        (of_module_compile, "PartialHessian", 2, "create_graph", 2, False),
        (of_a_compiled_function, "SGDPH", 2, "backward", 1, True),
        (of_a_compiled_block, "SGDPH", 10, "backward", 2, False),
        (of_a_block_compiled_in_place, "hutchinson", 10, "update_hessian", 1, False),
        (twice, "SGDPH", 2, "update_hessian", 1, False),
    ],
)
@pytest.mark.filterwarnings("ignore:hessian_interval is 1", "ignore:refresh='all' with")
def test_compiled_steps_equal_those_of_the_uncompiled_model(
    compilations: Compilations,
    what: Callable[[nn.Module, Any], LossOf],
    name: str,
    interval: int,
    way: str,
    accumulate: int,
    scaled: bool,
) -> None:
    model = bn_net()
    plain = copy.deepcopy(model)
    optimizer, expected = (OPTIMIZERS[name](each, interval) for each in (model, plain))
    loss = what(model, optimizer)
    how: Any = {"way": way, "accumulate": accumulate, "scaled": scaled}
    counts = train(loss, model, optimizer, range(STEPS), counted=compilations, **how)
    train(loss_by(plain), plain, expected, range(STEPS), **how)
    for (key, p), q in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, msg=lambda m, k=key: f"{k}: {m}")
    # One graph to train and one to evaluate; after the first two steps, no more.
    graphs = [graphs for graphs, _ in counts]
    assert graphs[-1] == graphs[1] == (1 if interval == 1 else 2)
    # All steps except due ones ran compiled.
    due = len(range(0, STEPS, interval))
    assert counts[-1][1] == (STEPS - due) * accumulate + STEPS


def test_a_resumed_run_equals_the_uninterrupted_one(compilations: Compilations) -> None:
    def built() -> tuple[nn.Module, SecondOrderOptimizer, LossOf]:
        model = bn_net()
        optimizer = sgdph_of(model, 3, estimator="hutchinson")
        return model, optimizer, a_module(model, optimizer)

    model, optimizer, loss = built()
    train(loss, model, optimizer, range(4))
    # The keys are the uncompiled model's, so each loads the other's state.
    saved = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), saved)
    train(loss, model, optimizer, range(4, 8))
    saved.seek(0)
    of_model, of_optimizer = torch.load(saved)
    bn_net().load_state_dict(of_model)
    other, other_optimizer, other_loss = built()
    other.load_state_dict(of_model)
    other_optimizer.load_state_dict(of_optimizer)
    train(other_loss, other, other_optimizer, range(4, 8))
    assert_same_bits(model, other)
    # One to train and one to evaluate; old versions of torch compile both for each model.
    assert compilations.graphs in (2, 4)


def test_a_compiled_module_keeps_its_type_keys_and_attributes(compilations: Compilations) -> None:
    model = bn_net()
    keys, parameters = list(model.state_dict()), list(model.parameters())
    model.note = "kept"  # type: ignore[assignment]
    optimizer = sgdph_of(model, 2)
    net = sgdph.compiled(model, optimizer, backend=BACKEND)
    assert net is model
    assert type(net) is nn.Sequential
    assert list(net.state_dict()) == keys
    assert all(p is q for p, q in zip(net.parameters(), parameters, strict=True))
    assert net.note == "kept"
    assert not net.eval()[1].training
    train(loss_by(net), net.train(), optimizer, range(4))
    x, _ = batch()
    # Copies are not compiled and give the same numbers.
    saved = io.BytesIO()
    torch.save(net, saved)
    saved.seek(0)
    for copied in (copy.deepcopy(net), torch.load(saved, weights_only=False)):
        runs = compilations.runs
        assert torch.equal(copied.eval()(x), copied(x))
        assert_same_bits(copied, net)
        assert compilations.runs == runs
    doubled = net.double().eval()
    with torch.no_grad():
        assert doubled(x.double()).dtype == torch.float64
    assert compilations.runs > runs


def test_a_compiled_function_keeps_name_docstring_and_results(compilations: Compilations) -> None:
    def loss(x: Tensor, *, y: Tensor) -> tuple[Tensor, str]:
        """Say so."""
        return functional.cross_entropy(model(x), y), "a word"

    model = bn_net()
    optimizer = sgdph_of(model, 2)
    called = sgdph.compiled(loss, optimizer, backend=BACKEND)
    assert (called.__name__, called.__doc__) == ("loss", "Say so.")
    x, y = batch()
    for _ in range(2):
        value, word = called(x, y=y)
        assert word == "a word"
        assert math.isclose(value.item(), loss(x, y=y)[0].item(), rel_tol=1e-5)
        optimizer.backward(value)
        optimizer.step()
    assert compilations.runs == 1


def test_a_whole_training_step_can_be_compiled(compilations: Compilations) -> None:
    model, plain = bn_net(), bn_net()
    optimizer, expected = sgdph_of(model, 2), sgdph_of(plain, 2)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.backward(functional.cross_entropy(model(x), y))
        optimizer.step()
        optimizer.zero_grad()

    step = sgdph.compiled(step, optimizer, backend=BACKEND)
    for i in range(6):
        step(*batch(i))
        WAYS["backward"](expected, loss_of(plain, i))
        expected.step()
        expected.zero_grad()
    torch.testing.assert_close(model[0].weight, plain[0].weight)
    assert compilations.runs >= 3


def test_a_model_and_its_loss_can_be_compiled_separately(compilations: Compilations) -> None:
    model, plain = bn_net(), bn_net()
    optimizer, expected = sgdph_of(model, 3), sgdph_of(plain, 3)
    net = sgdph.compiled(model, optimizer, backend=BACKEND)
    loss = sgdph.compiled(functional.cross_entropy, optimizer, backend=BACKEND)
    train(lambda x, y: loss(net(x), y), model, optimizer, range(6))
    train(loss_by(plain), plain, expected, range(6))
    torch.testing.assert_close(model[0].weight, plain[0].weight)
    assert compilations.graphs == 4


def test_several_optimizers(compilations: Compilations) -> None:
    """A generator's loss passes through the discriminator, whichever of the two is due."""
    results = []
    for by_compiled in (True, False):
        torch.manual_seed(0)
        critic = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 1))
        maker = nn.Sequential(nn.Linear(2, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 4))
        of_critic, of_maker = sgdph_of(critic, 3), sgdph_of(maker, 2)
        if by_compiled:
            sgdph.compiled(critic, [of_critic, of_maker], backend=BACKEND)
            sgdph.compiled(maker, (of_maker,), backend=BACKEND)
        for step in range(8):
            seed = torch.Generator().manual_seed(step)
            z, real = torch.randn(8, 2, generator=seed), torch.randn(8, 4, generator=seed)
            with torch.no_grad():
                fake = maker(z)
            of_critic.backward(functional.softplus(critic(fake)).mean() - critic(real).mean())
            of_critic.step()
            of_maker.backward(functional.softplus(-critic(maker(z))).mean())
            of_maker.step()
            of_critic.zero_grad()
            of_maker.zero_grad()
        results.append(nn.Sequential(critic, maker))
    for p, q in zip(results[0].parameters(), results[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert compilations.runs > 8


def test_closures_and_curvature_checks_with_a_compiled_model(compilations: Compilations) -> None:
    model, plain = bn_net(), bn_net()
    optimizer, expected = sgdph_of(model, 2), sgdph_of(plain, 2)
    net = sgdph.compiled(model, optimizer, backend=BACKEND)
    for step in range(4):
        for each, theirs in ((net, optimizer), (plain, expected)):
            theirs.update_hessian(closure=functools.partial(loss_of, each, step))
            loss_of(each, step).backward()
            theirs.step()
            theirs.zero_grad()
    torch.testing.assert_close(model[0].weight, plain[0].weight)
    for due in (True, False):
        assert optimizer.hessian_due is due
        found, theirs = (
            sgdph.check_curvature(functools.partial(loss_of, each), who, raise_exception=False)
            for each, who in ((net, optimizer), (plain, expected))
        )
        assert found == pytest.approx(theirs, abs=1e-3)
        loss = loss_of(net, 9)
        if due:
            assert torch.isfinite(sgdph.hessian_block(loss, net[1].weight)).all()
            optimizer.backward(loss)
            optimizer.step()
            expected.backward(loss_of(plain, 9))
            expected.step()
        else:
            with pytest.raises(RuntimeError, match=r"compiled model.*force_eager"):
                sgdph.hessian_block(loss, net[1].weight)
            with torch.compiler.set_stance("force_eager"):
                loss = loss_of(net, 9)
            assert torch.isfinite(sgdph.hessian_block(loss, net[1].weight)).all()


def test_torch_compile_around_a_compiled_model_raises_an_error(compilations: Compilations) -> None:
    model = bn_net()
    optimizer = sgdph_of(model, 2)
    sgdph.compiled(model, optimizer, backend=BACKEND)
    around = torch.compile(WithLoss(model), backend=BACKEND)
    with pytest.raises(RuntimeError, match=r"call model = sgdph\.compiled\(model, optimizer\)"):
        optimizer.backward(around(*batch()))
    # What the message recommends works.
    loss = sgdph.compiled(around, optimizer)
    train(loss, model, optimizer, range(3))


@pytest.mark.parametrize("way", ["update_hessian", "backward"])
def test_compiled_autograd_around_a_due_step_raises_an_error(way: str) -> None:
    import torch._dynamo.compiled_autograd as compiled_autograd

    model = bn_net()
    optimizer = sgdph_of(model, 2)
    on = functools.partial(compiled_autograd._enable, torch.compile(backend=BACKEND))
    with on(), pytest.raises(RuntimeError, match="compiled autograd is on"):
        WAYS[way](optimizer, loss_of(model))
    with torch.compiler.set_stance("force_eager"), on():
        WAYS[way](optimizer, loss_of(model))
    optimizer.step()
    assert not optimizer.hessian_due


def losses(x: Tensor) -> Iterator[Tensor]:
    yield x.sum()


@pytest.mark.parametrize("wrong", [nn.Sequential, 3, None, torch.ones(2), losses])
def test_neither_a_module_nor_a_function_raises_type_error(wrong: Any) -> None:
    optimizer = sgdph_of(bn_net(), 2)
    with pytest.raises(TypeError, match=r"takes a model or a function.*Got (the|an)"):
        sgdph.compiled(wrong, optimizer)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripted_modules_raise_type_error() -> None:
    model = bn_net()
    with pytest.raises(TypeError, match="cannot take scripted modules"):
        sgdph.compiled(torch.jit.script(model), sgdph_of(model, 2))


@pytest.mark.parametrize("wrong", ["adam", None, [], ["adam"], "the other way round"])
def test_another_kind_of_optimizer_raises_type_error(wrong: Any) -> None:
    model = bn_net()
    adam = torch.optim.Adam(model.parameters())
    given: Any = {"adam": adam, "the other way round": model}.get(str(wrong), wrong)
    given = [adam] if wrong == ["adam"] else given
    with pytest.raises(TypeError, match=r"expected an sgdph.SGDPH or an sgdph.PartialHessian"):
        sgdph.compiled(model, given)


@pytest.mark.parametrize("what", [of_torch_compile, of_module_compile, of_a_compiled_block])
def test_options_for_a_compiled_model_raise_value_error(what: Any) -> None:
    model = bn_net()
    optimizer = sgdph_of(model, 2)
    loss = WithLoss(model)
    given: dict[Any, Any] = {
        of_torch_compile: torch.compile(model, backend=BACKEND),
        of_module_compile: loss,
        of_a_compiled_block: nn.Sequential(torch.compile(model, backend=BACKEND)),
    }
    loss.compile(backend=BACKEND)
    with pytest.raises(ValueError, match=r"compiled already.* mode has no effect"):
        sgdph.compiled(given[what], optimizer, mode="default")


def test_options_for_a_compiled_function_raise_value_error() -> None:
    optimizer = sgdph_of(bn_net(), 2)
    function = torch.compile(lambda x: x.relu(), backend=BACKEND)
    with pytest.raises(ValueError, match="the function is compiled already"):
        sgdph.compiled(function, optimizer, backend="eager")


def test_a_second_call_with_other_options_compiles_again(compilations: Compilations) -> None:
    model = bn_net()
    optimizer = sgdph_of(model, 2)
    sgdph.compiled(model, optimizer, backend="eager")
    sgdph.compiled(model, optimizer, backend=BACKEND)
    train(loss_by(model), model, optimizer, range(2))
    assert compilations.runs > 0


def test_compiling_where_every_step_is_due_warns() -> None:
    model = bn_net()
    with warns_here(r"hessian_interval is 1.*hessian_interval=10"):
        sgdph.compiled(model, sgdph_of(model, 1), backend=BACKEND)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sgdph.compiled(model, sgdph_of(model, 2), backend=BACKEND)
        groups = [{"params": model.parameters(), "channelwise": False}]
        sgdph.compiled(model, sgdph.SGDPH(groups), backend=BACKEND)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor() -> None:
    import torch._inductor.config
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3))
    plain = copy.deepcopy(model)
    optimizer, expected = sgdph_of(model, 2), sgdph_of(plain, 2)
    # Starting a pool of compiling processes takes longer than compiling this model.
    with torch._inductor.config.patch(compile_threads=1):
        net = sgdph.compiled(model, optimizer)
        for step in range(6):
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            for each, theirs in ((net, optimizer), (plain, expected)):
                theirs.zero_grad()
                theirs.backward(each(x).square().mean())
                theirs.step()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1
