"""The committed comparisons: their recipes, tables and links."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from scipy.stats import t as student_t

from .made_runs import lay_down

ROOT = Path(__file__).parents[2]
EVIDENCE = ROOT / "results" / "evidence"


@pytest.fixture
def evidence(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("evidence")


@pytest.mark.parametrize("name", ["mnist5k", "mnist5k-vgg", "cifar10"])
def test_a_recipe_has_the_best_settings_of_its_searches(evidence: Any, name: str) -> None:
    task, folder = evidence.TASKS[name], EVIDENCE / name
    cells = evidence.best_cells(task, folder)
    assert [cell["label"] for cell in cells] == list(task.systems)
    command = f"`python benchmarks/evidence.py {name}`"
    assert evidence.recipe(task, cells, command) == (folder / "recipe.yaml").read_text()


def test_all_trials_of_a_search_are_written(evidence: Any, tmp_path: Path) -> None:
    """Cover a pruned trial, a trial without values, and a setting that only one system has."""
    trials = [
        {"number": 0, "status": "pruned", "validation_loss": 0.1 + 0.2, "settings": {"lr": 1e-8}},
        {"number": 1, "status": "diverged", "validation_loss": None, "settings": {"lr": 0.3}},
    ]
    found = {
        label: {"seed": 0, "optimizers": {optimizer: {"best": best, "trials": own}}}
        for label, optimizer, best, own in (
            ("SGDM", "sgdm", 1, trials),
            ("AdaBelief", "adabelief", 0, [{**trials[0], "settings": {"second_order_lr": 1.0}}]),
        )
    }
    evidence.write_tuning(tmp_path, found)
    assert (tmp_path / evidence.TUNING).read_text().splitlines() == [
        "system,best,number,status,validation_loss,lr,second_order_lr",
        "SGDM,False,0,pruned,0.30000000000000004,1e-08,",
        "SGDM,True,1,diverged,,0.3,",
        "AdaBelief,True,0,pruned,0.30000000000000004,,1.0",
    ]
    kept = json.loads((tmp_path / evidence.SEARCHES).read_text())
    assert kept["SGDM"] == {"seed": 0, "optimizers": {"sgdm": {"best": 1}}}
    cells = evidence.best_cells(evidence.TASKS["mnist5k"], tmp_path)
    assert cells == [
        {"label": "SGDM", "optimizer": "sgdm", "lr": 0.3},
        {"label": "AdaBelief", "optimizer": "adabelief", "second_order_lr": 1.0},
    ]


@pytest.fixture
def comparison(evidence: Any) -> Any:
    return importlib.import_module("comparison")


def test_only_systems_with_enough_runs_are_tested_and_corrected_for(
    comparison: Any, tmp_path: Path
) -> None:
    finals = {"SGDM": (0.80, 0.81, 0.82), "A": (0.85, 0.86, 0.87), "B": (0.7,)}
    for label, accuracies in finals.items():
        for seed, accuracy in enumerate(accuracies):
            lay_down(tmp_path, "sgdm", seed, accuracy, name=f"-{label}", label=label)
    runs = comparison.by_system(tmp_path, [*finals, "C"])
    systems = comparison.compare(runs, untimed={"A"})
    baseline = systems["SGDM"]
    # The means differ by 0.05, each std is 0.01: t = 5 / sqrt(2 / 3), 4 degrees of freedom.
    width = (2 / 3) ** 0.5
    assert systems["A"].p == pytest.approx(2 * float(student_t(4).sf(5 / width)))
    found = systems["A"].over(baseline)
    expected = student_t(4, loc=0.05, scale=width / 100).interval(0.95)
    assert (found.low, found.high) == pytest.approx(expected)
    assert systems["A"].outcome(baseline) == "differs"
    assert (systems["B"].p, systems["B"].over(baseline), systems["B"].outcome(baseline)) == (
        *(None, None),
        "",
    )
    assert baseline.outcome(baseline) == ""
    assert not systems["A"].times
    # Seeds 0, 1 and 2 take 1.5, 2 and 2.5 s per epoch.
    assert baseline.times == (0.75, 1.0, 1.25)
    summary = importlib.import_module("evidence_summary")
    summary.draw(systems, "", tmp_path / "some.png")
    assert (tmp_path / "some.png").stat().st_size > 0


def test_no_table_is_stale(evidence: Any) -> None:
    """`make tables` rewrites the tables."""
    tables = importlib.import_module("result_tables").TABLES
    pages = importlib.import_module("write_tables")
    assert [page.name for page in pages.stale(ROOT, tables)] == []
    named = [
        name for page in pages.pages(ROOT) for _, name, *_ in pages.MARKED.findall(page.read_text())
    ]
    assert sorted(named) == sorted(tables)


def test_a_stale_table_is_detected(evidence: Any, tmp_path: Path) -> None:
    pages = importlib.import_module("write_tables")
    (tmp_path / "docs").mkdir()
    page = tmp_path / "README.md"
    text = "Before.\n\n<!-- table: one -->\n{}<!-- end of table -->\n\nAfter: 95.1.\n"
    page.write_text(text.format("\n| a |\n|---|\n| 95.1 |\n\n"))
    new = text.format("\n| a |\n|---|\n| 95.2 |\n\n")
    tables = {"one": lambda: "| a |\n|---|\n| 95.2 |\n"}
    assert pages.stale(tmp_path, tables) == {page: new}
    page.write_text(new)
    assert pages.stale(tmp_path, tables) == {}
    page.write_text(text.format("").replace("<!-- end of table -->", ""))
    with pytest.raises(ValueError, match="needs its"):
        pages.stale(tmp_path, tables)


def test_local_links_in_the_results_point_to_existing_files() -> None:
    for page in (ROOT / "results").rglob("*.md"):
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            found = target.startswith("http") or (page.parent / unquote(target)).exists()
            assert found, (page, target)
