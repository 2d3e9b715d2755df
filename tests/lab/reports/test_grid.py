from pathlib import Path
from typing import Any

import pytest

from lab.made_runs import lay_down
from sgdph.lab.errors import LabError
from sgdph.lab.reports.curves import legend_names
from sgdph.lab.reports.grid import Grid, make_grids
from sgdph.lab.reports.layout import SYSTEM, Layout, parse_fields, saved_layout
from sgdph.lab.run.records import read_runs


def grid_of(path: Path, layout: Layout | None = None) -> Grid:
    (grid,) = make_grids(read_runs([path]).records, layout or Layout())
    return grid


def test_rows_and_columns_are_sorted(tmp_path: Path) -> None:
    for optimizer in ("sgdph", "adamw", "sgdm"):
        for model in ("vgg19", "resnet18", "timm:resnet18"):
            lay_down(tmp_path / model, optimizer, 0, 0.5, model=model)
    grid = grid_of(tmp_path)
    assert [row.text for row in grid.rows] == ["SGDM", "SGD-PH", "AdamW"]
    assert [column.parts for column in grid.columns] == [
        ("digits", "ResNet18"),
        ("digits", "VGG19"),
        ("digits", "timm:resnet18"),
    ]
    assert len(grid.entries) == 9
    assert grid.entries[1, 2].config.model == "timm:resnet18"
    assert grid.entries[1, 2].config.optimizer == "sgdph"


def test_runs_that_differ_in_a_setting_have_separate_rows(tmp_path: Path) -> None:
    lay_down(tmp_path, "sgdm", 0, 0.5, lr=0.1)
    lay_down(tmp_path, "sgdm", 1, 0.9, lr=0.02)
    lay_down(tmp_path, "sgdph", 1, 0.9)
    rows = grid_of(tmp_path).rows
    assert [row.text for row in rows] == ["SGDM (lr 0.02)", "SGDM (lr 0.1)", "SGD-PH"]
    assert rows[0].plain == "sgdm (lr=0.02)"


def test_settings_that_differ_only_between_columns_do_not_split_a_row(tmp_path: Path) -> None:
    lay_down(tmp_path / "a", "sgdm", 0, 0.5, lr=0.1)
    lay_down(tmp_path / "b", "sgdm", 0, 0.9, lr=0.02, model="resnet20")
    assert [row.text for row in grid_of(tmp_path).rows] == ["SGDM"]


def test_runs_with_a_label_are_a_separate_system(tmp_path: Path) -> None:
    lay_down(tmp_path, "sgdm", 0, 0.5)
    lay_down(tmp_path, "sgdm", 1, 0.5, label="SGDM+WN")
    assert [row.text for row in grid_of(tmp_path).rows] == ["SGDM", "SGDM+WN"]


@pytest.mark.parametrize(
    ("runs", "texts"),
    [
        (
            [{"label": "SGDM"}, {}, {"label": "SGDM+WN"}],
            ["SGDM (without a label)", "SGDM (label SGDM)", "SGDM+WN"],
        ),
        ([{"lr": 0.3}, {"lr": 0.1 + 0.2}], ["SGDM (lr 0.3)", "SGDM (lr 0.30000000000000004)"]),
        (
            [{"label": "SGDM"}, {}, {"label": "SGDM (without a label)"}],
            [
                "SGDM (without a label)",
                "SGDM (label SGDM)",
                "SGDM (without a label) (label SGDM (without a label))",
            ],
        ),
        # Each is sgdm on one network, with another label on the other.
        (
            [{}, {"model": "vgg11", "label": "sgdm"}, {"label": "SGDM"}],
            ["sgdm", "SGDM"],
        ),
        (
            [{"label": "SGDM", "lr": 0.2}, {"lr": 0.3}],
            ["SGDM (without a label)", "SGDM (label SGDM)"],
        ),
    ],
)
def test_no_two_rows_or_columns_show_the_same_text(
    tmp_path: Path, runs: list[dict[str, Any]], texts: list[str]
) -> None:
    for k, options in enumerate(runs):
        lay_down(tmp_path, "sgdm", 0, 0.5 + k / 10, name=str(k), **options)
    grid = grid_of(tmp_path)
    assert [row.text for row in grid.rows] == texts
    names = list(legend_names(grid, range(len(texts))).values())
    assert names == [f"{text}, n = 1" for text in texts]
    if not any("model" in options or "lr" in options for options in runs):
        turned = grid_of(tmp_path, Layout(("model",), ("system",)))
        assert [column.text for column in turned.columns] == texts
        assert [column.parts for column in turned.columns] == [(text,) for text in texts]


def test_rows_and_columns_of_numbers_are_sorted_by_value(tmp_path: Path) -> None:
    for decay in (1e-2, 1e-3, 5e-3):
        for size in (25, 100):
            name = f"-{decay}-{size}"
            lay_down(tmp_path, "sgdm", 0, 0.5, name=name, weight_decay=decay, batch_size=size)
    grid = grid_of(tmp_path, Layout(("weight_decay",), ("batch_size",)))
    assert [row.text for row in grid.rows] == [f"weight decay {x}" for x in (0.001, 0.005, 0.01)]
    assert [column.text for column in grid.columns] == ["batch size 25", "batch size 100"]


def test_a_layout_without_systems_still_separates_them(tmp_path: Path) -> None:
    lay_down(tmp_path, "sgdm", 0, 0.5, lr=0.1)
    lay_down(tmp_path, "adamw", 0, 0.5, lr=0.1, weight_decay=5e-4)
    rows = grid_of(tmp_path, Layout(("lr",), ("dataset",))).rows
    assert ["SGDM" in row.text for row in rows] == [True, False]
    assert "AdamW" in rows[1].text


def test_test_and_validation_images_never_share_an_entry(tmp_path: Path) -> None:
    lay_down(tmp_path, "sgdm", 0, 0.5)
    lay_down(tmp_path, "sgdm", 1, 0.9, validation_size=10)
    grids = make_grids(read_runs([tmp_path]).records, Layout())
    assert [grid.evaluated for grid in grids] == ["test", "validation"]
    assert [len(grid.groups[0].runs) for grid in grids] == [1, 1]


def test_the_layout_of_a_sweep_is_read_from_its_file(tmp_path: Path) -> None:
    assert saved_layout(tmp_path) == Layout()
    file = tmp_path / "sweep.yaml"
    file.write_text("layout: {rows: [lr], columns: [model], title: Table 5}\n")
    assert saved_layout(tmp_path) == Layout(("lr",), ("model",), "Table 5")
    for wrong in ("layout: {rows: [mood]}\n", "layout: [\n", "- 1\n", "layout: 3\n"):
        file.write_text(wrong)
        with pytest.raises(LabError, match=r"the layout in .*sweep.yaml"):
            saved_layout(tmp_path)


def test_fields_are_read_from_a_list() -> None:
    assert parse_fields("system, lr", "--rows") == (SYSTEM, "lr")
    for text in ("", "lr,", "lr,lr"):
        with pytest.raises(LabError, match="--rows must be names"):
            parse_fields(text, "--rows")
