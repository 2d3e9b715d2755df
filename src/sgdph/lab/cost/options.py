"""The options of ``sgdph cost``, and the settings made from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from sgdph.lab.config.option import DATA, MACHINE, MEASUREMENT, OPTIMIZER, OUTPUT, Option
from sgdph.lab.cost.figures import CostSettings
from sgdph.lab.errors import LabError


@dataclass(frozen=True, kw_only=True)
class CostOptions:
    """The options of ``sgdph cost``."""

    systems: Annotated[str | None, Option(OPTIMIZER, "all", metavar="NAMES")] = None
    """Optimizers, separated by commas. SGDM is always included. all means every one except
    sgdm-math (SGDM with math attention), sgdph-exact and sgdph-row-sum-all (many products per
    step)."""
    model: Annotated[str | None, Option(DATA, "resnet18", metavar="NAMES")] = None
    """Networks, separated by commas: those of sgdph train (also torchvision:NAME and timm:NAME),
    encoder12, gpt6 and gpt2-2."""
    batch_size: Annotated[str | None, Option(DATA, "16", metavar="N,...")] = None
    """Batch sizes, separated by commas; each pair of network and size is measured."""
    precision: Annotated[Literal["float32", "bfloat16"] | None, Option(MEASUREMENT, "float32")] = (
        None
    )
    """float32, or bfloat16: the forward runs under autocast, the weights stay float32."""
    channels_last: Annotated[bool | None, Option(MEASUREMENT, "--no-channels-last")] = None
    """Store model and images channels last."""
    compile: Annotated[bool | None, Option(MEASUREMENT, "--no-compile")] = None
    """Compile the model; steps that take second derivatives run it uncompiled."""
    visits: Annotated[str | None, Option(MEASUREMENT, "8", metavar="N|all")] = None
    """How many Newton parameters the cyclic refresh is measured at, evenly over the depth."""
    rounds: Annotated[int | None, Option(MEASUREMENT, "5")] = None
    """How many times each step is timed at each of these parameters."""
    seed: Annotated[int | None, Option(MEASUREMENT, "0")] = None
    """Seed of weights, batch and labels."""
    device: Annotated[str | None, Option(MACHINE, "cpu", metavar="DEVICE")] = None
    """cpu, cuda, cuda:1 ... or auto."""
    threads: Annotated[int | None, Option(MACHINE, "1")] = None
    """CPU threads."""
    out: Annotated[
        Path | None, Option(OUTPUT, "a name made of the options, in runs/", metavar="DIR")
    ] = None
    """Directory for what is measured."""
    resume: Annotated[bool, Option(OUTPUT)] = False
    """Measure the missing cells of --out, with the settings of its first call."""
    overwrite: Annotated[bool, Option(OUTPUT)] = False
    """Delete the files of an earlier measurement in --out (no others), and start again."""

    def given(self) -> dict[str, Any]:
        """Return the given options, by the field names of :class:`CostSettings`.

        Raises:
            LabError: If a number cannot be parsed.
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
        given = {name: value for name, value in given.items() if value is not None}
        if self.visits is not None:
            given["visits"] = None if self.visits == "all" else _number("--visits", self.visits)
        return given


def resolve_cost(given: Mapping[str, Any]) -> CostSettings:
    """Complete the given settings with the defaults.

    Raises:
        LabError: If a value is out of bounds, or a network or batch size is given twice.
    """
    return CostSettings(**{"systems": _systems("all"), **given})


def default_cost_out(settings: CostSettings) -> Path:
    """Return the default directory for a measurement."""
    models = "-".join(settings.models).replace(":", "-")
    return Path("runs") / f"cost-{models}-{settings.device.replace(':', '')}"


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _systems(text: str) -> tuple[str, ...]:
    # Imported here because it needs torch, and --help should not.
    from sgdph.lab.cost.systems import USUAL

    return USUAL if text == "all" else _words(text)


def _number(flag: str, word: str) -> int:
    try:
        return int(word)
    except ValueError as error:
        what = "all or whole numbers" if flag == "--visits" else "whole numbers, with commas"
        raise LabError(f"{flag} takes {what}; got {word!r}") from error
