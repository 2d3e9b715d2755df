"""The options of ``sgdph inspect``, and the settings of the measurement made from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from sgdph.lab.config.option import MEASUREMENT, OUTPUT, Option
from sgdph.lab.config.run_config import Count
from sgdph.lab.options.options import ALL, OneRunOptions, parse_epochs


@dataclass(frozen=True, kw_only=True)
class InspectOptions(OneRunOptions):
    """The options of ``sgdph inspect``."""

    TAKES: ClassVar[frozenset[str]] = ALL - {"keep_checkpoints"}

    run: Annotated[Path | None, Option(OUTPUT, "train one, in --out/run", metavar="DIR")] = None
    """Directory of a run of sgdph train: its kept checkpoints and its last one are inspected."""
    checkpoints: Annotated[
        str | None, Option(MEASUREMENT, "start, quarter, half, end", metavar="EPOCHS")
    ] = None
    """Epochs whose checkpoints are inspected, like 0,3,12; left out with --run, all that the run
    has. 0 alone trains nothing."""
    batches: Annotated[Count | None, Option(MEASUREMENT, "8")] = None
    """Training batches for the estimates; the same number of other batches makes the reference."""
    budget: Annotated[float | None, Option(MEASUREMENT, "300", metavar="SECONDS")] = None
    """Seconds for dense blocks over all checkpoints; decides which blocks are computed."""
    layers: Annotated[str | None, Option(MEASUREMENT, "what fits --budget", metavar="PATTERNS")] = (
        None
    )
    """Patterns of parameter names, separated by commas, like 'blocks.0.*,*.bias': take these blocks
    whatever they cost."""
    probes: Annotated[Count | None, Option(MEASUREMENT, "16")] = None
    """Rademacher probes per batch, to average Hutchinson's error over."""
    float64: Annotated[bool | None, Option(MEASUREMENT, "--no-float64")] = None
    """Compute the blocks in double precision."""

    def measurement(self) -> dict[str, Any]:
        """Return the given options of the measurement, by the names of :class:`InspectSettings`.

        Raises:
            LabError: If the list of checkpoints cannot be parsed.
        """
        names = ("batches", "budget", "layers", "probes", "float64")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.checkpoints is not None:
            given["checkpoints"] = parse_epochs(self.checkpoints, "--checkpoints")
        return given


def quarters(epochs: int) -> tuple[int, ...]:
    """Return the default checkpoints of a run: start, quarter, half and end."""
    return tuple(sorted({0, epochs // 4, epochs // 2, epochs}))
