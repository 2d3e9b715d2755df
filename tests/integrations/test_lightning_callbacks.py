"""Lightning's callbacks that change an optimizer's groups, or remove the trainer's callbacks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.tuner import Tuner
from small import assert_same_bits, batch, bn_net, by_update, loss_of, train
from torch import Tensor, nn
from torch.nn import functional

from integrations.loops import loader, optimizer_of
from sgdph import SGDPH, PartialHessian, log_multipliers, param_groups
from sgdph.integrations.lightning import PartialHessianCallback
from sgdph.step import SecondOrderOptimizer

pytestmark = [
    pytest.mark.xdist_group("lightning"),
    pytest.mark.filterwarnings("ignore"),  # advice about workers, GPUs and loggers
]
STEPS = 3


class Module(lightning.LightningModule):
    """A backbone that is frozen at first, and a head."""

    def __init__(self, seed: int = 0, by_role: bool = False, beside: Any = None) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(64, 8), nn.LayerNorm(8), nn.Linear(8, 3))
        self.by_role, self.lr, self.batch_size, self.beside = by_role, 0.01, 1, beside

    def loss(self, data: tuple[Tensor, Tensor]) -> Tensor:
        return functional.cross_entropy(self.head(self.backbone(data[0])), data[1])

    def training_step(self, data: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.loss(data)

    def train_dataloader(self) -> Any:
        return loader(STEPS)

    def configure_optimizers(self) -> SecondOrderOptimizer:
        trainable = [p for p in self.parameters() if p.requires_grad]
        params: Any = param_groups(self.head) if self.by_role else trainable
        settings: Any = {"lr": self.lr, "estimator": "hutchinson", "refresh": "cyclic"}
        if self.beside is None:
            return SGDPH(params, **settings)
        return PartialHessian(self.beside(trainable, lr=1e-3), params, **settings)


def trainer(folder: Path, callbacks: list[Any], package: Any = lightning, **options: Any) -> Any:
    return package.Trainer(
        accelerator="cpu",
        devices=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=callbacks,
        **{"logger": False, **options},
    )


class Unfreezing(BackboneFinetuning):
    """Lightning's own leaves the backbone frozen if a run resumes after the unfreezing."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_fit_start(trainer, pl_module)
        if len(trainer.optimizers[0].param_groups) == self.groups_at_the_end:
            self.make_trainable(pl_module.backbone)

    groups_at_the_end = 2


def finetune(
    module: Module, finetuning: type[BackboneFinetuning], path: Path, **options: Any
) -> SecondOrderOptimizer:
    keep = ModelCheckpoint(path, filename="{epoch}", save_top_k=-1)
    this = trainer(path, [PartialHessianCallback(), finetuning(2), keep], max_epochs=6)
    this.fit(module, **options)
    optimizer: SecondOrderOptimizer = this.optimizers[0]
    return optimizer


# The number of the head's groups and the backbone's. With AdamW, each optimizer has its own.
FINETUNED = [(None, False, 1 + 1), (None, True, 2 + 1), (torch.optim.AdamW, False, 2 + 2)]


@pytest.mark.parametrize(("beside", "by_role", "groups"), FINETUNED)
@pytest.mark.parametrize("epoch", [0, 3], ids=["before unfreezing", "after"])
def test_a_resumed_finetuning_equals_the_uninterrupted_one(
    epoch: int, beside: Any, by_role: bool, groups: int, tmp_path: Path
) -> None:
    finetuning = type("Finetuning", (Unfreezing,), {"groups_at_the_end": groups})
    whole, resumed = (Module(seed, by_role=by_role, beside=beside) for seed in (0, 1))
    optimizer = finetune(whole, finetuning, tmp_path / "whole")
    path = tmp_path / "whole" / f"{epoch=}.ckpt"
    other = finetune(resumed, finetuning, tmp_path / "resumed", ckpt_path=path, weights_only=False)
    assert_same_bits(whole, resumed)
    # Three of the head's and three of the backbone's take Newton steps in both.
    assert len(optimizer.multipliers()) == 3 + 3
    for a, b in zip(optimizer.multipliers().values(), other.multipliers().values(), strict=True):
        assert torch.equal(a, b)
    assert all(s.refreshes > 0 for s in other.multiplier_statistics().values())
    if beside:
        # The backbone's first-order group and its Newton group. Only the Newton rate is raised.
        backbone, newton = other.param_groups[-2:]
        assert (len(backbone["params"]), len(newton["params"])) == (1, 3)
        assert backbone["lr"] == 1e-4 < newton["lr"]


def test_lightnings_own_finetuning_resumes(tmp_path: Path) -> None:
    finetune(Module(), BackboneFinetuning, tmp_path / "whole")
    module = Module(seed=1)
    path = tmp_path / "whole" / "epoch=3.ckpt"
    optimizer = finetune(
        module, BackboneFinetuning, tmp_path / "resumed", ckpt_path=path, weights_only=False
    )
    assert not any(p.requires_grad for p in module.backbone.parameters())
    assert len(optimizer.multipliers()) == 3 + 3
    assert optimizer.param_groups[0]["step"] == 6 * STEPS


