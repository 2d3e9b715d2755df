"""Accelerate: our ``backward`` against plain loops."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, TorchDynamoPlugin
from compilations import Compilations
from small import assert_same_bits, bn_net, loss_of
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

import sgdph
from integrations.loops import (
    KINDS,
    assert_same_run,
    gap,
    joined_loop,
    loader,
    optimizer_of,
    pieces,
    plain_loop,
    two_by_two,
)
from integrations.ranks import RANKS, on_two_ranks
from sgdph.integrations.accelerate import backward

pytestmark = [
    pytest.mark.xdist_group("accelerate"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("no_accelerate_state"),
]


class Run:
    """A prepared network, optimizer and loader."""

    def __init__(self, count: int, accumulate: int = 1, **options: Any) -> None:
        settings = options.pop("settings", {})
        scaler = options.pop("scaler", None)
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate, **options)
        # Accelerate makes no scaler on a CPU, although torch's works there.
        self.accelerator.scaler = scaler
        self.bare = bn_net()
        self.model, self.optimizer, self.loader = self.accelerator.prepare(
            self.bare, optimizer_of(self.bare, **settings), loader(count)
        )
        self.skipped = 0

    def epoch(self, clip: float | None = None, autocast: torch.dtype | None = None) -> None:
        for x, y in self.loader:
            with self.accelerator.accumulate(self.model):
                with torch.autocast("cpu", autocast, enabled=autocast is not None):
                    loss = functional.cross_entropy(self.model(x), y)
                backward(self.accelerator, self.optimizer, loss)
                if clip is not None and self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), clip)
                self.optimizer.step()
                self.skipped += self.accelerator.optimizer_step_was_skipped
                self.optimizer.zero_grad()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_trains_as_the_plain_loop(accumulate: int, interval: int, kind: str) -> None:
    # The curvature of the undivided loss would be too large, by the number of micro-batches. The
    # bound is float32's rounding.
    settings = {"hessian_interval": interval, "kind": kind}
    run = Run(24, accumulate, settings=settings)
    run.epoch(clip=0.1)
    expected = plain_loop(24, accumulate=accumulate, clip=0.1, **settings)
    assert_same_run(run.bare, run.optimizer, expected, bound=1e-5)


def test_bf16() -> None:
    run = Run(12, mixed_precision="bf16")
    run.epoch()
    assert_same_run(run.bare, run.optimizer, plain_loop(12, autocast=torch.bfloat16))


@pytest.mark.parametrize("kind", KINDS)
def test_a_scaler_with_skipped_steps_and_accumulation(kind: str) -> None:
    def scaler() -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=3)

    run = Run(24, 2, scaler=scaler(), settings={"kind": kind})
    run.epoch(autocast=torch.float16)
    theirs = scaler()
    expected = plain_loop(24, accumulate=2, autocast=torch.float16, scaler=theirs, kind=kind)
    assert run.skipped > 0
    assert run.accelerator.scaler.get_scale() == theirs.get_scale()
    assert_same_run(run.bare, run.optimizer, expected, bound=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_equals_the_uninterrupted_run(tmp_path: Path, kind: str) -> None:
    settings = {"estimator": "hutchinson", "kind": kind}
    run = Run(5, settings=settings)
    run.epoch()
    run.accelerator.save_state(str(tmp_path))
    resumed = Run(5, settings=settings)
    resumed.accelerator.load_state(str(tmp_path))
    resumed.epoch()
    assert_same_run(resumed.bare, resumed.optimizer, plain_loop(5, epochs=2, **settings))


def test_the_wrapper_passes_on_train_and_eval() -> None:
    run = Run(1, settings={"kind": "schedule-free"})
    for tell, mode in ((run.optimizer.train, True), (run.optimizer.eval, False)):
        tell()
        assert run.optimizer.param_groups[0]["train_mode"] is mode


def test_accelerator_backward_alone_raises_an_error_at_the_step() -> None:
    run = Run(1)
    run.accelerator.backward(
        functional.cross_entropy(run.model(torch.ones(2, 1, 6, 6)), torch.tensor([0, 1]))
    )
    with pytest.raises(RuntimeError, match=r"needs a partial Hessian.*integrations"):
        run.optimizer.step()


@pytest.mark.parametrize("kind", KINDS[:2])
def test_unsupported_optimizers_and_backends_raise_an_error(kind: str) -> None:
    run = Run(1, settings={"kind": kind})
    loss = functional.cross_entropy(run.model(torch.ones(2, 1, 6, 6)), torch.tensor([0, 1]))
    adam = run.accelerator.prepare(torch.optim.Adam(run.bare.parameters()))
    with pytest.raises(TypeError, match="AcceleratedOptimizer around Adam"):
        backward(run.accelerator, adam, loss)
    deepspeed: Any = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED)
    with pytest.raises(RuntimeError, match="DEEPSPEED"):
        backward(deepspeed, run.optimizer, loss)
    fsdp: Any = SimpleNamespace(distributed_type=DistributedType.FSDP)
    with pytest.raises(RuntimeError, match=r"FSDP.*channelwise=False"):
        backward(fsdp, run.optimizer, loss)


def test_fsdp_may_train_first_order() -> None:
    run = Run(1)
    groups = [{"params": run.bare.parameters(), "channelwise": False}]
    optimizer = run.accelerator.prepare(sgdph.SGDPH(groups))
    loss = functional.cross_entropy(run.model(torch.ones(2, 1, 6, 6)), torch.tensor([0, 1]))
    fsdp: Any = SimpleNamespace(
        distributed_type=DistributedType.FSDP,
        scaler=None,
        gradient_accumulation_steps=1,
        backward=run.accelerator.backward,
    )
    backward(fsdp, optimizer, loss)
    optimizer.step()


def train_on_rank(rank: int, path: Path) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    assert accelerator.num_processes == RANKS
    for kind in KINDS[:2]:
        bare = two_by_two()
        data = DataLoader(pieces(48)[rank::RANKS], batch_size=2)
        model, optimizer = accelerator.prepare(bare, optimizer_of(bare, kind))
        assert isinstance(model, nn.parallel.DistributedDataParallel)
        for x, y in data:
            with accelerator.accumulate(model):
                backward(accelerator, optimizer, functional.cross_entropy(model(x), y))
                optimizer.step()
                optimizer.zero_grad()
        torch.save(bare, path / f"{kind}-{rank}.pt")


def test_two_ranks_equal_one_process_on_the_joined_batch(tmp_path: Path) -> None:
    on_two_ranks(train_on_rank, tmp_path)
    for kind in KINDS[:2]:
        first, second = (
            torch.load(tmp_path / f"{kind}-{rank}.pt", weights_only=False) for rank in range(RANKS)
        )
        assert_same_bits(first, second)
        assert gap(first, joined_loop(48, size=8, kind=kind)) < 1e-10


@pytest.mark.parametrize("place", ["before", "after", "of dynamo_backend", "of its blocks"])
def test_compiled(compilations: Compilations, place: str) -> None:
    """One call of sgdph.compiled, before ``prepare`` or after it."""
    plugin = TorchDynamoPlugin(backend="aot_eager", use_regional_compilation="blocks" in place)
    accelerator = Accelerator(
        cpu=True,
        gradient_accumulation_steps=2,
        dynamo_plugin=plugin if place.startswith("of") else None,
    )
    bare = bn_net()
    optimizer: Any = optimizer_of(bare, hessian_interval=3)
    model: Any = bare
    options = {} if place.startswith("of") else {"backend": "aot_eager"}
    if place == "before":
        sgdph.compiled(model, optimizer, **options)
    model, optimizer, batches = accelerator.prepare(model, optimizer, loader(24))
    if place != "before":
        model = sgdph.compiled(model, optimizer, **options)
    for x, y in batches:
        with accelerator.accumulate(model):
            backward(accelerator, optimizer, functional.cross_entropy(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
    assert gap(bare, plain_loop(24, accumulate=2, hessian_interval=3)[0]) < 1e-5
    assert (compilations.graphs, compilations.runs) == (1, 16)
    plain = accelerator.unwrap_model(model, keep_torch_compile=False)
    assert plain.state_dict().keys() == bn_net().state_dict().keys()


def test_for_a_model_compiled_by_accelerate_the_error_names_the_fix() -> None:
    accelerator = Accelerator(cpu=True, dynamo_backend="aot_eager")
    bare = bn_net()
    model, optimizer, _ = accelerator.prepare(bare, optimizer_of(bare), loader(1))
    with pytest.raises(RuntimeError, match=r"model = sgdph.compiled\(model, optimizer\)"):
        backward(accelerator, optimizer, loss_of(model))
