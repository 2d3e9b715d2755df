"""Shortened examples run offline, and what they train is better than chance."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parent.parent / "examples"
SHORT: dict[str, tuple[dict[str, int], float]] = {
    "accelerate_digits": ({"epochs": 1}, 0.6),
    "lightning_digits": ({"epochs": 1}, 0.6),
    "plain_loop": ({"epochs": 1}, 0.6),
    "timm_digits": ({"epochs": 2}, 0.5),
    "timm_finetune": ({"epochs": 1}, 0.5),
    # Bits per byte, negative so that more is better; without training it is 8.
    "transformers_text": ({"steps": 12}, -7.0),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.xdist_group(name.partition("_")[0]))
        for name in sorted(path.stem for path in EXAMPLES.glob("*.py"))
        # test_torchrun.py runs these, because they need several processes.
        if name not in ("ddp", "fsdp")
    ],
)
def test_example_trains(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings, least = SHORT[name]
    main: Any = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]
    figure = main(**settings)
    worst = min(figure.values()) if isinstance(figure, dict) else figure
    assert (-worst if least < 0 else worst) > least


def test_every_example_is_listed_in_the_readme_table() -> None:
    table = (EXAMPLES / "README.md").read_text()
    named = set(re.findall(r"^\| \[`([\w.]+)`\]", table, re.MULTILINE))
    assert named == {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}


NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def outputs_of(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def off_diagonal_shares(outputs: list[Any]) -> list[float]:
    """Read the shares that a notebook printed, one for each block."""
    printed = "".join(output.get("text", "") for output in outputs)
    rows = re.findall(r"^(?:scale|shift) \d +(?:before|after).*? +(0\.\d\d) ", printed, re.M)
    return [float(share) for share in rows]


def kinds_of(outputs: list[Any]) -> list[list[str]]:
    """The kind of each output: the stream that it was written to, or its data types."""
    return [sorted(output.get("data", [output.get("name")])) for output in outputs]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_and_gives_the_stored_kinds_of_output(path: Path, tmp_path: Path) -> None:
    stored = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    for cell in fresh.cells:
        cell.pop("outputs", None)
    client = NotebookClient(fresh, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    assert kinds_of(outputs_of(fresh)) == kinds_of(outputs_of(stored))
    # A diagonal block has 0; at 0.3 a tenth of the squared norm lies off the diagonal.
    for outputs in (outputs_of(fresh), outputs_of(stored)):
        shares = off_diagonal_shares(outputs)
        assert len(shares) == 12
        assert min(shares) > 0.3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_as_run_in_order_with_its_pictures(path: Path) -> None:
    assert path.stat().st_size < 400_000
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    shown = outputs_of(notebook)
    assert sum("image/png" in output.get("data", {}) for output in shown) >= 3
    assert not any(
        output.output_type == "error" or output.get("name") == "stderr" for output in shown
    )
