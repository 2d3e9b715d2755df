"""What is recorded about the environment of a run."""

import re
import subprocess
from pathlib import Path

import torch

from sgdph.lab.run.environment import describe_environment

PAGE = Path(__file__).parents[3] / "docs" / "reproducibility.md"
OF_A_RUN = {"processes", "session", "resumed"}


def test_the_documentation_explains_exactly_the_recorded_fields() -> None:
    _, _, section = PAGE.read_text().partition("## How the environment is recorded")
    first_cells = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    explained = {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}
    assert explained - OF_A_RUN == describe_environment(torch.device("cpu")).keys()


def test_the_cpu_capability_is_the_one_that_torch_reports() -> None:
    recorded = describe_environment(torch.device("cpu"))["cpu_capability"]
    assert f"CPU capability usage: {recorded}" in torch.__config__.show()


def test_the_commit_is_that_of_the_checkout() -> None:
    found = subprocess.run(
        ["git", "-C", str(PAGE.parent), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    recorded = describe_environment(torch.device("cpu"))["git_commit"]
    # Both are empty if the sources are not a checkout, as in a release.
    assert (recorded or "").removesuffix("-dirty") == found.stdout.strip()
