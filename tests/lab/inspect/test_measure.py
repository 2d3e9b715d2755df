"""The measurement at a checkpoint against dense Hessians that are computed in another way."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F  # noqa: N812

from sgdph import hessian_block
from sgdph.lab.cli import main
from sgdph.lab.data.dataset import Dataset
from sgdph.lab.data.loading import load_dataset
from sgdph.lab.inspect.choice import estimate_costs, make_plan
from sgdph.lab.inspect.figures import InspectSettings
from sgdph.lab.inspect.measure import (
    at_checkpoint,
    draw_batches,
    loss_on,
    measure_checkpoint,
    training_mode,
)
from sgdph.lab.inspect.records import inspect_checkpoints
from sgdph.lab.options.resolution import resolve

SMALL = {"dataset": "digits", "train_size": 100, "device": "cpu", "threads": 1}
LAYER = "blocks.0.bn1.weight"


class Quiet:
    """A reporter that counts the blocks."""

    def __init__(self) -> None:
        self.blocks = 0

    def cell_started(self, name: str, steps: int) -> None:
        self.expected = steps

    def step_finished(self) -> None:
        self.blocks += 1

    def cell_finished(self, name: str, message: str) -> None:
        pass


def test_a_block_is_the_hessian_of_the_training_loss(tmp_path: Path, digits: Dataset) -> None:
    config = resolve({**SMALL, "epochs": 1})
    words = ("--dataset", "digits", "--train-size", "100", "--device", "cpu", "--threads", "1")
    assert main(["train", *words, "--epochs", "1", "--out", str(tmp_path)]) == 0
    path = tmp_path / "last.pt"
    settings = InspectSettings(checkpoints=(1,), batches=1, layers=LAYER, float64=True, probes=2)
    run = at_checkpoint(config, digits, path, True)
    plan = make_plan(estimate_costs(run, settings, 1), settings.budget, LAYER)
    reporter = Quiet()
    found = measure_checkpoint(config, digits, path, plan, settings, reporter)
    assert reporter.blocks == reporter.expected == 2

    model = run.state.model.train()
    weight = dict(model.named_parameters())[LAYER].detach()
    batches = [(x.double(), y) for x, y in draw_batches(run, 2)]

    def loss(w: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(functional_call(model, {LAYER: w}, (x,)), y)

    hessian = torch.autograd.functional.hessian
    blocks = [hessian(partial(loss, x=x, y=y), weight) for x, y in batches]
    first, second = (block.diagonal() for block in blocks)
    (record,) = found.blocks
    assert (found.epoch, found.step, record.name, record.size) == (1, 4, LAYER, 16)
    assert torch.allclose(found.pictures[LAYER], (blocks[0] + blocks[1]) / 2, atol=1e-10)
    expected = ((first.abs() - second.abs()).norm() / second.norm()).item()
    assert record.errors["exact_one_relative_error"] == pytest.approx(expected, rel=1e-8)
    assert record.diagonal == pytest.approx(second.abs().mean().item())
    # The cycle refreshed this parameter once in the epoch's four steps.
    state = torch.load(path, weights_only=True)["optimizer"]["state"][2]
    average = state["hessian"].abs().double() / (1 - 0.9 ** state["refreshes"].item())
    expected = ((average - second.abs()).norm() / second.norm()).item()
    assert record.errors["held_relative_error"] == pytest.approx(expected, rel=1e-5)
    assert record.refreshes == 1
    multiplier = next(each for each in found.multipliers if each.name == LAYER)
    middle = (1e-3 / (average + 1e-4)).quantile(0.5).item()
    assert multiplier.median == pytest.approx(middle, rel=1e-5)
    assert len(found.multipliers) == len(plan.candidates)
    (again,) = inspect_checkpoints(config, digits, [path], settings)
    assert again.errors == record.errors


def test_a_transformers_block_matches_gradients_of_default_attention() -> None:
    words = {"dataset": "pydoc", "train_size": 100, "device": "cpu", "threads": 1}
    run = at_checkpoint(resolve(words), load_dataset("pydoc", train_size=100), None, True)
    (batch,) = draw_batches(run, 1)
    batch = (batch[0][:2, :8], batch[1][:2, :8])
    model, name = run.state.model.train(), "layers.1.norm1.weight"
    weight = dict(model.named_parameters())[name]
    block = hessian_block(loss_on(run, batch, 0, True), weight)

    def gradient(w: torch.Tensor) -> torch.Tensor:
        w = w.detach().requires_grad_()
        loss = F.cross_entropy(functional_call(model, {name: w}, (batch[0],)), batch[1])
        return torch.autograd.grad(loss, w)[0]

    # Finite differences of the gradient, which uses torch's default attention.
    steps = 1e-5 * torch.eye(32, dtype=torch.float64)
    rows = [(gradient(weight + step) - gradient(weight - step)) / 2e-5 for step in steps]
    torch.testing.assert_close(block, torch.stack(rows), rtol=1e-6, atol=1e-9)


def test_batches_are_training_batches_and_the_same_at_every_call(digits: Dataset) -> None:
    run = at_checkpoint(resolve(SMALL), digits, None, False)
    first, second = list(draw_batches(run, 6)), list(draw_batches(run, 6))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))
    assert all(len(labels) == 25 for _, labels in first)
    # Four batches are an epoch of 100 images, so no image appears twice.
    assert len(torch.cat([x.flatten(1) for x, _ in first[:4]]).unique(dim=0)) == len(
        digits.normalise(digits.train_images).flatten(1).unique(dim=0)
    )
    assert not torch.equal(first[0][0], first[4][0])


def test_training_mode_restores_the_models_buffers_and_mode(digits: Dataset) -> None:
    run = at_checkpoint(resolve(SMALL), digits, None, False)
    model = run.state.model.eval()
    before = {name: b.clone() for name, b in model.named_buffers()}
    with training_mode(model):
        assert model.training
        model(next(draw_batches(run, 1))[0])
        assert any(not torch.equal(b, before[name]) for name, b in model.named_buffers())
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
