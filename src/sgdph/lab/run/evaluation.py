"""Loss and accuracy of a network on the images that a run is evaluated on."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name that every torch reader expects

from sgdph.lab.data.dataset import Dataset
from sgdph.lab.run.distributed import ALONE, Team
from sgdph.lab.run.precision import Arithmetic

# Small enough for a batch's activations to stay in a CPU's cache: twice as fast there as 1,000.
EVALUATION_BATCH = 200


@torch.inference_mode()
def evaluate(
    model: nn.Module, data: Dataset, arithmetic: Arithmetic | None = None, team: Team = ALONE
) -> tuple[float, float]:
    """Compute mean cross-entropy (nats) and accuracy (0 to 1) over all labels evaluated on.

    Args:
        model: The network, the same in all processes.
        data: The set, on the network's device.
        arithmetic: How it computes; ``None`` is float32.
        team: The processes that share the images.
    """
    arithmetic = arithmetic or Arithmetic()
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=data.device)
    correct = torch.zeros((), dtype=torch.float64, device=data.device)
    count = torch.zeros((), dtype=torch.float64, device=data.device)
    for images, labels in data.evaluation_batches(EVALUATION_BATCH, team.share):
        logits = arithmetic.logits(model, images)
        loss += F.cross_entropy(logits, labels, reduction="sum")
        correct += (logits.argmax(1) == labels).sum()
        count += labels.numel()
    total_loss, total_correct, total = team.sum(torch.stack([loss, correct, count])).tolist()
    return total_loss / total, total_correct / total
