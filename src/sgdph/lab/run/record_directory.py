"""What the directories of all records share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from sgdph.lab.errors import LabError
from sgdph.lab.files import read_marked, remove_files


class RecordDirectory:
    """A directory in which something is recorded: under what conditions it is taken or cleared.

    Args:
        path: The directory; it need not exist yet.

    Attributes:
        what: What is recorded there, in one word.
        files: Names of its files. The one it is recognised by goes last.
    """

    what: ClassVar[str]
    files: ClassVar[tuple[str, ...]]

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def noun(self) -> str:
        """What is recorded there, with its article."""
        return f"{'an' if self.what[0] in 'aeiou' else 'a'} {self.what}"

    @property
    def content(self) -> str:
        """What :meth:`exists` looks for."""
        return self.noun

    def names(self) -> tuple[str, ...]:
        """Name the files that may be there, the one it is recognised by last."""
        return self.files

    def found(self) -> list[str]:
        """Name those of its files that are there."""
        return [name for name in self.names() if (self.path / name).exists()]

    def exists(self) -> bool:
        """Whether the record, or a part of one, is there."""
        return bool(self.found())

    def recognise(self) -> None:
        """Raise LabError if the files that are there are not the record's."""
        raise NotImplementedError

    def check_free(self) -> None:
        """Raise LabError if the path cannot take a new record."""
        if self.path.exists() and not self.path.is_dir():
            raise LabError(f"{self.path} is a file; --out must name a directory")
        if self.exists():
            raise LabError(
                f"{self.path} already holds {self.content}; continue it with --resume, delete it "
                "with --overwrite, or name another --out"
            )

    def check_clearable(self) -> None:
        """Raise LabError if files of the record's names are something else's."""
        found = self.found()
        try:
            if found:
                self.recognise()
        except LabError as error:
            raise LabError(
                f"{self.path} is not recognised as {self.noun} ({error}), so --overwrite does not "
                f"delete {', '.join(found)} in it; name another --out"
            ) from error

    def clear(self) -> None:
        """Delete the record's files, no others.

        Raises:
            LabError: As :meth:`check_clearable`, before anything is deleted.
        """
        self.check_clearable()
        remove_files(self.path, self.names())

    def read_record(self, name: str, mark: str) -> dict[str, Any]:
        """Read the YAML or JSON file that the record is recognised by.

        Args:
            name: The file's.
            mark: What it must hold under ``format``.

        Raises:
            LabError: If there is none, or it is not one of ours.
        """
        return read_marked(self.recorded(name), mark, f"{self.noun}'s")

    def recorded(self, name: str) -> Path:
        """Return the file that the record is recognised by, or raise LabError if it is missing."""
        file = self.path / name
        if not file.is_file():
            raise LabError(
                f"{self.path} holds no {self.what} to resume (no {name}); name another --out, or "
                "start one there without --resume"
            )
        return file
