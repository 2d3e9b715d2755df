"""sgdph.compiled with copies, other threads, checkpointing, frameworks and a second call."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compilations import Compilations
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import sgdph
from sgdph.compilation import uncompiled_while_due

BACKEND = "aot_eager"
X = torch.linspace(-1, 1, 64).reshape(16, 4)


class Block(nn.Module):
    """A module of a custom class, so that old versions of torch compile it in place."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.linear(x)).tanh()
        return result


class Checkpointed(nn.Module):
    """Blocks that run again in the backward."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return x


def optimizer_of(model: nn.Module, interval: int = 2) -> sgdph.SGDPH:
    return sgdph.SGDPH(sgdph.param_groups(model), lr=0.05, hessian_interval=interval)


def train(model: Callable[[Tensor], Tensor], optimizer: Any, steps: int) -> None:
    for step in range(steps):
        optimizer.backward(model(X + 0.1 * step).square().mean())
        optimizer.step()
        optimizer.zero_grad()


def stance() -> str:
    from torch._dynamo import eval_frame

    name: str = eval_frame._stance.stance
    return name


def test_copies_of_a_parametrized_module_use_their_own_weights(compilations: Compilations) -> None:
    # Torch copies all attributes of such a module, compiled code included.
    model = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    optimizer = optimizer_of(model)
    sgdph.compiled(model, optimizer, backend=BACKEND)
    train(model, optimizer, 3)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    runs = compilations.runs
    for copied in (copy.deepcopy(model), averaged.module):
        with torch.no_grad():
            for p in copied.parameters():
                p.fill_(0.5)
            assert not torch.allclose(copied(X), model(X))
        assert torch.equal(copied(X), copied._call_impl(X))
    assert compilations.runs == runs + 2


@pytest.mark.parametrize("options", [{}, {"backend": BACKEND}], ids=["as before", "anew"])
def test_a_second_call_replaces_the_optimizer_of_a_function(
    compilations: Compilations, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = Block()
    # Never stepped, and so always due.
    first = sgdph.compiled(lambda x: model(x), optimizer_of(model), backend=BACKEND)
    optimizer = optimizer_of(model)
    train(sgdph.compiled(first, optimizer, **options), optimizer, 4)
    assert (compilations.graphs, compilations.runs) == (1, 2)

    @functools.wraps(first)
    def around(x: Tensor) -> Tensor:
        return -first(x)

    assert torch.equal(sgdph.compiled(around, optimizer, backend="eager")(X), -first(X))


def test_a_compiled_function_may_call_another_one(compilations: Compilations) -> None:
    """The choice whether the inner one runs compiled is not traced into the outer one's code."""
    torch.manual_seed(0)
    model = Block()
    plain = copy.deepcopy(model)
    optimizer, expected = optimizer_of(model), optimizer_of(plain)
    inner = sgdph.compiled(lambda x: model(x), optimizer, backend=BACKEND)
    train(sgdph.compiled(lambda x: 2 * inner(x), optimizer, backend=BACKEND), optimizer, 6)
    train(lambda x: 2 * plain(x), expected, 6)
    torch.testing.assert_close(model.norm.weight, plain.norm.weight, rtol=1e-5, atol=1e-6)
    # Both run in each of the three steps that are not due.
    assert (compilations.graphs, compilations.runs) == (2, 6)


@pytest.mark.parametrize("way", ["in place", "around"])
def test_compiled_blocks_may_be_checkpointed(compilations: Compilations, way: str) -> None:
    model, plain = Checkpointed(), Checkpointed()
    for i, block in enumerate(model.blocks):
        if way == "in place":
            block.compile(backend=BACKEND)
        else:
            model.blocks[i] = torch.compile(block, backend=BACKEND)  # type: ignore[assignment]
    optimizer, expected = optimizer_of(model), optimizer_of(plain)
    sgdph.compiled(model, optimizer_of(plain, 7))
    train(sgdph.compiled(model, optimizer), optimizer, 6)
    train(plain, expected, 6)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    # Two blocks, each run in the forward and in the backward, in three steps that are not due.
    assert compilations.runs == 2 * 2 * 3


def test_threads_restore_the_compiler_stance() -> None:
    """The first thread to enter is the first to leave, while the second is still inside."""
    entered, left, seen = [threading.Event(), threading.Event()], threading.Event(), []

    class First(Block):
        def forward(self, x: Tensor) -> Tensor:
            entered[0].set()
            assert entered[1].wait(20)
            return super().forward(x)

    class Second(Block):
        def forward(self, x: Tensor) -> Tensor:
            entered[1].set()
            assert left.wait(20)
            seen.append(stance())
            return super().forward(x)

    first, second = First(), Second()
    for each in (first, second):
        sgdph.compiled(each, optimizer_of(each), backend=BACKEND)
    before = stance()

    def run_first() -> None:
        first(X)
        left.set()

    def run_second() -> None:
        assert entered[0].wait(20)
        second(X)

    threads = [threading.Thread(target=each) for each in (run_first, run_second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["force_eager"]
    assert stance() == before


def test_a_compiled_step_inside_the_training_step_of_a_framework(
    compilations: Compilations,
) -> None:
    """The inner step ends the due step that the framework began, whether it ran compiled or not."""
    torch.manual_seed(0)
    model = Block()
    optimizer = optimizer_of(model, 3)

    def step() -> None:
        optimizer.backward(model(X).square().mean())
        optimizer.step()
        optimizer.zero_grad()

    step = sgdph.compiled(step, optimizer, backend=BACKEND)
    for i in range(6):
        assert optimizer.hessian_due is (i % 3 == 0)
        with uncompiled_while_due([optimizer]):
            step()
        assert stance() == "default"
    assert compilations.runs == 4


def test_the_code_of_a_wrapper_around_a_compiled_function_still_runs(
    compilations: Compilations,
) -> None:
    """``functools.wraps`` gives the wrapper the attributes of torch.compile's own functions."""
    model = Block()
    fast = torch.compile(lambda x: model(x), backend=BACKEND)

    @functools.wraps(fast)
    def around(x: Tensor) -> Tensor:
        return -fast(x)

    optimizer = optimizer_of(model)
    with pytest.raises(ValueError, match="the function is compiled already"):
        sgdph.compiled(around, optimizer, backend=BACKEND)
    called = sgdph.compiled(around, optimizer)
    for _ in range(2):
        torch.testing.assert_close(called(X), -model(X))
        optimizer.backward(called(X).square().mean())
        optimizer.step()
    assert compilations.runs == 2


def test_one_due_optimizer_of_several_turns_compiled_code_off() -> None:
    model, other = Block(), Block()
    optimizer, due = optimizer_of(model), optimizer_of(other)
    train(model, optimizer, 1)
    for each in ([optimizer, due], [due, optimizer]):
        with uncompiled_while_due(each):
            assert stance() == "force_eager"
    with uncompiled_while_due([optimizer]):
        assert stance() == "default"
