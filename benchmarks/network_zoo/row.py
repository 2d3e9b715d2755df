"""What came of one network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PACKAGES = ("torchvision", "timm", "transformers")


@dataclass
class Row:
    """What came of one network.

    Attributes:
        package: Where it is from.
        family: Its name in the zoo.
        name: Its name in the package.
        parameters: How many numbers it learns.
        newton: How many of them take Newton steps.
        fused_attentions: How many of its operations are one.
        dtype: Of the comparison.
        result: ``ok``; ``wrong`` (the product or a first gradient is not torch's); ``no oracle``
            (there is a product, and torch has none); ``refused`` (by an error that explains);
            ``failed`` (anything else).
        reason: Why it is not ``ok``.
        error: The product's, relative to torch's.
        gradient_error: The first gradients'; 0 where they are torch's to the bit.
        seconds: For all of it.
        version: Of the package.
        torch: Its version.
        commit: Of this repository.
    """

    package: str
    family: str
    name: str = ""
    parameters: int = 0
    newton: int = 0
    fused_attentions: int = 0
    dtype: str = ""
    result: str = "failed"
    reason: str = ""
    error: float | None = None
    gradient_error: float | None = None
    seconds: float = 0.0
    version: str = ""
    torch: str = ""
    commit: str = ""

    @property
    def key(self) -> str:
        """What it is chosen by."""
        return f"{self.package}/{self.family}"

    @classmethod
    def of(cls, line: Mapping[str, str]) -> Row:
        """Read a line of a table."""
        row = cls(**line)  # type: ignore[arg-type]
        for name in ("parameters", "newton", "fused_attentions"):
            setattr(row, name, int(line[name]))
        row.error, row.gradient_error = _number(line["error"]), _number(line["gradient_error"])
        row.seconds = float(line["seconds"])
        return row

    def told(self) -> str:
        """Say it in a line."""
        words = [f"{self.name} {self.result}", f"{self.seconds:.1f} s"]
        if self.error is not None:
            words.insert(1, f"{self.error:.1e} in {self.dtype}")
        told = ", ".join(words)
        return f"{told}: {self.reason}" if self.reason else told


def _number(text: str) -> float | None:
    return float(text) if text else None
