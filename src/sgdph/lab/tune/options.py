"""What a person may ask of ``sgdph tune``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from sgdph.lab.options.options import CommonOptions, shown

SamplerName = Literal["tpe", "random", "grid"]
PrunerName = Literal["median", "none"]


@dataclass(frozen=True, kw_only=True)
class TuneOptions(CommonOptions):
    """Search lr, weight decay and more for each optimizer, with equal budgets, on held-out images.

    The same command again carries on what lies in --out, and joins in while it is running. The
    test images are never looked at.
    """

    out: Annotated[Path | None, shown("a name made of the options, in runs/", "DIR")] = None
    """Directory for what is measured; shared by all processes and machines that join in."""
    resume: bool = False
    """Expect something to carry on in --out; without it too the same command carries on."""
    optimizers: Annotated[str | None, shown("sgdm,sgdph", "TEXT")] = None
    """Optimizers, separated by commas."""
    trials: Annotated[int | None, shown("20", "N")] = None
    """Trials of each optimizer, pruned and diverged ones included. May be raised later."""
    space: Annotated[str | None, shown("see docs/tuning.md", "TEXT")] = None
    """Ranges to search, like sgdm.lr=1e-3:1:log,sgdph.eps=1e-5:1e-3."""
    sampler: Annotated[SamplerName | None, shown("tpe", SamplerName)] = None
    """How settings are chosen: by a model of the trials so far, at random, or on a grid."""
    pruner: Annotated[PrunerName | None, shown("median; none on a grid", PrunerName)] = None
    """Stop trials that lie below the median of the finished ones, after a third of the epochs."""
    storage: Annotated[str | None, shown("sqlite", "sqlite|journal|URL")] = None
    """Where the study is kept: a file in --out, or a database. On a network folder: journal."""
    jobs: Annotated[int | None, shown("1", "N")] = None
    """Processes that work at once on this machine; each takes its share of the CPU cores."""
    ray: Annotated[str | None, shown("this machine", "local|auto|HOST:PORT")] = None
    """Train on Ray's cluster at this address, retried where a machine is lost; local starts one."""
    seed: Annotated[int | None, shown("0", "N")] = None
    """Every trial's weights, data order and augmentation, and the sampler's choices."""

    def search(self) -> dict[str, Any]:
        """Return what was asked of the search itself, by name, only what was set."""
        names = ("trials", "sampler", "pruner", "storage")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}
