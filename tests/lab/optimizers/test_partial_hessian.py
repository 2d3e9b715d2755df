"""The partial Hessian beside another optimizer: flag, names, settings, same bits as SGD-PH."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from small import bn_net
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lab.conftest import (
    TINY,
    Command,
    checkpoint_of,
    interrupt_at,
    same_bits,
    start,
    tiny_config,
    without_seconds,
)
from sgdph import PartialHessian, param_groups
from sgdph.lab.data.dataset import Dataset
from sgdph.lab.errors import LabError
from sgdph.lab.inspect.figures import MultiplierRecord
from sgdph.lab.inspect.multipliers import held_averages, hyperparameter, multiplier_records
from sgdph.lab.inspect.parameters import newton_parameters
from sgdph.lab.optimizers.baseline import newton_name
from sgdph.lab.optimizers.newton import CONTROLS, MULTIPLIERS, MultiplierName
from sgdph.lab.optimizers.registry import BASELINES, FIRST_ORDER, TUNED, with_partial_hessian
from sgdph.lab.options.optimizer_args import share_arguments
from sgdph.lab.options.resolution import resolve, resolve_many
from sgdph.lab.options.settings import read_settings
from sgdph.lab.run.archive import read_archive
from sgdph.lab.run.directory import RunDirectory
from sgdph.lab.run.start import build_optimizer, prepare
from sgdph.lab.run.step import optimization_step
from sgdph.lab.sweep.comparison import Comparison

SMALL = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
NAMES = [name for name, baseline in BASELINES.items() if baseline.first_order]
HUTCHINSON = {"estimator": "hutchinson", "hessian_interval": 2}


def test_every_first_order_optimizer_exists_with_each_multiplier() -> None:
    assert tuple(MULTIPLIERS) == get_args(MultiplierName)
    assert set(FIRST_ORDER) == {"sgdm", "adam", "adamw", "adabelief", "apollo", "muon", "soap"}
    assert {with_partial_hessian(o, m) for o in FIRST_ORDER for m in MULTIPLIERS} == {*NAMES}
    assert [name for name in NAMES if name.startswith("adamw")] == [
        "adamw-ph",
        *(f"adamw-ph-{control}" for control in CONTROLS),
    ]
    assert BASELINES["adamw-ph"].label == "AdamW + partial Hessian"
    assert BASELINES["muon-ph-fixed1"].label == "Muon + partial Hessian, multiplier 1"


@pytest.mark.parametrize("name", NAMES)
def test_each_half_gets_its_parameters_and_its_settings(name: str) -> None:
    model = bn_net()
    given: dict[str, Any] = {"lr": 0.25, "weight_decay": 0.125, "newton_lr": 0.5}
    newton: dict[str, Any] = {"momentum": 0.7, "weight_decay": 0.0625}
    defaults = BASELINES[name].defaults
    if "second_order_lr" in defaults:
        given["second_order_lr"] = newton["second_order_lr"] = 2e-3
        newton["eps"] = 1e-2
    if "estimator" in defaults:
        own = {"hessian_momentum": 0.8, "estimator": "exact", "refresh": "all"}
        given |= own
        newton |= {**own, "eps_warmup": True}
    arguments = {newton_name(key): value for key, value in newton.items() if key not in given}
    arguments["newton_weight_decay"] = newton["weight_decay"]
    config = resolve({"optimizer": name, "seed": 3, **given, "optimizer_args": arguments})
    optimizer = build_optimizer(model, config)
    assert isinstance(optimizer, PartialHessian)
    (group,) = [each for each in optimizer.param_groups if each.get("channelwise")]
    (expected,) = [each for each in param_groups(model) if each["channelwise"]]
    assert [id(p) for p in group["params"]] == [id(p) for p in expected["params"]]
    assert {key: group[key] for key in (*newton, "lr", "seed")} == {**newton, "lr": 0.5, "seed": 3}
    (first_order,) = optimizer.first_order
    baseline = BASELINES[name].first_order
    assert baseline is not None
    assert type(first_order) is baseline.load()
    assert {id(p) for each in optimizer.param_groups for p in each["params"]} == {
        id(p) for p in model.parameters()
    }
    used = [each for each in first_order.param_groups if each.get("use_muon", True)]
    assert all((each["lr"], each["weight_decay"]) == (0.25, 0.125) for each in used)


def test_newton_steps_default_to_sgdphs_settings_and_others_to_their_own() -> None:
    alone, both, sgdph = (resolve({"optimizer": n}) for n in ("adamw", "adamw-ph", "sgdph"))
    assert (both.lr, both.weight_decay, both.eps) == (alone.lr, alone.weight_decay, alone.eps)
    assert both.newton_lr == TUNED["mnist5k"]["sgdph"]["lr"] == sgdph.lr
    arguments = {f"newton_{name}": getattr(sgdph, name) for name in ("momentum", "eps")}
    assert dict(both.optimizer_args or ()) == {**arguments, "newton_weight_decay": 5e-3}
    assert resolve({"optimizer": "adamw-ph", "dataset": "digits"}).newton_lr == 0.01


@pytest.mark.parametrize("options", [{}, HUTCHINSON])
def test_beside_sgdm_it_equals_sgdph_to_the_bit_also_when_resumed(
    tmp_path: Path, digits: Dataset, options: Mapping[str, Any]
) -> None:
    sgdph = tiny_config(optimizer="sgdph", lr=0.05, seed=3, **options)
    both = tiny_config(
        optimizer="sgdm-ph", lr=0.05, newton_lr=0.05, weight_decay=5e-3, seed=3, **options
    )
    start(sgdph, tmp_path / "sgdph", digits)
    with pytest.raises(KeyboardInterrupt):
        start(both, tmp_path / "both", digits, interrupt_at(6))
    torch.manual_seed(99)
    found, expected = RunDirectory(tmp_path / "both"), RunDirectory(tmp_path / "sgdph")
    assert found.read_config() == both
    start(found.read_config(), found.path, digits)
    assert same_bits(checkpoint_of(found.path)["model"], checkpoint_of(expected.path)["model"])
    lines = without_seconds(found.read_metrics())
    assert [line.pop("newton_lr") for line in lines] == [line["lr"] for line in lines]
    assert lines == without_seconds(expected.read_metrics())
    assert found.read_metrics()[-1]["newton_multiplier"]["refreshed"] > 0


def test_train_by_flag_resumes_and_tracks_the_multipliers(sgdph: Command, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["--optimizer=adamw", "--partial-hessian", "--out", out]
    more = ["--newton-lr=0.03", "--estimator=hutchinson", "--track=tensorboard"]
    code, said, _ = sgdph("train", *SMALL, "--epochs=1", *words, *more)
    assert code == 0
    assert "lr 0.001, Newton 0.03  " in said
    assert RunDirectory(out).read_metrics()[0]["newton_lr"] == 0.03
    saved = yaml.safe_load((out / "config.yaml").read_text())
    assert (saved["optimizer"], saved["newton_lr"]) == ("adamw-ph", 0.03)
    events = EventAccumulator(str(out))
    events.Reload()
    (median,) = events.Scalars("newton_multiplier/median")
    assert median.value == pytest.approx(
        RunDirectory(out).read_metrics()[0]["newton_multiplier"]["median"]
    )
    assert sgdph("train", *words, "--resume")[0] == 0
    code, _, error = sgdph("train", "--optimizer=adamw", "--out", out, "--resume")
    assert code == 2
    assert "optimizer: the run has 'adamw-ph', given 'adamw'" in error


def test_compare_accepts_partial_hessians_and_controls_by_name(
    sgdph: Command, tmp_path: Path, without_pictures: None
) -> None:
    names = ["adamw", "adamw-ph", "adamw-ph-shuffled", "adamw-ph-fixed1"]
    words = ["--optimizers", ",".join(names), "--seeds=0", "--epochs=1", "--jobs=1"]
    more = ["--newton-lr=adamw-ph=0.04", "--optimizer-args", "newton_eps=1e-3"]
    assert sgdph("compare", *SMALL, *words, *more, "--out", tmp_path)[0] == 0
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert [row["optimizer"] for row in rows] == names
    configs = [RunDirectory(tmp_path / f"{name}-seed0").read_config() for name in names]
    assert [config.newton_lr for config in configs] == [None, 0.04, 0.01, 0.01]
    eps = [dict(config.optimizer_args or ()).get("newton_eps") for config in configs]
    assert eps == [None, 1e-3, 1e-3, None]
    report = (tmp_path / "report.md").read_text()
    for words_of_control in ("", ", shuffled multipliers", ", multiplier 1"):
        assert f"AdamW + partial Hessian{words_of_control} " in report


RECIPE = """
format: sgdph-recipe-1
title: Newton steps
paper: None of the paper's.
settings: {adamw-ph: {newton_lr: {value: 3e-2, source: ours}}}
scales:
  cpu:
    description: Two runs.
    time: a second
    seeds: [0]
    options: {dataset: digits, train_size: 50, model: resnet8, epochs: 1}
    axes: [{optimizer: [adamw-ph, adamw-ph-fixed10]}]
