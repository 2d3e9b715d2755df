"""The base class of all directories that hold a record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from sgdph.lab.errors import LabError
from sgdph.lab.files import foreign_files, read_marked, remove_files, remove_marked


class RecordDirectory:
    """A directory that holds a record; checks whether it may be written, resumed or cleared.

    Args:
        path: The directory; it need not exist yet.

    Attributes:
        what: The kind of record, in one word.
        files: Names of its files. The last one identifies the record.
        marks: Those of its files whose names other programs use too, with the marks that sgdph
            writes into them; ``None`` for a file that has no mark of its own.
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
        """The kind of record, with its article."""
        return f"{'an' if self.what[0] in 'aeiou' else 'a'} {self.what}"

    @property
    def content(self) -> str:
        """What :meth:`exists` looks for."""
        return self.noun

    def names(self) -> tuple[str, ...]:
        """Return the names of all possible files; the last one identifies the record."""
        return self.files

    def found(self) -> list[str]:
        """Return the names of its existing files."""
        return [name for name in self.names() if (self.path / name).exists()]

    def exists(self) -> bool:
        """Return whether any file of the record exists."""
        return bool(self.found())

    def recognise(self) -> None:
        """Raise LabError if the existing files are not a record of this kind."""
        raise NotImplementedError

    def check_known(self) -> None:
        """Raise LabError if files with the record's names exist without the identifying one."""
        # Not names(): a run would read its configuration for them.
        found = [name for name in self.files if (self.path / name).exists()]
        if found and self.files[-1] not in found:
            raise LabError(
                f"{self.path} contains {', '.join(found)} but no {self.what}; name another --out"
            )

    def check_own(self) -> None:
        """Raise LabError if files with the record's names do not belong to the record."""
        self.check_known()
        foreign = foreign_files(self.path, self.marks)
        if foreign:
            raise LabError(
                f"{self.path} contains {', '.join(foreign)}, which sgdph did not write for the "
                f"{self.what}; move it away, or name another --out"
            )

    def check_free(self) -> None:
        """Raise LabError if no new record can be created at the path."""
        if self.path.exists() and not self.path.is_dir():
            raise LabError(f"{self.path} is a file; --out must name a directory")
        self.check_own()
        if self.exists():
            raise LabError(
                f"{self.path} already holds {self.content}; continue it with --resume, delete it "
                "with --overwrite, or name another --out"
            )

    def check_clearable(self) -> None:
        """Raise LabError if files with the record's names belong to something else."""
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
        """Delete the record's files, and no others.

        Raises:
            LabError: As for :meth:`check_clearable`. Nothing is deleted then.
        """
        self.check_clearable()
        self.remove()

    def remove(self) -> None:
        """Delete the record's files, including those of earlier versions."""
        remove_marked(self.path, self.former)
        remove_files(self.path, self.names())

    def read_record(self, name: str, mark: str) -> dict[str, Any]:
        """Read the YAML or JSON file that identifies the record.

        Args:
            name: The file's name.
            mark: The required value of its ``format``.

        Raises:
            LabError: If the file does not exist, or has another format.
        """
        return read_marked(self.recorded(name), mark, f"{self.noun}'s")

    def recorded(self, name: str) -> Path:
        """Return the file that identifies the record, or raise LabError if it is missing."""
        file = self.path / name
        if not file.is_file():
            self.check_known()
            raise LabError(
                f"{self.path} holds no {self.what} to resume (no {name}); name another --out, or "
                "start one there without --resume"
            )
        return file
