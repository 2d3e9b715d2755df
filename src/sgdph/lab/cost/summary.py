"""Ratios to the step of a base system, by default SGDM, from a cell's results."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from sgdph.lab.cost.figures import BASE, CellFigures, SystemFigures
from sgdph.lab.reports.statistics import Range


@dataclass(frozen=True)
class Row:
    """The cost of a step of one system. All but the first two are ratios to the base's step.

    If a system refreshes at every n-th step only, the costs are a mean over one such step and n - 1
    others.

    Attributes:
        label: The system's name in tables.
        seconds: Wall time of a step in seconds, the median over rounds.
        wall: Wall time.
        process: CPU time of the process; ``None`` unless run on the CPU.
        refresh: Time of a step that refreshes; ``None`` if the system has none. It is CPU time of
            the process if that was measured, otherwise wall time.
        mean_peak: Peak memory of a step, the mean over visited parameters and kinds of step. The
            peaks are all ``None`` if memory was not measured.
        worst_peak: The largest peak of any step, divided by the base's mean peak.
        mean_total_peak: Like ``mean_peak``, plus parameters, buffers, optimizer state and batch.
        worst_total_peak: Like ``worst_peak``, plus the same.
        flops: FLOPs.
        floor: The least FLOPs of a step with a partial Hessian; ``None`` without one.
    """

    label: str
    seconds: float
    wall: Range
    process: Range | None
    refresh: float | None
    mean_peak: float | None
    worst_peak: float | None
    mean_total_peak: float | None
    worst_total_peak: float | None
    flops: float
    floor: float | None

    @property
    def time(self) -> Range:
        """The process's CPU time if it was measured, otherwise the wall time."""
        return self.process or self.wall


def summarise(cell: CellFigures, base: str = BASE) -> list[Row]:
    """Make one row per system, SGDM's first.

    Args:
        cell: The results.
        base: Name of the base system, which must take no second derivatives.

    Raises:
        KeyError: If the base was not measured.
    """
    systems = {system.name: system for system in cell.systems}
    return [_row(system, systems[base], systems[BASE]) for system in cell.systems]


def _row(system: SystemFigures, base: SystemFigures, sgdm: SystemFigures) -> Row:
    timed_on_cpu = base.kinds["plain"].process_seconds is not None
    clock = "process_seconds" if timed_on_cpu else "wall_seconds"
    refresh = system.kinds.get("refresh")
    wall, of_base = _rounds(system, "wall_seconds"), _rounds(base, clock)
    mean_peak, worst_peak = _peaks(system, base, "peak_bytes")
    mean_total_peak, worst_total_peak = _peaks(system, base, "total_peak_bytes")
    return Row(
        label=system.label,
        seconds=statistics.median(wall),
        wall=Range.of_ratios(wall, _rounds(base, "wall_seconds")),
        process=Range.of_ratios(_rounds(system, clock), of_base) if timed_on_cpu else None,
        refresh=Range.of_ratios(getattr(refresh, clock), of_base).median if refresh else None,
        mean_peak=mean_peak,
        worst_peak=worst_peak,
        mean_total_peak=mean_total_peak,
        worst_total_peak=worst_total_peak,
        flops=_mean(system, "flops") / _mean(base, "flops"),
        floor=system.floor and system.floor * _mean(sgdm, "flops") / _mean(base, "flops"),
    )


def _rounds(system: SystemFigures, clock: str) -> list[float]:
    """Return each round's mean over the kinds of step, weighted by their shares."""
    kinds = system.kinds.values()
    rounds = zip(*(getattr(kind, clock) for kind in kinds), strict=True)
    return [sum(k.share * t for k, t in zip(kinds, times, strict=True)) for times in rounds]


def _mean(system: SystemFigures, figure: str) -> float:
    """Return the mean over visited parameters and kinds of step, the latter weighted by share."""
    return sum(k.share * statistics.fmean(getattr(k, figure)) for k in system.kinds.values())


def _peaks(
    system: SystemFigures, base: SystemFigures, figure: str
) -> tuple[float | None, float | None]:
    """Return mean and largest peak, divided by the base's mean; ``None`` if not measured."""
    found = [getattr(kind, figure) for kind in (*system.kinds.values(), *base.kinds.values())]
    if None in found:
        return None, None
    mean = _mean(base, figure)
    worst = max(max(getattr(kind, figure)) for kind in system.kinds.values())
    return _mean(system, figure) / mean, worst / mean
