"""``sgdph reproduce`` in this process: each recipe's smallest form, and errors."""

import csv
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.conftest import Command, checkpoint_of, same_bits, snapshot
from lab.folders import check_folder
from sgdph.lab.options.resolution import resolve
from sgdph.lab.run import epoch
from sgdph.lab.run.directory import RunDirectory
from sgdph.lab.sweep.comparison import Comparison
from sgdph.lab.sweep.estimate import Range, with_small_images

SMALLEST = ["--scale=cpu", "--dataset=digits", "--epochs=1", "--threads=1", "--device=cpu"]
ONE = [*SMALLEST, "--train-size=60", "--seeds=0"]
PAPER_REGIME = Path(__file__).parents[3] / "results/evidence/cifar10-paper/recipe.yaml"


@pytest.fixture
def reproduce(sgdph: Command, without_pictures: None) -> Command:
    """Calls ``sgdph reproduce``, without pictures; returns exit code, output and errors."""
    return partial(sgdph, "reproduce")


def runs_under(path: Path) -> list[str]:
    return sorted(each.parent.name for each in path.glob("*/config.yaml"))


# A few cells each: the tests of optimizers train all optimizers of the grids.
@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("table1", ["--model=resnet8", "--only=sgdm,adahessian,apollo,sgdph"], 4),
        ("figure3", ["--model=resnet8", "--only=adabelief"], 1),
        ("table2", ["--model=resnet8", "--only=adamw"], 1),
        ("figure4", ["--model=resnet8", "--only=digits-resnet8-adam-"], 1),
        ("table3", ["--only=WN"], 2),
        ("table4", ["--only=SGDM-,SGD-PH+WN"], 2),
        ("figure5", ["--only=SGDM+WN"], 1),
        ("table5", ["--only=0.1538"], 1),
        ("table6", ["--model=resnet8", "--only=0.0001"], 1),
        ("table7", ["--only=0.99"], 1),
        ("table8", ["--only=16,32"], 4),
    ],
)
def test_the_smallest_form_of_each_recipe_runs(
    sgdph: Command, tmp_path: Path, name: str, options: list[str], count: int
) -> None:
    code, said, errors = sgdph("reproduce", name, *ONE, *options, "--out", tmp_path / "out")
    assert code == 0, said + errors
    runs = runs_under(tmp_path / "out")
    assert len(runs) == count
    assert {RunDirectory(tmp_path / "out" / run).status() for run in runs} == {"finished"}
    assert "deviates from the recipe: dataset digits" in said
    page = (tmp_path / "out" / "report.md").read_text()
    assert "deviates from the recipe" in page
    check_folder(tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "table.csv").read_text().splitlines()))
    assert len(rows) == count


def test_the_smallest_form_of_the_cost_study_runs(reproduce: Command, tmp_path: Path) -> None:
    small = ["cost", "--model=resnet8", "--batch-size=2", "--out", tmp_path]
    code, said, _ = reproduce(*small)
    assert code == 0
    assert "AdaHessian" in said
    check_folder(tmp_path)
    code, said, _ = reproduce(*small)
    assert code == 0
    assert "kept" in said
    code, _, errors = reproduce(*small, "--epochs=3", "--seeds=1")
    assert code == 2
    assert "cannot use --epochs, --seeds" in errors