"""


def test_a_recipe_and_an_archive_keep_newton_lr(
    sgdph: Command, tmp_path: Path, without_pictures: None
) -> None:
    (tmp_path / "mine.yaml").write_text(RECIPE)
    out, kept = tmp_path / "out", tmp_path / "kept"
    words = ["--threads=1", "--device=cpu", "--jobs=1", "--out", out]
    assert sgdph("reproduce", tmp_path / "mine.yaml", *words)[0] == 0
    assert sgdph("report", out, "--archive", "--out", kept)[0] == 0
    runs = {run.config.optimizer: run.config for run in read_archive(kept)}
    assert {name: config.newton_lr for name, config in runs.items()} == {
        "adamw-ph": 0.03,
        "adamw-ph-fixed10": 0.01,
    }
    assert "| AdamW + partial Hessian, multiplier 10 |" in (kept / "report.md").read_text()


def test_tune_searches_newton_lr_and_writes_it(
    sgdph: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("draw_sensitivity", "draw_budget"):
        # The page needs its pictures, but drawing them would take most of the time.
        monkeypatch.setattr(
            f"sgdph.lab.tune.page.{name}", lambda searches, path, title: path.write_bytes(b"")
        )
    words = ["--optimizers=adamw-ph-fixed1", "--trials=1", "--epochs=1", "--jobs=1"]
    space = "--space=newton_lr=0.5:0.6,newton_weight_decay=0.03:0.04"
    fixed = ["--optimizer-args", "newton_momentum=0.8"]
    assert sgdph("tune", *SMALL, *words, space, *fixed, "--out", tmp_path)[0] == 0
    best = read_settings(tmp_path / "best.yaml")["adamw-ph-fixed1"]
    assert best.keys() == {"lr", "weight_decay", "newton_lr", "optimizer_args"}
    (config,) = resolve_many({}, ("adamw-ph-fixed1",), (0,), {"adamw-ph-fixed1": best})
    trial = RunDirectory(tmp_path / "adamw-ph-fixed1" / "trial-000").read_config()
    assert (config.lr, config.newton_lr) == (trial.lr, trial.newton_lr)
    assert config.optimizer_args == trial.optimizer_args
    assert config.newton_lr is not None
    assert 0.5 <= config.newton_lr <= 0.6
    assert 0.03 <= config.setting("newton_weight_decay") <= 0.04
    assert config.setting("newton_momentum") == 0.8
    code, _, error = sgdph(
        "tune", *SMALL, *words, space, "--optimizer-args", "newton_weight_decay=0", "--out", "x"
    )
    assert code == 2
    assert "--optimizer-args newton_weight_decay fixes what --space searches" in error


@pytest.mark.parametrize(
    ("name", "source"), [("adamw-ph", "held"), ("adamw-ph-mean", "control"), ("adamw", None)]
)
def test_inspect_shows_the_multipliers_of_the_optimizer(
    digits: Dataset, name: str, source: str | None
) -> None:
    given = {"refresh": "all", "optimizer_args": {"newton_eps": 1e-2}} if source else {}
    run = prepare(tiny_config(optimizer=name, **given), digits)
    model, optimizer = run.state.model, run.state.optimizer

    def records() -> list[MultiplierRecord]:
        params = newton_parameters(model)
        return multiplier_records(run, params, held_averages(optimizer, params, run.config), {})

    before = records()
    loss = model(digits.train_images[:4].float()).square().mean()  # type: ignore[attr-defined]
    optimization_step(optimizer, loss)
    if source is None:
        # The run has no such value for Newton steps, so it is SGD-PH's, not AdamW's own.
        assert hyperparameter(run.config, "eps") == 1e-4
        assert before == records() == []
        return
    assert hyperparameter(run.config, "eps") == 1e-2
    assert {record.source for record in before} == {"unvisited" if source == "held" else source}
    assert {record.source for record in records()} == {source}
    assert isinstance(optimizer, PartialHessian)
    means = {key: value.mean().item() for key, value in optimizer.multipliers().items()}
    assert {record.name: pytest.approx(record.mean, rel=1e-5) for record in records()} == means


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--partial-hessian", "needs a first-order optimizer beside it; take --optimizer sgdm, "),
        (
            "--optimizer=sgdph --partial-hessian",
            "cannot be used with sgdph, which has Newton steps",
        ),
        (
            "--optimizer=adamw-ph --partial-hessian=mean",
            "cannot be used with adamw-ph, which has New",
        ),
        (
            "--optimizer=adahessian --partial-hessian",
            "cannot be used with adahessian, which has curv",
        ),
        ("--optimizer=lbfgs --partial-hessian", "unknown --optimizer 'lbfgs'"),
        (
            "--optimizer=adamw --estimator=exact",
            "--estimator .* any with --partial-hessian but its controls",
        ),
        ("--optimizer=adamw --newton-lr=1", "adamw has no setting --newton-lr"),
        ("--optimizer=sgdph --newton-lr=1", "sgdph has no setting --newton-lr"),
        (
            "--optimizer=adamw --partial-hessian --momentum=0.5",
            "for its Newton steps use --optimizer-args newton_momentum=…",
        ),
        (
            "--optimizer=adamw --partial-hessian=fixed1 --estimator=exact",
            r"adamw-ph-fixed1 has no setting --estimator \(got 'exact'\): its multiplier is",
        ),
        (
            "--optimizer=adamw --partial-hessian --optimizer-args newton_seed=1",
            "adamw-ph has no argument 'newton_seed'",
        ),
    ],
)
def test_an_option_that_does_not_apply_is_an_error(
    sgdph: Command, tmp_path: Path, words: str, message: str
) -> None:
    code, said, error = sgdph("train", *SMALL, *words.split(), "--out", tmp_path / "run")
    assert (code, said) == (2, "")
    assert re.search(message, error), error
    assert not (tmp_path / "run").exists()


def test_newton_arguments_that_no_optimizer_has_raise_an_error() -> None:
    with pytest.raises(LabError, match="none of the optimizers has an argument 'newton_eps'"):
        share_arguments(("newton_eps=1e-3",), ("adamw", "adamw-ph-fixed1"))


def test_an_extended_comparison_combines_newton_learning_rates() -> None:
    first = Comparison(("adamw", "adamw-ph"), (0,), {"newton_lr": 0.05})
    both = first.extended(Comparison(("muon-ph",), (0,), {"newton_lr": "muon-ph=0.01"}))
    rates = {name: config.newton_lr for name, config in both.plan().cells.items()}
    assert rates == {"adamw": None, "adamw-ph": 0.05, "muon-ph": 0.01}
