"""Check what must work with the package alone; run by ``make dist`` in a new environment.

python tests/release/core.py VERSION
"""

from __future__ import annotations

import importlib.resources
import importlib.util
import io
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

import sgdph


def network() -> nn.Sequential:
    """Make a network with every kind of parameter: Newton, first-order, a classifier's bias."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 3),
    )


def train(model: nn.Module, optimizer: sgdph.SGDPH, steps: range) -> list[float]:
    """Train on random images, the same at every call, and return the losses."""
    losses = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(30, 1, 8, 8, generator=generator)
        # The task: which of three columns is the brightest.
        y = x[:, 0, :, :3].mean(1).argmax(1)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    """Check the installation, train, save, load and resume."""
    installed = Path(sgdph.__file__)
    assert installed.is_relative_to(sys.prefix), f"{installed} is not this environment's"
    assert sgdph.__version__ == sys.argv[1], f"{sgdph.__version__} is not {sys.argv[1]}"
    assert importlib.resources.files("sgdph").joinpath("py.typed").is_file()
    command = Path(sys.executable).parent / "sgdph"
    told = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)
    assert told.stdout == f"sgdph {sgdph.__version__}\n", told.stdout

    torch.manual_seed(0)
    model = network()
    optimizer = sgdph.SGDPH(sgdph.param_groups(model, weight_decay=5e-4), lr=0.1)
    losses = train(model, optimizer, range(60))
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10]), losses
    assert any((multiplier != 1).any() for multiplier in optimizer.multipliers().values())

    saved = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=True)
    other = network()
    other.load_state_dict(loaded["model"])
    resumed = sgdph.SGDPH(sgdph.param_groups(other), lr=1.0)
    resumed.load_state_dict(loaded["optimizer"])
    assert train(other, resumed, range(60, 70)) == train(model, optimizer, range(60, 70))
    found = sgdph.hessian_block(model(torch.randn(8, 1, 8, 8)).square().sum(), model[1].weight)
    assert found.shape == (4, 4)
    print(
        f"sgdph {sgdph.__version__}: trains, saves and resumes under Python "
        f"{sys.version.split()[0]}, torch {torch.__version__}"
    )


if __name__ == "__main__":
    main()
