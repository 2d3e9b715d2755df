"""Precision and memory layout of a run."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from lab.conftest import (
    Silent,
    checkpoint_of,
    evaluate,
    interrupt_at,
    same_bits,
    start,
    tiny_config,
)
from sgdph.lab.data.dataset import Dataset
from sgdph.lab.errors import LabError
from sgdph.lab.run.directory import RunDirectory
from sgdph.lab.run.precision import Arithmetic
from sgdph.lab.run.start import prepare
from sgdph.lab.run.step import optimization_step
from sgdph.lab.run.training import train_run

HALVES = ("bfloat16", "float16")


@pytest.mark.parametrize("optimizer", ["sgdph", "sgdm"])
@pytest.mark.parametrize("precision", HALVES)
def test_a_step_in_half_precision_equals_a_step_with_autocast(
    digits: Dataset, optimizer: str, precision: str
) -> None:
    """The oracle is torch's autocast recipe, by hand, without a scaler, on float32 weights."""
    config = tiny_config(optimizer=optimizer, precision=precision)
    state, oracle = prepare(config, digits).state, prepare(config, digits).state
    images, labels = next(iter(digits.evaluation_batches(25)))

    logits = Arithmetic.of(config).logits(state.model, images)
    assert logits.dtype == torch.float32
    optimization_step(state.optimizer, F.cross_entropy(logits, labels), state.scaler)

    with torch.autocast("cpu", dtype=getattr(torch, precision)):
        half = oracle.model(images)
    assert half.dtype == getattr(torch, precision)
    loss = F.cross_entropy(half.float(), labels)
    if optimizer == "sgdph":
        oracle.optimizer.backward(loss)  # type: ignore[attr-defined]
    else:
        loss.backward()  # type: ignore[no-untyped-call]
    oracle.optimizer.step()
    for found, expected in zip(state.model.parameters(), oracle.model.parameters(), strict=True):
        assert found.dtype == torch.float32
        # The loss scale of float16 keeps small gradients that the oracle rounds to 0.
        tolerance = 0 if precision == "bfloat16" else 2e-3
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_the_loss_scale_does_not_change_the_curvature(digits: Dataset) -> None:
    config = tiny_config(precision="float16")
    found = []
    for scale in (1.0, 1024.0):
        state = prepare(config, digits).state
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        images, labels = next(iter(digits.evaluation_batches(25)))
        logits = Arithmetic.of(config).logits(state.model, images)
        optimization_step(state.optimizer, F.cross_entropy(logits, labels), scaler)
        found += [s["hessian"] for s in state.optimizer.state.values() if s.get("refreshes") == 1]
    assert len(found) == 2
    assert found[0].abs().max() > 0
    torch.testing.assert_close(found[0], found[1], rtol=0.05, atol=1e-4)


@pytest.mark.parametrize("precision", HALVES)
def test_resuming_in_half_precision_gives_the_same_bits(
    tmp_path: Path, digits: Dataset, precision: str
) -> None:
    config = tiny_config(epochs=2, precision=precision)
    start(config, tmp_path / "whole", digits)
    with pytest.raises(KeyboardInterrupt):
        start(config, tmp_path / "broken", digits, interrupt_at(6))
    start(config, tmp_path / "broken", digits)
    whole = checkpoint_of(tmp_path / "whole")
    assert same_bits(checkpoint_of(tmp_path / "broken"), whole)
    # The evaluation is in half precision too.
    model = prepare(config, digits).state.model
    model.load_state_dict(whole["model"])
    recorded = whole["history"][-1]["test_loss"]
    assert evaluate(model, digits, Arithmetic.of(config))[0] == recorded
    single = evaluate(model, digits)[0]
    assert single != recorded
    assert single == pytest.approx(recorded, rel=0.1)


def test_the_checkpoint_saves_and_restores_the_loss_scale(tmp_path: Path, digits: Dataset) -> None:
    # In float16 the scaled loss is infinite at first, so the scale falls before the first step.
    config = tiny_config(optimizer="sgdm", precision="float16", epochs=1, lr=0.01)
    prepared = prepare(config, digits)
    prepared.state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    run = RunDirectory(tmp_path / "run")
    run.create(config)
    train_run(prepared, run, Silent())
    saved = checkpoint_of(run.path)["scaler"]["scale"]
    assert saved < 2.0**40
    again = prepare(config, digits)
    train_run(again, run, Silent())
    assert again.state.scaler.state_dict()["scale"] == saved


def test_create_graph_with_float16_or_several_processes_raises_an_error(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    takes_graph = {"sgdm": SimpleNamespace(create_graph=True)}
    monkeypatch.setattr("sgdph.lab.run.precision.BASELINES", takes_graph)
    monkeypatch.setattr("sgdph.lab.run.start.BASELINES", takes_graph)
    with pytest.raises(LabError, match="float16 scales the loss, and sgdm"):
        prepare(tiny_config(optimizer="sgdm", precision="float16"), digits)
    with pytest.raises(LabError, match="train it in one process"):
        prepare(tiny_config(optimizer="sgdm", processes=5), digits)


def test_a_precision_that_torch_does_not_support_raises_an_error(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("\"slow_conv2d\" not implemented for 'Half'\nand more")

    monkeypatch.setattr(torch.nn.Conv2d, "forward", unsupported)
    with pytest.raises(LabError, match=r"float16 is not supported.*'Half'; take --precision bf"):
        prepare(tiny_config(precision="float16"), digits)


@pytest.mark.parametrize("channels_last", [True, False])
def test_images_and_weights_have_the_requested_memory_format(
    digits: Dataset, channels_last: bool
) -> None:
    # Two channels: with one, both layouts are the same.
    colour = replace(
        digits,
        train_images=digits.train_images.repeat(1, 2, 1, 1),
        test_images=digits.test_images.repeat(1, 2, 1, 1),
        mean=digits.mean.repeat(2, 1, 1),
        std=digits.std.repeat(2, 1, 1),
    )
    config = tiny_config(channels_last=channels_last)
    prepared = prepare(config, colour)
    seen: list[torch.Tensor] = []
    prepared.state.model.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
    images, _ = next(iter(prepared.data.evaluation_batches(4)))
    Arithmetic.of(config).logits(prepared.state.model, images)
    weight = next(p for p in prepared.state.model.parameters() if p.dim() == 4)
    for tensor in (seen[0], weight):
        assert tensor.is_contiguous(memory_format=torch.channels_last) == channels_last
        assert tensor.is_contiguous() != channels_last


def test_the_memory_format_changes_only_rounding(tmp_path: Path, digits: Dataset) -> None:
    for channels_last in (True, False):
        config = tiny_config(epochs=1, channels_last=channels_last)
        start(config, tmp_path / str(channels_last), digits)
    first, second = (checkpoint_of(tmp_path / name)["model"] for name in ("True", "False"))
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=1e-3, atol=1e-4)
