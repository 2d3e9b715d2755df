"""Hutchinson's error at equal cost: independent probes against orthogonal ones over the visits.

    python benchmarks/probes.py collect [--blocks build/probes] [--data-dir data]
    python benchmarks/probes.py measure [--blocks build/probes] [--out results/probes]

``collect`` trains small networks and keeps the dense Hessian blocks that they meet. ``measure``
draws every scheme's probes on these blocks, so that all schemes see the same weights and batches;
it prints tables and writes them to one JSON file.

The error is ``|| |D̂| - |d| || / ||d||``: D̂ is the bias-corrected moving average of the estimates,
d the diagonal. Of each seed the median over the layers is taken, then mean ± std over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from probe_blocks import COURSES, NETWORKS, Trajectory, fixed_weights, trajectory
from probe_schemes import OWN, Scheme, joint_schemes
from torch import Tensor

from sgdph.lab.run.environment import describe_environment

AT = (1, 2, 4, 8, 20, 50, 200)
BETAS = (0.9, 0.99)
PROBE_SEEDS = 100
BATCHES, JOINT_BATCHES, JOINT = 24, 8, ("resnet8 (BN)", "encoder (LN)")
RUNS = 5

Errors = dict[tuple[float, int], Tensor]
"""Per (beta2, visits) the error of each seed."""


def averages(estimates: Tensor, beta2: float, at: tuple[int, ...]) -> dict[int, Tensor]:
    """Average estimates ``(seeds, visits, n)`` as SGD-PH does, into ``(seeds, n)`` each time."""
    average = torch.zeros_like(estimates[:, 0])
    found = {0: average}
    for visit in range(1, max(at) + 1):
        average = beta2 * average + (1 - beta2) * estimates[:, visit - 1]
        if visit in at:
            found[visit] = average / (1 - beta2**visit)
    return found


def relative_error(average: Tensor, diagonal: Tensor) -> Tensor:
    """Compare averages ``(seeds, n)`` with a diagonal ``(n,)``."""
    return (average.abs() - diagonal.abs()).norm(dim=-1) / diagonal.norm()


def products(z: Tensor, blocks: list[Tensor], batch: Tensor) -> Tensor:
    """Return ``z * (H z)`` for ``z`` of shape ``(seeds, visits, n)``.

    Args:
        z: The probes.
        blocks: Matrices ``(n, n)``.
        batch: Which of them belongs to which visit, ``(seeds, visits)``.
    """
    estimates = torch.empty_like(z)
    for b, block in enumerate(blocks):
        mask = batch == b
        estimates[mask] = z[mask] * (z[mask] @ block)
    return estimates


def errors_at_fixed_weights(
    blocks: list[Tensor], scheme: Scheme | None, parts: list[slice], at: tuple[int, ...]
) -> list[Errors]:
    """Measure one scheme on one block, which each visit sees on the next of the given batches.

    Args:
        blocks: The block on each batch; a single one is a constant Hessian.
        scheme: The probes; ``None`` takes the exact diagonal of each batch.
        parts: The entries of each parameter, for the errors to be told apart.
        at: After how many visits.
    """
    visits, n = max(at), len(blocks[0])
    orders = [torch.randperm(len(blocks)) for _ in range(PROBE_SEEDS * (visits // len(blocks) + 1))]
    batch = torch.cat(orders).view(PROBE_SEEDS, -1)[:, :visits]
    if scheme is None:
        estimates = torch.stack([b.diagonal() for b in blocks])[batch]
    else:
        estimates = products(scheme(n, visits, PROBE_SEEDS), blocks, batch)
    diagonal = torch.stack(blocks).mean(0).diagonal()
    found: list[Errors] = [{} for _ in parts]
    for beta2 in BETAS:
        for visit, average in averages(estimates, beta2, at).items():
            for errors, part in zip(found, parts, strict=True) if visit else ():
                errors[beta2, visit] = relative_error(average[:, part], diagonal[part])
    return found


def summarise(layers: list[Errors]) -> list[dict[str, Any]]:
    """Take the median over layers for each seed, then mean and deviation over seeds."""
    rows = []
    for beta2, visit in layers[0]:
        medians = torch.stack([errors[beta2, visit] for errors in layers]).quantile(0.5, dim=0)
        row = {"beta2": beta2, "visits": visit, "n": len(medians), "layers": len(layers)}
        rows.append(row | {"mean": float(medians.mean()), "std": float(medians.std())})
    return rows


def fixed(blocks: list[list[Tensor]], *, fresh: bool) -> dict[str, list[dict[str, Any]]]:
    """Measure all schemes on each parameter's block by itself."""
    found = {}
    for name, scheme in [*OWN.items(), *([("exact", None)] if fresh else [])]:
        layers: list[Errors] = []
        for stack in zip(*blocks, strict=True):
            matrices = list(stack) if fresh else [stack[0]]
            layers += errors_at_fixed_weights(matrices, scheme, [slice(None)], AT)
        found[name] = summarise(layers)
    return found


def joint(
    blocks: list[Tensor], sizes: list[int], *, fresh: bool
) -> dict[str, list[dict[str, Any]]]:
    """Measure the joint draws over all parameters."""
    ends = torch.tensor(sizes).cumsum(0).tolist()
    parts = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    matrices = blocks if fresh else blocks[:1]
    schemes = [*joint_schemes(sizes).items(), *([("exact", None)] if fresh else [])]
    return {
        name: summarise(errors_at_fixed_weights(matrices, scheme, parts, AT))
        for name, scheme in schemes
    }


