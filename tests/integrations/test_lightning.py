"""Lightning: the callback against plain loops, and other features of trainers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import pytorch_lightning
import torch
from compilations import Compilations
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, StochasticWeightAveraging
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins import MixedPrecision
from small import assert_same_bits, bn_net, loss_of
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

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
from sgdph import SGDPH, compiled
from sgdph.integrations.lightning import PartialHessianCallback, fabric_backward

pytestmark = [
    pytest.mark.xdist_group("lightning"),
    pytest.mark.filterwarnings("ignore"),  # advice about workers, GPUs and loggers
]


class Module(LightningModule):
    """Knows nothing of partial Hessians."""

    def __init__(self, net: nn.Module | None = None, schedule: Any = None, **settings: Any) -> None:
        super().__init__()
        self.net = bn_net() if net is None else net
        self.schedule, self.settings = schedule, settings

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = functional.cross_entropy(self.net(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = optimizer_of(self.net, **self.settings)
        if self.schedule is None:
            return optimizer
        scheduler = {"scheduler": self.schedule(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def trainer(**options: Any) -> Trainer:
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [PartialHessianCallback()],
    }
    return Trainer(**{"max_epochs": 1, **quiet, **options})


def fit(module: LightningModule, count: int = 12, **options: Any) -> SGDPH:
    this = trainer(**options)
    this.fit(module, loader(count))
    return this.optimizers[0]


def one_cycle(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("estimator", ["row_sum", "hutchinson"])
@pytest.mark.parametrize("interval", [1, 3])
def test_an_unchanged_module_trains_as_the_plain_loop(
    interval: int, estimator: str, kind: str
) -> None:
    settings = {"hessian_interval": interval, "estimator": estimator, "kind": kind}
    module = Module(**settings)
    assert_same_run(module.net, fit(module), plain_loop(12, **settings))


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_clipping_and_a_schedule(kind: str) -> None:
    # The loss is divided once: Lightning does it before the hook.
    module = Module(schedule=one_cycle, kind=kind)
    optimizer = fit(module, 24, accumulate_grad_batches=2, gradient_clip_val=0.1)
    expected = plain_loop(24, accumulate=2, clip=0.1, schedule=one_cycle, kind=kind)
    assert_same_run(module.net, optimizer, expected)


def test_bf16_mixed() -> None:
    module = Module()
    optimizer = fit(module, precision="bf16-mixed")
    assert_same_run(module.net, optimizer, plain_loop(12, autocast=torch.bfloat16))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [2.0**10, 2.0**20], ids=["fits", "overflows at first"])
def test_16_mixed(scale: float, kind: str) -> None:
    def scaler() -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)

    module = Module(kind=kind)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler())
    optimizer = fit(module, plugins=[plugin], accumulate_grad_batches=2)
    theirs = scaler()
    expected = plain_loop(12, accumulate=2, autocast=torch.float16, scaler=theirs, kind=kind)
    assert plugin.scaler.get_scale() == theirs.get_scale() != scale
    assert_same_run(module.net, optimizer, expected)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_without_the_callback_the_error_names_the_integrations(kind: str) -> None:
    with pytest.raises(RuntimeError, match=r"needs a partial Hessian.*integrations"):
        fit(Module(kind=kind), callbacks=[])


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_equals_the_uninterrupted_run(tmp_path: Path, kind: str) -> None:
    settings = {"estimator": "hutchinson", "kind": kind}
    whole = Module(**settings)
    whole_optimizer = fit(whole, 5, max_epochs=2)
    half = Module(**settings)
    first = trainer(max_epochs=1)
    first.fit(half, loader(5))
    first.save_checkpoint(tmp_path / "half.ckpt")
    resumed = Module(net=bn_net(seed=1), **settings)
    second = trainer(max_epochs=2)
    second.fit(resumed, loader(5), ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    assert second.global_step == 10
    assert_same_run(resumed.net, second.optimizers[0], (whole.net, whole_optimizer))


class Manual(Module):
    """Two optimizers of ours and one of torch's, each with its own loss."""

    def __init__(self, toggle: bool, kind: str) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.toggle, self.kind = toggle, kind
        self.second, self.third = bn_net(seed=1), nn.Linear(3, 3)

    def configure_optimizers(self) -> Any:
        third = torch.optim.SGD(self.third.parameters(), lr=0.1)
        return [optimizer_of(self.net, self.kind), optimizer_of(self.second), third]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        first, second, third = self.optimizers()
        for optimizer in (first, second, third):
            if self.toggle:
                self.toggle_optimizer(optimizer)
            logits = self.net(x)
            if optimizer is second:
                # This loss also reaches the first network, whose optimizer clears that gradient.
                logits = self.second(x) + (0 if self.toggle else 1e-3 * logits)
            if optimizer is third:
                logits = self.third(logits.detach())
            optimizer.zero_grad()
            self.manual_backward(functional.cross_entropy(logits, y))
            optimizer.step()
            if self.toggle:
                self.untoggle_optimizer(optimizer)


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("toggle", [True, False])
def test_manual_optimisation_with_several_optimizers(toggle: bool, kind: str) -> None:
    module = Manual(toggle, kind)
    this = trainer()
    this.fit(module, loader(9))
    model, optimizer = plain_loop(9, kind=kind)
    for p, q in zip(module.net.parameters(), model.parameters(), strict=True):
        assert torch.equal(p, q)
    for ours, theirs in zip(
        this.optimizers[0].multipliers().values(), optimizer.multipliers().values(), strict=True
    ):
        assert torch.equal(ours, theirs)
    assert any((m < 1).any() for m in this.optimizers[1].multipliers().values())