@pytest.mark.parametrize(
    ("name", "only", "cells"),
    [
        ("table1", "cifar10,resnet18,SGDM", ["cifar10-resnet18-sgdm"]),
        (
            "table1",
            "cifar10, CIFAR-100,ResNet18,sgdm,SGD-PH",
            [f"cifar{n}-resnet18-{x}" for n in (100, 10) for x in ("sgdm", "sgdph")],
        ),
        ("table1", "cifar10,vgg,adam", ["cifar10-vgg11-bn-adam", "cifar10-vgg19-bn-adam"]),
        ("table1", "cifar10-resnet18-adam", ["cifar10-resnet18-adam"]),
        ("table1", "cifar10-resnet18-adamw,10-resnet50-apollo",
         ["cifar10-resnet18-adamw", "cifar10-resnet50-apollo"]),
        ("table3", "sgdm", ["imagenet-SGDM"]),
        ("table3", "SGDM+WN", ["imagenet-SGDM+WN"]),
        ("table3", "sgdph", ["imagenet-SGD-PH+WN", "imagenet-SGD-PH+BN"]),
        ("table3", "wn", ["imagenet-SGDM+WN", "imagenet-SGD-PH+WN"]),
        ("table5", "0.01,2e-3", ["cifar100-resnet18-sgdph-lr0.01-weight-decay0.002"]),
        ("table5", "lr0.01-weight-decay0.005",
         ["cifar100-resnet18-sgdph-lr0.01-weight-decay0.005"]),
        ("table6", "1e-3,cifar10,resnet18", ["cifar10-resnet18-second-order-lr0.001-sgdph"]),
        # A label that has commas itself is one word.
        (PAPER_REGIME, "SGDM, sgd-ph,eps_warmup", [f"cifar10-resnet8-{x}"
         for x in ("SGDM", "SGD-PH-eps-warmup")]),
        (PAPER_REGIME, "SGD-PH", ["cifar10-resnet8-SGD-PH"]),
    ],
)  # fmt: skip
def test_the_only_option_selects_cells_of_the_papers_grid(
    reproduce: Command, monkeypatch: pytest.MonkeyPatch, name: str, only: str, cells: list[str]
) -> None:
    found: list[str] = []
    monkeypatch.setattr(
        "sgdph.lab.sweep.reproduce.dry_run",
        lambda _, runs, *rest, **more: found.extend(r.name for r in runs),
    )
    scale = ["--data-dir=."] if name == PAPER_REGIME else ["--scale=paper"]
    code, _, errors = reproduce(name, *scale, "--seeds=0", "--dry-run", f"--only={only}")
    assert code == 0, errors
    assert found == [f"{cell}-seed0" for cell in cells]


def test_the_table_has_the_layout_of_the_papers_table(reproduce: Command, tmp_path: Path) -> None:
    both = ["--only=sgdm,sgdph", "--seeds=0-1"]
    code, said, _ = reproduce("table1", *SMALLEST, *both, "--train-size=60", "--out", tmp_path)
    assert code == 0
    # Optimizers side by side, a row for each data set and network.
    heading = next(line for line in said.splitlines() if "data set, network" in line)
    assert heading.index("SGDM") < heading.index("SGD-PH")
    for network in ("ResNet8", "VGG8-BN"):
        row = next(line for line in said.splitlines() if f"digits, {network}" in line)
        assert row.count("±") == 2
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert {each["n"] for each in rows} == {"2"}


def test_repeating_a_call_trains_nothing_and_a_wider_call_adds_runs(
    reproduce: Command, tmp_path: Path
) -> None:
    table = ["table7", *ONE, "--out", tmp_path]
    assert reproduce(*table, "--only=0.8")[0] == 0
    before = snapshot(tmp_path / "digits-resnet8-hessian-momentum0.8-sgdph-seed0")
    code, said, _ = reproduce(*table, "--only=0.8", "--resume")
    assert code == 0
    assert "1 runs, 0 of them left" in said
    assert "2 of the sweep's 3 runs have not ended yet" in said
    assert snapshot(tmp_path / "digits-resnet8-hessian-momentum0.8-sgdph-seed0") == before
    assert reproduce(*table)[0] == 0
    assert len(runs_under(tmp_path)) == 3
    assert snapshot(tmp_path / "digits-resnet8-hessian-momentum0.8-sgdph-seed0") == before