def training(runs: list[Trajectory]) -> dict[str, list[dict[str, Any]]]:
    """Measure all schemes on the blocks that real runs met, and what the optimizer itself held.

    The mean over ``PROBE_SEEDS`` draws is one run's figure; mean and deviation are over runs, as
    are those of its ratio to iid on the same run.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for name, scheme in [*OWN.items(), ("exact", None), ("held by the optimizer", None)]:
        for place, (epoch, *_) in enumerate(runs[0].checkpoints):
            for beta2 in BETAS[:1] if name.startswith("held") else BETAS:
                figures = []
                for run in runs:
                    _, counts, held, diagonals = run.checkpoints[place]
                    layers = []
                    for k, d in enumerate(diagonals):
                        if name.startswith("held"):
                            average = held[k].view(1, -1)
                        else:
                            estimates = _met(run.visits[k][: counts[k]], scheme)
                            at = (counts[k],)
                            average = averages(estimates, beta2, at)[counts[k]]
                        layers.append(relative_error(average, d))
                    figures.append(float(torch.stack(layers).quantile(0.5, dim=0).mean()))
                row = {"beta2": beta2, "epoch": epoch, "visits": min(counts), "n": len(figures)}
                row |= {"mean": statistics.mean(figures), "std": statistics.stdev(figures)}
                found.setdefault(name, []).append(row | {"runs": figures})
    for rows in found.values():
        for row in rows:
            (base,) = (r for r in found["iid"] if (r["beta2"], r["epoch"]) == _key(row))
            ratios = [a / b for a, b in zip(row["runs"], base["runs"], strict=True)]
            row["ratio"] = [statistics.mean(ratios), statistics.stdev(ratios)]
    return found


def _key(row: dict[str, Any]) -> tuple[float, int]:
    return row["beta2"], row["epoch"]


def _met(blocks: list[Tensor], scheme: Scheme | None) -> Tensor:
    stack = torch.stack(blocks)
    if scheme is None:
        return stack.diagonal(dim1=1, dim2=2).unsqueeze(0)
    z = scheme(stack.shape[-1], len(blocks), PROBE_SEEDS)
    return z * torch.einsum("svn,vnm->svm", z, stack)


def print_table(title: str, schemes: dict[str, list[dict[str, Any]]], along: str) -> None:
    """Print one row a scheme and one column a visit or epoch, per beta2."""
    for beta2 in BETAS:
        columns = [row[along] for row in schemes["iid"] if row["beta2"] == beta2]
        print(f"\n{title}, beta2 = {beta2}\n\n| {along} |", " | ".join(map(str, columns)), "|")
        print("|---|" + "---:|" * len(columns))
        for name, rows in schemes.items():
            cells = [cell(row) for row in rows if row["beta2"] == beta2]
            if cells:
                print(f"| {name} |", " | ".join(cells), "|", flush=True)


def cell(row: dict[str, Any]) -> str:
    """Write mean and deviation, and behind a semicolon those of the ratio to iid, where known."""
    text = f"{row['mean']:.3f} ± {row['std']:.3f}"
    return text + "; {:.3f} ± {:.3f}".format(*row["ratio"]) if "ratio" in row else text


def collect(folder: Path, data_dir: Path | None) -> None:
    """Train the networks and keep the blocks; what is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    work: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]
    work = {name: (fixed_weights, (name, BATCHES, False)) for name in NETWORKS}
    work |= {f"joint {name}": (fixed_weights, (name, JOINT_BATCHES, True)) for name in JOINT}
    for name, course in COURSES.items():
        for seed in range(RUNS):
            work[f"{name}, seed {seed}"] = (trajectory, (course, seed, data_dir))
    for name, (make, arguments) in work.items():
        file = folder / f"{name}.pt"
        if not file.exists():
            torch.save(make(*arguments), file)
            print(f"{name}: in {file.resolve()}", flush=True)


def measure(folder: Path, out: Path) -> None:
    """Draw the probes, print the tables and write them down."""
    torch.manual_seed(0)
    tables: dict[str, Any] = {}

    def load(name: str) -> Any:
        return torch.load(folder / f"{name}.pt", weights_only=False)

    for fresh, said in ((False, "constant block"), (True, f"{BATCHES} batches, a fresh one each")):
        for name in NETWORKS:
            title = f"{name}, {said}"
            tables[title] = fixed(load(name), fresh=fresh)
            print_table(title, tables[title], "visits")
    for fresh, said in ((False, "constant"), (True, f"{JOINT_BATCHES} batches")):
        for name in JOINT:
            sizes = [len(block) for block in load(name)[0]]
            blocks = [matrix for (matrix,) in load(f"joint {name}")]
            title = f"joint draw, {name}, {said}"
            tables[title] = joint(blocks, sizes, fresh=fresh)
            print_table(title, tables[title], "visits")
    for name in COURSES:
        title = f"{name}, in training"
        tables[title] = training([load(f"{name}, seed {seed}") for seed in range(RUNS)])
        print_table(title, tables[title], "epoch")
    out.mkdir(parents=True, exist_ok=True)
    result = {"tables": tables, "environment": describe_environment(torch.device("cpu"))}
    (out / "probes.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"\nwritten to {(out / 'probes.json').resolve()}")


def main() -> None:
    """Run the part that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("collect", "measure"))
    parser.add_argument("--blocks", type=Path, default=Path("build/probes"))
    parser.add_argument("--data-dir", type=Path, help="where CIFAR-10's files lie")
    parser.add_argument("--out", type=Path, default=Path("results/probes"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.part == "collect":
        collect(arguments.blocks, arguments.data_dir)
    else:
        measure(arguments.blocks, arguments.out)


if __name__ == "__main__":
    main()
