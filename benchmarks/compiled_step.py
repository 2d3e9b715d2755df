"""Time training steps with sgdph.compiled, as a ratio to the uncompiled model.

    python benchmarks/compiled_step.py [--networks NAMES] [--interval 10] [--rounds 5] [--threads 1]

The contestants are torch.optim.SGD and SGDPH, uncompiled and compiled by inductor. In a round, each
takes as many steps as the interval. One of SGDPH's steps is a refresh. All run in one process, and
times are CPU times of the process. The result is the median over rounds of the ratio to uncompiled
SGDPH within a round. Compilation is not timed.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

import sgdph
from sgdph.lab.networks.resnet import cifar_resnet

BASE = "SGDPH"
LENGTH, WORDS, WIDTH = 64, 256, 128


class Transformer(nn.Module):
    """A transformer: 4 pre-norm layers of width 128 with 4 heads, mean over 64 positions."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(4)
        )
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, ids: Tensor) -> Tensor:
        """Map token ids ``(N, 64)`` to logits ``(N, 10)``."""
        x = self.tokens(ids)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


def transformer4() -> tuple[nn.Module, Tensor]:
    """Build the transformer and a batch of 16 texts."""
    return Transformer(), torch.randint(0, WORDS, (16, LENGTH))


def resnet8() -> tuple[nn.Module, Tensor]:
    """Build ResNet-8 for CIFAR with batch norm, and a batch of 32 images."""
    return cifar_resnet(3, 10, blocks=1), torch.randn(32, 3, 32, 32)


NETWORKS = {"transformer4": transformer4, "resnet8": resnet8}


def contestant(network: str, kind: str, compile_it: bool, interval: int) -> Callable[[], None]:
    """Return a function that takes as many training steps as the interval."""
    torch.manual_seed(0)
    model, x = NETWORKS[network]()
    y = torch.randint(0, 10, (len(x),))
    if kind == "SGD":
        sgd = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        net = torch.compile(model) if compile_it else model
        optimizer: torch.optim.Optimizer = sgd
        backward: Callable[[Tensor], None] = torch.Tensor.backward  # type: ignore[assignment]
    else:
        ours = sgdph.SGDPH(sgdph.param_groups(model), lr=1e-3, hessian_interval=interval)
        net = sgdph.compiled(model, ours) if compile_it else model
        optimizer, backward = ours, ours.backward

    def steps() -> None:
        for _ in range(interval):
            backward(functional.cross_entropy(net(x), y))
            optimizer.step()
            optimizer.zero_grad()

    return steps


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--interval", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {platform.processor() or platform.machine()}, {options}")
    for network in options.networks.split(","):
        runs = {
            kind + (", compiled" if compile_it else ""): contestant(
                network, kind, compile_it, options.interval
            )
            for kind in ("SGD", BASE)
            for compile_it in (False, True)
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        for rounds in range(options.rounds + 2):
            for name, steps in runs.items():
                began = time.process_time()
                steps()
                # The first two rounds are not timed: they include the compilation.
                if rounds > 1:
                    times[name].append((time.process_time() - began) / options.interval)
        for name, each in times.items():
            ratios = [a / b for a, b in zip(each, times[BASE], strict=True)]
            print(
                f"| {network} | {name} | {1000 * statistics.median(each):.1f} ms "
                f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
            )


if __name__ == "__main__":
    main()
