"""Makes tiny sets of image files for tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image


def picture(colour: int, seed: int, height: int = 20, width: int = 26) -> Image.Image:
    """Noise that is strong in one of three colours, which identifies the class."""
    pixels = np.random.default_rng(seed).integers(100, size=(height, width, 3), dtype=np.uint8)
    pixels[..., colour % 3] += 120
    return Image.fromarray(pixels)


def class_folders(root: Path, classes: int = 3, train: int = 8, test: int = 3) -> Path:
    """Create ``train/<class>/`` and ``val/<class>/`` under a root."""
    for split, count in (("train", train), ("val", test)):
        for label in range(classes):
            folder = root / split / f"n{label:08}"
            folder.mkdir(parents=True)
            for i in range(count):
                picture(label, 100 * label + i).save(folder / f"{split}{i}.png")
    return root


def lists(root: Path, parts: Iterable[int] = (2, 1, 1), images: int = 12) -> Path:
    """Create ``images/`` and the three split files under a root; ``parts`` counts their classes."""
    (root / "images").mkdir(parents=True)
    label = 0
    for name, classes in zip(("train", "val", "test"), parts, strict=True):
        rows = ["filename,label"]
        for _ in range(classes):
            # Not sorted by name.
            for i in reversed(range(images)):
                file = f"n{label:08}{i:08}.jpg"
                picture(label, 100 * label + i).save(root / "images" / file)
                rows.append(f"{file},n{label:08}")
            label += 1
        (root / f"{name}.csv").write_text("\n".join(rows) + "\n")
    return root
