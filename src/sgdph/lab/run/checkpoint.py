"""The checkpoint of a run: everything that the next epoch depends on, bit for bit."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from sgdph.lab.config.run_config import RunConfig, differences, without_place
from sgdph.lab.config.yaml import from_yaml, to_yaml
from sgdph.lab.errors import LabError
from sgdph.lab.run.distributed import ALONE, Team
from sgdph.lab.run.writer import write_checkpoint

FORMAT = 2


@dataclass
class TrainingState:
    """The state that changes while a run trains.

    Attributes:
        config: The run's configuration.
        model: The network, on its device.
        optimizer: Its optimizer.
        scheduler: The optimizer's learning-rate schedule, stepped once per epoch.
        generator: The CPU generator for data order and augmentation, the same in all processes.
        scaler: The loss scaler.
        epoch: Number of finished epochs.
        step: Number of finished optimizer steps.
        history: The metrics lines of the finished epochs.
    """

    config: RunConfig
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    generator: torch.Generator
    scaler: torch.amp.GradScaler
    epoch: int = 0
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def elapsed(self) -> float:
        """Wall-clock seconds of the finished epochs, evaluation included."""
        return float(self.history[-1]["elapsed_seconds"]) if self.history else 0.0

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.model.parameters()).device


def save_checkpoint(path: Path, state: TrainingState, team: Team = ALONE) -> None:
    """Replace the checkpoint atomically. All processes must call it; the first one writes.

    Raises:
        WriteError: In the first process, if the file cannot be written. The old one is kept then.
    """
    content = checkpoint_content(state, team)
    if team.first:
        write_checkpoint([path], content)


def checkpoint_content(state: TrainingState, team: Team = ALONE) -> dict[str, Any]:
    """Gather a checkpoint's content, without copying tensors. All processes must call it."""
    return {
        "format": FORMAT,
        "config": to_yaml(without_place(state.config)),
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
        "optimizer_kind": type(state.optimizer).__name__,
        "scheduler": state.scheduler.state_dict(),
        "scaler": state.scaler.state_dict(),
        "data_generator": state.generator.get_state(),
        "generators": team.gather(_generators(state.device)),
        "epoch": state.epoch,
        "step": state.step,
        "history": state.history,
    }


def load_checkpoint(path: Path, state: TrainingState, team: Team = ALONE) -> None:
    """Restore a newly prepared state, and the global generators, from a checkpoint.

    All processes must call it; the first one reads the file.

    Raises:
        LabError: If the file cannot be read or does not fit the run.
    """
    content = team.from_first(lambda: _read(path))
    with team.agreement():
        try:
            _restore(content, state, team.rank)
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise LabError(
                f"{path} does not fit the run; it has the state of another network, optimizer or "
                f"setting ({str(error).strip().splitlines()[0]}); {_remedy(path)}"
            ) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found = content["format"]
    except Exception as error:
        raise LabError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}); {_remedy(path)}"
        ) from error
    if found != FORMAT:
        raise LabError(
            f"{path} has checkpoint format {found}, expected {FORMAT}: another version of sgdph "
            "wrote it; resume with that version, or delete {path.parent} and train the run again"
        )
    return dict(content)


def _remedy(path: Path) -> str:
    """Describe what to do without this checkpoint, such as using a kept one."""
    kept = [file for file in path.parent.glob("epoch-*.pt") if file != path]
    if not kept:
        return f"delete {path.parent} and train the run again"
    latest = max(kept, key=lambda file: file.stat().st_mtime)
    return (
        f"copy {latest.name} over it and continue from there with --resume, or delete "
        f"{path.parent} and train the run again"
    )


def _restore(content: dict[str, Any], state: TrainingState, rank: int) -> None:
    kind = type(state.optimizer).__name__
    if content.get("optimizer_kind", kind) != kind:
        # Groups of the same sizes would load without an error, with another optimizer's state.
        raise ValueError(f"it belongs to {content['optimizer_kind']}, the run has {kind}")
    if "config" in content:
        # Those of 0.1.0 have none. Rates and the like would be the checkpoint's, not the file's.
        now = vars(without_place(state.config))
        found = differences(now, from_yaml(content["config"]))
        if found:
            raise ValueError("config.yaml was changed since: " + "; ".join(found))
    state.model.load_state_dict(content["model"])
    state.optimizer.load_state_dict(content["optimizer"])
    state.scheduler.load_state_dict(content["scheduler"])
    if content.get("scaler"):
        state.scaler.load_state_dict(content["scaler"])
    state.generator.set_state(content["data_generator"])
    _restore_generators(content["generators"][rank], state.device)
    state.epoch, state.step = content["epoch"], content["step"]
    state.history = content["history"]


def _generators(device: torch.device) -> dict[str, Any]:
    """Return the global generators' states, in types that ``weights_only`` can load."""
    numpy: Any = np.random.get_state()  # noqa: NPY002 - what libraries draw from
    kind, keys, *rest = numpy
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), *rest),
    }


def _restore_generators(states: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002 - what libraries draw from
