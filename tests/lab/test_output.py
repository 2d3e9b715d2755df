"""Paths with any bytes, outputs with any encoding, and outputs that are closed early."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sgdph.lab import cli
from sgdph.lab.files import write_text
from sgdph.lab.output import (
    OutputClosed,
    StandardStream,
    printable,
    shell_command,
    shell_word,
    standard_streams,
)
from sgdph.lab.run.directory import RunDirectory

from .conftest import TINY

SMALL = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
LATIN = os.fsdecode(b"caf\xe9 it's")
needs_bytes = pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="paths there are text")


@needs_bytes
@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_compare_and_report_accept_a_path_that_is_not_utf8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    place = tmp_path / LATIN
    compare = ["compare", *SMALL, "--epochs=1", "--optimizers=sgdph", "--seeds=0"]
    run = str(place / "all" / "sgdph-seed0")
    for words in (
        [*compare, "--data-dir", str(place), "--out", str(place / "all")],
        ["compare", "--resume", "--out", str(place / "all")],
        ["report", str(place), "--out", str(place / "report")],
    ):
        assert cli.main(words) == 0, words
    said = written.getvalue().decode(encoding)
    assert f"{tmp_path}/caf\\xe9 it's/all/report.md" in said
    # The configuration gives back the path itself, not its printed form.
    assert RunDirectory(Path(run)).read_config().data_dir == str(place)
    texts = [
        file.read_text(encoding="utf-8", errors="strict")
        for file in place.rglob("*")
        if file.suffix in (".md", ".html", ".yaml", ".json", ".jsonl", ".csv", ".tex", ".log")
    ]
    assert len(texts) >= 10
    # A page in another directory links with the path's bytes, percent-encoded.
    write_report = ["report", str(place / "all"), "--out", str(tmp_path / "elsewhere")]
    assert cli.main(write_report) == 0
    link = "caf%E9%20it%27s/all/sgdph-seed0/"
    assert f"(../{link})" in (tmp_path / "elsewhere" / "report.md").read_text(encoding="utf-8")


def test_characters_that_an_encoding_lacks_are_shown_in_ascii(tmp_path: Path) -> None:
    assert printable("96.66 ± 0.17", "ascii") == "96.66 +/- 0.17"
    assert printable("96.66 ± 0.17", "latin-1") == "96.66 ± 0.17"
    assert printable("τ ∂ é", "ascii") == r"tau \u2202 \xe9"
    assert printable("é τ \udcff\ud800") == "é τ \\xff\\ud800"
    write_text(tmp_path / "file", "\udce9é")
    assert (tmp_path / "file").read_bytes() == b"\\xe9\xc3\xa9"
    settings = {"data_dir": "\udce9 é"}
    text = yaml.safe_dump(settings, allow_unicode=True)
    write_text(tmp_path / "file", text)
    assert yaml.safe_load((tmp_path / "file").read_text(encoding="utf-8")) == settings


def test_standard_streams_escape_characters_that_they_cannot_encode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = io.BytesIO()
    strict = io.TextIOWrapper(written, encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stderr", strict)
    with standard_streams():
        print("± \udce9", file=sys.stderr)
    assert sys.stderr is strict
    assert written.getvalue() == b"+/- \\xe9\n"


@needs_bytes
def test_a_printed_command_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    words = [LATIN, "a b", "back\\slash", "é", "\udce9\\'"]
    assert shell_word("plain") == "plain"
    script = f"printf '%s\\n' {shell_command(words)}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    assert done.stdout == b"".join(os.fsencode(word) + b"\n" for word in words)


def test_help_and_version_exit_silently_if_their_output_is_closed() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as broken:
        for words in (["train", "--help"], ["--version"]):
            done = subprocess.run(
                [sys.executable, "-m", "sgdph.lab", *words],
                stdout=broken,
                stderr=subprocess.PIPE,
                check=False,
            )
            assert (done.returncode, done.stderr) == (141, b"")


class Broken(io.StringIO):
    """A stream whose reader closes it once a given text has been written."""

    def __init__(self, last: str) -> None:
        super().__init__()
        self.last = last

    def write(self, text: str) -> int:
        if self.last in self.getvalue():
            raise BrokenPipeError
        return super().write(text)


@pytest.mark.parametrize("command", ["train", "compare"])
def test_a_run_stops_if_its_output_is_closed_and_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    out = tmp_path / "out"
    words = [command, *SMALL, "--out", str(out)]
    words += ["--optimizers=sgdm", "--seeds=0-1"] if command == "compare" else ["--optimizer=sgdm"]
    monkeypatch.setattr(sys, "stdout", Broken("epoch 1/3"))
    with pytest.raises(OutputClosed) as ended:
        cli.main(words)
    assert ended.value.code == 141
    run = RunDirectory(out if command == "train" else out / "sgdm-seed0")
    assert run.status() == "interrupted"
    assert (run.path / "last.pt").is_file()
    # The run did not fail, so there is no log of a failure. The next run was not started.
    assert not (out / "logs").exists()
    assert not (out / "sgdm-seed1").exists()
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert cli.main([command, "--out", str(out), "--resume"]) == 0
    assert "carrying on after epoch" in sys.stdout.getvalue()  # type: ignore[attr-defined]
    assert run.status() == "finished"


def test_an_output_that_cannot_be_written_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputClosed) as ended:
        StandardStream(Full()).write("x")
    assert ended.value.code == 1
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["reproduce", "--list"]) == 0
