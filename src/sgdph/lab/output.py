r"""Printing and writing of text, for any encoding of the output and any bytes in a path.

The bytes of a path may be invalid in the file system's encoding. Python then replaces them by lone
surrogates, which no encoding accepts. They are shown as ``\xe9``. A character that the output's
encoding lacks is shown in ASCII.
"""

from __future__ import annotations

import codecs
import os
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

from sgdph.lab.errors import FAILED, OUTPUT_CLOSED

ESCAPE = "sgdph.escape"
"""The name of the codec error handler, for ``str.encode`` and for streams."""

_ASCII = {
    "±": "+/-",
    "×": "x",
    "·": ".",
    "–": "-",
    "−": "-",
    "…": "...",
    "≤": "<=",
    "†": "+",
    "τ": "tau",
    "ε": "eps",
    "λ": "lambda",
    "β": "beta",
    "₂": "2",
    "²": "^2",
}
_SURROGATE = re.compile("[\ud800-\udfff]")


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:
        # Python's replacement for an undecodable byte of a path (PEP 383).
        return f"\\x{code - 0xDC00:02x}"
    return _ASCII.get(character) or character.encode("ascii", "backslashreplace").decode()


def _escape(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    return "".join(map(_escaped, characters)), error.end


codecs.register_error(ESCAPE, _escape)


def printable(text: object, encoding: str = "utf-8") -> str:
    """Return a text with the characters escaped that an encoding lacks."""
    return str(text).encode(encoding, ESCAPE).decode(encoding)


def shell_word(word: object) -> str:
    r"""Quote a word for a POSIX shell; undecodable bytes are written as in ``$'\xe9'``."""
    text = str(word)
    if not _SURROGATE.search(text):
        return shlex.quote(text)
    quoted = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{printable(quoted)}'"


def shell_command(words: Iterable[object]) -> str:
    """Return a command that a POSIX shell parses into these words."""
    return " ".join(map(shell_word, words))


class OutputClosed(SystemExit):
    """The output can no longer be written, usually because its reader has ended (``| head``).

    It is not an ``Exception``. It ends the program as Ctrl-C does: trained epochs are saved, and no
    run counts as failed because of it.
    """


class StandardStream:
    """A standard stream that accepts every text and ends the program if it cannot be written.

    Args:
        stream: The stream to write to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text.

        Raises:
            OutputClosed: If the text cannot be written.
        """
        try:
            return self._stream.write(text)
        except OSError as error:
            self._close(error)

    def flush(self) -> None:
        """Write the buffered text.

        Raises:
            OutputClosed: If the text cannot be written.
        """
        try:
            self._stream.flush()
        except OSError as error:
            self._close(error)

    def _close(self, error: OSError) -> NoReturn:
        with suppress(OSError, ValueError):
            # Discard the buffered text. Otherwise Python reports an error when it exits.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        if isinstance(error, BrokenPipeError):
            raise OutputClosed(OUTPUT_CLOSED) from error
        print(f"sgdph: error: the output cannot be written: {error.strerror}", file=sys.stderr)
        raise OutputClosed(FAILED) from error


def utf8_environment() -> dict[str, str]:
    """Return an environment for a process that logs in UTF-8, whatever our own encoding is."""
    return {**os.environ, "PYTHONIOENCODING": "utf-8:backslashreplace"}


@contextmanager
def standard_streams() -> Iterator[None]:
    """Make standard output and error accept every text within the context.

    Raises:
        OutputClosed: If one of them can no longer be written, within the context or at its end.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_tolerant, before)
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
    finally:
        sys.stdout, sys.stderr = before


def _tolerant(stream: Any) -> Any:
    if isinstance(stream, StandardStream):
        return stream
    if stream is None:
        # The stream was already closed when the program started.
        return Path(os.devnull).open("w", encoding="utf-8")
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors=ESCAPE)
    return StandardStream(stream)
