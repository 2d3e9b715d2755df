"""The measurement: the systems alternate in one process, each taking one step at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from importlib import metadata

import torch

from sgdph.lab.cost.authors import newton_names
from sgdph.lab.cost.figures import CellFigures, CostSettings, KindFigures, SystemFigures
from sgdph.lab.cost.flops import FlopCounter, ProductFlops
from sgdph.lab.cost.memory import Peak, watch_memory
from sgdph.lab.cost.step import Contestant, Workload, build_network, build_workload, explained
from sgdph.lab.cost.systems import Kind, System, choose_systems
from sgdph.lab.errors import LabError
from sgdph.lab.progress import StepReporter
from sgdph.lab.run.environment import describe_environment
from sgdph.lab.run.step import wait_for

Seconds = tuple[float, float]  # CPU time of the process, wall time


def measure_cell(
    model: str,
    batch_size: int,
    settings: CostSettings,
    device: torch.device,
    reporter: StepReporter,
) -> CellFigures:
    """Measure every system on one network at one batch size.

    First, each system is measured on its own. At each place (a visited Newton parameter), one step
    counts FLOPs and serves as warm-up, and another measures memory. A single place is measured if
    the place makes no difference. Then come the rounds of timing. At each place, the systems take
    turns, with one step of each of their kinds.

    Args:
        model: The network's name.
        batch_size: Number of inputs in the batch.
        settings: The settings of the measurement.
        device: The device to measure on.
        reporter: Receives the progress.

    Raises:
        LabError: If a name is unknown, a package is missing, the network has no channel-wise
            parameter, or a step cannot be taken.
    """
    systems = choose_systems(settings.systems)
    workload = build_workload(model, batch_size, settings, device)
    newton = newton_names(workload.model)
    if not newton:
        raise LabError(f"{model} has no channel-wise parameter, so no partial Hessian can be taken")
    places = spread(len(newton), settings.visits)
    units = sum(len(metered(s, places)) + settings.rounds * len(places) for s in systems)
    reporter.cell_started(f"{model}, batch {batch_size}", units)
    with _quiet():
        contestants, watched = [], []
        for system in systems:
            with explained(system, model, batch_size):
                contestant, figures = _watch(system, workload, settings, places, reporter)
            contestants.append(contestant)
            watched.append(figures)
        timed = [time_round(contestants, places, device, reporter) for _ in range(settings.rounds)]
        parameters = dict(workload.model.named_parameters())
        product = ProductFlops.of(
            workload.loss(workload.model),
            [parameters[newton[place]] for place in places],
            [parameters[name] for name in newton],
        )
    sgdm = watched[0]["plain"].flops[0]
    return CellFigures(
        model,
        batch_size,
        parameters=sum(p.numel() for p in parameters.values()),
        newton=len(newton),
        visited=[newton[place] for place in places],
        systems=[
            SystemFigures(
                system.name,
                label(system, settings, product.fused_attention),
                system.interval,
                product.floor(system, sgdm),
                {kind: _with_times(figures[kind], timed, (i, kind), device) for kind in figures},
            )
            for i, (system, figures) in enumerate(zip(systems, watched, strict=True))
        ],
        environment={**describe_environment(device), "optimizers": _versions(systems)},
    )


def check_cells(settings: CostSettings) -> None:
    """Raise LabError before measuring if a system or a network is unknown or unavailable."""
    choose_systems(settings.systems)
    for model in settings.models:
        build_network(model)


def spread(count: int, visits: int | None) -> list[int]:
    """Choose ``visits`` of ``count`` indices, evenly from first to last; ``None`` for all."""
    if visits is None or visits >= count:
        return list(range(count))
    if visits == 1:
        return [count // 2]
    return [round(i * (count - 1) / (visits - 1)) for i in range(visits)]


def metered(system: System, places: Sequence[int]) -> list[tuple[int, Kind]]:
    """List the steps whose memory and FLOPs differ: each kind; of a cyclic refresh, each place."""
    return [
        (place, kind)
        for kind in system.weights
        for place in (places if system.refresh == "cyclic" and kind == "refresh" else places[:1])
    ]


def label(system: System, settings: CostSettings, fused_attention: bool) -> str:
    """Return a system's name for tables, with marks for steps that do not run the model as it is.

    Args:
        system: The system.
        settings: The settings, which say whether the model is compiled.
        fused_attention: Whether the model has fused attention.
    """
    marks = []
    if settings.compile and not all(map(system.compiles, system.weights)):
        marks.append("eager")
    if fused_attention and system.math_attention == "refresh":
        marks.append("math attention")
    where = " where it refreshes" if system.interval > 1 else ""
    return f"{system.label} [{', '.join(marks)}{where}]" if marks else system.label


def _watch(
    system: System,
    workload: Workload,
    settings: CostSettings,
    places: Sequence[int],
    reporter: StepReporter,
) -> tuple[Contestant, dict[Kind, KindFigures]]:
    """Set up a system, and measure the memory and FLOPs of its steps."""
    device = workload.inputs.device
    # Compiled code on the CPU allocates without the dispatcher, so its memory cannot be tracked.
    visible = device.type == "cuda" or not settings.compile
    peaks: dict[Kind, list[Peak]] = {kind: [] for kind in system.weights}
    flops: dict[Kind, list[int]] = {kind: [] for kind in system.weights}
    contestant = Contestant(system, workload, settings.compile)
    held = contestant.held_bytes()
    with watch_memory(device) if visible else contextlib.nullcontext() as memory:
        for place, kind in metered(system, places):
            contestant.go_to(place, kind)
            with FlopCounter() as counter:
                contestant.step(kind, eager=True)
            flops[kind].append(counter.total)
            if settings.compile:
                contestant.go_to(place, kind)
                contestant.step(kind)
            if memory is not None:
                contestant.go_to(place, kind)
                contestant.clear()
                memory.start()
                contestant.step(kind)
                peaks[kind].append(memory.peak())
            reporter.step_finished()
    return contestant, {
        kind: KindFigures(
            share,
            wall_seconds=[],
            process_seconds=None,
            peak_bytes=[peak.added for peak in peaks[kind]] or None,
            total_peak_bytes=[peak.live + held for peak in peaks[kind]] or None,
            flops=flops[kind],
        )
        for kind, share in system.weights.items()
    }


def time_round(
    contestants: Sequence[Contestant],
    places: Sequence[int],
    device: torch.device,
    reporter: StepReporter,
) -> dict[tuple[int, Kind], Seconds]:
    """Time every contestant once at each place, in turn.

    Returns:
        Maps the index of a contestant and a kind of step to its seconds, the mean over places.
    """
    seconds: dict[tuple[int, Kind], list[Seconds]] = {}
    gc.collect()
    gc.disable()
    try:
        for place in places:
            for i, contestant in enumerate(contestants):
                for kind in contestant.system.weights:
                    contestant.go_to(place, kind)
                    seconds.setdefault((i, kind), []).append(_time(contestant, kind, device))
                reporter.step_finished()
    finally:
        gc.enable()
    return {
        key: (statistics.fmean(p for p, _ in pairs), statistics.fmean(w for _, w in pairs))
        for key, pairs in seconds.items()
    }


def _time(contestant: Contestant, kind: Kind, device: torch.device) -> Seconds:
    wait_for(device)
    process, wall = time.process_time(), time.perf_counter()
    contestant.step(kind)
    wait_for(device)
    return time.process_time() - process, time.perf_counter() - wall


def _with_times(
    figures: KindFigures,
    rounds: Sequence[dict[tuple[int, Kind], Seconds]],
    key: tuple[int, Kind],
    device: torch.device,
) -> KindFigures:
    # On CUDA, the process's CPU time only shows the wait for the device.
    process = [each[key][0] for each in rounds] if device.type == "cpu" else None
    wall = [each[key][1] for each in rounds]
    return dataclasses.replace(figures, process_seconds=process, wall_seconds=wall)


def _versions(systems: Sequence[System]) -> dict[str, str]:
    packages = {system.requires for system in systems if system.requires is not None}
    return {package: metadata.version(package) for package in sorted(packages)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's leak warning for create_graph=True: each step clears the gradients first."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using backward.. with create_graph=True", UserWarning)
        yield
