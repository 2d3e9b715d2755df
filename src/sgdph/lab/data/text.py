"""Real text that comes with Python: the language reference, as ``help()`` shows it.

``pydoc_data.topics`` holds some eighty chapters (about 460,000 characters) of the Python language
reference (Python Software Foundation). The text changes slightly between Python versions, so
results are comparable only within one Python version.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from sgdph.lab.data.source import Request, Source, TensorSplits, in_package
from sgdph.lab.data.tensors import TextDataset
from sgdph.lab.networks.transformer import LENGTH

# Printable ASCII and the line break. All other characters, about 0.1%, are replaced by a space.
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
# Every sixth chapter is kept for the test.
TEST_EVERY = 6


def read_pydoc() -> TensorSplits:
    """Cut the chapters into windows, and pair each character with the next one.

    Every sixth chapter, in alphabetical order, is for the test. Windows do not overlap, and no
    window spans training and test chapters.

    Returns:
        Training windows ``(N, 64)``, bytes; the next character after each of their characters
        ``(N, 64)``, int64; then test windows and next characters ``(M, 64)`` likewise.
    """
    from pydoc_data.topics import topics

    names = sorted(topics)
    test = set(names[TEST_EVERY - 1 :: TEST_EVERY])
    parts = [
        "\n".join(topics[name] for name in names if (name in test) == wanted)
        for wanted in (False, True)
    ]
    (train, train_next), (test_windows, test_next) = map(windows, parts)
    return train, train_next, test_windows, test_next


def windows(text: str) -> tuple[Tensor, Tensor]:
    """Cut a text into windows of 64 characters, and into windows shifted by one character.

    Returns:
        Indices into :data:`CHARACTERS`: windows, bytes ``(N, 64)``, and shifted windows, int64
        ``(N, 64)``.
    """
    place = {character: i for i, character in enumerate(CHARACTERS)}
    codes = torch.tensor([place.get(c, place[" "]) for c in text], dtype=torch.uint8)
    count = (len(codes) - 1) // LENGTH
    here = codes[: count * LENGTH].view(count, LENGTH)
    following = codes[1 : count * LENGTH + 1].view(count, LENGTH)
    return here, following.long()


def text_dataset(
    name: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
) -> TextDataset:
    """Make a data set of windows ``(N, 64)``, bytes, and their next characters, int64."""
    return TextDataset(
        name=name,
        classes=len(CHARACTERS),
        crop_padding=0,
        flip=False,
        train_images=train[0],
        train_labels=train[1],
        test_images=test[0],
        test_labels=test[1],
        mean=torch.zeros(1),
        std=torch.ones(1),
    )


def noise_text(name: str, *, train: int, test: int) -> TextDataset:
    """Make windows of random characters."""
    codes = torch.randint(
        len(CHARACTERS), (train + test, LENGTH), generator=torch.Generator().manual_seed(0)
    )
    some, others = codes[:train], codes[train:]
    return text_dataset(name, (some.to(torch.uint8), some), (others.to(torch.uint8), others))


class PydocSource(Source):
    """The source of the text that comes with Python."""

    def missing(self, data_dir: Path | None) -> str | None:
        """Describe what is missing, whatever the data directory."""
        return in_package("pydoc_data")(data_dir)

    def load(self, request: Request) -> TextDataset:
        """Load the text; see :meth:`Source.load`."""
        windows, following, test, test_following = read_pydoc()
        # A window has no class, so all get the same one.
        kept, held = request.sizes.split(request.name, torch.zeros(len(windows), dtype=torch.int64))
        if held is not None:
            test, test_following = windows[held], following[held]
        return text_dataset(request.name, (windows[kept], following[kept]), (test, test_following))

    def check(self, data_dir: Path | None, workers: int) -> str:
        """Read the text, and return the counts."""
        windows, _, test, _ = read_pydoc()
        return f"{len(windows):,} + {len(test):,} windows of {windows.shape[1]} characters"


PYDOC = PydocSource()
