"""How far curvature from differences of gradients is from the exact product, and what it costs.

    python benchmarks/finite_difference.py --out results/finite-difference

For each network, untrained and after 100 steps, each of its Newton parameters and each kind of
arithmetic: the row sum and Hutchinson's estimate, once from the exact product of
``update_hessian(loss)`` in float32, once from ``update_hessian(closure=...)``. The error is the
norm of the difference over the norm of the exact one; reported are the median and the 90th
percentile over parameters whose exact norm is above a thousandth of the network's largest (a block
that is zero has no relative error).
Cost: process time of a step with the closure over one with ``optimizer.backward(loss)``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import sgdph
from sgdph.autograd.graph import Region
from sgdph.curvature.estimators import curvature_of_gradients, gradients_with_graph
from sgdph.curvature.finite_difference import curvature_of_differences
from sgdph.lab.data.dataset import Dataset
from sgdph.lab.data.loading import load_dataset
from sgdph.lab.networks.models import build_model
from sgdph.lab.run.environment import describe_environment

BATCH, STEPS, ROUNDS = 32, 100, 5


class Recurrent(nn.Module):
    """An LSTM over characters."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(96, 32)
        self.lstm = nn.LSTM(32, 32, batch_first=True)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 96)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, 96, T)``."""
        return self.head(self.norm(self.lstm(self.embedding(x))[0])).transpose(1, 2)


def convolutions(activation: type[nn.Module]) -> nn.Module:
    """Three convolutions with batch and group norm."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2),
        nn.BatchNorm2d(16),
        activation(),
        nn.Conv2d(16, 32, 3, 2),
        nn.BatchNorm2d(32),
        activation(),
        nn.Conv2d(32, 32, 3),
        nn.GroupNorm(4, 32),
        activation(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


NETWORKS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "convolutions, SiLU": ("mnist5k", lambda: convolutions(nn.SiLU)),
    "transformer, GELU": ("pydoc", lambda: build_model("transformer", in_channels=96, classes=96)),
    "LSTM": ("pydoc", Recurrent),
    "convolutions, ReLU": ("mnist5k", lambda: convolutions(nn.ReLU)),
    "resnet8, ReLU": ("mnist5k", lambda: build_model("resnet8", in_channels=1, classes=10)),
}


def batch(data: Dataset, step: int) -> tuple[Tensor, Tensor]:
    """Draw a batch."""
    chosen = torch.randint(
        data.train_count, (BATCH,), generator=torch.Generator().manual_seed(step)
    )
    return data.normalise(data.train_images[chosen]), data.train_labels[chosen]


def errors(model: nn.Module, data: Dataset, estimator: str, bfloat16: bool) -> dict[str, float]:
    """Compare the two ways on one batch, parameter by parameter."""
    x, y = batch(data, 10_000)

    def loss(autocast: bool = bfloat16) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return functional.cross_entropy(model(x), y)

    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    names = list(optimizer.multipliers())
    params = dict(model.named_parameters())
    found = []
    for name in names:
        p = params[name]
        z = torch.randint(0, 2, p.shape, generator=torch.Generator().manual_seed(0)) * 2.0 - 1
        root = loss(False)
        gradients = gradients_with_graph(root, [p], Region(root, [p]))
        exact = curvature_of_gradients(gradients, [p], estimator, [z])[0]
        different = curvature_of_differences(loss, [p], estimator, [z])[0][0]
        assert exact is not None
        assert different is not None
        found.append((exact.norm().item(), (exact - different).norm().item()))
    largest = max(norm for norm, _ in found)
    relative = sorted(error / norm for norm, error in found if norm > 1e-3 * largest)
    return {
        "median": statistics.median(relative),
        "p90": relative[int(0.9 * (len(relative) - 1) + 0.5)],
        "parameters": len(relative),
        "left_out": len(found) - len(relative),
    }


def cost(make: Callable[[], nn.Module], data: Dataset) -> float:
    """Time a step of each way in turn."""
    x, y = batch(data, 0)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    torch.manual_seed(0)
    model = make()
    optimizer = sgdph.SGDPH(sgdph.param_groups(model), lr=1e-6)
    count = len(optimizer.multipliers())
    for round_ in range(ROUNDS + 1):
        for closure in (True, False):
            for group in optimizer.param_groups:
                group["cursor"] = 0
            started = time.process_time()
            for _ in range(count):
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(x), y)
                if closure:
                    optimizer.update_hessian(closure=lambda: functional.cross_entropy(model(x), y))
                    loss.backward()
                else:
                    optimizer.backward(loss)
                optimizer.step()
            if round_:
                seconds[closure].append(time.process_time() - started)
    return statistics.median(a / b for a, b in zip(seconds[True], seconds[False], strict=True))


def train(model: nn.Module, data: Dataset) -> None:
    """Take some steps of SGD, so that the weights are not the initial ones."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(STEPS):
        optimizer.zero_grad()
        x, y = batch(data, step)
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def main() -> None:
    """Measure all networks and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    torch.set_num_threads(1)
    rows = []
    for name, (dataset, make) in NETWORKS.items():
        data = load_dataset(dataset)
        ratio = cost(make, data)
        for trained in (False, True):
            torch.manual_seed(0)
            model = make()
            if trained:
                train(model, data)
            for bfloat16 in (False, True):
                for estimator in ("row_sum", "hutchinson"):
                    try:
                        figures = errors(model, data, estimator, bfloat16)
                    except RuntimeError as error:
                        print(name, "bfloat16" if bfloat16 else "float32", error)
                        continue
                    rows.append(
                        {
                            "network": name,
                            "trained": trained,
                            "arithmetic": "bfloat16 autocast" if bfloat16 else "float32",
                            "estimator": estimator,
                            "cost_ratio": ratio,
                            **figures,
                        }
                    )
                    print(rows[-1], flush=True)
    out.mkdir(parents=True, exist_ok=True)
    environment = describe_environment(torch.device("cpu"))
    (out / "errors.json").write_text(
        json.dumps({"environment": environment, "rows": rows}, indent=2) + "\n"
    )
    lines = [
        "| network | weights | arithmetic | estimator | median error | 90th percentile "
        "| parameters | step's time, closure / backward |",
        "|---|---|---|---|---:|---:|---:|---:|",
        *(
            f"| {row['network']} | {'after 100 steps' if row['trained'] else 'initial'} | "
            f"{row['arithmetic']} | {row['estimator']} | {row['median']:.2g} | {row['p90']:.2g} | "
            f"{row['parameters']} | {row['cost_ratio']:.2f} |"
            for row in rows
        ),
    ]
    (out / "errors.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
