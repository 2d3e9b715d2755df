"""Time ``optimizer.step()`` alone on ResNet50's 161 tensors, as a ratio to torch's SGD.

    python benchmarks/optimizer_step.py [--rounds 15] [--steps 20] [--threads 1]

The gradients are constant noise, and no network runs. SGDPH is measured at steps without a refresh,
and at steps that process the pending curvature of one parameter, one after another. This curvature
is computed outside the timed part, from a quadratic in the parameter alone. The optimizers
alternate in one process. Times are CPU times of the process. The result is the median over rounds
of the ratio within a round.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models import resnet50

import sgdph

SETTINGS = {"lr": 1e-4, "momentum": 0.9, "weight_decay": 5e-4}
BASE = "torch.optim.SGD(foreach=True)"

Prepare = Callable[[], None]


def network() -> nn.Module:
    """Build ResNet50, with random gradients for all parameters."""
    torch.manual_seed(0)
    model = resnet50()
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    return model


def nothing() -> None:
    """Prepare nothing."""


def sgd(**settings: bool) -> tuple[torch.optim.Optimizer, Prepare]:
    """Build torch's SGD."""
    return torch.optim.SGD(network().parameters(), **SETTINGS, **settings), nothing


def sgdph_between_refreshes(foreach: bool | None) -> tuple[torch.optim.Optimizer, Prepare]:
    """Build SGDPH, prepared for steps without a refresh."""
    groups = sgdph.param_groups(network())
    optimizer = sgdph.SGDPH(groups, **SETTINGS, hessian_interval=10**9, foreach=foreach)

    def prepare() -> None:
        for group in optimizer.param_groups:
            group["step"] = 1

    return optimizer, prepare


def sgdph_at_refreshes(foreach: bool | None) -> tuple[torch.optim.Optimizer, Prepare]:
    """Build SGDPH, prepared for steps that each refresh the next parameter."""
    optimizer = sgdph.SGDPH(sgdph.param_groups(network()), **SETTINGS, foreach=foreach)
    newton: list[Tensor] = optimizer.param_groups[0]["params"]
    assert len(newton) == len(optimizer.multipliers())

    def prepare() -> None:
        p = newton[optimizer.param_groups[0]["cursor"]]
        optimizer.update_hessian((p * p).sum())

    return optimizer, prepare


def main() -> None:
    """Measure the steps, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    optimizers = {
        BASE: sgd(foreach=True),
        "torch.optim.SGD()": sgd(),
        "SGDPH(), no refresh": sgdph_between_refreshes(None),
        "SGDPH(), refresh": sgdph_at_refreshes(None),
        "SGDPH(foreach=True), no refresh": sgdph_between_refreshes(True),
        "SGDPH(foreach=True), refresh": sgdph_at_refreshes(True),
    }
    for optimizer, prepare in optimizers.values():
        prepare()
        optimizer.step()
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    gc.disable()
    for _ in range(arguments.rounds):
        spent = dict.fromkeys(optimizers, 0.0)
        for _ in range(arguments.steps):
            for name, (optimizer, prepare) in optimizers.items():
                prepare()
                start = time.process_time()
                optimizer.step()
                spent[name] += time.process_time() - start
        for name, total in spent.items():
            seconds[name].append(total / arguments.steps)
    tensors = sum(1 for _ in network().parameters())
    print(
        f"{tensors} tensors, {arguments.rounds} rounds of {arguments.steps} steps, "
        f"{arguments.threads} thread(s), torch {torch.__version__}, {platform.machine()}"
    )
    for name, times in seconds.items():
        ratios = [t / base for t, base in zip(times, seconds[BASE], strict=True)]
        print(
            f"{name:32} {statistics.median(times) * 1e3:8.2f} ms   "
            f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        )


if __name__ == "__main__":
    main()
