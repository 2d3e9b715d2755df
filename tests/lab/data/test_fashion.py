import gzip
import hashlib
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch

from sgdph.lab.data import fashion
from sgdph.lab.data.fashion import FOLDER, IdxPart, read_fashion_mnist
from sgdph.lab.errors import LabError


def idx(array: np.ndarray) -> bytes:
    """Encode an array of bytes in the format that torchvision reads."""
    sizes = b"".join(int(size).to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data set with 40 + 20 images, unpacked, where torchvision stores it."""
    folder = tmp_path / FOLDER
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for attribute, count in (("TRAIN", 40), ("TEST", 20)):
        part = getattr(fashion, attribute)
        (folder / part.images).write_bytes(idx(rng.integers(256, size=(count, 28, 28))))
        (folder / part.labels).write_bytes(idx(np.arange(count) % 10))
        monkeypatch.setattr(fashion, attribute, IdxPart(part.images, part.labels, count))
    return tmp_path


def pack(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack every file, and give torchvision the MD5 of these files."""
    from torchvision.datasets import FashionMNIST

    resources = []
    for file in sorted((root / FOLDER).iterdir()):
        content = gzip.compress(file.read_bytes())
        file.unlink()
        file.with_name(f"{file.name}.gz").write_bytes(content)
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        resources.append((f"{file.name}.gz", digest))
    monkeypatch.setattr(FashionMNIST, "resources", resources)


def test_the_images_and_labels_are_those_that_torchvision_reads(tiny: Path) -> None:
    from torchvision.datasets import FashionMNIST

    images, labels, test_images, test_labels = read_fashion_mnist(tiny)
    for train, ours, classes in ((True, images, labels), (False, test_images, test_labels)):
        theirs = FashionMNIST(tiny, train=train)
        assert torch.equal(ours[:, 0], theirs.data)
        assert torch.equal(classes, theirs.targets)
    assert images.shape == (40, 1, 28, 28)
    assert images.dtype == torch.uint8


def test_packed_files_and_files_directly_in_the_directory_read_the_same(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read_fashion_mnist(tiny)
    pack(tiny, monkeypatch)
    packed = read_fashion_mnist(tiny)
    plain = read_fashion_mnist(tiny / FOLDER)
    for a, b, c in zip(expected, packed, plain, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_a_wrong_md5_of_a_packed_file_raises_an_error(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(tiny, monkeypatch)
    file = tiny / FOLDER / "t10k-labels-idx1-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(LabError, match=r"t10k-labels-idx1-ubyte.gz is damaged.*MD5.*fetch it aga"):
        read_fashion_mnist(tiny)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("train-images-idx3-ubyte", lambda b: b[:-1], r"31,375 bytes, expected .*31,376"),
        ("train-images-idx3-ubyte", lambda b: b[:3] + b"\x01" + b[4:], "begins with 00000801"),
        ("t10k-labels-idx1-ubyte", lambda b: b[:-1] + b"\x0b", "expected 10 classes of 2"),
        ("train-labels-idx1-ubyte", lambda b: b[:-1] + b"\x00", "expected 10 classes of 4"),
    ],
)
def test_a_damaged_unpacked_file_raises_an_error(
    tiny: Path, name: str, change: object, message: str
) -> None:
    file = tiny / FOLDER / name
    file.write_bytes(change(file.read_bytes()))  # type: ignore[operator]
    with pytest.raises(LabError, match=rf"{name}.*{message}.*fetch it again"):
        read_fashion_mnist(tiny)


def test_the_error_names_missing_files_and_how_to_get_them(tiny: Path) -> None:
    (tiny / FOLDER / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(LabError, match=r"lacks t10k-images-idx3-ubyte .*official.*--download"):
        read_fashion_mnist(tiny)
    with pytest.raises(LabError, match=r"needs --data-dir.*FashionMNIST/raw"):
        read_fashion_mnist(None)


def test_a_failed_download_raises_a_lab_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import FashionMNIST

    monkeypatch.setattr(FashionMNIST, "mirrors", [(tmp_path / "nowhere").as_uri() + "/"])
    with pytest.raises(LabError, match=r"(?s)could not be downloaded.*by hand"):
        read_fashion_mnist(tmp_path / "data", download=True)


def test_a_downloaded_data_set_can_be_read(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import FashionMNIST

    expected = read_fashion_mnist(tiny)
    pack(tiny, monkeypatch)
    handler = partial(SimpleHTTPRequestHandler, directory=tiny / FOLDER)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(FashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        fetched = read_fashion_mnist(tiny / "fresh", download=True)
        server.shutdown()
    assert torch.equal(fetched[0], expected[0])
