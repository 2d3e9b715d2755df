"""``sgdph tune``: budgets, held-out data, results and errors."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml

from lab.conftest import Command
from lab.folders import check_folder
from sgdph.lab.data import embedded
from sgdph.lab.data.source import TensorSplits
from sgdph.lab.options.resolution import resolve
from sgdph.lab.options.settings import read_settings
from sgdph.lab.run.directory import RunDirectory

from .conftest import TINY, facts, searches

# One pytest worker runs these tests, so the module's tuning is made only once.
pytestmark = pytest.mark.xdist_group("tuned")


def snapshot(directory: Path) -> dict[str, bytes]:
    return {
        file.relative_to(directory).as_posix(): file.read_bytes()
        for file in directory.rglob("*")
        if file.is_file() and file.suffix != ".lock"
    }


def test_every_optimizer_gets_the_same_budget(tuned: Path) -> None:
    for optimizer in ("sgdm", "adamw"):
        runs = sorted((tuned / optimizer).iterdir())
        assert [run.name for run in runs] == ["trial-000", "trial-001", "trial-002"]
        assert [RunDirectory(run).status() for run in runs] == ["finished"] * 3
    # The trials differ: they are a search, not repetitions.
    assert len({trial.settings["lr"] for trial in searches(tuned)["sgdm"].trials}) == 3


def test_the_best_settings_are_those_of_the_best_run(tuned: Path) -> None:
    settings = read_settings(tuned / "best.yaml")
    assert list(settings) == ["sgdm", "adamw"]
    for optimizer, found in settings.items():
        runs = [RunDirectory(path) for path in sorted((tuned / optimizer).iterdir())]
        last = [run.read_metrics()[-1] for run in runs]
        best = max(
            range(3), key=lambda i: (last[i]["validation_accuracy"], -last[i]["validation_loss"])
        )
        config = runs[best].read_config()
        assert found == {"lr": config.lr, "weight_decay": config.weight_decay}
        # The rounded values that a person reads and types are those of the run.
        assert all(value == float(f"{value:.3g}") for value in found.values())
        # A run accepts them without a change.
        assert resolve({**found, "optimizer": optimizer, "dataset": "digits"}).lr == found["lr"]
    source = yaml.safe_load((tuned / "best.yaml").read_text())["source"]
    assert (source["trials_of_each"], source["validation_size"], source["epochs"]) == (3, 20, 1)
    for name in ("command", "torch", "model", "dataset"):
        assert source[name]


def test_a_comparison_takes_the_best_settings(sgdph: Command, tuned: Path, tmp_path: Path) -> None:
    words = ["--optimizers=sgdm,adamw", "--seeds=3", f"--settings={tuned}/best.yaml"]
    code, _, _ = sgdph("compare", *TINY, *words, "--lr=adamw=0.5", f"--out={tmp_path}/a")
    assert code == 0
    best = read_settings(tuned / "best.yaml")
    configs = {
        config.optimizer: config
        for path in (tmp_path / "a").glob("*/config.yaml")
        for config in [RunDirectory(path.parent).read_config()]
    }
    assert configs["sgdm"].lr == best["sgdm"]["lr"]
    assert configs["adamw"].weight_decay == best["adamw"]["weight_decay"]
    # An explicit option overrides the file.
    assert configs["adamw"].lr == 0.5


def test_all_trials_are_in_the_json(tuned: Path) -> None:
    content = json.loads((tuned / "tune.json").read_text())
    for optimizer, search in content["optimizers"].items():
        assert [trial["number"] for trial in search["trials"]] == [0, 1, 2]
        for trial in search["trials"]:
            run = RunDirectory(tuned / trial["run"])
            assert trial["run"].startswith(f"{optimizer}/")
            line = run.read_metrics()[-1]
            assert trial["validation_accuracy"] == line["validation_accuracy"]
            assert trial["settings"]["lr"] == run.read_config().lr


def test_the_report_has_pictures_and_lists_the_trials(tuned: Path) -> None:
    check_folder(tuned)
    page = (tuned / "report.md").read_text()
    for picture in ("sensitivity.png", "budget.png"):
        assert picture in page
        assert (tuned / picture).read_bytes().startswith(b"\x89PNG")
    for trial in ("sgdm/trial-000/", "adamw/trial-002/"):
        assert trial in page
    assert "there was no further search" in page  # Three trials are all random.


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Makes test images brighter than any real one, and records the brightest pixels seen."""
    read = embedded.read_digits

    def poisoned() -> TensorSplits:
        images, labels, test_images, test_labels = read()
        return images, labels, torch.full_like(test_images, 255), test_labels

    monkeypatch.setattr(embedded, "read_digits", poisoned)
    brightest: list[float] = []

    def look(module: torch.nn.Module, inputs: Any) -> None:
        if isinstance(module, torch.nn.Conv2d) and inputs[0].shape[1] == 1:
            brightest.append(inputs[0].max().item())

    hook = torch.nn.modules.module.register_module_forward_pre_hook(look)
    yield brightest
    hook.remove()