def test_assigning_invalid_groups_changes_nothing() -> None:
    model, extra = Module(), nn.Linear(2, 3)
    optimizer = model.configure_optimizers()
    groups = optimizer.param_groups
    with pytest.raises(ValueError, match="lr must be a number"):
        optimizer.param_groups = [*groups, {"params": [extra.bias], "lr": "high"}]
    assert optimizer.param_groups is groups
    optimizer.param_groups = [*groups, {"params": [extra.bias], "lr": 0.5}]
    assert optimizer.param_groups[1]["hessian_interval"] == 1
    assert len(optimizer.multipliers()) == 6 + 1


def test_assigning_invalid_groups_to_partial_hessian_changes_nothing() -> None:
    model, extra = Module(beside=torch.optim.AdamW), nn.Linear(2, 3)
    optimizer: Any = model.configure_optimizers()
    groups = [*optimizer.param_groups]
    later = [{**groups[0], "params": [extra.weight]}, {**groups[1], "params": [extra.bias]}]
    with pytest.raises(ValueError, match="lr must be a number"):
        optimizer.param_groups = [*groups, later[0], {**later[1], "lr": "high"}]
    assert optimizer.param_groups == groups
    assert len(optimizer.multipliers()) == 6
    optimizer.param_groups = [*groups, *later]
    assert len(optimizer.multipliers()) == 6 + 1
    assert optimizer.first_order[0].param_groups == [groups[0], later[0]]


@pytest.mark.parametrize("package", [lightning, pytorch_lightning])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_learning_rate_finder_trains_as_the_plain_loop(
    package: Any, accumulate: int, tmp_path: Path
) -> None:
    module: Any = Module()
    if package is pytorch_lightning:
        members = {k: vars(Module)[k] for k in ("loss", "training_step", "configure_optimizers")}
        same = type("Same", (pytorch_lightning.LightningModule,), members)()
        for name in ("backbone", "head", "lr", "by_role", "beside"):
            setattr(same, name, getattr(module, name))
        module = same
    plain = Module()
    start = copy.deepcopy(plain)
    this = trainer(
        tmp_path,
        [PartialHessianCallback()],
        package,
        max_epochs=3,
        accumulate_grad_batches=accumulate,
        enable_checkpointing=False,
    )
    tuner = Tuner if package is lightning else pytorch_lightning.tuner.Tuner
    found = tuner(this).lr_find(
        module, loader(12), num_training=5, min_lr=0.001, max_lr=0.1, mode="linear"
    )
    optimizer = plain.configure_optimizers()
    losses = []
    for step, lr in enumerate(found.results["lr"]):
        optimizer.param_groups[0]["lr"] = lr
        for i in range(accumulate):
            loss = plain.loss(batch(accumulate * step + i))
            by_update(optimizer, loss / accumulate)
        losses.append(float(loss / accumulate))
        optimizer.step()
        optimizer.zero_grad()
    smooth, expected = 0.0, []
    for i, loss in enumerate(losses, 1):
        smooth = 0.98 * smooth + 0.02 * loss
        expected.append(smooth / (1 - 0.98 ** (i + 1)))
    assert found.results["loss"] == pytest.approx(expected, rel=1e-6)
    assert len(expected) == 5
    # Nothing of the search is left: the training equals one without a search before.
    assert_same_bits(start.head, module.head)
    assert "backward" not in vars(this.strategy)
    this.fit(module, loader(4))
    optimizer = start.configure_optimizers()
    for step in [*range(4)] * 3:
        if accumulate == 2 and step % 2 == 0:
            optimizer.zero_grad()
        by_update(optimizer, start.loss(batch(step)) / accumulate)
        if (step + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    assert_same_bits(start.head, module.head)


def test_the_learning_rate_finder_under_a_gradient_scaler(tmp_path: Path) -> None:
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=256.0))
    curvatures = []

    class Recording(SGDPH):
        def step(self, *arguments: Any, **named: Any) -> Any:
            result = super().step(*arguments, **named)
            curvatures.append(self.state[self.param_groups[0]["params"][2]]["hessian"].clone())
            return result

    class Recorded(Module):
        def configure_optimizers(self) -> SGDPH:
            return Recording(self.parameters(), lr=1e-8, refresh="all")

    this = trainer(
        tmp_path, [PartialHessianCallback()], max_epochs=2, plugins=[plugin],
        enable_checkpointing=False,
    )  # fmt: skip
    Tuner(this).lr_find(Recorded(), loader(12), num_training=8, min_lr=1e-9, max_lr=1e-8)
    plain = Recorded()
    optimizer = plain.configure_optimizers()
    for step in range(8):
        optimizer.zero_grad()
        optimizer.backward(plain.loss(batch(step)))
        optimizer.step()
    found, expected = curvatures[7], curvatures[-1]
    # Off by float16's rounding, but not 256 times too large.
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.05 * float(expected.max()))


