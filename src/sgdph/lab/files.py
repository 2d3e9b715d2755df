"""Reading and writing of files.

Files are replaced in one step, and a write is durable when the call returns. Errors name the file.
Our own files carry a mark under ``format``. It distinguishes them from files of other programs or
other versions. A file with one JSON object per line may end in a line that was cut off by a kill.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from sgdph.lab.errors import LabError
from sgdph.lab.output import ESCAPE

PARTIAL_SUFFIX = ".partial"


class WriteError(LabError):
    """A file could not be written: the disk or a quota is full, or the place is read-only."""


@contextlib.contextmanager
def writing(path: Path, size: int | None = None) -> Iterator[None]:
    """Turn the system's error about a file that cannot be written into a :class:`WriteError`.

    Args:
        path: The file.
        size: Number of bytes to write, if known.

    Raises:
        WriteError: If writing fails within the context.
    """
    try:
        yield
    except OSError as error:
        needed = "" if size is None else f"; it takes {_megabytes(size)}"
        raise WriteError(
            f"{path} could not be written "
            f"({error.strerror or error}){needed}{_room(path.parent)}. Everything saved before is "
            "intact. Free some space or raise the quota, then run the command again, with --resume "
            "if it has that option"
        ) from error


def _room(directory: Path) -> str:
    try:
        return f", and its file system has {_megabytes(shutil.disk_usage(directory).free)} left"
    except OSError:
        return ""


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def write_atomically(
    path: Path, write: Callable[[BinaryIO], object], size: int | None = None
) -> None:
    """Replace a file in one step: a crash leaves the old or the new content, never a mixture.

    Args:
        path: The file; its directory must exist.
        write: Writes the content to the binary file that is passed to it.
        size: Number of bytes to write, if known.

    Raises:
        WriteError: If the file cannot be written. The old file is then unchanged.
    """
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    with writing(path, size):
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
    """Make a rename in a directory durable (not on Windows, which cannot open directories)."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Replace a file in one step.

    Raises:
        WriteError: If the file cannot be written. The old file is then unchanged.
    """
    write_atomically(path, lambda file: file.write(content), len(content))


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step, in UTF-8; characters that UTF-8 lacks are escaped.

    Raises:
        WriteError: If the file cannot be written. The old file is then unchanged.
    """
    write_bytes(path, text.encode("utf-8", ESCAPE))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a JSON file in one step.

    Raises:
        WriteError: If the file cannot be written. The old file is then unchanged.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file; it is on the disk when this returns.

    Raises:
        WriteError: If the line cannot be written. Part of it may then be in the file.
    """
    content = (line + "\n").encode()
    with writing(path, len(content)), path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def make_directory(path: Path) -> None:
    """Make a directory and its parents, unless it exists.

    Raises:
        WriteError: If it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(
            f"the directory {path} cannot be made ({error.strerror or error}); name an --out in a "
            "place that can be written to"
        ) from error


def remove_files(directory: Path, names: Sequence[str]) -> None:
    """Delete the named files and their partial versions, in this order, and nothing else."""
    for name in names:
        (directory / (name + PARTIAL_SUFFIX)).unlink(missing_ok=True)
        (directory / name).unlink(missing_ok=True)


def bears(file: Path, mark: str) -> bool:
    """Return whether a file starts with a mark (HTML page: has it in its first 1000 characters)."""
    if not file.is_file():
        return False
    with file.open(encoding="utf-8", errors="replace") as stream:
        beginning = stream.read(1000)
    return mark in beginning if file.suffix == ".html" else beginning.startswith(mark)


def foreign_files(directory: Path, marks: Mapping[str, str | None]) -> list[str]:
    """List the files that exist but lack their marks.

    Args:
        directory: The directory of the files.
        marks: File name to mark, or to ``None`` for a file that has no mark. Such a file counts as
            ours if the directory also holds a file with its mark.
    """
    there = [name for name in marks if (directory / name).exists()]
    ours = [name for name in there if (mark := marks[name]) and bears(directory / name, mark)]
    return [name for name in there if name not in ours and (marks[name] or not ours)]


def remove_marked(directory: Path, marks: Mapping[str, str]) -> None:
    """Delete the files that have their marks, and nothing else."""
    remove_files(directory, [name for name, mark in marks.items() if bears(directory / name, mark)])


def parse_yaml(text: str, mark: str, source: Path | str, what: str) -> dict[str, Any]:
    """Read YAML that has a format mark.

    Args:
        text: The YAML text.
        mark: The required value of ``format``.
        source: Where the text came from, for error messages.
        what: What the text should be, for error messages.

    Raises:
        LabError: If the text is not YAML, or lacks the mark.
    """
    # Imported here, because writing files needs no YAML.
    import yaml

    try:
        content = yaml.safe_load(text)
    except (ValueError, yaml.YAMLError) as error:
        raise LabError(f"{source} is not valid YAML: {error}") from error
    return check_mark(content, mark, source, what)


def read_marked(path: Path, mark: str, what: str) -> dict[str, Any]:
    """Read a YAML or JSON file that has a format mark.

    Args:
        path: The file. It is read as JSON if its name ends in ``.json``, else as YAML.
        mark: The required value of ``format``.
        what: What the file should be, for error messages.

    Raises:
        LabError: If the file cannot be read, or lacks the mark.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise LabError(f"{path} cannot be read: {error}") from error
    if path.suffix != ".json":
        return parse_yaml(text, mark, path, what)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise LabError(f"{path} is not valid JSON: {error}") from error
    return check_mark(content, mark, path, what)


def check_mark(content: object, mark: str, source: Path | str, what: str) -> dict[str, Any]:
    """Return the content of a file of ours; the arguments are those of :func:`parse_yaml`.

    Raises:
        LabError: If it lacks the mark.
    """
    if not isinstance(content, dict) or content.get("format") != mark:
        raise LabError(f"{source} is not {what}: expected 'format: {mark}' in it")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object; return an empty dict if there is no file.

    Raises:
        LabError: If it holds something else.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LabError(
            f"{path} is damaged ({error}); delete it and continue the run with --resume, which "
            "writes it again"
        ) from error
    if not isinstance(value, dict):
        raise LabError(f"{path} is damaged: expected a JSON object in it; got {value!r}")
    return value


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file with one JSON object per line, without a last line that a kill has cut off.

    Raises:
        LabError: If a line before the last is damaged.
    """
    lines = path.read_bytes().splitlines() if path.is_file() else []
    read: list[dict[str, Any]] = []
    try:
        read.extend(dict(json.loads(line)) for line in lines)
    except (ValueError, TypeError) as error:
        # ``read`` holds the lines before the damaged one.
        number = len(read) + 1
        if number < len(lines):
            raise LabError(
                f"{path} is damaged at line {number} ({error}); continue the run with --resume, "
                "which writes it again from the checkpoint"
            ) from error
    return read
