"""Code in README and docs must run, and the files and tests that they name must exist."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from small import batch, bn_net, loss_of
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

import sgdph

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
BLOCKS = [
    pytest.param(
        block,
        id=f"{page.name}-{i}",
        # In the same worker as its integration's tests, which has imported the framework.
        marks=[
            pytest.mark.xdist_group(name)
            for name in re.findall(r"(?:sgdph\.integrations\.|model: from )(\w+)", block)[:1]
        ],
    )
    for page in PAGES
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


def test_the_pages_have_code_blocks_to_run() -> None:
    assert len(BLOCKS) >= 5


def test_readme_is_short_and_shares_its_snippet_with_other_pages() -> None:
    pages = [ROOT / "README.md", ROOT / "docs" / "index.md", ROOT / "docs" / "quick-start.md"]
    first = [re.search(r"```python\n(.*?)```", page.read_text(), re.DOTALL) for page in pages]
    assert len({found and found[1] for found in first}) == 1
    assert len(pages[0].read_text().splitlines()) <= 120


PROSE = [
    *PAGES,
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "results").glob("README.md")),
    *sorted((ROOT / "results").glob("*/README.md")),
]


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_sentences_are_short(page: Path) -> None:
    sentences = {each: len(re.findall(r"\S*\w\S*", each)) for each in sentences_of(page)}
    assert {each: count for each, count in sentences.items() if count > 45} == {}
    assert sum(sentences.values()) <= 25 * len(sentences)


def sentences_of(page: Path) -> list[str]:
    """List the sentences of a page's paragraphs and list items, without tables and code."""
    text = re.sub(r"```.*?```|<!--.*?-->", "", page.read_text(), flags=re.DOTALL)
    text = re.sub(r"^(?:    |#|\||:::).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "Code", text))
    paragraphs = re.split(r"\n\s*\n|^\s*(?:[*-]|\d+\.) ", text, flags=re.MULTILINE)
    found = [each for p in paragraphs for each in re.split(r"(?<=[.!?:])\s+(?=\W*[A-Z\d])", p)]
    return [" ".join(each.split()) for each in found if each.strip()]


@contextlib.contextmanager
def one_rank() -> Iterator[None]:
    """Provide a process group with only this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def language_model() -> nn.Module:
    """A model of ``transformers``, for the block that trains one."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 256, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("block", BLOCKS)
def test_code_block_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "fully_shard(" in block and not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip("this torch's FSDP2 does not run on CPUs")
    # `make test-torch` installs neither. sgdph.muon uses the first for kernels.
    for package, word in (("pytorch_optimizer", "sgdph.muon"), ("schedulefree", "schedulefree")):
        if package in block or word in block:
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    model = language_model() if "transformers" in block else bn_net()
    row = torch.arange(16)
    rows = [{"input_ids": row, "labels": row}] * 8
    batches = [batch(step) for step in range(3)]
    names: dict[str, Any] = {
        "model": model,
        "loader": DataLoader(rows, 4) if "**batch" in block else DataLoader(batches, None),
        "micro_batches": batches,
        "loss_fn": nn.CrossEntropyLoss(),
        "optimizer": sgdph.SGDPH(sgdph.param_groups(model)),
        "loss": loss_of(model) if isinstance(model, nn.Sequential) else None,
        "rows": rows,
        "x": batches[0][0],
        "y": batches[0][1],
        "device": "cpu",
        "torch": torch,
        "sgdph": sgdph,
    }
    before = [p.detach().clone() for p in model.parameters()]
    with contextlib.ExitStack() as stack:
        if "replica" in block or "fully_shard(" in block:
            stack.enter_context(one_rank())
        if "replica" in block:
            names["replica"] = nn.parallel.DistributedDataParallel(model)
        # The backend does not matter: the page shows how to use the compiled model.
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        if "compiled(x)" in block:
            names["compiled"] = torch.compile(model)
        exec(compile(block, "documentation", "exec"), names)
    after = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    # Weight normalisation replaces parameters and adds more.
    assert len(after) != len(before) or not all(map(torch.equal, after, before))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_link_targets_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target


def test_all_files_give_the_same_version() -> None:
    citation = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    changes = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert citation is not None
    assert changes is not None
    assert {citation[1], changes[1]} == {sgdph.__version__}


def test_compatibility_rows_name_tests_that_exist() -> None:
    checked, file_of_section = 0, ""
    for line in (ROOT / "docs" / "compatibility.md").read_text().splitlines():
        if line.startswith("#"):
            file_of_section = ""
        if found := re.search(r"Tests: `tests/([\w/]+\.py)`", line):
            file_of_section = found[1]
        cells = [cell.strip() for cell in line[1:-1].split("|")] if line.startswith("| ") else []
        # Tables of two columns define words; a first cell "what" marks a heading.
        if len(cells) in (0, 2) or cells[0] == "what":
            continue
        assert len(cells) == 4, line
        _what, works, _how, tests = cells
        named = re.findall(r"`([\w/.]*)::(\w+)`", tests)
        if works.startswith("yes"):
            assert named, line
        checked += 1
        file = file_of_section
        for path, name in named:
            file = path or file
            assert f"def {name}(" in (ROOT / "tests" / file).read_text(), line
    assert checked > 150


def test_figures_on_the_claims_page_are_in_the_results() -> None:
    evidence = ROOT / "results" / "evidence"
    pages = [*evidence.glob("*/systems.md"), *evidence.glob("**/report.md")]
    measured = "".join(page.read_text() for page in pages)
    claims = (ROOT / "docs" / "claims.md").read_text()
    # The authors' own figures were not measured here. No report has the means over parts of
    # curves; benchmarks/write_tables.py computes them from the runs.
    left_out = r"<!-- table: (reidentification|paper-regime-curves) -->.*?<!-- end"
    ours = re.sub(left_out, "", claims, flags=re.DOTALL)
    told = re.findall(r"\d+\.\d+ ± \d+\.\d+", ours)
    assert len(told) > 50
    assert [figure for figure in told if figure not in measured] == []


def test_workflows_call_make_targets_that_exist() -> None:
    # yaml comes with the laboratory; the core's tests run without that.
    yaml = pytest.importorskip("yaml")
    files = [*(ROOT / ".github").rglob("*.yml"), *ROOT.glob(".pre-commit-config.yaml")]
    if not files:
        pytest.skip("a source distribution has no workflows")
    assert len(files) == 6
    read = {file.name: yaml.safe_load(file.read_text()) for file in files}
    steps = [step for job in read["ci.yml"]["jobs"].values() for step in job["steps"]]
    called = {step["run"].split()[1] for step in steps if step.get("run", "").startswith("make ")}
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert called == {"lint", "test", "test-torch", "docs", "dist"}
    assert called <= targets
    for name in ("bug.yml", "curvature.yml"):
        fields = {field.get("id") for field in read[name]["body"]}
        assert {"script", "versions"} <= fields