def test_the_batch_size_finder(tmp_path: Path) -> None:
    class Sized(Module):
        def train_dataloader(self) -> Any:
            rows = [(x[0], y[0]) for x, y in map(batch, range(64))]
            return torch.utils.data.DataLoader(rows, batch_size=self.batch_size)

    this = trainer(tmp_path, [PartialHessianCallback()], max_epochs=1, enable_checkpointing=False)
    assert Tuner(this).scale_batch_size(Sized(), max_trials=2, steps_per_trial=2) == 4


def test_a_failed_fit_restores_the_strategy(tmp_path: Path) -> None:
    class Failing(Module):
        def training_step(self, data: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            raise RuntimeError("failed")

    this = trainer(tmp_path, [PartialHessianCallback()], max_epochs=1, enable_checkpointing=False)
    with pytest.raises(RuntimeError, match="failed"):
        this.fit(Failing())
    assert "backward" not in vars(this.strategy)


class ScheduleFree(lightning.LightningModule):
    """Validates at the end of each epoch."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.net, self.losses = bn_net(seed=seed), list[float]()

    def configure_optimizers(self) -> Any:
        return optimizer_of(self.net, "schedule-free")

    def training_step(self, data: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return functional.cross_entropy(self.net(data[0]), data[1])

    def validation_step(self, data: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.losses.append(float(functional.cross_entropy(self.net(data[0]), data[1])))


def schedule_free_trainer(path: Path, epochs: int, **options: Any) -> Any:
    keep = ModelCheckpoint(path, filename="{epoch}", save_top_k=-1)
    options = {"num_sanity_val_steps": 1, **options}
    return trainer(path, [PartialHessianCallback(), keep], max_epochs=epochs, **options)


def test_schedule_free_training_and_evaluation_equal_the_plain_loop(
    tmp_path: Path,
) -> None:
    module, model = ScheduleFree(), bn_net()
    optimizer: Any = optimizer_of(model, "schedule-free")
    losses = [0.0]  # Lightning's sanity check
    for epoch in range(3):
        optimizer.train()
        train(model, optimizer, range(4))
        optimizer.eval()
        model.eval()
        losses.append(float(loss_of(model).detach()))
        model.train()
        if epoch == 1:
            averages = copy.deepcopy(model)
    schedule_free_trainer(tmp_path, 3).fit(module, loader(4), loader(1))
    assert_same_bits(module.net, model)
    assert module.losses[1:] == losses[1:]

    # The averages are saved after validation. A run resumes from them as if it had not stopped.
    path, resumed = tmp_path / "epoch=1.ckpt", ScheduleFree(seed=1)
    resumed.load_state_dict(torch.load(path, weights_only=False)["state_dict"])
    assert_same_bits(resumed.net, averages)
    other = schedule_free_trainer(tmp_path / "resumed", 3)
    other.fit(resumed, loader(4), loader(1), ckpt_path=path, weights_only=False)
    assert_same_bits(resumed.net, model)


def test_a_schedule_free_run_without_validation_ends_with_the_averages(tmp_path: Path) -> None:
    module, model = ScheduleFree(), bn_net()
    optimizer: Any = optimizer_of(model, "schedule-free")
    for _ in range(2):
        optimizer.train()
        train(model, optimizer, range(4))
        optimizer.eval()
    schedule_free_trainer(tmp_path, 2).fit(module, loader(4))
    assert_same_bits(module.net, model)


def test_the_learning_rate_finder_with_a_schedule_free_optimizer(tmp_path: Path) -> None:
    this = schedule_free_trainer(tmp_path, 1)
    found = Tuner(this).lr_find(ScheduleFree(), loader(12), num_training=5, update_attr=False)
    assert len(found.results["loss"]) == 5
    assert vars(this.strategy).keys().isdisjoint({"backward", "training_step"})


class Remembering(Logger):
    """Keeps what any of Lightning's loggers receives."""

    name, version = "remembering", 0

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[int, dict[str, float]] = {}

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.told[step] = self.told.get(step, {}) | metrics


@pytest.mark.parametrize("accumulate", [1, 2])
def test_multipliers_are_logged_at_the_trainer_s_logging_steps(
    tmp_path: Path, accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, float]] = []

    class Reading(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            seen.append(log_multipliers(trainer.optimizers[0]))

    reads = 0

    def read(*args: Any, **kwargs: Any) -> dict[str, float]:
        nonlocal reads
        reads += 1
        return log_multipliers(*args, **kwargs)

    monkeypatch.setattr("sgdph.integrations.lightning.read_multipliers", read)
    logger, module = Remembering(), Module()
    trainer(
        tmp_path,
        [PartialHessianCallback(log_multipliers=True), Reading()],
        logger=logger,
        enable_checkpointing=False,
        log_every_n_steps=2,
        accumulate_grad_batches=accumulate,
        max_steps=4,
    ).fit(module, loader(4 * accumulate))
    after_steps = seen[accumulate - 1 :: accumulate]
    assert list(logger.told) == [1, 3]
    assert reads == 2
    for step, told in logger.told.items():
        del told["epoch"]
        assert told == pytest.approx(after_steps[step], rel=1e-6)
        assert told["sgdph/refreshed"] == step + 1
