"""What a person may ask of ``sgdph inspect``, and the settings it resolves to."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from sgdph.lab.inspect.figures import InspectSettings
from sgdph.lab.options.options import RunOptions, parse_epochs, shown


@dataclass(frozen=True, kw_only=True)
class InspectOptions(RunOptions):
    """Look at the Hessian blocks of a run's channel-wise parameters, through its training.

    Inspects the run that --run names, or trains one first, with the options of sgdph train.
    """

    run: Annotated[Path | None, shown("train one, in --out/run", "DIR")] = None
    """Directory of a run of sgdph train: its kept checkpoints and its last one are inspected."""
    checkpoints: Annotated[str | None, shown("start, quarter, half, end", "TEXT")] = None
    """Epochs whose checkpoints are inspected, like 0,3,12; left out with --run, all that the run
    has. 0 alone trains nothing."""
    batches: Annotated[int | None, shown("8", "N")] = None
    """Training batches that the estimates are made of; as many others make the reference."""
    budget: Annotated[float | None, shown("300", "SECONDS")] = None
    """Time for dense blocks over all checkpoints; it decides which blocks are taken."""
    layers: Annotated[str | None, shown("what fits --budget", "TEXT")] = None
    """Patterns of parameter names, separated by commas, like 'blocks.0.*,*.bias': take these blocks
    whatever they cost."""
    probes: Annotated[int | None, shown("16", "N")] = None
    """Rademacher probes per batch, to average Hutchinson's error over."""
    float64: bool = False
    """Take the blocks in double precision."""

    def measurement(self) -> dict[str, Any]:
        """Return what was asked of the measurement, by :class:`InspectSettings`'s names.

        Raises:
            LabError: The list of checkpoints cannot be read.
        """
        names = {field.name for field in dataclasses.fields(InspectSettings)}
        # A flag that is not set asks for nothing: a resumed inspection has its own.
        given = {
            name: value
            for name, value in vars(self).items()
            if name in names and value is not None and value is not False
        }
        if self.checkpoints is not None:
            given["checkpoints"] = parse_epochs(self.checkpoints, "--checkpoints")
        return given


def quarters(epochs: int) -> tuple[int, ...]:
    """Choose the checkpoints of a run: its start, a quarter, half, the end."""
    return tuple(sorted({0, epochs // 4, epochs // 2, epochs}))
