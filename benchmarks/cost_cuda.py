"""Measure a training step on an NVIDIA GPU: time by CUDA events, and memory by the allocator.

    PYTHONPATH=src python3 benchmarks/cost_cuda.py                       # make cost-cuda
    PYTHONPATH=src python3 benchmarks/cost_cuda.py --device cpu --quick  # a test run

The script needs only torch. The systems alternate in one process. Times are ratios to SGDM's step
in the same round, and peaks are ratios to SGDM's mean peak. The visited Newton parameters are
spread evenly over the depth. ``--out`` gets ``cost.json`` with the results of each round, and
``cost.csv``, from which ``make tables`` makes the table in ``docs/cost.md``.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import re
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from cuda_cells import CELLS, QUICK, Cell

from sgdph.autograd.graph import graph_nodes
from sgdph.lab.cost.authors import newton_names
from sgdph.lab.cost.memory import watch_memory
from sgdph.lab.cost.step import Contestant
from sgdph.lab.cost.systems import SYSTEMS, Kind
from sgdph.lab.run.environment import describe_environment
from sgdph.lab.run.epoch import Stopwatch
from sgdph.lab.run.step import wait_for

MEASURED = ("sgdm", "sgdph", "sgdph-plain", "sgdph-interval10", "sgdph-hutchinson-all")
COLUMNS = (
    *("network", "batch", "precision", "attention", "system", "label", "milliseconds", "time"),
    *("lowest", "highest", "mean_peak", "worst_peak"),
)

Step = tuple[int, Contestant, Kind]
Figures = dict[str, dict[Kind, list[float]]]


def spread(count: int, visits: int) -> list[int]:
    """Choose ``visits`` of ``count`` indices, evenly from the first to the last."""
    visits = min(visits, count)
    return [round(i * (count - 1) / max(visits - 1, 1)) for i in range(visits)]


def steps_of(contestants: Sequence[Contestant], places: Sequence[int]) -> list[Step]:
    """List the steps of a round: at each place, all systems in turn."""
    return [(p, each, kind) for p in places for each in contestants for kind in each.system.weights]


def by_kind(steps: Sequence[Step], values: Sequence[float]) -> Figures:
    """Group the values of steps by system and kind of step."""
    found: Figures = {}
    for (_, contestant, kind), value in zip(steps, values, strict=True):
        found.setdefault(contestant.system.name, {}).setdefault(kind, []).append(value)
    return found


def mean_of_run(name: str, figures: Figures) -> float:
    """Return the mean over a run's steps: the kinds of step are weighted by their shares."""
    shares = SYSTEMS[name].weights
    return sum(share * statistics.fmean(figures[name][kind]) for kind, share in shares.items())


def timed(work: Callable[[], None], device: torch.device) -> Stopwatch:
    """Do some work, and return its stopwatch, which can be read when the device has finished."""
    watch = Stopwatch(device)
    work()
    watch.stop()
    return watch


def measure(cell: Cell, device: torch.device, visits: int, rounds: int, end: float) -> Any:
    """Measure a cell, with at least one round and at most as many as there is time for.

    Args:
        cell: The cell to measure.
        device: The device to measure on.
        visits: Number of Newton parameters to visit.
        rounds: Maximum number of rounds.
        end: Time at which no further round starts, by ``time.monotonic``.
    """
    workload = cell.build(cell, device)
    places = spread(len(newton_names(workload.model)), visits)
    contestants = [Contestant(SYSTEMS[name], workload, compiled=False) for name in MEASURED]
    steps = steps_of(contestants, places)

    def take(step: Step) -> Callable[[], None]:
        place, contestant, kind = step
        contestant.go_to(place, kind)
        return lambda: contestant.step(kind)

    for step in steps:
        take(step)()
    peaks = []
    for step in steps:
        work = take(step)
        step[1].clear()
        with watch_memory(device) as memory:
            memory.start()
            work()
            peaks.append(float(memory.peak().added))
        step[1].clear()
    times = []
    gc.collect()
    gc.disable()
    try:
        while not times or (len(times) < rounds and time.monotonic() < end):
            watches = [timed(take(step), device) for step in steps]
            wait_for(device)
            times.append(by_kind(steps, [1000 * watch.seconds() for watch in watches]))
    finally:
        gc.enable()
    loss = workload.loss(workload.model)
    names = {type(node).__name__ for node in graph_nodes([loss])}
    return {
        "network": cell.network,
        "batch": cell.batch,
        "precision": cell.precision,
        "attention": attention_of(names),
        "newton_parameters_visited": len(places),
        "rounds": times,
        "peak_bytes": by_kind(steps, peaks),
    }


