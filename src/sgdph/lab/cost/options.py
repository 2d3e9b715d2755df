"""What a person may ask of ``sgdph cost``, and the settings it resolves to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from sgdph.lab.cost.figures import CostSettings
from sgdph.lab.cost.systems import USUAL
from sgdph.lab.errors import LabError
from sgdph.lab.options.options import shown


@dataclass(frozen=True, kw_only=True)
class CostOptions:
    """Measure what a training step costs: time, memory and FLOPs as ratios to SGDM's."""

    out: Annotated[Path | None, shown("a name made of the options, in runs/", "DIR")] = None
    """Directory for what is measured."""
    resume: bool = False
    """Measure the cells that --out lacks, with the settings it was started with."""
    overwrite: bool = False
    """Delete what an earlier measurement left in --out, and nothing else, and start anew."""

    model: Annotated[str | None, shown("resnet18", "TEXT")] = None
    """Networks, separated by commas: those of train, torchvision:NAME and timm:NAME among them, and
    encoder12."""
    batch_size: Annotated[str | None, shown("16", "TEXT")] = None
    """Batch sizes, separated by commas; each pair of network and size is measured."""
    systems: Annotated[str | None, shown("all", "TEXT")] = None
    """Optimizers, separated by commas. SGDM is always there; all is every one but sgdph-exact and
    sgdph-row-sum-all, which take many products a step."""
    visits: Annotated[str | None, shown("8", "N|all")] = None
    """How many Newton parameters the cyclic refresh visits, evenly over the depth."""
    rounds: Annotated[int | None, shown("5", "N")] = None
    """How often each step is timed at each place."""
    device: Annotated[str | None, shown("cpu", "TEXT")] = None
    """cpu, cuda, cuda:1 ... or auto."""
    precision: Annotated[Literal["float32", "bfloat16"] | None, shown("float32", "TEXT")] = None
    """float32, or bfloat16: the forward runs under autocast, the weights stay float32."""
    channels_last: bool = False
    """Store model and images channels last."""
    compile: bool = False
    """Compile the model; steps that take second derivatives run it uncompiled."""
    threads: Annotated[int | None, shown("1", "N")] = None
    """CPU threads."""
    seed: Annotated[int | None, shown("0", "N")] = None
    """Weights, batch and labels all come from it."""

    def given(self) -> dict[str, Any]:
        """Return the settings that were asked for, by :class:`CostSettings`'s names.

        Raises:
            LabError: A list or a number cannot be read.
        """
        given: dict[str, Any] = {
            "models": None if self.model is None else _words(self.model),
            "batch_sizes": None
            if self.batch_size is None
            else tuple(_number("--batch-size", word) for word in _words(self.batch_size)),
            "systems": None if self.systems is None else _systems(self.systems),
        }
        names = {field.name for field in dataclasses.fields(CostSettings)} - {"visits"}
        given |= {name: value for name, value in vars(self).items() if name in names - set(given)}
        # A flag that is not set asks for nothing: a resumed measurement has its own.
        given = {n: value for n, value in given.items() if value is not None and value is not False}
        if self.visits is not None:
            given["visits"] = None if self.visits == "all" else _number("--visits", self.visits)
        return given


def resolve_cost(given: Mapping[str, Any]) -> CostSettings:
    """Fill up what was given with the defaults.

    Raises:
        LabError: A value is out of its bounds.
    """
    return CostSettings(**{"systems": USUAL, **given})


def default_cost_out(settings: CostSettings) -> Path:
    """Name the directory of a measurement that was not given one."""
    models = "-".join(settings.models).replace(":", "-")
    return Path("runs") / f"cost-{models}-{settings.device.replace(':', '')}"


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _systems(text: str) -> tuple[str, ...]:
    return USUAL if text == "all" else _words(text)


def _number(flag: str, word: str) -> int:
    try:
        return int(word)
    except ValueError as error:
        what = "all or whole numbers" if flag == "--visits" else "whole numbers, with commas"
        raise LabError(f"{flag} takes {what}; got {word!r}") from error
