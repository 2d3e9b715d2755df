"""Runs of weight-normalised networks: resuming is exact, and their checkpoints can be folded."""

import dataclasses
from pathlib import Path

import pytest
import torch

import sgdph
from lab.conftest import checkpoint_of, interrupt_at, same_bits, start, tiny_config, without_seconds
from sgdph.lab.data.dataset import Dataset
from sgdph.lab.networks.models import build_model
from sgdph.lab.run.directory import RunDirectory


@pytest.fixture(scope="module")
def few(digits: Dataset) -> Dataset:
    """A few images, enough to train and evaluate: a VGG is slow."""
    parts = {
        name: getattr(digits, name)[:20]
        for name in ("train_images", "train_labels", "test_images", "test_labels")
    }
    return dataclasses.replace(digits, **parts)


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [("vgg11", "sgdm"), ("vgg11-wn", "sgdph"), ("resnet8-wn", "sgdph")],
)
def test_resuming_gives_the_same_bits(
    model: str, optimizer: str, few: Dataset, tmp_path: Path
) -> None:
    config = tiny_config(model=model, optimizer=optimizer, epochs=2, batch_size=10, lr=0.01)
    start(config, tmp_path / "whole", few)
    with pytest.raises(KeyboardInterrupt):
        start(config, tmp_path / "cut", few, interrupt_at(3))
    start(config, tmp_path / "cut", few)
    assert same_bits(checkpoint_of(tmp_path / "whole"), checkpoint_of(tmp_path / "cut"))
    lines = [RunDirectory(tmp_path / name).read_metrics() for name in ("whole", "cut")]
    assert without_seconds(lines[0]) == without_seconds(lines[1])


def test_a_checkpoint_folds_into_the_plain_network(few: Dataset, tmp_path: Path) -> None:
    config = tiny_config(model="vgg11-wn", optimizer="sgdph", epochs=1, batch_size=10)
    start(config, tmp_path / "run", few)
    trained = build_model("vgg11-wn", in_channels=1, classes=10)
    trained.load_state_dict(checkpoint_of(tmp_path / "run")["model"])
    plain = build_model("vgg11", in_channels=1, classes=10)
    x = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = trained(x)
    plain.load_state_dict(sgdph.fold_weight_norm(trained).state_dict(), strict=True)
    torch.testing.assert_close(plain(x), expected, rtol=0, atol=1e-6)
