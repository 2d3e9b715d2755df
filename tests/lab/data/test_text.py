"""The text data set and the small transformer."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from lab.conftest import checkpoint_of, evaluate, interrupt_at, same_bits, start
from sgdph.lab.data.dataset import plan_epoch
from sgdph.lab.data.loading import load_dataset
from sgdph.lab.data.tensors import TextDataset, training_batch
from sgdph.lab.data.text import CHARACTERS, windows
from sgdph.lab.errors import LabError
from sgdph.lab.networks.models import build_model
from sgdph.lab.networks.transformer import LENGTH
from sgdph.lab.options.resolution import resolve
from sgdph.lab.run.start import prepare


@pytest.fixture(scope="module")
def text() -> TextDataset:
    data = load_dataset("pydoc", train_size=100)
    assert isinstance(data, TextDataset)
    return data


def test_targets_are_the_windows_shifted_by_one_character() -> None:
    sample = "".join(CHARACTERS[i % 96] for i in range(3 * LENGTH))
    here, following = windows(sample + "é")
    assert here.shape == following.shape == (3, LENGTH)
    joined = here.flatten().tolist()
    assert [CHARACTERS[i] for i in joined] == list(sample)
    assert following.flatten().tolist()[:-1] == joined[1:]
    # A character that is not in the alphabet is read as a space.
    assert CHARACTERS[following[-1, -1]] == " "


def test_training_and_test_text_share_no_window() -> None:
    data = load_dataset("pydoc")
    rows = [
        {bytes(row) for row in images.numpy()} for images in (data.train_images, data.test_images)
    ]
    # Lines of dashes and blank lines may occur in both.
    common = [row for row in rows[0] & rows[1] if len(set(row)) > 12]
    assert not common
    assert len(data.train_images) > 5 * len(data.test_images) > 1000


def test_a_subset_is_spread_over_the_whole_text(text: TextDataset) -> None:
    whole = load_dataset("pydoc").train_images
    places = [int((whole == row).all(1).nonzero()[0]) for row in text.train_images]
    assert min(places) < len(whole) // 8
    assert max(places) > len(whole) * 7 // 8
    with pytest.raises(LabError, match="--train-size for pydoc"):
        load_dataset("pydoc", train_size=10**6)


def test_no_position_depends_on_later_characters() -> None:
    torch.manual_seed(0)
    model = build_model("transformer", in_channels=96, classes=96).eval()
    first = torch.randint(96, (2, LENGTH))
    second = first.clone()
    second[:, 40:] = (second[:, 40:] + 1) % 96
    a, b = model(first), model(second)
    assert a.shape == (2, 96, LENGTH)
    torch.testing.assert_close(a[:, :, :40], b[:, :, :40])
    assert not torch.allclose(a[:, :, 41:], b[:, :, 41:])
    # A shorter window gives the same outputs at its positions.
    torch.testing.assert_close(model(first[:, :10]), a[:, :, :10])


def test_evaluation_is_the_mean_over_all_characters(text: TextDataset) -> None:
    config = resolve({"dataset": "pydoc", "train_size": 100, "threads": 1, "device": "cpu"})
    assert config.model == "transformer"
    model = prepare(config, text).state.model
    loss, accuracy = evaluate(model, text)
    with torch.no_grad():
        logits = model.eval()(text.test_images.long())
    assert loss == pytest.approx(F.cross_entropy(logits.double(), text.test_labels).item(), 1e-5)
    hits = (logits.argmax(1) == text.test_labels).double().mean().item()
    assert accuracy == pytest.approx(hits, abs=1e-4)


def test_the_transformer_trains_and_resuming_gives_the_same_bits(
    tmp_path: Path, text: TextDataset
) -> None:
    options = {"dataset": "pydoc", "train_size": 100, "epochs": 3, "batch_size": 25, "lr": 0.3}
    config = resolve({**options, "threads": 1, "device": "cpu"})
    summary = start(config, tmp_path / "whole", text)
    assert summary["final_train_loss"] < 3.6
    assert summary["final_test_accuracy"] > 0.1
    with pytest.raises(KeyboardInterrupt):
        start(config, tmp_path / "cut", text, interrupt_at(6))
    start(config, tmp_path / "cut", text)
    assert same_bits(checkpoint_of(tmp_path / "whole"), checkpoint_of(tmp_path / "cut"))


@pytest.mark.parametrize("optimizer", ["adahessian", "sophiah"])
def test_optimizers_that_differentiate_gradients_train_the_transformer(
    optimizer: str, tmp_path: Path, text: TextDataset
) -> None:
    options = {"dataset": "pydoc", "train_size": 100, "epochs": 1, "batch_size": 25}
    config = resolve({**options, "optimizer": optimizer, "threads": 1, "device": "cpu"})
    assert start(config, tmp_path, text)["status"] == "finished"


def test_a_batch_holds_characters_and_the_characters_after_them(text: TextDataset) -> None:
    plan = plan_epoch(text, torch.Generator().manual_seed(0))
    x, y = training_batch(text, plan.at(torch.arange(7)))
    assert x.dtype == y.dtype == torch.int64
    assert torch.equal(x[:, 1:], y[:, :-1])


@pytest.mark.parametrize(("dataset", "model"), [("pydoc", "resnet8"), ("digits", "transformer")])
def test_a_model_that_does_not_fit_the_data_raises_an_error(dataset: str, model: str) -> None:
    data = load_dataset(dataset, train_size=100)
    config = resolve({"dataset": dataset, "model": model, "device": "cpu", "threads": 1})
    with pytest.raises(LabError, match="for text use --model transformer"):
        prepare(config, data)