def test_manual_optimisation_may_call_update_hessian_itself() -> None:
    class ByHand(Module):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            optimizer: Any = self.optimizers()
            loss = functional.cross_entropy(self.net(batch[0]), batch[1])
            optimizer.zero_grad()
            optimizer.update_hessian(loss)
            self.manual_backward(loss)
            optimizer.step()

    module = ByHand()
    assert_same_run(module.net, fit(module, callbacks=[]), plain_loop(12))


def test_a_skipped_batch_takes_no_step() -> None:
    class Skipping(Module):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
            return None if batch_idx >= 6 else super().training_step(batch, batch_idx)

    module = Skipping()
    optimizer = fit(module, 12)
    assert_same_run(module.net, optimizer, plain_loop(6))


@pytest.mark.parametrize("kind", KINDS[:2])
def test_stochastic_weight_averaging(kind: str) -> None:
    # With batch norm it adds a pass for the statistics, which ends in a step without a backward.
    averaging = StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=2, annealing_epochs=1)
    module = Module(kind=kind)
    this = trainer(callbacks=[PartialHessianCallback(), averaging], max_epochs=4)
    this.fit(module, loader(4))
    assert this.optimizers[0].param_groups[0]["lr"] == 0.01
    average = averaging._average_model.net
    for p, q in zip(module.net.parameters(), average.parameters(), strict=True):
        assert torch.equal(p, q)
    assert gap(module.net, plain_loop(4, epochs=4, kind=kind)[0]) > 1e-4


def test_early_stopping() -> None:
    stopping = EarlyStopping("loss", mode="min", patience=1, min_delta=1e9)
    module = Module()
    this = trainer(callbacks=[PartialHessianCallback(), stopping], max_epochs=9)
    this.fit(module, loader(4))
    assert this.current_epoch == 2
    assert_same_run(module.net, this.optimizers[0], plain_loop(4, epochs=2))


def test_trainers_of_pytorch_lightning() -> None:
    class Same(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.schedule, self.settings = bn_net(), None, {}

        training_step = Module.training_step
        configure_optimizers = Module.configure_optimizers

    module = Same()
    this = pytorch_lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[PartialHessianCallback()],
    )
    this.fit(module, loader(12))
    assert_same_run(module.net, this.optimizers[0], plain_loop(12))