def test_no_test_image_reaches_the_network(
    sgdph: Command, seen: list[float], tmp_path: Path
) -> None:
    code, _, _ = sgdph("tune", *TINY, "--optimizers=sgdm", "--trials=2", f"--out={tmp_path}/a")
    assert code == 0
    assert len(seen) == 2 * (4 + 1)  # 4 batches of 80 images to train, one of 20 to validate.
    assert max(seen) < 10
    # The hook does see test images: a plain run is evaluated on them.
    sgdph("train", *TINY, "--optimizer=sgdm", f"--out={tmp_path}/b")
    assert max(seen) > 20


def test_repeating_the_command_trains_nothing(
    sgdph: Command, tuned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = facts(tuned)
    monkeypatch.setattr("sgdph.lab.tune.trial.train_run", None)
    code, said, _ = sgdph("tune", *TINY, "--optimizers=sgdm,adamw", "--trials=3", f"--out={tuned}")
    assert code == 0
    assert str(tuned / "best.yaml") in said
    assert facts(tuned) == before


def test_trials_and_optimizers_can_be_added(sgdph: Command, tmp_path: Path) -> None:
    out = f"--out={tmp_path}/a"
    sgdph("tune", *TINY, "--optimizers=sgdm", "--trials=1", out)
    first = facts(tmp_path / "a")["sgdm"]
    code, _, _ = sgdph("tune", "--trials=2", "--optimizers=adamw", out)
    assert code == 0
    found = facts(tmp_path / "a")
    assert list(found) == ["sgdm", "adamw"]
    assert [len(trials) for trials in found.values()] == [2, 2]
    assert found["sgdm"][:1] == first
    # Trials that are added later equal those of one longer search.
    sgdph("tune", *TINY, "--optimizers=sgdm", "--trials=2", f"--out={tmp_path}/b")
    assert facts(tmp_path / "b")["sgdm"] == found["sgdm"]


def test_the_best_settings_include_the_fixed_ones(sgdph: Command, tmp_path: Path) -> None:
    out = f"--out={tmp_path}/a"
    fixed = ["--momentum=0.8", "--channelwise-decay=none", "--precision=bfloat16"]
    fixed += ["--optimizer-args", "adamw.amsgrad=true", "adamw.eps=1e-6"]
    code, _, _ = sgdph("tune", *TINY, "--optimizers=sgdm,adamw", "--trials=1", out, *fixed)
    assert code == 0
    found = read_settings(tmp_path / "a" / "best.yaml")
    assert set(found["sgdm"]) == {"momentum", "channelwise_decay", "lr", "weight_decay"}
    assert found["sgdm"]["momentum"] == 0.8
    assert found["adamw"]["optimizer_args"] == {"amsgrad": True, "eps": 1e-6}
    source = yaml.safe_load((tmp_path / "a" / "best.yaml").read_text())["source"]
    assert source["precision"] == "bfloat16"
    config = searches(tmp_path / "a")["adamw"].trials[0].run.config
    assert (config.eps, config.optimizer_args) == (1e-6, (("amsgrad", True),))
    # The same options are accepted again, different ones are not.
    code, _, errors = sgdph("tune", out, "--optimizer-args", "adamw.amsgrad=false")
    assert code == 2
    assert "amsgrad: the run has True, given False" in errors
    assert sgdph("tune", out, *fixed)[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--epochs=2"], "epochs: the run has 1, given 2"),
        (["--seed=1"], "seed: the run has 0, given 1"),
        (["--trials=2"], "trials: it has 3, this call gives 2; it can only grow"),
        (["--sampler=random"], "sampler: it has tpe, given random"),
        (["--storage=journal"], "storage: it has sqlite, given journal"),
        (["--space=sgdm.lr=1e-3:1"], "it has sgdm.lr=0.0033:3:log, given 0.001:1:log"),
        (["--space=sgdm.momentum=0:0.9"], "it has sgdm.momentum=not searched"),
        (["--momentum=0.5"], "momentum: the run has 0.9, given 0.5"),
        (["--validation-size=30"], "validation_size: the run has 20, given 30"),
    ],
)
def test_options_that_disagree_with_the_tuning_raise_an_error(
    sgdph: Command, tuned: Path, words: list[str], said: str
) -> None:
    before = snapshot(tuned)
    code, _, errors = sgdph("tune", f"--out={tuned}", *words)
    assert code == 2
    assert said in errors
    assert "another --out" in errors
    assert snapshot(tuned) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--optimizers=sgdm,lion"], "lion"),
        (["--trials=0"], "--trials must be at least 1"),
        (["--jobs=0"], "--jobs must be at least 1"),
        (["--storage=mysql"], "--storage must be sqlite, journal or a database's URL"),
        (["--storage=postgresql://me:secret@host/db"], "PGPASSWORD"),
        (["--storage=nothing://host/db"], "--storage nothing://host/db cannot be opened"),
        (["--space=sgdm.lr=1:0.1"], "smaller"),
        (["--momentum=0.5", "--space=sgdm.momentum=0.5:0.9"], "--momentum fixes what --space"),
        (["--eps=1", "--optimizers=sgdm"], "none of sgdm has the setting --eps"),
        (["--sampler=grid", "--trials=5"], "like 16 = 4 x 4"),
        (["--resume"], "holds no tuning to resume"),
        (["--resume", "--overwrite"], "contradict"),
        (["--validation-size=100"], "images"),
    ],
)
def test_invalid_options_raise_an_error_and_nothing_is_written(
    sgdph: Command, tmp_path: Path, words: list[str], said: str
) -> None:
    code, _, errors = sgdph("tune", *TINY, f"--out={tmp_path}/a", *words)
    assert code == 2
    assert said in errors
    assert "secret" not in errors
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_overwrite_deletes_only_the_tuning(sgdph: Command, tmp_path: Path) -> None:
    command = ["tune", *TINY, "--optimizers=sgdm", f"--out={tmp_path}/a"]
    sgdph(*command, "--trials=2")
    (tmp_path / "a" / "notes.txt").write_text("mine")
    code, _, _ = sgdph(*command, "--trials=1", "--seed=5", "--overwrite")
    assert code == 0
    assert (tmp_path / "a" / "notes.txt").read_text() == "mine"
    trials = searches(tmp_path / "a")["sgdm"].trials
    assert [trial.run.config.seed for trial in trials] == [5]


