import dataclasses
import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sgdph.lab.data import cifar
from sgdph.lab.data.cifar import CIFARS, Cifar, read_cifar
from sgdph.lab.data.loading import load_dataset
from sgdph.lab.data.tensors import TensorDataset
from sgdph.lab.errors import LabError

FOLDER = "cifar-10-batches-bin"


def shrink(monkeypatch: pytest.MonkeyPatch, name: str, **changes: Any) -> Cifar:
    """Replace the official layout with a small one."""
    small = dataclasses.replace(CIFARS[name], **changes)
    monkeypatch.setattr(cifar, "CIFARS", {**CIFARS, name: small})
    return small


def make_records(labels: np.ndarray[Any, Any], seed: int) -> bytes:
    """Return records with the given labels ``(N, label_bytes)`` and noise as pixels."""
    pixels = np.random.default_rng(seed).integers(256, size=(len(labels), 3072), dtype=np.uint8)
    return np.concatenate([labels.astype(np.uint8), pixels], 1).tobytes()


@pytest.fixture
def tiny10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10 with 20 images per file, and the digests of these files."""
    labels = (np.arange(20) % 10)[:, None]
    names = [*CIFARS["cifar10"].train_files, *CIFARS["cifar10"].test_files]
    folder = tmp_path / FOLDER
    folder.mkdir()
    digests = {}
    for index, name in enumerate(names):
        content = make_records(labels, index)
        (folder / name).write_bytes(content)
        digests[name] = hashlib.sha256(content).hexdigest()
    shrink(monkeypatch, "cifar10", records=20, test_records=20, sha256=digests)
    return tmp_path


def test_the_binary_version_is_read_correctly(tiny10: Path) -> None:
    images, labels, test_images, test_labels = read_cifar("cifar10", tiny10)
    assert images.shape == (100, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert labels.tolist() == list(range(10)) * 10
    third = (tiny10 / FOLDER / "data_batch_1.bin").read_bytes()[3 * 3073 :][:3073]
    assert third[0] == labels[3]
    # Planes in the order red, green, blue, each row by row.
    assert images[3, 1, 2, 5] == third[1 + 1024 + 2 * 32 + 5]
    assert bytes(images[3].flatten().tolist()) == third[1:]
    assert test_images.shape == (20, 3, 32, 32)
    assert test_labels.tolist() == list(range(10)) * 2


@pytest.mark.parametrize("size", [16, 8])
def test_smaller_images_are_means_over_square_blocks(tiny10: Path, size: int) -> None:
    whole = load_dataset("cifar10", data_dir=tiny10)
    data = load_dataset("cifar10", data_dir=tiny10, image_size=size)
    assert isinstance(whole, TensorDataset)
    assert isinstance(data, TensorDataset)
    for images, small in (
        (whole.train_images, data.train_images),
        (whole.test_images, data.test_images),
    ):
        means = torch.nn.functional.avg_pool2d(images.double(), 32 // size)
        assert small.dtype == torch.uint8
        torch.testing.assert_close(small.double(), torch.floor(means + 0.5), rtol=0, atol=0)
    # The crop padding shrinks with the image. The statistics are those of the small images.
    assert data.crop_padding == size // 8
    torch.testing.assert_close(
        data.std, data.train_images.float().std((0, 2, 3), correction=0)[:, None, None]
    )


def test_an_image_size_that_does_not_divide_32_raises_an_error(tiny10: Path) -> None:
    with pytest.raises(LabError, match=r"cifar10 must divide its 32 pixels: 1, 2, 4.*got 20"):
        load_dataset("cifar10", data_dir=tiny10, image_size=20)


def test_one_changed_byte_raises_an_error(tiny10: Path) -> None:
    file = tiny10 / FOLDER / "data_batch_3.bin"
    content = bytearray(file.read_bytes())
    content[5000] ^= 1
    file.write_bytes(content)
    with pytest.raises(LabError, match=r"data_batch_3.bin is damaged.*expected SHA256.*unpack"):
        read_cifar("cifar10", tiny10)


def test_a_truncated_file_raises_an_error(tiny10: Path) -> None:
    file = tiny10 / FOLDER / "test_batch.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(LabError, match=r"test_batch.bin has 61,459 bytes, expected 61,460.*unpack"):
        read_cifar("cifar10", tiny10)


def test_the_error_names_a_missing_file(tiny10: Path) -> None:
    (tiny10 / FOLDER / "data_batch_2.bin").unlink()
    with pytest.raises(LabError, match=r"data_batch_2.bin is missing; unpack"):
        read_cifar("cifar10", tiny10)


def test_without_files_the_error_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"needs --data-dir.*cifar-10-batches-py or cifar-10-batch"):
        read_cifar("cifar10", None)
    with pytest.raises(
        LabError, match=r"neither cifar-100-python nor cifar-100-binary.*--download"
    ):
        read_cifar("cifar100", tmp_path)


def test_the_official_digests_are_complete() -> None:
    layout = CIFARS["cifar10"]
    assert set(layout.sha256) == {*layout.train_files, *layout.test_files}
    assert all(len(digest) == 64 for digest in layout.sha256.values())


@pytest.fixture
def tiny100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-100 with 200 training and 100 test images."""
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    for name, count in (("train.bin", 200), ("test.bin", 100)):
        fine = np.arange(count) % 100
        labels = np.stack([fine // 5, fine], 1)
        (folder / name).write_bytes(make_records(labels, count))
    shrink(monkeypatch, "cifar100", records=200, test_records=100)
    return tmp_path


def test_cifar100_uses_the_fine_label(tiny100: Path) -> None:
    images, labels, _, test_labels = read_cifar("cifar100", tiny100)
    assert labels.tolist() == list(range(100)) * 2
    assert test_labels.tolist() == list(range(100))
    content = (tiny100 / "cifar-100-binary" / "train.bin").read_bytes()
    assert bytes(images[0].flatten().tolist()) == content[2:3074]


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (1, 100, "a label of 100, expected below 100"),
        (1, 1, "images of class"),
        (0, 19, "superclasses that do not hold five classes each"),
    ],
)
def test_invalid_cifar100_labels_raise_an_error(
    tiny100: Path, offset: int, value: int, message: str
) -> None:
    file = tiny100 / "cifar-100-binary" / "train.bin"
    content = bytearray(file.read_bytes())
    content[offset] = value
    file.write_bytes(content)
    with pytest.raises(LabError, match=message):
        read_cifar("cifar100", tiny100)


