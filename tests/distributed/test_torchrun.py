"""The examples with several processes, started as users do."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


# FSDP2 of older versions of torch does not run on CPUs.
NEEDS_STREAMS = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="this torch's FSDP2 needs a GPU"
)


@pytest.mark.parametrize(
    ("example", "told"),
    [("ddp.py", 10), pytest.param("fsdp.py", 2, marks=NEEDS_STREAMS)],
)
def test_an_example_under_torchrun_learns_and_its_ranks_agree(example: str, told: int) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", "2", str(ROOT / "examples" / example)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    losses = [float(x) for x in re.findall(r"loss ([\d.]+)", done.stdout)]
    assert len(losses) == told
    assert losses[-1] < 0.3 * losses[0]
    assert "to the bit: True" in done.stdout
