"""Files that are whole whenever one looks: replaced in one step, durable when the call returns."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

PARTIAL_SUFFIX = ".partial"


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replace a file in one step: a crash leaves the old content or the new, never a mixture.

    Args:
        path: The file; its directory must exist.
        write: Writes the content to the binary file it is given.
    """
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    """Make a rename in a directory durable, where the system can (Windows opens no directories)."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step, in UTF-8."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a JSON file in one step."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def remove_files(directory: Path, names: Sequence[str]) -> None:
    """Delete the named files and their partial versions, in this order, and nothing else."""
    for name in names:
        (directory / (name + PARTIAL_SUFFIX)).unlink(missing_ok=True)
        (directory / name).unlink(missing_ok=True)
