"""A validation split, as long as the data sets cannot make one themselves."""

from __future__ import annotations

from dataclasses import replace

import torch

from sgdph.lab.config import RunConfig
from sgdph.lab.data import Dataset, channel_statistics, stratified


def hold_out(data: Dataset, config: RunConfig) -> Dataset:
    """Hold out training images in place of the test images."""
    assert config.validation_size is not None
    chosen = stratified(data.train_labels, config.validation_size)
    rest = torch.ones(data.train_count, dtype=torch.bool).index_fill_(0, chosen, False)
    mean, std = channel_statistics(data.train_images[rest])
    return replace(
        data,
        train_images=data.train_images[rest],
        train_labels=data.train_labels[rest],
        test_images=data.train_images[chosen],
        test_labels=data.train_labels[chosen],
        mean=mean,
        std=std,
    )
