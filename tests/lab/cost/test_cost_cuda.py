"""``benchmarks/cost_cuda.py``, run on the CPU in a Python that has only torch."""

from __future__ import annotations

import csv
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[3]
BENCHMARKS = ROOT / "benchmarks"
# Packages that are missing in a Python that has only torch.
LACKING = (
    *("pydantic", "annotated_types", "yaml", "rich", "jinja2", "matplotlib", "mlxtend", "optuna"),
    *("sklearn", "scipy", "torchvision", "timm", "filelock", "pytorch_optimizer", "lightning"),
)


def test_a_quick_run_on_the_cpu_measures_and_writes_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({LACKING!r}))\n"
        f"sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "import cost_cuda\n"
        "sys.exit(cost_cuda.main(sys.argv[1:]))"
    )
    words = ["--device", "cpu", "--quick", "--out", str(tmp_path / "cost" / "cuda")]
    run = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    with (tmp_path / "cost" / "cuda" / "cost.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    written = json.loads((tmp_path / "cost" / "cuda" / "cost.json").read_text(encoding="utf-8"))
    assert written["environment"]["torch"] == torch.__version__
    assert [cell["network"] for cell in written["cells"]] == ["resnet8", "vit-tiny"]
    assert written["cells"][1]["attention"].startswith("flash")
    by_name = {(row["network"], row["system"]): row for row in rows}
    assert len(by_name) == len(rows) == 10
    for (_, system), row in by_name.items():
        assert float(row["milliseconds"]) > 0
        if system == "sgdm":
            assert float(row["time"]) == float(row["mean_peak"]) == 1.0
        else:
            assert float(row["worst_peak"]) >= 1.0

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    costs = importlib.import_module("result_tables.costs")
    monkeypatch.setattr(costs, "CUDA", tmp_path / "cost" / "cuda")
    table = costs.cost_cuda()
    assert table.count("\n| resnet8, 2, TF32 |") == 5
    assert f"torch {torch.__version__}" in table
    monkeypatch.setattr(costs, "CUDA", tmp_path / "nothing")
    assert costs.cost_cuda() == costs.paper_cell() == "Not run on a GPU yet.\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_prints_a_message_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("cost_cuda")
    assert module.main(["--out", str(tmp_path / "out")]) == 0
    assert "no CUDA GPU here" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("failing", ["cost_cuda", "paper_cell", "neither"])
def test_make_runs_both_measurements_even_if_one_fails(tmp_path: Path, failing: str) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$1"\ncase "$1" in *{failing}.py) exit 1;; esac\n')
    python.chmod(0o755)
    command = ["make", "cost-cuda", f"PYTHON={python}", "COMMIT=", f"CUDA_RESULTS={tmp_path}"]
    # The tests may run inside make, which passes variables to the programs that it runs.
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.stdout.split()[:2] == ["benchmarks/cost_cuda.py", "benchmarks/paper_cell.py"]
    assert (done.returncode == 0) == (failing == "neither")