def attention_of(names: set[str]) -> str:
    """Return the name of the attention kernel from the names of a graph's nodes."""
    found = (re.match(r"ScaledDotProduct(\w+)Attention", name) for name in names)
    fused = sorted({match[1].lower() for match in found if match is not None})
    return ", ".join(fused) or ("math" if "SafeSoftmaxBackward0" in names else "")


def rows_of(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """Summarise a cell with one row per system.

    Times are ratios to SGDM's step in the same round, peaks are ratios to SGDM's mean peak.
    """
    peaks, rows = measured["peak_bytes"], []
    base_peak = mean_of_run("sgdm", peaks)
    for name in MEASURED:
        times = [mean_of_run(name, each) for each in measured["rounds"]]
        ratios = [
            mean_of_run(name, each) / mean_of_run("sgdm", each) for each in measured["rounds"]
        ]
        worst = max(max(each) for each in peaks[name].values())
        rows.append(
            {
                **{key: measured[key] for key in COLUMNS[:4]},
                "system": name,
                "label": SYSTEMS[name].label,
                "milliseconds": round(statistics.median(times), 3),
                "time": round(statistics.median(ratios), 4),
                "lowest": round(min(ratios), 4),
                "highest": round(max(ratios), 4),
                "mean_peak": round(mean_of_run(name, peaks) / base_peak, 4),
                "worst_peak": round(worst / base_peak, 4),
            }
        )
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print a cell's rows."""
    first = rows[0]
    kernel = f", {first['attention']} attention" if first["attention"] else ""
    print(f"\n{first['network']}, batch {first['batch']}, {first['precision']}{kernel}")
    print(f"{'SGDM = 1.00':40}{'ms':>9}  time (lowest to highest)   mean peak   worst peak")
    for row in rows:
        reach = f"{row['time']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})"
        print(
            f"{row['label']:40}{row['milliseconds']:9.2f}  {reach:24}"
            f"{row['mean_peak']:12.2f}{row['worst_peak']:13.2f}",
            flush=True,
        )


class Written:
    """The results so far, which are printed and written as they arrive.

    Args:
        out: The directory to write to; ``None`` to write nothing.
        environment: The machine and versions of the measurement.
    """

    def __init__(self, out: Path | None, environment: dict[str, Any]) -> None:
        self._out = out
        self._content: dict[str, Any] = {"environment": environment, "cells": []}
        self._rows: list[dict[str, Any]] = []

    def add(self, measured: dict[str, Any]) -> None:
        """Add the results of a cell."""
        rows = rows_of(measured)
        show(rows)
        self._rows += rows
        self._content["cells"].append(measured)
        if self._out is None:
            return
        self._out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self._content, indent=1) + "\n"
        (self._out / "cost.json").write_text(text, encoding="utf-8")
        with (self._out / "cost.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self._rows)


def main(words: Sequence[str] | None = None) -> int:
    """Measure all cells, print and write the results; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny networks, one round")
    parser.add_argument("--visits", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=100, help="about how long it may take")
    parser.add_argument("--out", type=Path, help="a directory for the figures")
    parser.add_argument("--commit", help="of the sources, where git cannot tell")
    given = parser.parse_args(words)
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        print("There is no CUDA GPU here, so nothing was measured; --device cpu --quick tries it.")
        return 0
    device = torch.device(given.device)
    torch.set_float32_matmul_precision("high")
    # cuDNN selects its kernels in the first steps, which are not timed.
    torch.backends.cudnn.benchmark = True
    environment = describe_environment(device)
    environment |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    environment["git_commit"] = environment["git_commit"] or given.commit
    print(f"{environment['device_name'] or environment['cpu']}, torch {torch.__version__}")
    cells, begin = QUICK if given.quick else CELLS, time.monotonic()
    visits, rounds = (2, 1) if given.quick else (given.visits, given.rounds)
    figures = Written(given.out, environment)
    failed = False
    for i, cell in enumerate(cells):
        end = begin + given.seconds * (i + 1) / len(cells)
        try:
            figures.add(measure(cell, device, visits, rounds, end))
        except Exception:
            # GPU time is expensive, so the other cells are measured anyway.
            traceback.print_exc()
            failed = True
    print(f"\n{time.monotonic() - begin:.0f} seconds")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
