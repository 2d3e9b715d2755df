"""An epoch never waits for a GPU; the meta device shows this without a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lab.conftest import evaluate
from sgdph.lab.data.dataset import Share, plan_epoch
from sgdph.lab.data.tensors import TensorDataset
from sgdph.lab.networks.models import build_model
from sgdph.lab.optimizers.build import make_optimizer
from sgdph.lab.run import evaluation
from sgdph.lab.run.distributed import ALONE, EqualShare
from sgdph.lab.run.epoch import Diverged, TrainingSums, train_epoch
from sgdph.lab.run.evaluation import evaluation_batch, evaluation_sums
from sgdph.lab.run.precision import Arithmetic

META = torch.device("meta")
SETTINGS: dict[str, dict[str, Any]] = {
    "sgdm": {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
    "sgdph": {"lr": 0.01, "weight_decay": 5e-3},
    "adamw": {"lr": 1e-3, "weight_decay": 0.05},
}


def cifar(train: int, test: int = 7) -> TensorDataset:
    """Noise, augmented like CIFAR-10."""
    generator = torch.Generator().manual_seed(0)
    count = train + test
    images = torch.randint(256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (count,), generator=generator)
    mean, std = torch.full((3, 1, 1), 127.5), torch.full((3, 1, 1), 74.0)
    return TensorDataset(
        *("cifar10", 10, 4, True),
        *(images[:train], labels[:train], images[train:], labels[train:], mean, std),
    )


class Transfers(TorchDispatchMode):
    """Counts transfers between devices. Reading a meta tensor raises an error: it has no values.

    The meta device does not support the operations for which a program would wait for a GPU
    (``item``, ``nonzero``, an index by a mask).
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        out = function(*arguments, **(options or {}))
        tensors = [x for x in tree_leaves((arguments, options, out)) if isinstance(x, Tensor)]
        # A CPU tensor without dimensions is a kernel's argument, not a transfer.
        if len({x.device.type for x in tensors if x.dim()}) > 1:
            self.seen[str(function)] += 1
        return out


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("optimizer", SETTINGS)
def test_an_epoch_makes_one_transfer_and_reads_no_value(
    optimizer: str, channels_last: bool
) -> None:
    data, model = cifar(23).to(META), build_model("resnet8", in_channels=3, classes=10).to(META)
    steps = make_optimizer(optimizer, model, SETTINGS[optimizer], 0)
    arithmetic = Arithmetic(channels_last=channels_last)
    plan = plan_epoch(data, torch.Generator().manual_seed(0))
    with Transfers() as transfers:
        batches = data.training_batches(plan, 5)
        trained = train_epoch(model.train(), steps, batches, steps=5, arithmetic=arithmetic)
        evaluated = evaluation_sums(model, data, arithmetic, ALONE)
    assert dict(transfers.seen) == {"aten._to_copy.default": 1}
    assert (trained.labels, trained.steps) == (23, 5)
    assert trained.values.device == evaluated.device == META


@pytest.mark.parametrize(
    "waits",
    [
        lambda loss: loss.item(),
        lambda loss: loss.isfinite().all().tolist(),
        lambda loss: loss.reshape(1)[loss.reshape(1) > 0],
        lambda loss: torch.tensor([1.0]).to(loss.device),
        lambda loss: loss.reshape(1)[torch.tensor([0])],
        lambda loss: loss.cpu(),
    ],
)
def test_operations_that_would_wait_for_a_gpu_are_detected(
    waits: Callable[[Tensor], object],
) -> None:
    with Transfers() as transfers:
        try:
            waits(torch.ones((), device=META))
        except (RuntimeError, NotImplementedError):
            return
    assert transfers.seen


@pytest.mark.parametrize("share", [Share(), EqualShare(1, 2), Share(0, 3)])
def test_batches_made_together_equal_batches_made_one_by_one(
    monkeypatch: pytest.MonkeyPatch, share: Share
) -> None:
    data = cifar(23)
    plan = plan_epoch(data, torch.Generator().manual_seed(3))
    alone = list(data.training_batches(plan, 5, share))
    monkeypatch.setattr(TensorDataset, "_batches_together", lambda *_: 3)
    together = list(data.training_batches(plan, 5, share))
    assert len(alone) == len(together) == 5
    for (images, labels), (same, their) in zip(alone, together, strict=True):
        assert torch.equal(images, same)
        assert torch.equal(labels, their)
        assert same.is_contiguous(memory_format=torch.channels_last)
    whole = torch.cat([share.of(places) for places in plan.order.split(5)])
    assert torch.equal(torch.cat([labels for _, labels in alone]), data.train_labels[whole])


