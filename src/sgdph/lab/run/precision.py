"""Precision and memory layout of a network's computation, and loss scaling for float16.

Gradients in float16 underflow, so the loss is scaled (:meth:`Arithmetic.scaler`). An optimizer that
differentiates the gradients in its own step would take the scale for curvature, so
:func:`check_precision` raises an error for it. Needs only torch, like
:mod:`sgdph.lab.run.epoch`.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sgdph.lab.errors import LabError
from sgdph.lab.optimizers.registry import BASELINES

if TYPE_CHECKING:
    from sgdph.lab.config.run_config import PrecisionName, RunConfig

# Weights and activations are float32.
SINGLE = ("float32", "tf32")


@dataclass(frozen=True)
class Arithmetic:
    """Precision and memory layout of a network's computation.

    Attributes:
        precision: Precision of the forward pass, by autocast; weights stay float32. With ``"tf32"``
            all values are float32, and a GPU rounds the factors of its products
            (:meth:`set_backends`).
        channels_last: Whether images are stored channels last in memory.
    """

    precision: PrecisionName = "float32"
    channels_last: bool = True

    @classmethod
    def of(cls, config: RunConfig) -> Arithmetic:
        """Create it from a run's configuration."""
        return cls(config.precision, config.channels_last)

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context for the forward pass."""
        if self.precision in SINGLE:
            return nullcontext()
        return torch.autocast(device.type, dtype=getattr(torch, self.precision))

    def logits(self, network: nn.Module, inputs: Tensor) -> Tensor:
        """Compute a batch's logits in float32: the loss is never computed in lower precision."""
        if not self.channels_last:
            # Data sets yield images channels last.
            inputs = inputs.contiguous()
        with self.autocast(inputs.device):
            logits: Tensor = network(inputs)
        return logits.float()

    def set_backends(self, device: torch.device) -> None:
        """Make cuDNN deterministic, and set the precision of a GPU's float32 products.

        By default, torch computes float32 convolutions on a GPU in TF32. A device without TF32,
        like a CPU, computes in float32.
        """
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        if device.type != "cuda":
            return
        allowed = self.precision == "tf32"
        with warnings.catch_warnings():
            # Torch 2.9 added a second interface. Reading the old one raises an error if the two
            # disagree, so both are set.
            warnings.filterwarnings("ignore", "Please use the new API settings")
            torch.backends.cuda.matmul.allow_tf32 = allowed
            torch.backends.cudnn.allow_tf32 = allowed
        conv, rnn = (getattr(torch.backends.cudnn, name, None) for name in ("conv", "rnn"))
        for backend in (torch.backends.cuda.matmul, conv, rnn):
            if backend is not None and hasattr(backend, "fp32_precision"):
                backend.fp32_precision = "tf32" if allowed else "ieee"

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Return the loss scaler; it is enabled only for float16, whose gradients underflow."""
        return torch.amp.GradScaler(device.type, enabled=self.precision == "float16")


def check_precision(config: RunConfig, device: torch.device) -> None:
    """Raise LabError if a run's precision does not fit its optimizer or the device."""
    if config.precision in SINGLE:
        return
    if config.precision == "float16" and BASELINES[config.optimizer].create_graph:
        raise LabError(
            f"--precision float16 scales the loss, and {config.optimizer} cannot remove the scale "
            "from its curvature; use --precision bfloat16 or float32"
        )
    convolution = nn.Conv2d(1, 1, 3, device=device)
    try:
        image = torch.ones(1, 1, 3, 3, device=device)
        loss = Arithmetic(config.precision).logits(convolution, image).sum()
        loss.backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise LabError(
            f"--precision {config.precision} is not supported by this torch ({torch.__version__}) "
            f"on {device}: {str(error).splitlines()[0]}; take --precision "
            f"{'bfloat16 or ' if config.precision == 'float16' else ''}float32"
        ) from error
