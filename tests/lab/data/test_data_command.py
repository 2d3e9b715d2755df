"""``sgdph data``: its output and its exit code."""

from pathlib import Path

import pytest

from sgdph.lab.cli import main
from sgdph.lab.data.registry import DATASETS

from . import made


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(["data", *words])
    streams = capsys.readouterr()
    return code, " ".join((streams.out + streams.err).split())


def test_every_data_set_is_listed_with_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = said(capsys)
    assert code == 0
    assert all(name in text for name in DATASETS)
    assert "cifar10: missing: cifar-10-batches-py/ or cifar-10-batches-bin/" in text
    assert "because --data-dir was not given" in text


def test_a_negative_number_of_workers_raises_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = said(capsys, "--data-workers", "-1")
    assert code == 2
    assert "--data-workers must be at least 0; got '-1'" in text


def test_a_missing_data_set_that_is_named_gives_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cifar100", "fashion-mnist", "mini-imagenet", "imagenet"):
        code, text = said(capsys, "--dataset", name, "--data-dir", str(tmp_path))
        assert (code, "missing:" in text) == (1, True)
    assert said(capsys, "--data-dir", str(tmp_path))[0] == 0


@pytest.mark.parametrize("name", ["digits", "pydoc"])
def test_data_sets_that_come_with_a_package_are_read_and_counted(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = said(capsys, "--dataset", name, "--check")
    assert code == 0
    expected = {"digits": "1,297 + 500 of 1x8x8, 10 classes", "pydoc": "windows of 64"}
    assert f"{name}: checked:" in text
    assert expected[name] in text


def test_check_reads_every_file_of_an_image_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made.lists(tmp_path)
    words = ("--dataset", "mini-imagenet", "--data-dir", str(tmp_path), "--data-workers", "1")
    code, text = said(capsys, *words, "--check")
    assert code == 0
    assert "checked: 40 + 8 images, 4 classes; incomplete: 4 classes and 48 images" in text
    (tmp_path / "images" / "n0000000300000005.jpg").write_bytes(b"not an image")
    assert said(capsys, *words)[0] == 0
    code, text = said(capsys, *words, "--check")
    assert code == 1
    assert "damaged:" in text
    assert "n0000000300000005.jpg cannot be read as an image" in text


def test_the_missing_files_of_an_incomplete_data_set_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (made.lists(tmp_path) / "val.csv").unlink()
    words = ("--dataset", "mini-imagenet", "--data-dir", str(tmp_path))
    assert "mini-imagenet: missing: val.csv" in said(capsys, *words)[1]
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "test_batch.bin").touch()
    code, text = said(capsys, "--dataset", "cifar10", "--data-dir", str(tmp_path))
    assert code == 1
    assert "data_batch_1.bin, data_batch_2.bin" in text
    assert "test_batch.bin" not in text.replace("cifar-10", "")


def test_check_of_all_data_sets_fails_if_one_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {name: DATASETS[name] for name in ("digits", "imagenet")}
    monkeypatch.setattr("sgdph.lab.data_command.DATASETS", few)
    made.class_folders(tmp_path)
    (tmp_path / "val" / "n00000000" / "val0.png").write_bytes(b"")
    words = ("--data-dir", str(tmp_path), "--data-workers", "0")
    assert said(capsys, *words)[0] == 0
    assert said(capsys, *words, "--check")[0] == 1


def test_impossible_downloads_raise_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = said(capsys, "--download")
    assert code == 2
    assert "--download needs --data-dir DIR" in text
    code, text = said(capsys, "--dataset", "imagenet", "--download", "--data-dir", str(tmp_path))
    assert code == 2
    assert "torchvision cannot fetch imagenet" in text
    assert "fashion-mnist, cifar10, cifar100" in text
