import csv
from pathlib import Path

import pytest

from lab.conftest import tiny_config
from lab.made_runs import lay_down, write_run
from sgdph.lab.cli import main


def lay_down_two_places(path: Path) -> None:
    for seed in range(2):
        lay_down(path / "a", "sgdm", seed, 0.8 + seed / 100)
        lay_down(path / "deep" / "b", "adamw", seed, 0.7 + seed / 100, model="vgg11")


@pytest.mark.usefixtures("without_pictures")
def test_runs_from_several_directories_make_one_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_down_two_places(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["report", "a", "deep"]) == 0
    said = capsys.readouterr().out
    assert str(tmp_path / "runs" / "report" / "report.html") in said
    assert "81.50" not in said
    assert "80.50 ± 0.71" in said
    rows = list(csv.DictReader((tmp_path / "runs/report/table.csv").open()))
    assert [(row["optimizer"], row["model"], row["n"]) for row in rows] == [
        ("sgdm", "resnet8", "2"),
        ("adamw", "vgg11", "2"),
    ]
    page = (tmp_path / "runs/report/report.md").read_text()
    assert "](../../a/sgdm-seed0/)" in page


@pytest.mark.usefixtures("without_pictures")
def test_settings_that_differ_between_compared_runs_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_down(tmp_path, "sgdm", 0, 0.8)
    lay_down(tmp_path, "sgdph", 0, 0.9, epochs=9)
    assert main(["report", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the compared runs differ in epochs (3 and 9), which may explain the result." in said


@pytest.mark.usefixtures("without_pictures")
def test_options_set_layout_targets_and_title(tmp_path: Path) -> None:
    lay_down_two_places(tmp_path)
    options = ["--rows", "model", "--columns", "dataset", "--target", "0.75", "--title", "Mine"]
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "out"), *options]) == 0
    page = (tmp_path / "out" / "report.md").read_text()
    assert page.startswith("# Mine\n")
    assert "| network | n |" in page
    assert "seconds to 75%" in page
    assert not (tmp_path / "report.md").exists()
    rows = list(csv.DictReader((tmp_path / "out" / "targets.csv").open()))
    assert [(row["optimizer"], row["reached"]) for row in rows] == [("sgdm", "2"), ("adamw", "0")]


def columns_of(page: str) -> list[str]:
    """Return the headings of a report's first table."""
    line = next(line for line in page.splitlines() if line.startswith("|"))
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.usefixtures("without_pictures")
def test_a_sweeps_transposed_table_is_transposed_in_its_report(tmp_path: Path) -> None:
    for optimizer in ("sgdm", "adamw"):
        for dataset in ("digits", "mnist5k"):
            lay_down(tmp_path, optimizer, 0, 0.8, name=f"-{dataset}", dataset=dataset)
    layout = "layout: {rows: [optimizer], columns: [dataset], turned: true}\n"
    (tmp_path / "sweep.yaml").write_text(layout)
    assert main(["report", str(tmp_path)]) == 0
    assert columns_of((tmp_path / "report.md").read_text())[1:] == ["SGDM", "AdamW"]
    # Rows and columns that are named in the command are used as named.
    named = ["--rows", "optimizer", "--columns", "dataset"]
    assert main(["report", str(tmp_path), *named, "--out", str(tmp_path / "out")]) == 0
    assert len(columns_of((tmp_path / "out" / "report.md").read_text())) == 3


def test_the_report_of_one_directory_is_written_there_and_repeatable(tmp_path: Path) -> None:
    lay_down_two_places(tmp_path)
    assert main(["report", str(tmp_path)]) == 0
    first = (tmp_path / "report.html").read_bytes()
    assert main(["report", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").read_bytes() == first


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "holds no run"),
        (["--rows", "mood"], "unknown field of --rows or --columns 'mood'; did you mean model?"),
        (["--rows", "mood"], "expected system or a name in the config.yaml of a run, like lr"),
        (["--rows", "threads,device"], "cannot be threads, device: runs that differ only in"),
        (["--columns", "seed"], "--rows and --columns cannot be seed: runs that differ only in"),
        (["--rows", "keep_checkpoints"], "are one entry. Leave it out, or report on the"),
        (["--rows", "model"], "cannot be in both --rows and --columns"),
        (["--target", "90"], "at most at 1"),
        (["absent"], "is not a directory"),
    ],
)
def test_an_error_is_one_message_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["report", str(tmp_path), *options]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("sgdph: error: ")
    assert message in errors
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("without_pictures")
def test_on_a_full_disk_the_error_names_no_option_that_report_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_down(tmp_path, "sgdm", 0, 0.8)
    (tmp_path / "report.md.partial").symlink_to("/dev/full")
    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "report.md could not be written" in said
    assert "then run the command again, with --resume if it has that option" in said


def test_without_a_directory_the_error_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report"]) == 2
    assert "sgdph report runs" in capsys.readouterr().err


def test_a_file_that_sgdph_did_not_write_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_down(tmp_path, "sgdm", 0, 0.8)
    (tmp_path / "report.html").write_text("mine")
    assert main(["report", str(tmp_path)]) == 2
    assert "sgdph report did not write" in capsys.readouterr().err
    assert (tmp_path / "report.html").read_text() == "mine"


def test_a_report_of_forty_settings_draws_fourteen_and_says_so(tmp_path: Path) -> None:
    for k in range(40):
        config = tiny_config(optimizer="sgdm", lr=0.001 * (k + 1), weight_decay=0.01 / (k + 1))
        write_run(tmp_path / str(k), config, [0.1, 0.2 + k / 200])
    assert main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.md").read_text()
    assert page.count("](") == 40 + 3
    assert "Drawn are 14 of 40 rows: SGDM, SGD-PH, and those with the highest final acc" in page
