"""The options of ``sgdph data``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from sgdph.lab.config.option import DATA, MACHINE, Option
from sgdph.lab.data.registry import DatasetName


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The options of ``sgdph data``."""

    dataset: Annotated[DatasetName | None, Option(DATA, "all")] = None
    """Check this set only; the exit code is 1 if it is missing or damaged."""
    data_dir: Annotated[Path | None, Option(DATA, "none", metavar="DIR")] = None
    """Directory that holds the files of the sets that do not come with a package."""
    check: Annotated[bool, Option(DATA)] = False
    """Read and check all data: checksums, counts, every image file."""
    download: Annotated[bool, Option(DATA)] = False
    """Let torchvision download CIFAR or Fashion-MNIST (the set that --dataset names, or all three)
    into --data-dir where it is missing."""
    data_workers: Annotated[
        Annotated[int, Ge(0)] | None, Option(MACHINE, "one per CPU core, at most 8")
    ] = None
    """Processes that read image files for --check."""
