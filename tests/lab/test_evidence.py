"""The committed comparisons: a clone carries on from them."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from scipy.stats import t as student_t

from .made_runs import lay_down

ROOT = Path(__file__).parents[2]
EVIDENCE = ROOT / "results" / "evidence"


@pytest.fixture
def evidence(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("evidence")


@pytest.mark.parametrize("name", ["mnist5k", "mnist5k-vgg", "cifar10"])
def test_a_clone_does_not_tune_again(
    evidence: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(evidence.cli, "main", lambda words: pytest.fail(f"started {words}"))
    recipe = yaml.safe_load((EVIDENCE / name / "recipe.yaml").read_text())
    (cells,) = recipe["scales"]["cpu"]["axes"]
    task = evidence.TASKS[name]
    for cell in cells:
        folder = EVIDENCE / name / "tuning" / evidence.slug(cell["label"])
        assert evidence.tune(task, cell["label"], folder, [], 1) == cell


def test_a_search_is_carried_on_where_trials_are_missing(evidence: Any) -> None:
    folder = EVIDENCE / "mnist5k" / "tuning" / "sgdm"
    assert evidence.is_tuned(folder, "sgdm", 12)
    assert not evidence.is_tuned(folder, "sgdm", 13)
    assert not evidence.is_tuned(folder / "elsewhere", "sgdm", 12)


@pytest.fixture
def summary(evidence: Any) -> Any:
    return importlib.import_module("evidence_summary")


def test_a_summary_tests_whom_it_can_and_corrects_for_no_others(
    summary: Any, tmp_path: Path
) -> None:
    finals = {"SGDM": (0.80, 0.81, 0.82), "A": (0.85, 0.86, 0.87), "B": (0.7,)}
    for label, accuracies in finals.items():
        for seed, accuracy in enumerate(accuracies):
            lay_down(tmp_path, "sgdm", seed, accuracy, name=f"-{label}", label=label)
    systems = summary.by_system(tmp_path, list(finals))
    rows = summary.table(systems, {}).splitlines()
    # Five hundredths apart at a std of one each: t = 5 / sqrt(2 / 3) at 4 degrees of freedom.
    expected = 2 * float(student_t(4).sf(5 / (2 / 3) ** 0.5))
    assert f"| {expected:.2g} |" in rows[3]
    assert "| 70.00 ± – | -11.00 | – |" in rows[4]
    summary.draw({"SGDM": systems["SGDM"][:1], "B": systems["B"]}, {}, "", tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 0


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a source distribution lacks the runs")
def test_links_in_the_results_lead_somewhere() -> None:
    for page in (ROOT / "results").rglob("*.md"):
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            found = target.startswith("http") or (page.parent / unquote(target)).exists()
            assert found, (page, target)
