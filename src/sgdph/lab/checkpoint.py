"""The checkpoint of a run: all that the next epoch depends on, to the last bit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from sgdph.lab.config import LabError
from sgdph.lab.files import write_atomically

FORMAT = 1


@dataclass
class TrainingState:
    """What changes while a run trains.

    Attributes:
        model: The network, on its device.
        optimizer: Its optimizer.
        scheduler: The optimizer's learning-rate schedule, stepped once per epoch.
        generator: The CPU generator of data order and augmentation.
        epoch: Finished epochs.
        step: Finished optimizer steps.
        history: The finished epochs' metrics lines.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    generator: torch.Generator
    epoch: int = 0
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def elapsed(self) -> float:
        """Wall-clock seconds of the finished epochs, evaluation included."""
        return float(self.history[-1]["elapsed_seconds"]) if self.history else 0.0


def save_checkpoint(path: Path, state: TrainingState) -> None:
    """Replace the checkpoint in one step."""
    content = {
        "format": FORMAT,
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "scheduler": state.scheduler.state_dict(),
        "data_generator": state.generator.get_state(),
        "torch_generator": torch.get_rng_state(),
        "cuda_generators": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "epoch": state.epoch,
        "step": state.step,
        "history": state.history,
    }
    write_atomically(path, lambda file: torch.save(content, file))


def load_checkpoint(path: Path, state: TrainingState) -> None:
    """Bring a freshly made state, and torch's global generators, to where the checkpoint was taken.

    Raises:
        LabError: If the file cannot be read or does not fit the run.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found = content["format"]
    except Exception as error:
        raise LabError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}); "
            "start the run anew with --overwrite"
        ) from error
    if found != FORMAT:
        raise LabError(
            f"{path} has checkpoint format {found}, expected {FORMAT}: another version of sgdph "
            "wrote it; resume with that version, or start the run anew with --overwrite"
        )
    state.model.load_state_dict(content["model"])
    state.optimizer.load_state_dict(content["optimizer"])
    state.scheduler.load_state_dict(content["scheduler"])
    state.generator.set_state(content["data_generator"])
    torch.set_rng_state(content["torch_generator"])
    saved = content["cuda_generators"]
    if saved and len(saved) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(saved)
    state.epoch, state.step = content["epoch"], content["step"]
    state.history = content["history"]