def test_a_cifar100_superclass_without_five_classes_raises_an_error(tiny100: Path) -> None:
    file = tiny100 / "cifar-100-binary" / "train.bin"
    content = bytearray(file.read_bytes())
    # Both images of fine class 0 move to the second superclass. The labels are consistent, but the
    # superclasses have four and six classes.
    for record in (0, 100):
        content[record * 3074] = 1
    file.write_bytes(content)
    with pytest.raises(LabError, match="superclasses that do not hold five classes each"):
        read_cifar("cifar100", tiny100)


def test_an_archive_next_to_the_files_is_checked(
    tiny100: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tiny100 / CIFARS["cifar100"].archive
    archive.write_bytes(b"not it")
    with pytest.raises(
        LabError, match=r"cifar-100-binary.tar.gz is damaged.*expected MD5 03b5dce0"
    ):
        read_cifar("cifar100", tiny100)
    digest = hashlib.md5(b"not it", usedforsecurity=False).hexdigest()
    shrink(monkeypatch, "cifar100", records=200, test_records=100, archive_md5=digest)
    read_cifar("cifar100", tiny100)


def make_python_version(path: Path) -> dict[str, list[list[str]]]:
    """Write a tiny Python version of CIFAR-10, and return its checksum lists."""
    folder = path / "cifar-10-batches-py"
    folder.mkdir()
    lists: dict[str, list[list[str]]] = {"train_list": [], "test_list": [], "meta": []}
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch", "batches.meta"]
    for index, name in enumerate(names):
        pixels = np.random.default_rng(index).integers(256, size=(10, 3072), dtype=np.uint8)
        entry = {"data": pixels, "labels": list(range(10))}
        content = pickle.dumps({"label_names": list("abcdefghij")} if "meta" in name else entry)
        (folder / name).write_bytes(content)
        key = "meta" if "meta" in name else name.split("_")[0].replace("data", "train") + "_list"
        lists[key].append([name, hashlib.md5(content, usedforsecurity=False).hexdigest()])
    return lists


def test_the_python_version_is_read_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import CIFAR10

    lists = make_python_version(tmp_path)
    with pytest.raises(LabError, match=r"cifar-10-batches-py is incomplete, damaged.*unpack"):
        read_cifar("cifar10", tmp_path)
    monkeypatch.setattr(CIFAR10, "train_list", lists["train_list"])
    monkeypatch.setattr(CIFAR10, "test_list", lists["test_list"])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": lists["meta"][0][1]}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    images, labels, test_images, test_labels = read_cifar("cifar10", tmp_path)
    assert images.shape == (50, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert labels.tolist() == list(range(10)) * 5
    assert test_labels.tolist() == list(range(10))
    pixels = np.random.default_rng(5).integers(256, size=(10, 3072), dtype=np.uint8)
    assert np.array_equal(test_images.numpy().reshape(10, 3072), pixels)