@pytest.mark.parametrize("kind", KINDS[:2])
@pytest.mark.parametrize("framework", ["Lightning", "Fabric"])
def test_a_group_added_through_the_wrapper_trains(framework: str, kind: str) -> None:
    # The wrapper is an instance of the optimizer's class that has none of its attributes.
    models = [nn.ModuleList([bn_net(), bn_net(seed=1)]) for _ in range(2)]
    optimizers = [optimizer_of(model[0], kind) for model in models]
    if framework == "Fabric":
        wrapper = lightning.Fabric(accelerator="cpu", devices=1).setup_optimizers(optimizers[0])
    else:
        wrapper = LightningOptimizer(optimizers[0])
    for add, model in zip((wrapper, optimizers[1]), models, strict=True):
        add.add_param_group({"params": [*model[1].named_parameters("later")]})
    for model, optimizer in zip(models, optimizers, strict=True):
        for step in range(9):
            optimizer.zero_grad()
            optimizer.backward(sum(loss_of(net, step) for net in model))
            optimizer.step()
        assert len(optimizer.multipliers()) == 3 + 4
    assert_same_bits(*models)
    assert not torch.equal(models[0][1][1].weight, torch.ones(4))


def test_fabric_s_wrapper_passes_on_train_and_eval() -> None:
    optimizer: Any = optimizer_of(bn_net(), "schedule-free")
    wrapper: Any = lightning.Fabric(accelerator="cpu", devices=1).setup_optimizers(optimizer)
    for tell, mode in ((wrapper.train, True), (wrapper.eval, False)):
        tell()
        assert optimizer.first_order[0].param_groups[0]["train_mode"] is mode


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fabric(precision: Any, kind: str) -> None:
    fabric = lightning.Fabric(accelerator="cpu", devices=1, precision=precision)
    model = bn_net()
    net, optimizer = fabric.setup(model, optimizer_of(model, kind))
    for x, y in loader(12):
        loss = functional.cross_entropy(net(x), y)
        fabric_backward(fabric, optimizer, loss)
        fabric.clip_gradients(net, optimizer, max_norm=0.1)
        optimizer.step()
        optimizer.zero_grad()
    autocast = torch.bfloat16 if precision == "bf16-mixed" else None
    expected = plain_loop(12, autocast=autocast, clip=0.1, kind=kind)
    assert_same_run(model, optimizer.optimizer, expected)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_fabric_with_a_scaler(kind: str) -> None:
    def scaler() -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=3)

    plugin = lightning.fabric.plugins.MixedPrecision("16-mixed", "cpu", scaler=scaler())
    fabric = lightning.Fabric(accelerator="cpu", devices=1, plugins=[plugin])
    model = bn_net()
    net, optimizer = fabric.setup(model, optimizer_of(model, kind))
    for x, y in loader(12):
        fabric_backward(fabric, optimizer, functional.cross_entropy(net(x), y))
        optimizer.step()
        optimizer.zero_grad()
    expected = plain_loop(12, autocast=torch.float16, scaler=scaler(), kind=kind)
    assert_same_run(model, optimizer.optimizer, expected)


def fit_on_rank(rank: int, path: Path) -> None:
    for kind in KINDS[:2]:
        module = Module(net=two_by_two(), kind=kind)
        this = trainer(
            strategy="ddp", devices=RANKS, use_distributed_sampler=False, accumulate_grad_batches=2
        )
        data = pieces(48)[rank::RANKS]
        this.fit(module, DataLoader(data, batch_size=2))
        assert this.world_size == RANKS
        torch.save(module.net, path / f"{kind}-{rank}.pt")


def test_two_ranks_equal_one_process_on_the_joined_batch(tmp_path: Path) -> None:
    on_two_ranks(fit_on_rank, tmp_path)
    for kind in KINDS[:2]:
        first, second = (
            torch.load(tmp_path / f"{kind}-{rank}.pt", weights_only=False) for rank in range(RANKS)
        )
        assert_same_bits(first, second)
        # Each rank has every other example: two micro-batches of two on each are eight in a row.
        assert gap(first, joined_loop(48, size=8, kind=kind)) < 1e-10


@pytest.fixture(autouse=True)
def _no_files_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def as_a_whole(module: Module) -> Any:
    return torch.compile(module, backend="aot_eager")


def its_network(module: Module) -> Any:
    module.net = torch.compile(module.net, backend="aot_eager")  # type: ignore[assignment]
    return module


def in_place(module: Module) -> Any:
    module.net.compile(backend="aot_eager")
    return module


def its_blocks(module: Module) -> Any:
    for i in (0, 4):
        module.net[i] = torch.compile(module.net[i], backend="aot_eager")  # type: ignore[operator]
    return module


