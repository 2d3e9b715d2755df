"""The committed comparisons: a clone carries on from them."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml

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


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a source distribution lacks the runs")
def test_links_in_the_results_lead_somewhere() -> None:
    for page in (ROOT / "results").rglob("*.md"):
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            found = target.startswith("http") or (page.parent / unquote(target)).exists()
            assert found, (page, target)
