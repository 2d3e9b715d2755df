import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from sgdph.lab.cost.directory import COST_FILES, CostDirectory
from sgdph.lab.cost.figures import (
    CellFigures,
    CostSettings,
    SystemFigures,
    cell_from_plain,
    settings_from_plain,
    to_plain,
)
from sgdph.lab.cost.options import CostOptions
from sgdph.lab.cost.pictures import FLOOR, draw_cell
from sgdph.lab.cost.report import cost_table, cost_tables, figures_table, notes, write_report
from sgdph.lab.cost.summary import summarise
from sgdph.lab.errors import LabError
from sgdph.lab.reports.statistics import Range
from sgdph.lab.run.out import check_target

from .figures import cell, kind

SETTINGS = CostSettings(systems=("sgdph-interval10",))


def test_ratios_are_taken_within_a_round_and_weighted_one_to_nine() -> None:
    sgdm, sgdph = summarise(cell())
    assert sgdm.process == sgdm.wall == Range(1.0, 1.0, 1.0)
    # Rounds of (1.1 + 0.9) / 1, (1.2 + 1.8) / 2 and (2 + 7.2) / 4.
    assert sgdph.process is not None
    assert dataclasses.astuple(sgdph.process) == pytest.approx((2.0, 1.5, 2.3))
    # In wall time, each step takes 1 s more: (1.2 + 1.8) / 2, (1.3 + 2.7) / 3 and (2.1 + 8.1) / 5.
    assert dataclasses.astuple(sgdph.wall) == pytest.approx((1.5, 4 / 3, 2.04))
    assert sgdph.seconds == pytest.approx(4.0)
    assert sgdph.refresh == pytest.approx(6.0)  # Median of 11, 6 and 5.
    assert sgdph.mean_peak == pytest.approx(0.1 * 3 + 0.9)
    assert sgdph.worst_peak == pytest.approx(4.0)
    assert sgdph.mean_total_peak == pytest.approx((0.1 * 400 + 0.9 * 200) / 200)
    assert sgdph.worst_total_peak == pytest.approx(500 / 200)
    assert sgdph.flops == pytest.approx(0.1 * 3 + 0.9)
    assert (sgdm.floor, sgdph.floor) == (None, 1.25)


def cell_with_math() -> CellFigures:
    plain = {"plain": kind(1, [2.0, 3.0, 5.0], [160], 20)}
    math = SystemFigures("sgdm-math", "SGDM, math attention", 1, None, plain)
    return dataclasses.replace(cell(), systems=[*cell().systems, math])


def test_ratios_to_sgdm_with_math_attention_are_taken_in_the_same_way() -> None:
    sgdm, sgdph, math = summarise(cell_with_math(), "sgdm-math")
    assert sgdm.time == Range.of_ratios([1.0, 2.0, 4.0], [2.0, 3.0, 5.0])
    # Rounds of 2 / 2, 3 / 3 and 9.2 / 5. In wall time: 3 / 3, 4 / 4 and 10.2 / 6.
    assert dataclasses.astuple(sgdph.time) == pytest.approx((1.0, 1.0, 1.84))
    assert dataclasses.astuple(sgdph.wall) == pytest.approx((1.0, 1.0, 1.7))
    assert sgdph.refresh == pytest.approx(4.0)  # Median of 5.5, 4 and 4.
    assert sgdph.mean_peak == pytest.approx(120 / 160)
    assert sgdph.worst_peak == pytest.approx(400 / 160)
    assert sgdph.flops == pytest.approx(36 / 20)
    assert sgdph.floor == pytest.approx(1.25 * 30 / 20)
    assert (math.time, math.flops, math.floor) == (Range(1.0, 1.0, 1.0), 1.0, None)


def test_ratios_to_math_attention_have_their_own_table_if_measured(tmp_path: Path) -> None:
    headings = [table.columns[0].title for table in cost_tables(cell_with_math())]
    assert headings == ["SGDM = 1.00", "SGDM, math attention = 1.00"]
    (only,) = cost_tables(cell())
    assert only == cost_table(cell())
    directory = CostDirectory(tmp_path / "a")
    directory.write(SETTINGS, [cell_with_math()])
    write_report(directory)
    page = (directory.path / "report.md").read_text()
    for table in cost_tables(cell_with_math()):
        assert table.markdown() in page
    last = cost_tables(cell_with_math())[1].markdown().splitlines()[-2]
    assert (
        last == "| SGD-PH, interval 10 | 1.00 | 1.00 to 1.84 | 4.00 | 0.75 | 2.50 | 1.80 | 1.88 |"
    )


def without_clock_and_memory() -> dict[str, object]:
    plain = to_plain(cell())
    for system in plain["systems"]:
        for each in system["kinds"].values():
            each |= {"process_seconds": None, "peak_bytes": None, "total_peak_bytes": None}
    return plain


def test_a_value_that_was_not_measured_is_shown_as_a_dash() -> None:
    figures = cell_from_plain(without_clock_and_memory())
    row = summarise(figures)[1]
    assert (row.process, row.mean_peak, row.worst_peak) == (None,) * 3
    assert (row.mean_total_peak, row.worst_total_peak) == (None,) * 2
    assert row.time == row.wall
    last = cost_table(figures).markdown().splitlines()[-1]
    assert last == "| SGD-PH, interval 10 | 1.50 | 1.33 to 2.04 | 4.33 | – | – | 1.20 | 1.25 |"
    assert "wall time" in notes(SETTINGS, [figures])[0]


