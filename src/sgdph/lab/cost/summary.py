"""Ratios to SGDM's step, out of a cell's figures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sgdph.lab.cost.figures import CellFigures, KindFigures, SystemFigures


@dataclass(frozen=True)
class Ratio:
    """A ratio to SGDM's time over rounds, each round's to SGDM's in the same round."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, times: Sequence[float], base: Sequence[float]) -> Ratio:
        """Divide round by round."""
        ratios = [t / b for t, b in zip(times, base, strict=True)]
        return cls(statistics.median(ratios), min(ratios), max(ratios))


@dataclass(frozen=True)
class Row:
    """What a step of one system costs; ratios to SGDM's, but for the first two.

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
    wall: Ratio
    process: Ratio | None
    refresh: float | None
    mean_peak: float | None
    worst_peak: float | None
    mean_total_peak: float | None
    worst_total_peak: float | None
    flops: float
    floor: float | None

    @property
    def time(self) -> Ratio:
        """The process's time where there is one, else the wall's."""
        return self.process or self.wall


def summarise(cell: CellFigures) -> list[Row]:
    """Make a row per system, SGDM's first."""
    return [_row(system, cell.systems[0]) for system in cell.systems]


def _row(system: SystemFigures, base: SystemFigures) -> Row:
    wall, base_wall = _rounds(system, _wall), _rounds(base, _wall)
    timed_on_cpu = base.kinds["plain"].process_seconds is not None
    clock = _process if timed_on_cpu else _wall
    refresh = system.kinds.get("refresh")
    peak, total = _memory(base, _peaks), _memory(base, _total_peaks)
    return Row(
        label=system.label,
        seconds=statistics.median(wall),
        wall=Ratio.of(wall, base_wall),
        process=Ratio.of(_rounds(system, _process), _rounds(base, _process))
        if timed_on_cpu
        else None,
        refresh=Ratio.of(clock(refresh), _rounds(base, clock)).median if refresh else None,
        mean_peak=_divided(_memory(system, _peaks), peak),
        worst_peak=_divided(_memory(system, _peaks, worst=True), peak),
        mean_total_peak=_divided(_memory(system, _total_peaks), total),
        worst_total_peak=_divided(_memory(system, _total_peaks, worst=True), total),
        flops=_flops(system) / _flops(base),
        floor=system.floor,
    )


def _wall(kind: KindFigures) -> Sequence[float]:
    return kind.wall_seconds


def _process(kind: KindFigures) -> Sequence[float]:
    return kind.process_seconds or []


def _peaks(kind: KindFigures) -> Sequence[int] | None:
    return kind.peak_bytes


def _total_peaks(kind: KindFigures) -> Sequence[int] | None:
    return kind.total_peak_bytes


def _rounds(system: SystemFigures, clock: Callable[[KindFigures], Sequence[float]]) -> list[float]:
    """Weigh the kinds of step by their shares, round by round."""
    kinds = system.kinds.values()
    rounds = zip(*(clock(kind) for kind in kinds), strict=True)
    return [sum(k.share * t for k, t in zip(kinds, times, strict=True)) for times in rounds]


def _memory(
    system: SystemFigures,
    figure: Callable[[KindFigures], Sequence[int] | None],
    *,
    worst: bool = False,
) -> float | None:
    total, highest = 0.0, 0
    for kind in system.kinds.values():
        peaks = figure(kind)
        if peaks is None:
            return None
        total += kind.share * statistics.fmean(peaks)
        highest = max(highest, *peaks)
    return highest if worst else total


def _flops(system: SystemFigures) -> float:
    return sum(kind.share * statistics.fmean(kind.flops) for kind in system.kinds.values())


def _divided(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else value / base