def test_seeds_and_cells_can_be_added_to_a_sweep(reproduce: Command, tmp_path: Path) -> None:
    recipe, out = tmp_path / "mine.yaml", tmp_path / "out"
    scale = {
        "description": "d",
        "time": "t",
        "seeds": [0],
        "options": {"dataset": "digits", "train_size": 60, "epochs": 1, "batch_size": 25},
        "axes": [{"optimizer": ["sgdm"]}],
    }
    content = {
        "format": "sgdph-recipe-1",
        "title": "Mine",
        "paper": "p",
        "layout": {"rows": ["system"], "columns": ["dataset"]},
        "scales": {"cpu": scale},
    }
    recipe.write_text(yaml.safe_dump(content))
    grow = [recipe, "--model=resnet8", "--threads=1", "--device=cpu", "--out", out]
    assert reproduce(*grow)[0] == 0
    before = snapshot(out / "digits-sgdm-seed0")
    scale["axes"] = [{"optimizer": ["sgdph", "sgdm"]}]
    recipe.write_text(yaml.safe_dump(content))
    code, said, errors = reproduce(*grow, "--seeds=0-1")
    assert code == 0, errors
    assert "4 runs, 3 of them left" in said
    assert runs_under(out) == [f"digits-{x}-seed{k}" for x in ("sgdm", "sgdph") for k in (0, 1)]
    assert snapshot(out / "digits-sgdm-seed0") == before
    assert len(yaml.safe_load((out / "sweep.yaml").read_text())["cells"]) == 2
    # A sweep cannot shrink: runs of the earlier call would be missing from its report.
    code, _, errors = reproduce(*grow)
    assert code == 2
    assert "seeds: the sweep has (0, 1), this call (0,)" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table7", *ONE, "--epochs=2"], "overrides"),
        (["table7", *ONE, "--seeds=1"], "seeds: the sweep has (0,), this call (1,)"),
        (["table8", *ONE], "recipe: the sweep has 'table7', this call 'table8'"),
        (["table7", *ONE, "--scale=gpu-hour"], "scale: the sweep has 'cpu'"),
    ],
)
def test_another_sweep_in_the_same_directory_raises_an_error(
    reproduce: Command, tmp_path: Path, arguments: list[str], message: str
) -> None:
    assert reproduce("table7", *ONE, "--only=0.8", "--out", tmp_path)[0] == 0
    before = snapshot(tmp_path)
    for more in ([], ["--dry-run"]):
        code, _, errors = reproduce(*arguments, *more, "--out", tmp_path)
        assert code == 2
        assert message in errors
        assert "--overwrite" in errors
        assert snapshot(tmp_path) == before


OWN_RECIPE = """
format: sgdph-recipe-1
title: "{title}"
paper: None of the paper's.
scales:
  cpu:
    description: One run.
    time: a second
    seeds: [0]
    options: {{dataset: digits, train_size: 60, model: resnet8, epochs: 1, lr: {lr}}}
    axes: [[{{label: SGDM, optimizer: sgdm}}]]
"""


