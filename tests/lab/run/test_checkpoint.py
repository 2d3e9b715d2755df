import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lab.conftest import checkpoint_of, same_bits, start, tiny_config
from sgdph.lab.data.dataset import Dataset
from sgdph.lab.errors import LabError
from sgdph.lab.run.checkpoint import load_checkpoint, save_checkpoint
from sgdph.lab.run.directory import CHECKPOINT, RunDirectory
from sgdph.lab.run.start import prepare


def draws() -> list[float]:
    """Draw a number from every global generator. This advances them."""
    return [torch.rand(1).item(), random.random(), float(np.random.rand())]  # noqa: NPY002


def test_a_checkpoint_restores_every_global_generator(tmp_path: Path, digits: Dataset) -> None:
    config = tiny_config(optimizer="sgdm")
    state = prepare(config, digits).state
    draws()
    save_checkpoint(tmp_path / CHECKPOINT, state)
    expected = draws()
    load_checkpoint(tmp_path / CHECKPOINT, prepare(config, digits).state)
    assert draws() == expected


def test_the_seed_decides_what_every_generator_draws(digits: Dataset) -> None:
    prepare(tiny_config(seed=2), digits)
    first = draws()
    prepare(tiny_config(seed=2), digits)
    assert draws() == first
    prepare(tiny_config(seed=3), digits)
    assert not set(draws()) & set(first)


def test_a_checkpoint_of_another_format_raises_an_error(tmp_path: Path, digits: Dataset) -> None:
    config = tiny_config(optimizer="sgdm", epochs=1)
    start(config, tmp_path / "run", digits)
    torch.save({**checkpoint_of(tmp_path / "run"), "format": 1}, tmp_path / "run" / CHECKPOINT)
    with pytest.raises(LabError, match=r"last.pt has checkpoint format 1, expected 2.*or delete "):
        start(config, tmp_path / "run", digits)


@pytest.mark.parametrize("damage", ["cut", "emptied", "other bytes", "not a checkpoint"])
def test_the_error_names_a_damaged_checkpoint(tmp_path: Path, digits: Dataset, damage: str) -> None:
    config = tiny_config(optimizer="sgdm", epochs=1)
    start(config, tmp_path / "run", digits)
    file = tmp_path / "run" / CHECKPOINT
    content = file.read_bytes()
    if damage == "not a checkpoint":
        torch.save({"weights": torch.ones(1)}, file)
    else:
        ruins = {"cut": content[: len(content) // 2], "emptied": b"", "other bytes": b"damaged"}
        file.write_bytes(ruins[damage])
    with pytest.raises(
        LabError, match=r"last.pt cannot be read.*delete .* and train the run again"
    ):
        start(config, tmp_path / "run", digits)


def test_for_a_damaged_checkpoint_the_error_suggests_an_earlier_one(
    tmp_path: Path, digits: Dataset
) -> None:
    config = tiny_config(optimizer="sgdm", keep_checkpoints=(1, 2))
    start(config, tmp_path / "run", digits)
    whole = checkpoint_of(tmp_path / "run")
    (tmp_path / "run" / CHECKPOINT).write_bytes(b"damaged")
    with pytest.raises(LabError, match=r"copy epoch-2.pt over it"):
        start(config, tmp_path / "run", digits)
    (tmp_path / "run" / "epoch-2.pt").replace(tmp_path / "run" / CHECKPOINT)
    start(config, tmp_path / "run", digits)
    assert same_bits(checkpoint_of(tmp_path / "run"), whole)


@pytest.mark.parametrize(
    "other",
    [
        {"model": "resnet8-gn"},
        {"model": "resnet20"},
        {"optimizer": "sgdph"},
        {"optimizer": "adamw"},
        {"lr": 0.7},
    ],
    ids=["network", "depth", "groups", "optimizer", "rate"],
)
def test_a_checkpoint_of_another_run_raises_an_error(
    tmp_path: Path, digits: Dataset, other: dict[str, Any]
) -> None:
    config = tiny_config(optimizer="sgdm", epochs=1)
    stranger = prepare(tiny_config(epochs=1, **{"optimizer": "sgdm", **other}), digits).state
    run = RunDirectory(tmp_path / "run")
    run.create(config)
    save_checkpoint(run.path / CHECKPOINT, stranger)
    with pytest.raises(LabError, match=r"last.pt does not fit the run.*or setting .*; delete "):
        start(config, run.path, digits)


def test_metrics_without_a_checkpoint_are_not_overwritten(tmp_path: Path, digits: Dataset) -> None:
    config = tiny_config(optimizer="sgdm", epochs=2)
    start(config, tmp_path / "run", digits)
    run = RunDirectory(tmp_path / "run")
    (run.path / CHECKPOINT).unlink()
    before = run.read_metrics()
    with pytest.raises(LabError, match=r"has the metrics of 2 epochs but no last.pt"):
        start(config, run.path, digits)
    assert run.read_metrics() == before
