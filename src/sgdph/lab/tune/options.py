"""The options of ``sgdph tune``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from sgdph.lab.config.option import DATA, MACHINE, MEASUREMENT, OUTPUT, Option
from sgdph.lab.config.run_config import Count
from sgdph.lab.options.options import ALL, SeveralOptions

SamplerName = Literal["tpe", "random", "grid"]
PrunerName = Literal["median", "none"]


@dataclass(frozen=True, kw_only=True)
class TuneOptions(SeveralOptions):
    """The options of ``sgdph tune``."""

    TAKES: ClassVar[frozenset[str]] = ALL - {
        "optimizer", "lr", "weight_decay", "keep_checkpoints"
    }  # fmt: skip
    INSTEAD: ClassVar[Mapping[str, str]] = {
        **SeveralOptions.INSTEAD,
        **dict.fromkeys(("--lr", "--weight-decay"), "it is searched; --space sets its range"),
    }

    validation_size: Annotated[Count | None, Option(DATA, "a fifth of them")] = None
    """Hold out this many training images and evaluate on them; the test images are not used."""
    trials: Annotated[Count | None, Option(MEASUREMENT, "20")] = None
    """Trials of each optimizer, including pruned and diverged ones. Can be raised later."""
    space: Annotated[
        str | None,
        Option(
            MEASUREMENT, "lr, weight decay and newton_lr, from a 30th to 30 times their defaults"
        ),
    ] = None
    """Ranges to search, like sgdm.lr=1e-3:1:log,sgdph.eps=1e-5:1e-3."""
    sampler: Annotated[SamplerName | None, Option(MEASUREMENT, "tpe")] = None
    """How settings are chosen: by a model of the earlier trials, at random, or on a grid."""
    pruner: Annotated[PrunerName | None, Option(MEASUREMENT, "median; none on a grid")] = None
    """After a third of the epochs, stop trials below the median of the finished ones."""
    storage: Annotated[str | None, Option(OUTPUT, "sqlite", metavar="sqlite|journal|URL")] = None
    """Where the study is kept: a file in --out, or a database. On a network folder: journal."""

    jobs: Annotated[Count | None, Option(MACHINE, "1")] = None
    """Processes that work at once on this machine; each takes its share of the CPU cores."""

    def search(self) -> dict[str, Any]:
        """Return the options of the search itself that were set, by name."""
        names = ("trials", "sampler", "pruner", "storage")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}