def test_recipe_files_with_the_same_name_get_separate_run_folders(
    reproduce: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, lr in (("one", 0.1), ("other", 0.2)):
        (tmp_path / name).mkdir()
        text = OWN_RECIPE.format(title=name, lr=lr)
        (tmp_path / name / "recipe.yaml").write_text(text)
        code, said, errors = reproduce(f"{name}/recipe.yaml", "--threads=1", "--device=cpu")
        assert code == 0, said + errors
    (tmp_path / "mine.yaml").write_text(OWN_RECIPE.format(title="mine", lr=0.3))
    assert reproduce("mine.yaml", "--threads=1", "--device=cpu")[0] == 0
    folders = sorted(each.name for each in (tmp_path / "runs").iterdir())
    assert folders == ["mine-cpu", "one-cpu", "other-cpu"]


def test_a_new_title_of_a_recipe_replaces_the_reports(reproduce: Command, tmp_path: Path) -> None:
    recipe, out = tmp_path / "mine.yaml", tmp_path / "out"
    for title, threads in (("The old title", 1), ("The new title", 2)):
        recipe.write_text(OWN_RECIPE.format(title=title, lr=0.1))
        words = [f"--threads={threads}", "--device=cpu", "--out", out]
        assert reproduce(recipe, *words)[0] == 0
        assert title in (out / "report.md").read_text()
    assert "The old title" not in (out / "report.md").read_text()
    # Where the sweep was computed first stays recorded.
    (cell,) = yaml.safe_load((out / "sweep.yaml").read_text())["cells"].values()
    assert cell["threads"] == 1


def test_a_recipe_that_has_changed_raises_an_error(reproduce: Command, tmp_path: Path) -> None:
    assert reproduce("table7", *ONE, "--only=0.8", "--out", tmp_path)[0] == 0
    file = tmp_path / "sweep.yaml"
    values = yaml.safe_load(file.read_text())
    values["cells"]["digits-resnet8-hessian-momentum0.9-sgdph"]["lr"] = 0.5
    file.write_text(yaml.safe_dump(values))
    code, _, errors = reproduce("table7", *ONE, "--only=0.8", "--out", tmp_path)
    assert code == 2
    assert "momentum0.9-sgdph: lr: the run has 0.5, given 0.0769" in errors


def test_a_directory_with_only_a_report_raises_an_error(reproduce: Command, tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("mine")
    code, _, errors = reproduce("table7", *ONE, "--out", tmp_path)
    assert code == 2
    assert "but no sweep" in errors
    assert [file.name for file in tmp_path.iterdir()] == ["report.md"]


def test_overwriting_deletes_the_sweep_and_nothing_else(reproduce: Command, tmp_path: Path) -> None:
    assert reproduce("table7", *ONE, "--only=0.8", "--out", tmp_path)[0] == 0
    (tmp_path / "notes.txt").write_text("mine")
    anew = ["--seeds=1", "--overwrite", "--out", tmp_path]
    code, _, _ = reproduce("table7", *ONE, *anew)
    assert code == 0
    momenta = (0.8, 0.9, 0.99)
    names = [f"digits-resnet8-hessian-momentum{each}-sgdph-seed1" for each in momenta]
    assert runs_under(tmp_path) == names
    assert (tmp_path / "notes.txt").read_text() == "mine"
    # Only part of the sweep cannot be overwritten.
    before = snapshot(tmp_path)
    for more in ([], ["--dry-run"]):
        code, _, errors = reproduce("table7", *ONE, *anew, "--only=0.9-", *more)
        assert code == 2
        assert f"--overwrite deletes all runs in {tmp_path}, also those that --only" in errors
        assert snapshot(tmp_path) == before


def test_a_dry_run_prints_an_estimate_and_saves_nothing(reproduce: Command, tmp_path: Path) -> None:
    small = ["table1", *ONE, "--model=resnet8", "--out", tmp_path / "out"]
    code, said, _ = reproduce(*small, "--dry-run", "--only=sgdm,adahessian", "--jobs=2")
    assert code == 0
    assert list(tmp_path.iterdir()) == []
    assert "digits-resnet8-sgdm" in said
    assert "digits-resnet8-adahessian" in said
    assert "digits-resnet8-adamw" not in said
    assert re.search(r"Estimated: [\d.]+ to [\d.]+ (s|min) for the 2 runs left", said)
    assert "With --jobs 2 it takes at least 1/2 of that" in said
    assert "tuned on MNIST-5k" in said
    assert reproduce(*small, "--only=sgdm")[0] == 0
    before = snapshot(tmp_path)
    code, said, _ = reproduce(*small, "--dry-run", "--only=sgdm,adam-")
    assert code == 0
    assert " for the 1 run left" in said
    code, said, _ = reproduce(*small, "--dry-run", "--overwrite")
    assert code == 0
    assert " for the 7 runs left" in said
    assert "1 of 7 runs have ended; --overwrite deletes them" in said
    assert snapshot(tmp_path) == before


def test_a_dry_run_times_each_network_and_each_optimizer_once(
    reproduce: Command, tmp_path: Path
) -> None:
    code, said, _ = reproduce("table1", "--data-dir=x", "--dry-run", "--out", tmp_path / "out")
    assert code == 0
    timed = re.findall(r"^timing (\S+) with (\S+), ", said, re.MULTILINE)
    # 28 cells of two sets, each with images of its own size, two networks and seven optimizers.
    assert sorted({network for network, _ in timed}) == ["resnet8", "vgg8-bn"]
    assert len(timed) == len({optimizer for _, optimizer in timed}) + 3 == 10


def test_networks_are_timed_on_small_images_if_they_take_them() -> None:
    sizes = {
        model: with_small_images(resolve({"dataset": "mini-imagenet", "model": model})).image_size
        for model in ("resnet8", "timm:vit_tiny_patch16_224")
    }
    assert sizes == {"resnet8": 64, "timm:vit_tiny_patch16_224": 224}


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (3.2, 4.04, "3.2 to 4 s"),
        (240, 600, "4 to 10 min"),
        (5400, 9000, "1.5 to 2.5 h"),
        (86_400, 864_000, "1 to 10 days"),
        (2.01, 2.02, "2 s"),
    ],
)
def test_a_range_is_printed_in_a_suitable_unit(low: float, high: float, text: str) -> None:
    assert str(Range(low, high)) == text


