"""The part of the training images that is held out for evaluation."""

import pytest
import torch

from sgdph.lab.data.loading import load_dataset
from sgdph.lab.data.registry import RESIZED_SETS
from sgdph.lab.data.splits import SplitSizes
from sgdph.lab.data.tensors import TensorDataset, channel_statistics
from sgdph.lab.errors import LabError


def rows(images: torch.Tensor) -> list[bytes]:
    return [bytes(image.flatten().tolist()) for image in images]


def loaded(name: str, train: int | None = None, validation: int | None = None) -> TensorDataset:
    data = load_dataset(name, train_size=train, validation_size=validation)
    assert isinstance(data, TensorDataset)
    return data


@pytest.mark.parametrize("train", [None, 400])
def test_validation_images_come_only_from_the_training_images_in_use(
    train: int | None,
) -> None:
    whole, split = loaded("digits", train), loaded("digits", train, 100)
    assert (split.test_count, split.train_count) == (100, whole.train_count - 100)
    held, kept = rows(split.test_images), rows(split.train_images)
    assert sorted(held + kept) == sorted(rows(whole.train_images))
    assert not set(held) & set(rows(whole.test_images))
    assert set(split.test_labels.bincount().tolist()) <= {9, 10, 11}
    label_of = dict(zip(rows(whole.train_images), whole.train_labels.tolist(), strict=True))
    assert [label_of[image] for image in held] == split.test_labels.tolist()
    assert [label_of[image] for image in kept] == split.train_labels.tolist()


def test_the_statistics_exclude_the_validation_images() -> None:
    split = loaded("digits", 100, 90)
    assert torch.equal(split.mean, channel_statistics(split.train_images)[0])
    assert not torch.equal(split.mean, loaded("digits", 100).mean)


def test_held_out_text_is_spread_over_the_whole_text() -> None:
    whole, split = loaded("pydoc"), loaded("pydoc", validation=100)
    assert split.train_count == whole.train_count - 100
    places = [int((whole.train_images == row).all(1).nonzero()[0]) for row in split.test_images]
    assert min(places) < whole.train_count // 8
    assert max(places) > whole.train_count * 7 // 8
    assert torch.equal(split.test_labels[0], whole.train_labels[places[0]])


@pytest.mark.parametrize(("train", "size"), [(None, 9), (None, 1288), (50, 41)])
def test_an_impossible_validation_size_raises_an_error(train: int | None, size: int) -> None:
    most = (train or 1297) - 10
    with pytest.raises(
        LabError, match=rf"--validation-size for digits.*between 10 .* and {most} .*got {size}"
    ):
        load_dataset("digits", train_size=train, validation_size=size)


def test_nothing_is_held_out_by_default() -> None:
    used, held = SplitSizes().split("made", torch.tensor([0, 1, 0]))
    assert held is None
    assert used.tolist() == [0, 1, 2]


def test_an_image_size_for_a_data_set_of_fixed_size_raises_an_error() -> None:
    names = ", ".join(RESIZED_SETS)
    with pytest.raises(
        LabError, match=rf"--image-size is for {names}; the size of digits.*leave the option out"
    ):
        load_dataset("digits", image_size=32)
