"""``sgdph cost`` from the command line, in this process."""

import json
from pathlib import Path
from typing import Any

import pytest

from lab.folders import check_folder
from sgdph.lab.cli import main
from sgdph.lab.cost import command
from sgdph.lab.cost.options import CostOptions, default_cost_out, resolve_cost
from sgdph.lab.cost.systems import USUAL

from .figures import cell

TINY = ("--batch-size", "2", "--visits", "2", "--rounds", "1", "--systems", "sgdph,adahessian")


def cost(*words: object) -> int:
    return main(["cost", *map(str, words)])


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads((path / "cost.json").read_text()))


def test_cost_measures_and_writes_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cost("--model", "resnet8", *TINY, "--out", tmp_path) == 0
    said = capsys.readouterr().out
    for name in ("report.html", "report.md", "table.csv", "cost.png", "cost.json"):
        assert str(tmp_path / name) in said
        assert (tmp_path / name).stat().st_size > 0
    assert not (tmp_path / "cost-sweep.png").exists()
    check_folder(tmp_path)
    assert "1 CPU thread," in said
    figures = read(tmp_path)
    assert figures["settings"]["visits"] == 2
    (only,) = figures["cells"]
    assert [s["name"] for s in only["systems"]] == ["sgdm", "sgdph", "adahessian"]
    assert only["environment"]["optimizers"].keys() == {"pytorch_optimizer"}
    assert cost("--model", "resnet8", *TINY, "--out", tmp_path) == 2
    assert "already holds a measurement" in capsys.readouterr().err
    assert cost("--model", "resnet8", *TINY, "--out", tmp_path, "--overwrite") == 0


def test_an_interrupted_measurement_keeps_its_cells_and_is_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def measure(model: str, batch_size: int, *rest: object) -> object:
        if batch_size == 4 and not measured.count("interrupted"):
            measured.append("interrupted")
            raise KeyboardInterrupt
        measured.append(f"{model} {batch_size}")
        return cell(model, batch_size)

    monkeypatch.setattr(command, "measure_cell", measure)
    words = ("--model", "resnet8,resnet20", "--batch-size", "2,4", "--out", tmp_path)
    assert cost(*words) == 130
    assert f"sgdph cost --out {tmp_path} --resume" in capsys.readouterr().out
    assert [c["batch_size"] for c in read(tmp_path)["cells"]] == [2]
    assert (tmp_path / "cost.png").exists()
    assert cost("--out", tmp_path, "--resume", "--rounds", "9") == 2
    assert "rounds: it has 5, given 9" in capsys.readouterr().err
    assert cost("--out", tmp_path, "--resume") == 0
    assert "resnet8, batch 2: kept" in capsys.readouterr().out
    assert measured == ["resnet8 2", "interrupted", "resnet8 4", "resnet20 2", "resnet20 4"]
    assert (tmp_path / "cost-sweep.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "resnet9"), "unknown network 'resnet9'; did you mean resnet8?"),
        (("--systems", "sgd"), "unknown system 'sgd'; did you mean sgdm?"),
        (("--visits", "few"), "--visits takes all or whole numbers; got 'few'"),
        (("--batch-size", "2;4"), "--batch-size takes whole numbers, with commas; got '2;4'"),
        (("--device", "cuda:77"), "--device cuda:77 cannot be used here"),
        (("--resume",), "holds no measurement to resume"),
        (("--resume", "--overwrite"), "contradict each other"),
    ],
)
def test_a_wrong_option_is_one_message_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "out"
    assert cost(*words, "--out", out) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_default_settings_and_output_directory() -> None:
    settings = resolve_cost(CostOptions().given())
    assert settings.cells == [("resnet18", 16)]
    assert settings.systems == USUAL
    assert (settings.visits, settings.rounds, settings.threads) == (8, 5, 1)
    given = CostOptions(visits="all", systems="all", channels_last=True).given()
    assert given == {"visits": None, "systems": USUAL, "channels_last": True}
    asked = CostOptions(model="torchvision:resnet50,vgg11-bn", device="cuda:1")
    named = default_cost_out(resolve_cost(asked.given()))
    assert named == Path("runs/cost-torchvision-resnet50-vgg11-bn-cuda1")