def test_figures_and_settings_are_unchanged_after_a_json_round_trip() -> None:
    assert cell_from_plain(json.loads(json.dumps(to_plain(cell())))) == cell()
    assert settings_from_plain(json.loads(json.dumps(to_plain(SETTINGS)))) == SETTINGS
    # A former name of the setting.
    assert settings_from_plain({"systems": ["sgdph"], "dtype": "bfloat16"}).precision == "bfloat16"


def test_the_csv_has_ratios_in_full_precision() -> None:
    rows = list(csv.DictReader(figures_table([cell(), cell(batch_size=4)]).csv().splitlines()))
    assert [(r["batch_size"], r["system"]) for r in rows] == [
        ("2", "sgdm"),
        ("2", "sgdph-interval10"),
        ("4", "sgdm"),
        ("4", "sgdph-interval10"),
    ]
    assert float(rows[1]["process_highest"]) == pytest.approx(2.3)
    assert float(rows[1]["wall_highest"]) == pytest.approx(2.04)
    assert float(rows[1]["worst_peak"]) == pytest.approx(4.0)
    assert rows[0]["floor"] == ""


def test_bars_are_as_long_as_the_ratios() -> None:
    axes = Figure().subplots()
    draw_cell(axes, summarise(cell()))
    time, memory = axes.containers[0], axes.containers[2]
    assert [bar.get_width() for bar in time] == pytest.approx([1.0, 2.0])
    assert [bar.get_width() for bar in memory] == pytest.approx([1.0, 1.2])
    floors = [line for line in axes.get_lines() if line.get_color() == FLOOR]
    assert [list(line.get_xdata()) for line in floors] == [[1.25, 1.25]]
    texts = {text.get_text() for text in axes.texts}
    assert {"2.00", "1.20, worst 4.00", "1.00"} == texts


def test_a_report_is_made_from_the_directory_alone(tmp_path: Path) -> None:
    directory = CostDirectory(tmp_path / "a")
    settings = dataclasses.replace(SETTINGS, batch_sizes=(2, 4))
    directory.write(settings, [cell(), cell(batch_size=4)])
    assert write_report(directory) == [cell(), cell(batch_size=4)]
    assert {path.name for path in directory.path.iterdir()} == set(COST_FILES)
    for name in ("cost.png", "cost-sweep.png"):
        assert (directory.path / name).read_bytes().startswith(b"\x89PNG")
    page = (directory.path / "report.md").read_text()
    assert "a CPU" in page
    assert "visited 2 of 5 Newton parameters: `a`, `b`" in page
    assert cost_table(cell()).markdown() in page


def test_without_cells_no_report_is_written(tmp_path: Path) -> None:
    directory = CostDirectory(tmp_path / "a")
    directory.write(SETTINGS, [])
    assert write_report(directory) == []
    assert [path.name for path in directory.path.iterdir()] == ["cost.json"]


def test_clear_deletes_only_the_files_of_a_measurement(tmp_path: Path) -> None:
    directory = CostDirectory(tmp_path)
    directory.check_free()
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "report.md").write_text("not a measurement's")
    with pytest.raises(LabError, match=r"contains report\.md but no measurement"):
        directory.clear()
    (tmp_path / "cost.json").write_text("{}")
    with pytest.raises(LabError, match="expected 'format: sgdph-cost-1'"):
        directory.clear()
    (tmp_path / "report.md").unlink()
    directory.write(SETTINGS, [])
    with pytest.raises(LabError, match="already holds a measurement"):
        directory.check_free()
    directory.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_figures_of_another_version_raise_an_error(tmp_path: Path) -> None:
    directory = CostDirectory(tmp_path)
    directory.write(SETTINGS, [cell()])
    content = json.loads((tmp_path / "cost.json").read_text())
    content["settings"]["unheard_of"] = 1
    (tmp_path / "cost.json").write_text(json.dumps(content))
    with pytest.raises(LabError, match="another version of sgdph"):
        directory.read()


@pytest.mark.parametrize("name", ["table.csv", "report.md", "report.html"])
@pytest.mark.parametrize("measured", [False, True])
def test_a_page_or_table_of_other_origin_is_an_error_and_is_kept(
    tmp_path: Path, name: str, measured: bool
) -> None:
    directory = CostDirectory(tmp_path)
    (tmp_path / name).write_text("mine")
    if measured:
        directory.write(SETTINGS, [cell()])
        said = f"contains {name}, which sgdph did not write"
    else:
        said = f"contains {name} but no measurement; name another --out"
    for options in (CostOptions(), CostOptions(resume=True), CostOptions(overwrite=True)):
        with pytest.raises(LabError, match=said):
            check_target(directory, options)
    with pytest.raises(LabError, match=said):
        directory.clear()
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("finish", [write_report, CostDirectory.clear])
def test_pages_of_earlier_versions_are_deleted_and_others_are_kept(
    tmp_path: Path, finish: Callable[[CostDirectory], object]
) -> None:
    for text, gone in (("# What a training step costs\n", True), ("# Costs of my lab\n", False)):
        directory = CostDirectory(tmp_path / str(gone))
        directory.write(SETTINGS, [cell()])
        (directory.path / "cost.md").write_text(text)
        figures = figures_table([cell()]).csv() if gone else "item,price\n"
        (directory.path / "cost.csv").write_text(figures)
        finish(directory)
        assert [(directory.path / name).exists() for name in ("cost.md", "cost.csv")] == 2 * [
            not gone
        ]
