"""``benchmarks/paper_cell.py`` needs no package but torch, and every part of an epoch is timed."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "benchmarks" / "paper_cell.py"
# Packages that are missing in a Python with only torch.
LACKING = (
    *("pydantic", "annotated_types", "yaml", "rich", "jinja2", "matplotlib", "mlxtend", "optuna"),
    *("sklearn", "scipy", "pandas", "torchvision", "timm", "pytorch_optimizer", "lightning"),
)


def test_the_script_times_a_cell_with_no_package_but_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({LACKING!r}))\n"
        f"sys.argv[0] = {str(SCRIPT)!r}\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    )
    out = tmp_path / "made" / "cell.json"
    words = ["--device=cpu", "--model=resnet8", "--batch-size=4", "--images=8", "--epochs=1"]
    run = subprocess.run(
        [sys.executable, "-c", code, *words, "--out", str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    content = json.loads(out.read_text())
    assert content["environment"]["torch"] == torch.__version__
    assert [(cell["optimizer"], cell["precision"]) for cell in content["cells"]] == [
        *(("sgdm", "tf32"), ("sgdph", "tf32"), ("sgdm", "bfloat16"), ("sgdph", "bfloat16"))
    ]
    for cell in content["cells"]:
        assert 0 < cell["training_seconds"] < cell["seconds_per_epoch"]
        assert cell["minutes_of_200_epochs"] == pytest.approx(cell["seconds_per_epoch"] * 200 / 60)
    assert "8 images" in run.stdout
    # The minutes are compared only for the paper's number of images.
    assert "minutes" not in run.stdout

    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    costs = importlib.import_module("result_tables.costs")
    monkeypatch.setattr(costs, "CUDA", out.parent)
    out.rename(out.with_name("paper-cell.json"))
    first = content["cells"][0]
    assert f"| SGDM | TF32 | {first['seconds_per_epoch']:.2f} |" in costs.paper_cell()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_script_says_so_and_returns_0(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    assert importlib.import_module("paper_cell").main([]) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "no CUDA GPU here" in said


def test_every_part_of_an_epoch_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    cells, parts = (importlib.import_module(name) for name in ("paper_cell", "epoch_parts"))
    data = cells.noise(8, 4, torch.device("cpu"))
    cell = cells.make_cell("resnet8", "sgdm", "float32", data, 4)
    found = parts.epoch_parts(cell, 2)
    assert set(found) == {
        *("network", "augmentation", "loss, sums, loop", "evaluation's batches and sums"),
        *("order", "checkpoint"),
    }
    assert all(seconds > 0 for seconds in found.values())
    assert found["network"] == max(found.values())