def test_a_directory_with_a_foreign_tune_yaml_is_unchanged(sgdph: Command, tmp_path: Path) -> None:
    (tmp_path / "tune.yaml").write_text("tempo: 120\n")
    before = snapshot(tmp_path)
    for words in ([], ["--overwrite"]):
        code, _, errors = sgdph("tune", *TINY, f"--out={tmp_path}", *words)
        assert code == 2
        assert "tuning" in errors
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("words", [[], ["--resume"], ["--overwrite"]])
def test_a_foreign_table_raises_an_error_and_is_not_changed(
    sgdph: Command, tmp_path: Path, words: list[str]
) -> None:
    (tmp_path / "table.csv").write_text("mine")
    code, _, errors = sgdph("tune", *TINY, f"--out={tmp_path}", *words)
    assert code == 2
    assert "contains table.csv but no tuning; name another --out" in errors
    assert (tmp_path / "table.csv").read_text() == "mine"


def test_an_old_page_is_deleted_but_a_foreign_report_is_not_replaced(
    sgdph: Command, tmp_path: Path
) -> None:
    command = ["tune", *TINY, "--optimizers=sgdm", "--trials=1", f"--out={tmp_path}"]
    assert sgdph(*command)[0] == 0
    (tmp_path / "tune.md").write_text("# Tuning of sgdm\n")
    assert sgdph(*command)[0] == 0
    assert not (tmp_path / "tune.md").exists()
    (tmp_path / "report.md").write_text("mine")
    for words in ([], ["--resume"], ["--overwrite"]):
        code, _, errors = sgdph(*command, *words)
        assert code == 2
        assert "contains report.md, which sgdph did not write" in errors
    assert (tmp_path / "report.md").read_text() == "mine"


def test_diverged_trials_count_and_get_the_worst_value(sgdph: Command, tmp_path: Path) -> None:
    code, said, _ = sgdph(
        "tune",
        *TINY,
        "--optimizers=sgdm",
        "--trials=2",
        "--space=sgdm.lr=1e30:1e35",
        f"--out={tmp_path}/a",
    )
    assert code == 0
    search = searches(tmp_path / "a")["sgdm"]
    assert [trial.status for trial in search.trials] == ["diverged", "diverged"]
    assert "no trial was finished" in said
    assert not (tmp_path / "a" / "best.yaml").exists()
    storage = f"sqlite:///{tmp_path}/a/study.db"
    (name,) = optuna.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    assert [trial.value for trial in study.trials] == [0.0, 0.0]


def test_a_grid_is_searched_once_and_its_edges_are_reported(sgdph: Command, tmp_path: Path) -> None:
    code, said, _ = sgdph(
        "tune",
        *TINY,
        "--optimizers=sgdm",
        "--sampler=grid",
        "--trials=4",
        "--space=sgdm.lr=0.01:0.1,sgdm.weight_decay=1e-4:1e-3",
        f"--out={tmp_path}/a",
    )
    assert code == 0
    points = [tuple(t.settings.values()) for t in searches(tmp_path / "a")["sgdm"].trials]
    assert points == [(lr, decay) for lr in (0.01, 0.1) for decay in (1e-4, 1e-3)]
    assert "the best lr, 0.1, lies at the high end of its range (0.01:0.1:log)" in said
    assert "--space sgdm.lr=0.01:0.32:log" in said
    code, _, errors = sgdph("tune", "--trials=9", f"--out={tmp_path}/a")
    assert code == 2
    assert "its grid has 4 points" in errors
