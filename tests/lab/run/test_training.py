import dataclasses
import json
import math
import warnings
from pathlib import Path
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
    without_seconds,
)
from sgdph.lab.data.dataset import Dataset
from sgdph.lab.data.loading import load_dataset
from sgdph.lab.data.tensors import TensorDataset
from sgdph.lab.errors import LabError
from sgdph.lab.run.directory import CHECKPOINT, RunDirectory, kept_checkpoint
from sgdph.lab.run.evaluation import EVALUATION_BATCH
from sgdph.lab.run.start import build_schedule, pick_device, prepare
from sgdph.lab.run.training import train_run

OPTIMIZERS = ("sgdph", "sgdm", "adamw")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_learns_the_digits(tmp_path: Path, optimizer: str) -> None:
    data = load_dataset("digits", train_size=400)
    rates = {"sgdph": 0.05, "sgdm": 0.05, "adamw": 0.003}
    config = tiny_config(train_size=400, epochs=4, optimizer=optimizer, lr=rates[optimizer])
    summary = start(config, tmp_path / "run", data)
    lines = RunDirectory(tmp_path / "run").read_metrics()
    assert lines[-1]["train_loss"] < 0.5 * lines[0]["train_loss"]
    assert summary["final_test_accuracy"] > 0.8


def test_the_files_record_the_run(tmp_path: Path, digits: Dataset) -> None:
    start(tiny_config(epochs=2), tmp_path / "run", digits)
    run = RunDirectory(tmp_path / "run")
    lines, summary, env = run.read_metrics(), run.read_summary(), run.read_env()
    assert [line["epoch"] for line in lines] == [1, 2]
    for line in lines:
        assert 0 <= line["train_accuracy"] <= 1
        assert 0 <= line["test_accuracy"] <= 1
        assert 0 < line["seconds"] <= line["elapsed_seconds"]
    assert [line["lr"] for line in lines] == pytest.approx([0.01, 0.005])
    best = max(lines, key=lambda line: line["test_accuracy"])
    assert summary["status"] == "finished"
    assert summary["epochs"] == 2
    assert summary["steps"] == 8
    assert summary["final_test_accuracy"] == lines[-1]["test_accuracy"]
    assert summary["best_test_accuracy"] == best["test_accuracy"]
    assert summary["best_epoch"] == best["epoch"]
    assert summary["final_train_loss"] == lines[-1]["train_loss"]
    assert summary["seconds"] == pytest.approx(sum(line["seconds"] for line in lines))
    assert (summary["train_images"], summary["test_images"]) == (100, 500)
    assert env["torch"] == torch.__version__
    assert env["device"] == "cpu"
    assert env["threads"] == 1
    multiplier = lines[-1]["newton_multiplier"]
    assert 0 <= multiplier["min"] <= multiplier["median"] <= multiplier["max"] <= 10.001
    assert multiplier["refreshed"] == 8


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        # Eight steps; ResNet-8 has 14 Newton parameters.
        ({}, "with 8 steps and hessian_interval 1, the run refreshes only 8 of its 14 Newton"),
        ({"hessian_interval": 3}, "the run refreshes only 3 of its 14 Newton"),
        ({"refresh": "all", "estimator": "exact"}, ""),
        ({"optimizer": "sgdm"}, ""),
        ({"optimizer": "adamw-ph", "train_size": 100, "epochs": 5}, ""),
    ],
    ids=str,
)
def test_a_run_shorter_than_a_sweep_warns(
    tmp_path: Path, digits: Dataset, settings: dict[str, Any], told: str
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start(tiny_config(**{"epochs": 2, **settings}), tmp_path / "run", digits)
    said = [str(each.message) for each in caught if "Newton parameters" in str(each.message)]
    assert [told in text for text in said] == [True] * bool(told)


def test_evaluation_is_the_plain_mean_over_all_test_images(digits: Dataset) -> None:
    prepared = prepare(tiny_config(), digits)
    assert len(digits.test_labels) % EVALUATION_BATCH
    loss, accuracy = evaluate(prepared.state.model, digits)
    with torch.no_grad():
        logits = prepared.state.model.eval()(digits.normalise(digits.test_images))
    expected = F.cross_entropy(logits.double(), digits.test_labels).item()
    assert loss == pytest.approx(expected, rel=1e-5)
    hits = (logits.argmax(1) == digits.test_labels).double().mean().item()
    assert accuracy == pytest.approx(hits)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("step", [2, 5, 12])
def test_resuming_an_interrupted_run_gives_the_same_bits(
    tmp_path: Path, digits: Dataset, optimizer: str, step: int
) -> None:
    config = tiny_config(optimizer=optimizer, seed=3)
    start(config, tmp_path / "whole", digits)
    with pytest.raises(KeyboardInterrupt):
        start(config, tmp_path / "broken", digits, interrupt_at(step))
    broken = RunDirectory(tmp_path / "broken")
    assert broken.status() == "interrupted"
    assert broken.read_summary()["epochs"] == (step - 1) // 4
    torch.manual_seed(99)
    start(broken.read_config(), tmp_path / "broken", digits)
    whole = RunDirectory(tmp_path / "whole")
    assert same_bits(checkpoint_of(broken.path), checkpoint_of(whole.path))
    assert without_seconds(broken.read_metrics()) == without_seconds(whole.read_metrics())
    assert broken.status() == "finished"
    assert len(broken.read_env()["resumed"]) == 1


@pytest.mark.parametrize("estimator", ["hutchinson", "exact"])
def test_resuming_with_hutchinson_or_exact_curvature_gives_the_same_bits(
    tmp_path: Path, digits: Dataset, estimator: str
) -> None:
    config = tiny_config(epochs=2, estimator=estimator, hessian_interval=3)
    start(config, tmp_path / "whole", digits)
    with pytest.raises(KeyboardInterrupt):
        start(config, tmp_path / "broken", digits, interrupt_at(6))
    start(config, tmp_path / "broken", digits)
    assert same_bits(checkpoint_of(tmp_path / "broken"), checkpoint_of(tmp_path / "whole"))


def test_resuming_with_augmentation_gives_the_same_bits(tmp_path: Path) -> None:
    digits = load_dataset("digits", train_size=100)
    augmented = TensorDataset(**{**vars(digits), "crop_padding": 2, "flip": True})
    config = tiny_config(optimizer="sgdm", schedule="step")
    start(config, tmp_path / "whole", augmented)
    with pytest.raises(KeyboardInterrupt):
        start(config, tmp_path / "broken", augmented, interrupt_at(6))
    start(config, tmp_path / "broken", augmented)
    assert same_bits(checkpoint_of(tmp_path / "broken"), checkpoint_of(tmp_path / "whole"))


def test_a_kill_between_metrics_and_checkpoint_leaves_no_duplicate_line(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(optimizer="sgdm")
    start(config, tmp_path / "whole", digits)
    with pytest.raises(KeyboardInterrupt):
        start(config, tmp_path / "killed", digits, interrupt_at(5))
    killed = RunDirectory(tmp_path / "killed")
    killed.append_metrics({"epoch": 2, "train_loss": 9.0})
    with (killed.path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "tra')
    (killed.path / "last.pt.partial").write_bytes(b"half a checkpoint")
    # A kill leaves no time to write a status.
    killed.write_summary({**killed.read_summary(), "status": "running"})
    start(config, killed.path, digits)
    expected = RunDirectory(tmp_path / "whole").read_metrics()
    assert without_seconds(killed.read_metrics()) == without_seconds(expected)
    assert not (killed.path / "last.pt.partial").exists()


def test_a_run_killed_after_its_last_checkpoint_finishes_without_training(
    tmp_path: Path, digits: Dataset
) -> None:
    config = tiny_config(optimizer="sgdm", epochs=1)
    start(config, tmp_path / "run", digits)
    run = RunDirectory(tmp_path / "run")
    run.write_summary({"status": "running"})
    before = (run.path / CHECKPOINT).read_bytes()
    start(config, run.path, digits, interrupt_at(1))
    assert run.status() == "finished"
    assert (run.path / CHECKPOINT).read_bytes() == before


@pytest.mark.parametrize("optimizer", ["sgdph", "sgdm"])
@pytest.mark.parametrize(
    ("batch_size", "reason"),
    [
        (25, "epoch 1: the training loss at step 2 of 4 is not"),
        (100, "the test loss after epoch 1"),
    ],
)
def test_a_diverging_run_stops_and_records_the_reason(
    tmp_path: Path, digits: Dataset, optimizer: str, batch_size: int, reason: str
) -> None:
    config = tiny_config(optimizer=optimizer, lr=1e30, weight_decay=1.0, batch_size=batch_size)
    summary = start(config, tmp_path / "run", digits)
    assert summary["status"] == "diverged"
    assert reason in summary["reason"]
    assert summary["final_test_accuracy"] is None
    run = RunDirectory(tmp_path / "run")
    assert run.read_metrics() == []
    # Strict JSON: no NaN anywhere.
    assert "NaN" not in (run.path / "summary.json").read_text()


def test_a_run_that_diverges_later_keeps_its_finite_epochs(tmp_path: Path, digits: Dataset) -> None:
    def spoil(step: int) -> None:
        if step == 9:
            prepared.state.optimizer.param_groups[0]["lr"] = 1e30

    prepared = prepare(tiny_config(optimizer="sgdm"), digits)
    run = RunDirectory(tmp_path / "run")
    run.create(prepared.config)
    summary = train_run(prepared, run, Silent(spoil))
    assert (summary["status"], summary["epochs"]) == ("diverged", 2)
    assert [line["epoch"] for line in run.read_metrics()] == [1, 2]
    assert summary["best_test_accuracy"] == max(e["test_accuracy"] for e in run.read_metrics())


def test_one_seed_gives_all_optimizers_the_same_weights_and_order(digits: Dataset) -> None:
    prepared = [prepare(tiny_config(optimizer=name, seed=5), digits) for name in OPTIMIZERS]
    other = prepare(tiny_config(seed=6), digits)
    first = prepared[0]
    for each in prepared[1:]:
        assert same_bits(each.state.model.state_dict(), first.state.model.state_dict())
        assert torch.equal(each.state.generator.get_state(), first.state.generator.get_state())
    assert not same_bits(other.state.model.state_dict(), first.state.model.state_dict())
    assert not torch.equal(other.state.generator.get_state(), first.state.generator.get_state())


def test_repeating_a_run_gives_the_same_bits(tmp_path: Path, digits: Dataset) -> None:
    for name in ("a", "b"):
        start(tiny_config(epochs=1), tmp_path / name, digits)
    assert same_bits(checkpoint_of(tmp_path / "a"), checkpoint_of(tmp_path / "b"))


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("constant", [1.0] * 10),
        ("step", [1.0] * 3 + [0.1] * 3 + [0.01] * 3 + [0.001]),
        ("cosine", [(1 + math.cos(math.pi * epoch / 10)) / 2 for epoch in range(10)]),
    ],
)
def test_schedules(name: str, rates: list[float]) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = build_schedule(optimizer, name, 10)
    found = []
    for _ in range(10):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert found == pytest.approx(rates)


def test_the_step_schedule_of_200_epochs_matches_the_paper() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    assert build_schedule(optimizer, "step", 200).step_size == 60  # type: ignore[attr-defined]


def test_a_batch_larger_than_the_data_set_raises_an_error(digits: Dataset) -> None:
    with pytest.raises(LabError, match="--batch-size 101 is more than the 100 training images"):
        prepare(tiny_config(batch_size=101), digits)


@pytest.mark.parametrize(
    ("batch_size", "processes", "where"),
    [
        (99, 1, "the last batch of an epoch has one image, and a batch norm of --model resnet18"),
        (98, 2, "the last batch of an epoch has one image in each process"),
        (1, 1, "every batch has one image, and"),
    ],
)
def test_a_batch_norm_that_cannot_train_on_a_lone_image_raises_an_error(
    digits: Dataset, batch_size: int, processes: int, where: str
) -> None:
    config = tiny_config(optimizer="sgdm", model="resnet18", batch_size=batch_size)
    with pytest.raises(LabError, match=f"{where}.* change --batch-size {batch_size}, or the 100"):
        prepare(dataclasses.replace(config, processes=processes), digits)


def test_trying_a_network_on_a_lone_image_changes_nothing(digits: Dataset) -> None:
    def prepared_with(batch_size: int) -> tuple[dict[str, Any], torch.Tensor]:
        state = prepare(tiny_config(optimizer="sgdm", batch_size=batch_size), digits).state
        return state.model.state_dict(), torch.get_rng_state()

    # ResNet-8's last batch norm sees four pixels, so it can train on one image.
    assert same_bits(prepared_with(99), prepared_with(98))


@pytest.mark.parametrize("name", ["abacus", "cuda:77"])
def test_an_unavailable_device_raises_an_error(name: str) -> None:
    with pytest.raises(LabError, match=f"--device {name} cannot be used here"):
        pick_device(name)


def test_a_reporter_is_called_for_every_step(tmp_path: Path, digits: Dataset) -> None:
    reporter = Silent()
    start(tiny_config(optimizer="sgdm", epochs=2), tmp_path / "run", digits, reporter)
    assert reporter.batches == 8
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 8


@pytest.mark.parametrize("step", [2, 6, 9])
def test_kept_checkpoints_are_the_same_with_or_without_an_interruption(
    tmp_path: Path, digits: Dataset, step: int
) -> None:
    config = tiny_config(keep_checkpoints=(0, 1, 3), seed=3)
    start(config, tmp_path / "whole", digits)
    with pytest.raises(KeyboardInterrupt):
        start(config, tmp_path / "broken", digits, interrupt_at(step))
    start(config, tmp_path / "broken", digits)
    untrained = prepare(config, digits).state.model.state_dict()
    for epoch in config.keep_checkpoints or ():
        whole, broken = (
            checkpoint_of(tmp_path / run, kept_checkpoint(epoch)) for run in ("whole", "broken")
        )
        assert whole["epoch"] == len(whole["history"]) == epoch
        assert same_bits(whole, broken)
        assert same_bits(whole["model"], dict(untrained)) == (epoch == 0)
    assert same_bits(
        checkpoint_of(tmp_path / "whole", "epoch-3.pt"), checkpoint_of(tmp_path / "whole")
    )
    assert not (tmp_path / "whole" / kept_checkpoint(2)).exists()


def test_keeping_checkpoints_changes_nothing_else(tmp_path: Path, digits: Dataset) -> None:
    start(tiny_config(keep_checkpoints=(0, 2)), tmp_path / "kept", digits)
    start(tiny_config(), tmp_path / "plain", digits)
    assert same_bits(checkpoint_of(tmp_path / "kept"), checkpoint_of(tmp_path / "plain"))
