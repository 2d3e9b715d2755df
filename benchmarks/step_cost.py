"""How long one training step takes with SGDPH, as a ratio to torch.optim.SGD's.

    python benchmarks/step_cost.py [--model resnet20] [--batch-size 128] [--rounds 15] [--threads 1]

Each round times every optimizer once, in turn, over as many steps as there are Newton parameters,
so that a cyclic refresh visits each of them equally; by process time; the figure is the median over
rounds of the ratio within a round.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

import sgdph
from sgdph.lab.models import build_model

Step = Callable[[], None]


def sgdm_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Step:
    """One step of SGD with momentum."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def sgdph_step(model: nn.Module, x: torch.Tensor, y: torch.Tensor, **settings: object) -> Step:
    """One step of SGDPH with the given settings."""
    groups = sgdph.param_groups(model, weight_decay=5e-4)
    optimizer = sgdph.SGDPH(groups, lr=1e-3, **settings)  # type: ignore[arg-type]

    def step() -> None:
        optimizer.zero_grad()
        optimizer.backward(functional.cross_entropy(model(x), y))
        optimizer.step()

    return step


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    x = torch.randn(arguments.batch_size, 3, 32, 32)
    y = torch.randint(0, 10, (arguments.batch_size,))

    def network() -> nn.Module:
        return build_model(arguments.model, in_channels=3, classes=10)

    newton = len(sgdph.SGDPH(sgdph.param_groups(network())).multipliers())
    systems = {
        "SGDM": sgdm_step(network(), x, y),
        "SGD-PH": sgdph_step(network(), x, y),
        "SGD-PH, hessian_interval=10": sgdph_step(network(), x, y, hessian_interval=10),
        "SGD-PH, hutchinson, refresh=all": sgdph_step(
            network(), x, y, estimator="hutchinson", refresh="all", hessian_momentum=0.99
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    for step in systems.values():
        step()
    for _ in range(arguments.rounds):
        for name, step in systems.items():
            start = time.process_time()
            for _ in range(newton):
                step()
            seconds[name].append((time.process_time() - start) / newton)
    print(
        f"{arguments.model}, batch {arguments.batch_size}, {arguments.threads} thread(s), "
        f"{newton} Newton parameters, torch {torch.__version__}, {platform.machine()}, "
        f"{arguments.rounds} rounds"
    )
    for name, times in seconds.items():
        ratios = [t / base for t, base in zip(times, seconds["SGDM"], strict=True)]
        print(
            f"{name:34} {statistics.median(times) * 1e3:8.1f} ms   "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
