import json
from pathlib import Path
from typing import BinaryIO

import pytest

from lab.conftest import tiny_config
from sgdph.lab.errors import LabError
from sgdph.lab.files import WriteError, write_atomically, write_text
from sgdph.lab.run.directory import CHECKPOINT, CONFIG, METRICS, SUMMARY, RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.create(tiny_config())
    return directory


def names(path: Path) -> set[str]:
    return {file.name for file in path.iterdir()}


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    def half_written(file: BinaryIO) -> None:
        file.write(b"new, but")
        raise OSError("disk full")

    write_text(tmp_path / "file", "old")
    with pytest.raises(WriteError, match=r"file could not be written \(disk full\)"):
        write_atomically(tmp_path / "file", half_written)
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == {"file"}


def test_the_old_file_is_kept_until_the_new_one_is_complete(tmp_path: Path) -> None:
    def look(file: BinaryIO) -> None:
        file.write(b"new")
        file.flush()
        # A kill at this moment would leave the old file.
        assert (tmp_path / "file").read_text() == "old"

    write_text(tmp_path / "file", "old")
    write_atomically(tmp_path / "file", look)
    assert (tmp_path / "file").read_text() == "new"


def test_creating_a_second_run_raises_an_error_with_three_workarounds(run: RunDirectory) -> None:
    with pytest.raises(LabError, match=r"--resume.*--overwrite.*another --out"):
        run.create(tiny_config())


def test_creating_a_run_at_an_ordinary_file_raises_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LabError, match="is a file"):
        RunDirectory(tmp_path / "file").create(tiny_config())


def test_clearing_a_run_keeps_the_other_files_of_its_directory(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    run = RunDirectory(tmp_path)
    run.create(tiny_config())
    run.write_summary({"status": "running"})
    (tmp_path / "last.pt.partial").write_bytes(b"left by a kill")
    run.clear()
    assert names(tmp_path) == {"notes.txt", "run.lock"}


@pytest.mark.parametrize("name", [CONFIG, METRICS, SUMMARY, CHECKPOINT])
def test_files_that_only_have_the_names_of_run_files_are_not_deleted(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_text("lr: 0.1\n")
    with pytest.raises(LabError, match=rf"(not recognised as a run.*{name}|{name} but no run)"):
        RunDirectory(tmp_path).clear()
    assert (tmp_path / name).read_text() == "lr: 0.1\n"


def test_a_directory_without_a_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"holds no run to resume.*without --resume"):
        RunDirectory(tmp_path / "nowhere").read_config()


def test_each_line_of_metrics_is_on_the_disk_at_once(run: RunDirectory) -> None:
    for epoch in (1, 2):
        run.append_metrics({"epoch": epoch, "train_loss": 0.5})
        lines = (run.path / METRICS).read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == list(range(1, epoch + 1))


def test_a_line_of_metrics_that_a_kill_cut_off_is_ignored(run: RunDirectory) -> None:
    run.append_metrics({"epoch": 1})
    with (run.path / METRICS).open("a") as file:
        file.write('{"epoch": 2, "train_lo')
    assert run.read_metrics() == [{"epoch": 1}]


def test_environments_of_resumed_sessions_are_added_to_the_first(run: RunDirectory) -> None:
    run.write_env({"cpu": "a"})
    run.write_env({"cpu": "b"})
    run.write_env({"cpu": "c"})
    assert run.read_env() == {"cpu": "a", "resumed": [{"cpu": "b"}, {"cpu": "c"}]}


def test_files_that_do_not_exist_yet_read_as_empty(run: RunDirectory) -> None:
    assert run.read_env() == {}
    assert run.read_summary() == {}
    assert run.read_metrics() == []
    assert run.status() is None


def test_only_the_checkpoints_that_the_run_keeps_belong_to_it(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.create(tiny_config(keep_checkpoints=(0, 2)))
    for name in ("epoch-0.pt", "epoch-2.pt", "epoch-2.pt.partial", "epoch-1.pt"):
        (tmp_path / name).write_bytes(b"a checkpoint")
    assert run.found() == ["epoch-0.pt", "epoch-2.pt", CONFIG]
    run.clear()
    assert names(tmp_path) == {"epoch-1.pt", "run.lock"}


@pytest.mark.parametrize("line", ['{"epoch": 1, "train_lo', "17", "\0\0\0"])
def test_the_error_names_a_damaged_line_of_metrics(run: RunDirectory, line: str) -> None:
    (run.path / METRICS).write_text('{"epoch": 0}\n' + line + '\n{"epoch": 2}\n')
    with pytest.raises(LabError, match=rf"{METRICS} is damaged at line 2 .*--resume"):
        run.read_metrics()


@pytest.mark.parametrize("content", ['{"status": "fin', "[]"])
def test_the_error_names_a_damaged_summary(run: RunDirectory, content: str) -> None:
    (run.path / SUMMARY).write_text(content)
    with pytest.raises(LabError, match=f"{SUMMARY} is damaged"):
        run.status()


def test_clearing_a_run_deletes_its_tensorboard_files(run: RunDirectory) -> None:
    (run.path / "events.out.tfevents.17.host").write_bytes(b"events")
    run.clear()
    assert names(run.path) == {"run.lock"}
