"""Fashion-MNIST from its official IDX files, compressed or not.

The set is Zalando Research's (Xiao, Rasul & Vollgraf, "Fashion-MNIST: a Novel Image Dataset for
Benchmarking Machine Learning Algorithms", 2017): 60,000 + 10,000 grey images of 28x28, 7,000 of
each class. The files are in ``FashionMNIST/raw``, where torchvision puts them, or directly in the
data directory. If a ``.gz`` file is there, it is the one that is read, because it can be checked
against the MD5 that torchvision knows. Every file is checked for size, magic number, labels and
class counts.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from sgdph.lab.data.registry import DATASETS
from sgdph.lab.data.source import TensorSource, TensorSplits, check_digest
from sgdph.lab.errors import LabError

PAGE = DATASETS["fashion-mnist"].origin
FOLDER = Path("FashionMNIST") / "raw"
CLASSES, SIDE = 10, 28


@dataclass(frozen=True)
class IdxPart:
    """One split's pair of files.

    Attributes:
        images: File name of the images, without ``.gz``.
        labels: File name of the labels, without ``.gz``.
        count: Number of images.
    """

    images: str
    labels: str
    count: int


TRAIN = IdxPart("train-images-idx3-ubyte", "train-labels-idx1-ubyte", 60_000)
TEST = IdxPart("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte", 10_000)


def idx_folder(data_dir: Path) -> Path:
    """Return the files' folder: torchvision's folder if it exists, else the data directory."""
    return data_dir / FOLDER if (data_dir / FOLDER).is_dir() else data_dir


def missing_files(data_dir: Path) -> list[str]:
    """List the files that are missing in both forms, compressed and uncompressed."""
    folder = idx_folder(data_dir)
    names = [name for part in (TRAIN, TEST) for name in (part.images, part.labels)]
    return [
        name
        for name in names
        if not (folder / name).is_file() and not (folder / f"{name}.gz").is_file()
    ]


def missing_fashion_mnist(data_dir: Path | None) -> str | None:
    """Describe what is missing of the set in a directory; ``None`` if it seems complete."""
    if data_dir is None:
        return f"{FOLDER}/"
    gone = missing_files(data_dir)
    return f"{', '.join(gone)} (or .gz)" if gone else None


def read_fashion_mnist(data_dir: Path | None, download: bool = False) -> TensorSplits:
    """Read and check the set.

    Args:
        data_dir: The directory that holds ``FashionMNIST/raw``, or the files themselves.
        download: Let torchvision download missing files into ``FashionMNIST/raw``.

    Returns:
        Training images ``(60000, 1, 28, 28)``, bytes; their labels ``(60000,)``, int64; then 10,000
        test images and labels likewise.

    Raises:
        LabError: If no directory was named, or files are missing, damaged or not the official ones.
    """
    if data_dir is None:
        raise LabError(
            f"fashion-mnist needs --data-dir DIR, a directory that holds {FOLDER}/{TRAIN.images} "
            f"and so on, or those files themselves, packed or not (from {PAGE}); with --download "
            "they are fetched into it"
        )
    missing = missing_files(data_dir)
    if missing and download:
        download_fashion_mnist(data_dir)
        missing = missing_files(data_dir)
    if missing:
        raise LabError(
            f"fashion-mnist: {idx_folder(data_dir)} lacks {', '.join(missing)} (unpacked or as "
            f".gz); put the official files there or into {data_dir / FOLDER} ({PAGE}), or add "
            "--download"
        )
    folder = idx_folder(data_dir)
    train_images, train_labels = read_part(folder, TRAIN)
    test_images, test_labels = read_part(folder, TEST)
    return train_images, train_labels, test_images, test_labels


def download_fashion_mnist(data_dir: Path) -> None:
    """Let torchvision download the files into ``FashionMNIST/raw`` and check their MD5.

    Raises:
        LabError: If they cannot be downloaded.
    """
    from torchvision.datasets import FashionMNIST

    try:
        FashionMNIST(data_dir, download=True)
    except (RuntimeError, OSError) as error:
        raise LabError(
            f"fashion-mnist could not be downloaded into {data_dir / FOLDER}: {error}; fetch its "
            f"four files by hand ({PAGE})"
        ) from error


def read_part(folder: Path, part: IdxPart) -> tuple[Tensor, Tensor]:
    """Read one split's images ``(N, 1, 28, 28)``, bytes, and labels ``(N,)``, int64.

    Raises:
        LabError: If a file is damaged or not the official one.
    """
    images = read_idx(folder / part.images, (part.count, SIDE, SIDE))
    labels = read_idx(folder / part.labels, (part.count,)).long()
    counts = torch.bincount(labels, minlength=CLASSES)
    expected = part.count // CLASSES
    if len(counts) > CLASSES or not bool((counts == expected).all()):
        raise LabError(
            f"{folder / part.labels} holds {counts.tolist()} labels of each class, expected "
            f"{CLASSES} classes of {expected:,}: damaged or not the official file; {remedy(folder)}"
        )
    return images.unsqueeze(1), labels


def read_idx(file: Path, shape: tuple[int, ...]) -> Tensor:
    """Read a file in the IDX format (LeCun's MNIST page): magic number, sizes, then bytes.

    Args:
        file: Path of the uncompressed file. If the same path with ``.gz`` exists, that one is read.
        shape: The shape that its content must have.

    Returns:
        Bytes of that shape.

    Raises:
        LabError: If the MD5 of a compressed file is not the official one, or the magic number, the
            sizes or the length do not match the shape.
    """
    packed = file.with_name(f"{file.name}.gz")
    if packed.is_file():
        check_digest(packed, "md5", official_digests()[packed.name], remedy(file.parent))
        content = gzip.decompress(packed.read_bytes())
    else:
        content = file.read_bytes()
    # Two zero bytes, the type (8: unsigned bytes), the number of dimensions, then their sizes.
    header = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
    found, length = content[: len(header)], len(header) + prod(shape)
    if found != header or len(content) != length:
        raise LabError(
            f"{file} begins with {found.hex()} and has {len(content):,} bytes, expected "
            f"{header.hex()} ({' x '.join(map(str, shape))} bytes in the IDX format) and "
            f"{length:,}: cut off or not the official file; {remedy(file.parent)}"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=len(header)).view(shape)


def official_digests() -> dict[str, str]:
    """Return the MD5 digests of the compressed files from torchvision: file name to digest."""
    from torchvision.datasets import FashionMNIST

    return dict(FashionMNIST.resources)


def remedy(folder: Path) -> str:
    """Return a hint on what to do about a damaged file."""
    return f"delete the file from {folder} and fetch it again ({PAGE}), or add --download"


# The augmentation is the same as for CIFAR.
FASHION_MNIST = TensorSource(CLASSES, read_fashion_mnist, missing_fashion_mnist, crop_padding=4)