@pytest.mark.parametrize(
    "task",
    [
        ["--dataset=digits"],
        # Without plain attention AdaHessian's step on a transformer raises an error.
        ["--dataset=pydoc", "--model=transformer", "--optimizers=sgdm,adahessian"],
    ],
    ids=["images", "text"],
)
def test_a_dry_run_of_a_comparison_prints_an_estimate(
    task: list[str], sgdph: Command, tmp_path: Path
) -> None:
    small = [*task, "--train-size=60", "--epochs=1", "--device=cpu", "--threads=1"]
    code, said, errors = sgdph("compare", *small, "--dry-run", "--out", tmp_path / "out")
    assert code == 0, errors
    assert re.search(r"Estimated: [\d.]+ to [\d.]+ s for the 6 runs left", said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "told", "warned"),
    [
        ({}, "sgdm: lr 0.1 (the default), weight decay 0.0005 (the default)", "sgdm, adamw-ph"),
        (
            {"lr": "0.2", "weight_decay": "0.1"},
            "sgdm: lr 0.2 (given), weight decay 0.1 (given)",
            "adamw-ph",
        ),
        (
            {"lr": "sgdm=0.2"},
            "sgdm: lr 0.2 (given), weight decay 0.0005 (the default)",
            "sgdm, adamw-ph",
        ),
        (
            {"optimizer_args": ("sgdm.lr=0.5",), "dataset": "mnist5k"},
            "sgdm: lr 0.5 (given), weight decay 0.005 (tuned on mnist5k)",
            "",
        ),
        (
            {"dataset": "mnist5k"},
            "lr 0.01 (tuned on mnist5k), weight decay 0.05 (tuned on mnist5k), newton lr 0.1",
            "",
        ),
        (
            {"newton_lr": "0.3"},
            "sgdm: lr 0.3 (from --settings), weight decay 0.01 (from",
            "adamw-ph",
        ),
    ],
    ids=str,
)
def test_a_comparison_states_the_source_of_its_settings(
    given: dict[str, Any], told: str, warned: str
) -> None:
    given = {"dataset": "digits", **given}
    settings = {"sgdm": {"lr": 0.3, "weight_decay": 0.01}} if "from" in told else {}
    comparison = Comparison(("sgdm", "adamw-ph"), (0,), given, settings)
    said = comparison.describe_settings(comparison.plan())
    assert told in " ".join(said[:2])
    warning = f"Not tuned for {given['dataset']}: {warned}."
    assert [line.startswith(warning) for line in said[2:]] == [True] * bool(warned)


def test_a_dry_run_needs_no_data(reproduce: Command, tmp_path: Path) -> None:
    code, said, _ = reproduce(
        *("table2", "--scale=paper", "--dry-run", "--image-size=32", "--batch-size=8"),
        *("--only=resnet18-sgdm", "--device=cpu", "--threads=1", "--out", tmp_path / "out"),
    )
    assert code == 0
    assert "mini-imagenet-torchvision-resnet18-sgdm" in said
    assert list(tmp_path.iterdir()) == []


