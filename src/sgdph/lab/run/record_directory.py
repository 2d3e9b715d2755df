"""What the directories of all records share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from sgdph.lab.errors import LabError
from sgdph.lab.files import foreign_files, read_marked, remove_files, remove_marked


class RecordDirectory:
    """A directory in which something is recorded: under what conditions it is taken or cleared.

    Args:
        path: The directory; it need not exist yet.

    Attributes:
        what: What is recorded there, in one word.
        files: Names of its files. The one it is recognised by goes last.
        marks: Those of its files whose names others use too, with the marks of ours; ``None`` for
            a file that has no mark of its own.
        former: Files that earlier versions wrote, with their marks.
    """

    what: ClassVar[str]
    files: ClassVar[tuple[str, ...]]
    marks: ClassVar[Mapping[str, str | None]] = {}
    former: ClassVar[Mapping[str, str]] = {}

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

    def check_known(self) -> None:
        """Raise LabError if files of the record's names are there without the one that tells it."""
        # Not names(): a run reads its configuration for these.
        found = [name for name in self.files if (self.path / name).exists()]
        if found and self.files[-1] not in found:
            raise LabError(
                f"{self.path} contains {', '.join(found)} but no {self.what}; name another --out"
            )

    def check_own(self) -> None:
        """Raise LabError if files of the record's names are there that are not the record's."""
        self.check_known()
        foreign = foreign_files(self.path, self.marks)
        if foreign:
            raise LabError(
                f"{self.path} contains {', '.join(foreign)}, which sgdph did not write for the "
                f"{self.what}; move it away, or name another --out"
            )

    def check_free(self) -> None:
        """Raise LabError if the path cannot take a new record."""
        if self.path.exists() and not self.path.is_dir():
            raise LabError(f"{self.path} is a file; --out must name a directory")
        self.check_own()
        if self.exists():
            raise LabError(
                f"{self.path} already holds {self.content}; continue it with --resume, delete it "
                "with --overwrite, or name another --out"
            )

    def check_clearable(self) -> None:
        """Raise LabError if files of the record's names are something else's."""
        self.check_known()
        found = self.found()
        try:
            if found:
                self.recognise()
        except LabError as error:
            raise LabError(
                f"{self.path} is not recognised as {self.noun} ({error}), so --overwrite does not "
                f"delete {', '.join(found)} in it; name another --out"
            ) from error
        self.check_own()

    def clear(self) -> None:
        """Delete the record's files, no others.

        Raises:
            LabError: As :meth:`check_clearable`, before anything is deleted.
        """
        self.check_clearable()
        self.remove()

    def remove(self) -> None:
        """Delete the record's files, those of earlier versions too."""
        remove_marked(self.path, self.former)
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
            self.check_known()
            raise LabError(
                f"{self.path} holds no {self.what} to resume (no {name}); name another --out, or "
                "start one there without --resume"
            )
        return file
