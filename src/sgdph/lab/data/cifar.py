"""CIFAR-10 and CIFAR-100 from their official files, in the python or the binary version.

The sets are Krizhevsky's ("Learning Multiple Layers of Features from Tiny Images", 2009).

* The python version (``cifar-10-batches-py``, ``cifar-100-python``) is read and, on request,
  downloaded by torchvision. It checks every file against its MD5.
* The binary version (``cifar-10-batches-bin``, ``cifar-100-binary``) is read here. CIFAR-10's files
  are checked against SHA-256 digests of the official archive's content. For CIFAR-100 we have no
  digests of single files. Its records are checked for their structure: size, labels in range, 500
  or 100 images of each class, five classes in each superclass. Its archive is checked against the
  official MD5 if it is in the data directory too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sgdph.lab.data.registry import DATASETS
from sgdph.lab.data.source import TensorSource, TensorSplits, check_digest
from sgdph.lab.errors import LabError

PIXELS = 3 * 32 * 32
PAGE = DATASETS["cifar10"].origin
UNPACK = f"unpack the official archive again ({PAGE})"

Split = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Cifar:
    """Layout and checksums of CIFAR-10 or CIFAR-100.

    Attributes:
        classes: Number of (fine) classes.
        python_folder: Folder of the python version.
        binary_folder: Folder of the binary version.
        archive: File name of the binary version's archive.
        archive_md5: The archive's official MD5.
        train_files: The binary version's training files, in order.
        test_files: The binary version's test files.
        records: Images in each training file.
        test_records: Images in each test file.
        label_bytes: Number of bytes before the pixels; the last of them is the (fine) label.
        sha256: File name to digest, if known.
    """

    classes: int
    python_folder: str
    binary_folder: str
    archive: str
    archive_md5: str
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    records: int
    test_records: int
    label_bytes: int
    sha256: Mapping[str, str] = field(default_factory=dict)


CIFARS: Mapping[str, Cifar] = {
    "cifar10": Cifar(
        classes=10,
        python_folder="cifar-10-batches-py",
        binary_folder="cifar-10-batches-bin",
        archive="cifar-10-binary.tar.gz",
        archive_md5="c32a1d4ab5d03f1284b67883e8d87530",
        train_files=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        test_files=("test_batch.bin",),
        records=10_000,
        test_records=10_000,
        label_bytes=1,
        sha256={
            "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
            "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
            "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
            "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
            "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
            "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
        },
    ),
    "cifar100": Cifar(
        classes=100,
        python_folder="cifar-100-python",
        binary_folder="cifar-100-binary",
        archive="cifar-100-binary.tar.gz",
        archive_md5="03b5dce01913d631647c71ecec9e9cb8",
        train_files=("train.bin",),
        test_files=("test.bin",),
        records=50_000,
        test_records=10_000,
        label_bytes=2,
    ),
}


def missing_cifar(name: str, data_dir: Path | None) -> str | None:
    """Describe what is missing of a set in a directory; ``None`` if it seems complete."""
    layout = CIFARS[name]
    expected = f"{layout.python_folder}/ or {layout.binary_folder}/"
    if data_dir is None:
        return expected
    if (data_dir / layout.binary_folder).is_dir():
        files = [*layout.train_files, *layout.test_files]
        gone = [n for n in files if not (data_dir / layout.binary_folder / n).is_file()]
        return f"{layout.binary_folder}/: {', '.join(gone)}" if gone else None
    return None if (data_dir / layout.python_folder).is_dir() else expected


def read_cifar(name: str, data_dir: Path | None, download: bool = False) -> TensorSplits:
    """Read one of the sets in the version that the directory holds; the binary one comes first.

    Args:
        name: ``"cifar10"`` or ``"cifar100"``.
        data_dir: The directory that holds the official folder.
        download: Let torchvision download the python version if neither version is there.

    Returns:
        Training images ``(50000, 3, 32, 32)``, bytes; their labels ``(50000,)``, int64; then 10,000
        test images and labels likewise.

    Raises:
        LabError: If no directory was named, or files are missing or have a wrong size, content or
            checksum.
    """
    layout = CIFARS[name]
    if data_dir is None:
        raise LabError(
            f"{name} needs --data-dir DIR, a directory that holds {layout.python_folder} or "
            f"{layout.binary_folder} (from {PAGE}); with --download it is fetched into it"
        )
    if (data_dir / layout.binary_folder).is_dir():
        return _read_binary(name, data_dir)
    if (data_dir / layout.python_folder).is_dir() or download:
        return _read_python(name, data_dir, download)
    raise LabError(
        f"{name}: found neither {layout.python_folder} nor {layout.binary_folder} in {data_dir}; "
        f"unpack an official archive there ({PAGE}), or add --download"
    )


def _read_python(name: str, data_dir: Path, download: bool) -> TensorSplits:
    """Read the python version through torchvision."""
    import torchvision.datasets

    kind = torchvision.datasets.CIFAR10 if name == "cifar10" else torchvision.datasets.CIFAR100
    try:
        parts = [kind(data_dir, train=train, download=download) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        folder = data_dir / CIFARS[name].python_folder
        raise LabError(
            f"{name}: {folder} is incomplete, damaged (a file's MD5 is not the official one) or "
            f"could not be downloaded: {error}. Remove that folder and unpack the official archive "
            f"again ({PAGE})"
        ) from error
    (train_images, train_labels), (test_images, test_labels) = map(_from_torchvision, parts)
    return train_images, train_labels, test_images, test_labels


def _from_torchvision(part: Any) -> Split:
    images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(part.targets)


def _read_binary(name: str, data_dir: Path) -> TensorSplits:
    """Read and check the binary version."""
    layout = CIFARS[name]
    folder = data_dir / layout.binary_folder
    if not layout.sha256 and (data_dir / layout.archive).is_file():
        check_digest(data_dir / layout.archive, "md5", layout.archive_md5, UNPACK)
    train = [read_records(folder / file, layout, layout.records) for file in layout.train_files]
    test = [read_records(folder / file, layout, layout.test_records) for file in layout.test_files]
    parts = []
    for records, first in ((train, layout.train_files[0]), (test, layout.test_files[0])):
        whole = torch.cat(records)
        check_classes(whole, layout, folder / first)
        parts.append(split_records(whole, layout))
    return (*parts[0], *parts[1])


def read_records(file: Path, layout: Cifar, records: int) -> Tensor:
    """Read one file of the binary version; check its size and, if known, its digest.

    Args:
        file: The file.
        layout: The set that it belongs to.
        records: The number of images that it must hold.

    Returns:
        Bytes ``(records, label_bytes + 3072)``.

    Raises:
        LabError: If the file is missing, or has the wrong size or digest.
    """
    if not file.is_file():
        raise LabError(f"{file} is missing; unpack the official {layout.archive} again ({PAGE})")
    length = layout.label_bytes + PIXELS
    size = file.stat().st_size
    if size != records * length:
        raise LabError(
            f"{file} has {size:,} bytes, expected {records * length:,} ({records:,} records of "
            f"{length:,}): cut off or not the official file; unpack the official {layout.archive} "
            f"again ({PAGE})"
        )
    if file.name in layout.sha256:
        check_digest(file, "sha256", layout.sha256[file.name], UNPACK)
    content = bytearray(file.read_bytes())
    return torch.frombuffer(content, dtype=torch.uint8).view(records, length)


def check_classes(records: Tensor, layout: Cifar, file: Path) -> None:
    """Raise LabError unless the records' labels are those of a whole official split.

    Every class must have the same number of images. In CIFAR-100, every class must also belong to
    one superclass, and every superclass must have five classes.
    """
    labels = records[:, layout.label_bytes - 1].long()
    expected = len(records) // layout.classes
    counts = torch.bincount(labels, minlength=layout.classes)
    problem = None
    if len(counts) > layout.classes:
        problem = f"a label of {int(labels.max())}, expected below {layout.classes}"
    elif not bool((counts == expected).all()):
        worst = int((counts - expected).abs().argmax())
        problem = f"{int(counts[worst])} images of class {worst}, expected {expected}"
    elif layout.label_bytes == 2:
        pairs = torch.unique(records[:, :2].long(), dim=0)
        coarse = torch.bincount(pairs[:, 0])
        if len(pairs) != layout.classes or not bool((coarse == 5).all()):
            problem = "superclasses that do not hold five classes each"
    if problem:
        raise LabError(
            f"{file} has {problem}: damaged or not the official file. Unpack the official "
            f"{layout.archive} again ({PAGE})"
        )


def split_records(records: Tensor, layout: Cifar) -> Split:
    """Split records into images ``(N, 3, 32, 32)``, bytes, and labels ``(N,)``, int64."""
    images = records[:, layout.label_bytes :].reshape(-1, 3, 32, 32)
    return images, records[:, layout.label_bytes - 1].long()


def _source(name: str) -> TensorSource:
    return TensorSource(
        classes=CIFARS[name].classes,
        read=partial(read_cifar, name),
        find=partial(missing_cifar, name),
        crop_padding=4,
    )


CIFAR10, CIFAR100 = _source("cifar10"), _source("cifar100")