def test_the_list_names_every_recipe_and_its_times(reproduce: Command) -> None:
    code, said, _ = reproduce("--list")
    assert code == 0
    for name in (*(f"table{k}" for k in range(1, 9)), "figure3", "figure5", "cost"):
        assert f"{name}: " in said
    assert said.count("--scale cpu") == said.count("--scale paper") == 12
    assert "minutes on 2" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a recipe: one of table1"),
        (["table9"], "unknown recipe 'table9'; did you mean table8?"),
        (
            ["table7", *ONE, "--only=nothing"],
            "--only nothing fits no cell; the values are: data set digits;",
        ),
        (
            ["table1", "--scale=paper", "--only=cifar10,SGMD"],
            "--only SGMD fits no cell; the values",
        ),
        (["table7", *ONE, "--only=0.8,resnet8-sgdm"], "--only resnet8-sgdm fits no cell"),
        (["table6", "--only=digits,mnist5k-resnet8"], "fits no cell: words of one field are"),
        (["table7", *ONE, "--only=,"], "--only names nothing; the values are"),
        (
            ["table5", "--scale=paper", "--only=0.01,0.005"],
            "does not say which number is which: lr and weight decay both have 0.005",
        ),
        (["table7", "--resume", "--overwrite"], "contradict"),
        (["table7", "--jobs=0"], "--jobs must be at least 1"),
        (["table1", "--scale=cpu", "--only=cifar10"], "--data-dir"),
        (["table7", *ONE, "--settings=nowhere.yaml"], "nowhere.yaml cannot be read"),
    ],
)
def test_the_error_for_wrong_usage_says_what_to_do(
    reproduce: Command, tmp_path: Path, arguments: list[str], message: str
) -> None:
    code, _, errors = reproduce(*arguments, "--out", tmp_path / "out")
    assert code == 2
    assert message in errors
    assert not (tmp_path / "out").exists()


def break_step(monkeypatch: pytest.MonkeyPatch, number: int, error: BaseException) -> None:
    """Make the n-th optimizer step from now on raise an error."""
    step, left = epoch.optimization_step, [number]

    def counted(*arguments: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise error
        step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(epoch, "optimization_step", counted)


TABLE7 = ["table7", *SMALLEST, "--train-size=60", "--seeds=0", "--epochs=3"]


def test_the_same_command_resumes_an_interrupted_sweep(
    reproduce: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reproduce(*TABLE7, "--out", tmp_path / "whole")[0] == 0
    with monkeypatch.context() as patch:
        # A run has 9 steps: step 14 is in the second epoch of the second run.
        break_step(patch, 14, KeyboardInterrupt())
        code, said, _ = reproduce(*TABLE7, "--out", tmp_path / "broken")
    assert code == 130
    assert "Continue with the same command" in said
    assert not (tmp_path / "broken" / "report.md").exists()
    code, said, _ = reproduce(*TABLE7, "--out", tmp_path / "broken")
    assert code == 0
    assert "carrying on after epoch 1" in said
    for run in runs_under(tmp_path / "whole"):
        first, second = tmp_path / "whole" / run, tmp_path / "broken" / run
        assert same_bits(checkpoint_of(first), checkpoint_of(second))


def test_a_failed_run_does_not_stop_the_others_and_is_retried_later(
    reproduce: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        break_step(patch, 4, RuntimeError("the disk is on fire"))
        code, said, _ = reproduce(*TABLE7, "--out", tmp_path)
    assert code == 1
    assert "failed: digits-resnet8-hessian-momentum0.8-sgdph-seed0: RuntimeError" in said
    statuses = [RunDirectory(tmp_path / run).status() for run in runs_under(tmp_path)]
    assert statuses == ["interrupted", "finished", "finished"]
    (log,) = (tmp_path / "logs").iterdir()
    assert "the disk is on fire" in log.read_text()
    code, said, _ = reproduce(*TABLE7, "--out", tmp_path)
    assert code == 0
    assert "carrying on after epoch 1" in said
    assert list((tmp_path / "logs").iterdir()) == []


def test_a_diverged_run_is_not_a_failure(reproduce: Command, tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("format: sgdph-settings-1\noptimizers: {sgdph: {lr: 1.0e+30}}\n")
    out = tmp_path / "out"
    code, said, _ = reproduce(*TABLE7, "--only=0.8", "--settings", settings, "--out", out)
    assert code == 0
    assert "diverged" in said
    assert "tuned settings" in said
