"""Checksums of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from sgdph.lab.errors import LabError


def check_digest(file: Path, algorithm: str, expected: str, remedy: str) -> None:
    """Raise LabError, ending with the ``remedy``, unless a file's digest is the expected one."""
    with file.open("rb") as stream:
        digest = hashlib.new(algorithm, usedforsecurity=False)
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        raise LabError(
            f"{file} is damaged or not the official file: expected {algorithm.upper()} {expected}, "
            f"got {digest.hexdigest()}; {remedy}"
        )
