"""Are the blocks diagonal? ``sgdph inspect`` over norm layers, data sets, phases and seeds.

    python benchmarks/diagonality_study.py run [--only mnist5k-resnet8,...] [--data-dir DIR]
    python benchmarks/diagonality_study.py report

Every channel-wise Newton parameter of each network is looked at before training, half way and at
the end, on 2 x 4 batches, three seeds each. A call that is repeated goes on where the last one
stopped. ``report`` gathers all records into ``blocks.json``, ``tables.md`` and two pictures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt

OUT = Path("results/diagonality")
WORK = Path("runs/diagonality")
SEEDS = (0, 1, 2)
PHASES = ("start", "half", "end")


def flags(**options: object) -> list[str]:
    """Write options as the command line has them."""
    pairs = ((f"--{name.replace('_', '-')}", str(value)) for name, value in options.items())
    return [word for pair in pairs for word in pair]


_MNIST = flags(dataset="mnist5k", epochs=8, batch_size=25, checkpoints="0,4,8")
_CIFAR = flags(dataset="cifar10", train_size=4000, epochs=6, batch_size=50, checkpoints="0,3,6")
_TEXT = flags(dataset="pydoc", train_size=1000, epochs=10, batch_size=25, checkpoints="0,5,10")
# lr and weight decay are those that the row sum was tuned to in the training study.
STUDIES: dict[str, list[str]] = {
    **{
        f"mnist5k-{model}": [*_MNIST, "--model", model, "--lr", "0.1", "--weight-decay", "0.005"]
        for model in ("resnet8", "resnet8-gn", "resnet8-ln", "resnet8-in", "resnet8-wn")
    },
    "pydoc-transformer": [*_TEXT, "--lr", "0.3", "--weight-decay", "5e-5"],
    **{
        f"cifar10-{model}": [*_CIFAR, "--model", model, "--lr", "0.1", "--weight-decay", "0.005"]
        for model in ("resnet8", "resnet8-gn", "resnet8-wn")
    },
}
MEASURED = ("--layers", "*", "--batches", "4", "--threads", "1", "--device", "cpu")
KEPT = (
    "epoch",
    "name",
    "kind",
    "size",
    "off_diagonal_share_batch",
    "off_diagonal_share_mean",
    "negative_share_batch",
    "negative_share_mean",
    "diagonal",
)
ESTIMATES = {
    "row_sum_one": "row sum, one batch (the paper)",
    "hutchinson_one": "Hutchinson, one probe and batch",
    "exact_one": "exact diagonal, one batch",
    "row_sum_average": "row sum, 4 visits",
    "hutchinson_average": "Hutchinson, 4 visits",
    "exact_average": "exact diagonal, 4 visits",
    "held": "held by the optimizer (row sum)",
    "constant": "a constant",
}
STYLES = {
    "row_sum_one": ("#d55e00", "s:"),
    "hutchinson_one": ("#0072b2", "o:"),
    "exact_one": ("#009e73", "^:"),
    "row_sum_average": ("#d55e00", "s-"),
    "hutchinson_average": ("#0072b2", "o-"),
    "exact_average": ("#009e73", "^-"),
    "held": ("#cc79a7", "D-"),
    "constant": ("#000000", "x--"),
}


def run(names: Sequence[str], seeds: Sequence[int], data_dir: Path | None) -> None:
    """Inspect every network with every seed."""
    for seed in seeds:
        for name in names:
            out = WORK / f"{name}-seed{seed}"
            if (out / "report.html").exists():
                continue
            options = [*STUDIES[name], "--seed", str(seed), *MEASURED, "--out", str(out)]
            if name.startswith("cifar"):
                options += ["--data-dir", str(data_dir)]
            if (out / "inspect.json").exists():
                options = ["--out", str(out), "--resume"]
            subprocess.run([sys.executable, "-m", "sgdph.lab", "inspect", *options], check=True)


def gathered() -> Iterator[dict[str, Any]]:
    """Yield one record for each study, seed, checkpoint and parameter."""
    for path in sorted(WORK.glob("*/inspect.json")):
        name, seed = path.parent.name.rsplit("-seed", 1)
        content = json.loads(path.read_text())
        epochs = [checkpoint["epoch"] for checkpoint in content["checkpoints"]]
        for record in content["records"]:
            yield {
                "study": name,
                "seed": int(seed),
                "phase": PHASES[epochs.index(record["epoch"])],
                **{key: record[key] for key in KEPT},
                **{
                    f"{estimate}_{measure}": record[f"{estimate}_{measure}"]
                    for estimate in ESTIMATES
                    for measure in ("relative_error", "cosine")
                },
            }


def spread(values: Sequence[float], form: str = "{:.2f}") -> str:
    """Write median, and smallest to largest."""
    if not values:
        return ""
    middle, low, high = (
        form.format(v) for v in (statistics.median(values), min(values), max(values))
    )
    return f"{middle} ({low} to {high})"


def grouped(
    records: Sequence[dict[str, Any]], *keys: str
) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """Group records by some of their keys, in the order they come."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        groups[tuple(str(record[key]) for key in keys)].append(record)
    return groups


def shares_table(records: Sequence[dict[str, Any]]) -> str:
    """Tabulate the off-diagonal share by network, kind of parameter and phase."""
    text = "| network | kind | blocks | start | half | end | below 0, end |\n" + "|---" * 7 + "|\n"
    for (study, kind), some in grouped(records, "study", "kind").items():
        cells = [
            spread([r["off_diagonal_share_mean"] for r in some if r["phase"] == phase])
            for phase in PHASES
        ]
        negative = [100 * r["negative_share_mean"] for r in some if r["phase"] == "end"]
        count = sum(r["phase"] == "end" for r in some)
        cells = [study, kind, str(count), *cells, f"{statistics.mean(negative):.0f}%"]
        text += f"| {' | '.join(cells)} |\n"
    return text


