"""What a person may ask of ``sgdph data``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from sgdph.lab.data.registry import DatasetName
from sgdph.lab.options.options import shown


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """List the data sets: what each is, where it comes from, and whether it is there."""

    dataset: Annotated[DatasetName | None, shown("all", DatasetName)] = None
    """Look at this set alone; the exit code is 1 if it is missing or damaged."""
    data_dir: Annotated[Path | None, shown("none", "DIR")] = None
    """Directory that holds the files of the sets that do not come with a package."""
    check: bool = False
    """Read all that is there and check it: checksums, counts, every image file."""
    download: bool = False
    """Let torchvision download CIFAR or Fashion-MNIST (the set that --dataset names, or all three)
    into --data-dir where it is missing."""
    data_workers: Annotated[int | None, shown("one per CPU core, at most 8", "N")] = None
    """Processes that read image files for --check."""
