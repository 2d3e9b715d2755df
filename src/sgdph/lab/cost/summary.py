"""Ratios to a base's step, SGDM's as a rule, out of a cell's figures."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from sgdph.lab.cost.figures import BASE, CellFigures, SystemFigures
from sgdph.lab.reports.statistics import Range


@dataclass(frozen=True)
class Row:
    """What a step of one system costs; ratios to the base's, but for the first two.

    A system that refreshes at every n-th step only is charged with one such step and n - 1 others.

    Attributes:
        label: The system's name in tables.
        seconds: The median over rounds of a step's wall time.
        wall: Wall time.
        process: CPU time of the process; ``None`` on CUDA.
        refresh: The time of a step that refreshes, by the process's clock, on CUDA by the wall's.
        mean_peak: The step's peak memory, the mean over places and kinds of step. This and the
            following three are ``None`` where memory was not seen.
        worst_peak: The largest peak of any step.
        mean_total_peak: As ``mean_peak``, with parameters, buffers, optimizer state and batch.
        worst_total_peak: As ``worst_peak``, with them.
        flops: FLOPs.
        floor: The least FLOPs that a step with a partial Hessian needs.
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
        """The process's time where there is one, else the wall's."""
        return self.process or self.wall


def summarise(cell: CellFigures, base: str = BASE) -> list[Row]:
    """Make a row per system, SGDM's first; the base is a system that takes no second derivatives.

    Raises:
        KeyError: The base was not measured.
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
    """Weigh the kinds of step by their shares, round by round."""
    kinds = system.kinds.values()
    rounds = zip(*(getattr(kind, clock) for kind in kinds), strict=True)
    return [sum(k.share * t for k, t in zip(kinds, times, strict=True)) for times in rounds]


def _mean(system: SystemFigures, figure: str) -> float:
    """Return the mean over the places, and over the kinds of step by their shares."""
    return sum(k.share * statistics.fmean(getattr(k, figure)) for k in system.kinds.values())


def _peaks(
    system: SystemFigures, base: SystemFigures, figure: str
) -> tuple[float | None, float | None]:
    """Return the mean and the largest peak, both divided by the base's mean, if they were seen."""
    found = [getattr(kind, figure) for kind in (*system.kinds.values(), *base.kinds.values())]
    if None in found:
        return None, None
    mean = _mean(base, figure)
    worst = max(max(getattr(kind, figure)) for kind in system.kinds.values())
    return _mean(system, figure) / mean, worst / mean