def by_us(module: Module) -> Any:
    plain = module.configure_optimizers

    def configure_optimizers() -> Any:
        optimizer = plain()
        compiled(module.net, optimizer, backend="aot_eager")
        return optimizer

    module.configure_optimizers = configure_optimizers  # type: ignore[method-assign]
    return module


@pytest.mark.parametrize("compile_it", [as_a_whole, its_network, in_place, its_blocks, by_us])
def test_compiled_modules(compilations: Compilations, compile_it: Callable[[Module], Any]) -> None:
    """Uncompiled in due steps, compiled in all others, in each way that Lightning allows."""
    module = Module(hessian_interval=3)
    bare = module.net
    fit(compile_it(module), 24, accumulate_grad_batches=2)
    assert gap(bare, plain_loop(24, accumulate=2, hessian_interval=3)[0]) < 1e-6
    assert compilations.graphs <= 2
    # Of the 12 steps 8 were not due, each of two micro-batches.
    assert compilations.runs == 16 * compilations.graphs


def test_compiled_in_manual_optimisation(compilations: Compilations) -> None:
    """Two steps on each batch: which of them is due alternates."""

    class Twice(Module):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.automatic_optimization = False

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            optimizer: Any = self.optimizers()
            for _ in range(2):
                optimizer.zero_grad()
                self.manual_backward(functional.cross_entropy(self.net(batch[0]), batch[1]))
                optimizer.step()

    module = Twice(hessian_interval=3)
    fit(in_place(module), 9)
    model = bn_net()
    optimizer = optimizer_of(model, hessian_interval=3)
    for x, y in loader(9):
        for _ in range(2):
            optimizer.zero_grad()
            optimizer.backward(functional.cross_entropy(model(x), y))
            optimizer.step()
    assert gap(module.net, model) < 1e-6
    assert (compilations.graphs, compilations.runs) == (1, 12)


def test_a_compiled_module_in_manual_optimisation(compilations: Compilations) -> None:
    """The training step is compiled, and with it the code around the optimizer's step."""

    class Manual(Module):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self.automatic_optimization = False

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(functional.cross_entropy(self.net(batch[0]), batch[1]))
            optimizer.step()

    module = Manual(hessian_interval=3)
    fit(as_a_whole(module), 9)
    assert gap(module.net, plain_loop(9, hessian_interval=3)[0]) < 1e-6
    assert compilations.runs == 6 * compilations.graphs > 0


@pytest.mark.parametrize("manual", [False, True])
def test_compiled_blocks_may_be_checkpointed(compilations: Compilations, manual: bool) -> None:
    """They are run again in the backward, after Lightning's training step."""

    class Checkpointed(Module):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            net: Any = self.net
            logits = checkpoint(net[4], net[:4](batch[0]), use_reentrant=False)
            loss = functional.cross_entropy(logits, batch[1])
            if manual:
                optimizer: Any = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return loss

    module = Checkpointed(hessian_interval=3)
    module.automatic_optimization = not manual
    bare = module.net
    module.net[4] = torch.compile(module.net[4], backend="aot_eager")  # type: ignore[operator]
    fit(module, 9)
    assert gap(bare, plain_loop(9, hessian_interval=3)[0]) < 1e-6
    # Of 9 steps 6 are not due: forward, and again in the backward.
    assert (compilations.graphs, compilations.runs) == (1, 12)


@pytest.mark.parametrize("place", ["before", "after", "of torch.compile"])
def test_compiled_in_fabric(compilations: Compilations, place: str) -> None:
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    model = bn_net()
    optimizer = optimizer_of(model, hessian_interval=3)
    net: Any = model
    if place == "before":
        net = compiled(net, optimizer, backend="aot_eager")
    if place == "of torch.compile":
        net = torch.compile(net, backend="aot_eager")
    net, wrapper = fabric.setup(net, optimizer)
    if place == "after":
        net = compiled(net, wrapper, backend="aot_eager")
    if place == "of torch.compile":
        net = compiled(net, wrapper)
    for x, y in loader(12):
        fabric_backward(fabric, wrapper, functional.cross_entropy(net(x), y))
        wrapper.step()
        wrapper.zero_grad()
    assert gap(model, plain_loop(12, hessian_interval=3)[0]) < 1e-6
    assert (compilations.graphs, compilations.runs) == (1, 8)