def test_a_transfer_does_not_change_an_epochs_plan() -> None:
    plan = plan_epoch(cifar(11), torch.Generator().manual_seed(0))
    # For torch, this is a different device from "cpu".
    moved = plan.to(torch.device("cpu", 0))
    assert moved is not plan
    for name, value in vars(plan).items():
        assert torch.equal(getattr(moved, name), value), name


class Losing(nn.Module):
    """A network whose loss is not finite at one step."""

    def __init__(self, bad: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.bad, self.step = bad, 0

    def forward(self, images: Tensor) -> Tensor:
        self.step += 1
        logits = self.weight * images
        return logits * (-torch.inf if self.step == self.bad else 1.0)


@pytest.mark.parametrize(("bad", "taken"), [(1, 20), (20, 20), (27, 40), (41, 45), (45, 45)])
def test_the_error_names_the_exact_step_at_which_training_diverged(bad: int, taken: int) -> None:
    batches = [(torch.ones(2, 3), torch.zeros(2, dtype=torch.int64))] * 45
    network = Losing(bad)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    with pytest.raises(Diverged, match=f"the training loss at step {bad} of 45 is not finite"):
        train_epoch(network, optimizer, batches, steps=45, arithmetic=Arithmetic())
    # The losses are checked every 20 steps, before the optimizer's step.
    assert network.step == taken


def test_without_checks_during_the_epoch_its_end_names_the_diverged_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sgdph.lab.run.epoch._look", lambda *_: None)
    batches = [(torch.ones(2, 3), torch.zeros(2, dtype=torch.int64))] * 5
    network = Losing(4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    trained = train_epoch(network, optimizer, batches, steps=5, arithmetic=Arithmetic())
    with pytest.raises(Diverged, match="the training loss at step 4 of 5 is not finite"):
        trained.read(trained.values.tolist())
    assert TrainingSums(trained.values, 10, 5).read([20.0, 5.0, 0.0]) == (2.0, 0.5)


def test_larger_evaluation_batches_on_a_gpu_give_the_same_metrics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = cifar(5, 23)
    assert evaluation_batch(data) == 200
    assert evaluation_batch(data.to(META)) == 1000
    model = build_model("resnet8", in_channels=3, classes=10)
    found = []
    for size in (4, 23):
        monkeypatch.setattr(evaluation, "EVALUATION_BATCH", size)
        found.append(evaluate(model, data))
    assert found[0] == pytest.approx(found[1], rel=1e-6)


@pytest.fixture
def _flags_restored() -> Any:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("_flags_restored")
def test_tf32_is_switched_on_and_off_for_a_gpu() -> None:
    def flags() -> set[object]:
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        newer = [matmul, getattr(cudnn, "conv", None), getattr(cudnn, "rnn", None)]
        # Reading the old interface raises an error if the two disagree.
        old = {matmul.allow_tf32, cudnn.allow_tf32}
        names = {True: "tf32", False: "ieee"}
        new = {b.fp32_precision for b in newer if hasattr(b, "fp32_precision")}
        return new | {names[each] for each in old}

    cuda = torch.device("cuda")
    for precision in ("tf32", "float32", "tf32", "bfloat16"):
        Arithmetic(precision).set_backends(cuda)  # type: ignore[arg-type]
        assert flags() == {"tf32" if precision == "tf32" else "ieee"}
    # A CPU has no TF32 and does not change the GPU's settings.
    Arithmetic("tf32").set_backends(torch.device("cpu"))
    assert flags() == {"ieee"}


def test_tf32_on_a_cpu_is_float32() -> None:
    data, figures = cifar(10), []
    for precision in ("float32", "tf32"):
        torch.manual_seed(0)
        model = build_model("resnet8", in_channels=3, classes=10)
        figures.append(evaluate(model, data, replace(Arithmetic(), precision=precision)))  # type: ignore[arg-type]
    assert figures[0] == figures[1]
