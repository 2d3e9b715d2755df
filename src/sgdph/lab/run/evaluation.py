"""Loss and accuracy of a network on the images that a run is evaluated on.

Needs only torch, like :mod:`sgdph.lab.run.epoch`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that every torch reader expects

from sgdph.lab.data.dataset import Dataset
from sgdph.lab.data.tensors import TensorDataset
from sgdph.lab.run.distributed import Team
from sgdph.lab.run.precision import Arithmetic

# Small enough that a batch's activations stay in a CPU's cache: twice as fast there as 1,000.
EVALUATION_BATCH = 200
# Fewer launches on a GPU. For small images only: so many from image files do not fit into memory.
GPU_EVALUATION_BATCH = 1000


def evaluation_batch(data: Dataset) -> int:
    """Return the number of images per evaluation batch; it affects only rounding."""
    small = isinstance(data, TensorDataset) and data.device.type != "cpu"
    return GPU_EVALUATION_BATCH if small else EVALUATION_BATCH


@torch.inference_mode()
def evaluation_sums(model: nn.Module, data: Dataset, arithmetic: Arithmetic, team: Team) -> Tensor:
    """Sum losses and hits over all labels evaluated on, without waiting for the device.

    Returns:
        Cross-entropy (nats), number of labels that were hit, and number of labels: ``(3,)``,
        float64, on the device.
    """
    model.eval()
    losses: list[Tensor] = []
    hits: list[Tensor] = []
    count = 0
    for images, labels in data.evaluation_batches(evaluation_batch(data), team.share):
        logits = arithmetic.logits(model, images)
        losses.append(F.cross_entropy(logits, labels, reduction="sum"))
        hits.append((logits.argmax(1) == labels).sum())
        count += labels.numel()
    sums = torch.zeros(3, dtype=torch.float64, device=data.device)
    if losses:
        # If there are few images, a process may have none.
        sums[0] = torch.stack(losses).double().sum()
        sums[1] = torch.stack(hits).sum()
    sums[2] = count
    return team.sum(sums)