def errors_table(records: Sequence[dict[str, Any]]) -> str:
    """Tabulate each estimate's relative error, median over blocks and seeds, by network."""
    text = "| network | phase | " + " | ".join(ESTIMATES.values()) + " |\n"
    text += "|---" * (len(ESTIMATES) + 2) + "|\n"
    for (study, phase), some in grouped(records, "study", "phase").items():
        cells = []
        for estimate in ESTIMATES:
            values = [r[f"{estimate}_relative_error"] for r in some]
            values = [v for v in values if v is not None]
            cells.append(f"{statistics.median(values):.2f}" if values else "")
        text += f"| {study} | {phase} | {' | '.join(cells)} |\n"
    return text


def draw_shares(records: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw every block's off-diagonal share as a dot, by network and kind, a panel a phase."""
    rows = list(grouped(records, "study", "kind"))
    figure, axes = plt.subplots(
        1, 3, sharey=True, figsize=(12, 0.3 * len(rows) + 1.6), layout="constrained"
    )
    for axis, phase in zip(axes, PHASES, strict=True):
        for y, (study, kind) in enumerate(rows):
            values = [
                r["off_diagonal_share_mean"]
                for r in records
                if r["study"] == study and r["kind"] == kind and r["phase"] == phase
            ]
            axis.plot(values, [y] * len(values), "o", color="#0a5db0", alpha=0.35, markersize=4)
            if values:
                axis.plot([statistics.median(values)], [y], "|", color="#b33a00", markersize=12)
        axis.set_xlim(0, 1.02)
        axis.set_title({"start": "before training", "half": "half way", "end": "at the end"}[phase])
        axis.grid(axis="x", alpha=0.25)
    axes[0].set_yticks(range(len(rows)), [f"{study}: {kind}" for study, kind in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    axes[1].set_xlabel(
        "off-diagonal share of the mean block's Frobenius norm (0 would be diagonal)"
    )
    figure.savefig(file, dpi=130)
    plt.close(figure)


def draw_errors(records: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw each estimate's relative error over the phases, a panel a network."""
    studies = list(grouped(records, "study"))
    columns = 3
    figure, axes = plt.subplots(
        -(-len(studies) // columns),
        columns,
        sharex=True,
        figsize=(12, 3 * -(-len(studies) // columns) + 0.8),
        layout="constrained",
        squeeze=False,
    )
    for axis in axes.flat[len(studies) :]:
        axis.set_visible(False)
    for axis, (study,) in zip(axes.flat, studies, strict=False):
        for estimate, label in ESTIMATES.items():
            points = []
            for x, phase in enumerate(PHASES):
                values = [
                    r[f"{estimate}_relative_error"]
                    for r in records
                    if r["study"] == study
                    and r["phase"] == phase
                    and r[f"{estimate}_relative_error"] is not None
                ]
                if values:
                    points.append((x, statistics.median(values)))
            if points:
                colour, style = STYLES[estimate]
                axis.plot(*zip(*points, strict=True), style, color=colour, label=label)
        axis.set_title(study)
        axis.set_yscale("log")
        axis.set_ylim(0.02, 5)
        ticks = ["0.02", "0.05", "0.1", "0.2", "0.5", "1", "2", "5"]
        axis.set_yticks([*map(float, ticks)], ticks)
        axis.minorticks_off()
        axis.tick_params(labelbottom=True)
        axis.set_xticks(range(len(PHASES)), PHASES)
        axis.grid(axis="y", alpha=0.25, which="both")
    for row in axes:
        row[0].set_ylabel("relative error, median")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def report(out: Path) -> None:
    """Gather what was measured."""
    matplotlib.use("Agg")
    out.mkdir(parents=True, exist_ok=True)
    records = list(gathered())
    order = list(STUDIES)
    records.sort(key=lambda r: (order.index(r["study"]), r["seed"], PHASES.index(r["phase"])))
    lines = [json.dumps(_short(record)) for record in records]
    (out / "blocks.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
    environment = next(
        checkpoint["environment"]
        for path in sorted(WORK.glob("*/inspect.json"))
        for checkpoint in json.loads(path.read_text())["checkpoints"]
    )
    environment["command"] = "python benchmarks/diagonality_study.py run"
    (out / "environment.json").write_text(json.dumps(environment, indent=1) + "\n")
    text = (
        "Off-diagonal share of the mean block's Frobenius norm, median (smallest to largest) over "
        f"blocks and seeds:\n\n{shares_table(records)}\n"
        f"Relative error against the diagonal of the reference's mean block, median over blocks "
        f"and seeds:\n\n{errors_table(records)}"
    )
    (out / "tables.md").write_text(text)
    draw_shares(records, out / "shares.png")
    draw_errors(records, out / "errors.png")
    print(text)


def _short(record: dict[str, Any]) -> dict[str, Any]:
    return {
        key: float(f"{value:.4g}") if isinstance(value, float) else value
        for key, value in record.items()
    }


def main() -> None:
    """Run or report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run")
    command.add_argument("--only", default=",".join(STUDIES))
    command.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    command.add_argument("--data-dir", type=Path)
    commands.add_parser("report").add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    if arguments.command == "report":
        report(arguments.out)
    else:
        run(arguments.only.split(","), arguments.seeds, arguments.data_dir)


if __name__ == "__main__":
    main()
