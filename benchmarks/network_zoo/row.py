"""The result for one network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PACKAGES = ("torchvision", "timm", "transformers")


@dataclass
class Row:
    """The result for one network.

    Attributes:
        package: The package that it is from.
        family: Its name in the zoo.
        name: Its name in the package.
        parameters: Number of trainable parameters (elements).
        newton: Number of them that take Newton steps.
        fused_attentions: Number of fused attention operations.
        dtype: The dtype of the comparison.
        result: ``ok``; ``wrong`` (the product or a first gradient differs from torch's); ``no
            oracle`` (there is a product, but torch has none to compare with); ``refused`` (an error
            explains why there is no product); ``failed`` (anything else).
        reason: Why it is not ``ok``.
        error: Error of the product, relative to torch's.
        gradient_error: Error of the first gradients; 0 if they are bitwise equal to torch's.
        seconds: Seconds for the whole comparison.
        version: Version of the package.
        torch: Version of torch.
        commit: Commit of this repository.
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
        """The key that selects this network."""
        return f"{self.package}/{self.family}"

    @classmethod
    def of(cls, line: Mapping[str, str]) -> Row:
        """Parse a line of the CSV table."""
        row = cls(**line)  # type: ignore[arg-type]
        for name in ("parameters", "newton", "fused_attentions"):
            setattr(row, name, int(line[name]))
        row.error, row.gradient_error = _number(line["error"]), _number(line["gradient_error"])
        row.seconds = float(line["seconds"])
        return row

    def told(self) -> str:
        """Summarise the result in one line."""
        words = [f"{self.name} {self.result}", f"{self.seconds:.1f} s"]
        if self.error is not None:
            words.insert(1, f"{self.error:.1e} in {self.dtype}")
        told = ", ".join(words)
        return f"{told}: {self.reason}" if self.reason else told


def _number(text: str) -> float | None:
    return float(text) if text else None
