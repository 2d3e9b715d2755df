"""What README and docs show must run, and what they name must exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small import batch, bn_net, loss_of
from torch import nn

import sgdph

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{i}")
    for page in PAGES
    for i, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
]


def test_there_is_something_to_run() -> None:
    assert len(BLOCKS) >= 5


@pytest.mark.parametrize("block", BLOCKS)
def test_code_block_runs(block: str) -> None:
    model = bn_net()
    batches = [batch(step) for step in range(3)]
    names: dict[str, Any] = {
        "model": model,
        # Whatever compiles: the page shows how it is used.
        "compiled": torch.compile(model, backend="eager"),
        "loader": batches,
        "micro_batches": batches,
        "loss_fn": nn.CrossEntropyLoss(),
        "optimizer": sgdph.SGDPH(sgdph.param_groups(model)),
        "loss": loss_of(model),
        "x": batches[0][0],
        "y": batches[0][1],
        "device": "cpu",
        "torch": torch,
        "sgdph": sgdph,
    }
    before = [p.detach().clone() for p in model.parameters()]
    exec(compile(block, "documentation", "exec"), names)
    after = list(model.parameters())
    # Weight normalisation makes other parameters, and more of them.
    assert len(after) != len(before) or not all(map(torch.equal, after, before))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target
