"""Command-line options match the configuration: names, help, defaults, errors."""

from __future__ import annotations

import dataclasses
import importlib
import re

import pytest

from lab.conftest import Command
from sgdph.lab.cli import COMMANDS, parse
from sgdph.lab.config.option import HEADINGS
from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.errors import LabError
from sgdph.lab.optimizers.registry import BASELINES, SETTINGS, TUNED
from sgdph.lab.options.defaults import DEFAULTS
from sgdph.lab.options.options import ALL, TrainOptions
from sgdph.lab.options.parser import arguments_of


def helped(sgdph: Command, command: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Map each option to its help text, on one line."""
    monkeypatch.setenv("COLUMNS", "100000")
    code, said, _ = sgdph(command, "--help")
    assert code == 0
    parts = re.split(r"\n  (?=-)", said)
    return {part.split()[0].strip(","): " ".join(part.split()) for part in parts[1:]}


def test_every_field_of_a_run_is_an_option_of_train() -> None:
    fields = {field.name for field in dataclasses.fields(RunConfig)}
    # torchrun sets the number of processes; only recipes set a label.
    assert fields - ALL == {"processes", "label"}
    assert {argument.name for argument in arguments_of(TrainOptions)} >= ALL


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_exists_and_its_options_have_help_texts(
    command: str, sgdph: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, name = COMMANDS[command].run.partition(":")
    assert callable(getattr(importlib.import_module(f"sgdph.lab.{module}"), name))
    for option, text in helped(sgdph, command, monkeypatch).items():
        assert len(text) > len(option) + 10, option


@pytest.mark.parametrize("command", ["train", "inspect"])
def test_help_lists_the_optimizer_its_rate_and_its_decay_first(
    command: str, sgdph: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*helped(sgdph, command, monkeypatch)]
    assert options[:3] == ["--optimizer", "--lr", "--weight-decay"]
    assert options[3:5] == ["--partial-hessian", "--newton-lr"]
    headings = re.findall(r"^(.+):$", sgdph(command, "--help")[1], re.MULTILINE)
    assert [each for each in headings if each != "help"] == [
        each for each in HEADINGS if each in headings
    ]


def test_help_of_compare_lists_the_optimizers_first(
    sgdph: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*helped(sgdph, "compare", monkeypatch)]
    assert options[0] == "--optimizers"
    assert {"--lr", "--weight-decay", "--seeds", "--jobs", "--data-workers"} <= {*options}


def test_help_shows_every_default_as_a_value(
    sgdph: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = helped(sgdph, "train", monkeypatch)
    for name in ALL - {"optimizer_args"}:
        assert "(default: " in said["--" + name.replace("_", "-")], name
    for name, value in DEFAULTS.items():
        assert f"(default: {value}" in said["--" + name.replace("_", "-")]
    for setting in SETTINGS:
        text = said["--" + setting.replace("_", "-")]
        for optimizer, baseline in BASELINES.items():
            other = optimizer.startswith("sgdph-") or baseline.first_order is not None
            if setting in baseline.defaults and not other:
                value = baseline.defaults[setting]
                words = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
                assert f"{optimizer} {words}" in text
    assert "(default: 0.01 with --partial-hessian; on mnist5k 0.1 with" in said["--newton-lr"]
    assert "(default: none; curvature without a word)" in said["--partial-hessian"]
    _, _, tuned = said["--lr"].partition("on mnist5k ")
    assert f"sgdph {TUNED['mnist5k']['sgdph']['lr']}" in tuned


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "unknown command 'trian'; did you mean train?"),
        (["train", "--learning-rate=1"], "unknown option '--learning-rate'; "),
        (
            ["train", "--optimizers=adam"],
            "unknown option '--optimizers'; did you mean --optimizer?",
        ),
        (
            ["compare", "--partial-hessian"],
            "unknown option '--partial-hessian'; write adamw-ph in --optimizers for adamw beside",
        ),
        (["tune", "--partial-hessian"], "unknown option '--partial-hessian'; write adamw-ph in"),
        (["reproduce", "--lr=1"], "unknown option '--lr'; it belongs to sgdph train; `sgdph"),
        (["tune", "--lr=1"], "unknown option '--lr'; it is searched; --space sets its range; `sg"),
        (["tune", "--workers=2"], "unknown option '--workers'; did you mean --data-workers?"),
        (["train", "--optimizer=adamm"], "unknown --optimizer 'adamm'; did you mean adam?"),
        (["compare", "--optimizers=sgdm,sgdhp"], "unknown optimizer 'sgdhp'; did you mean sgdph?"),
        (["train", "--model=resnet-8"], "unknown network 'resnet-8'; did you mean resnet8?"),
        (["train", "--dataset=cifar-10"], "unknown --dataset 'cifar-10'; did you mean cifar10?"),
        (["data", "--dataset=minst5k"], "unknown --dataset 'minst5k'; did you mean mnist5k?"),
        (["train", "--estimator=rowsum"], "unknown --estimator 'rowsum'; did you mean row_sum?"),
        (["reproduce", "tabel1"], "unknown recipe 'tabel1'; did you mean table1?"),
        (["cost", "--systems=sgphd"], "unknown system 'sgphd'; did you mean sgdph?"),
        (["train", "--schedule=cosin"], "unknown --schedule 'cosin'; did you mean cosine?"),
        (
            ["train", "--optimizer=adam", "--partial-hessian=shufled"],
            "unknown --partial-hessian 'shufled'; did you mean shuffled?",
        ),
        (
            ["compare", "--optimizers=adamw-phh"],
            "unknown optimizer 'adamw-phh'; did you mean adamw-ph?",
        ),
    ],
)
def test_the_error_for_an_unknown_name_suggests_the_intended_one(
    sgdph: Command, words: list[str], message: str
) -> None:
    code, said, error = sgdph(*words)
    assert (code, said) == (2, "")
    assert error.startswith(f"sgdph: error: {message}")
    # The error does not list many names, but says where to find them.
    assert len(error) < 200
    assert re.search(r"--help|--list|docs/|expected one of", error)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs=x"], "--epochs must be a whole number; got 'x'"),
        (["--epochs=0"], "--epochs must be at least 1; got '0'"),
        (["--lr=-1"], "--lr must be at least 0; got '-1'"),
        (["--lr=nan"], "--lr must be finite; got 'nan'"),
        (["--betas", "0.9"], "--betas: expected 2 arguments"),
        (["--epochs"], "--epochs: expected one argument"),
        (["--epochs", "1", "2"], "unexpected word '2'"),
        (["--channels-last=no"], "--channels-last"),
        (["--out="], "--out is empty"),
        (["--lr", "-1e-3"], "--lr must be at least 0"),
        (["--data-workers", "-1"], "--data-workers must be at least 0"),
    ],
)
def test_the_error_names_an_invalid_value_or_its_option(words: list[str], message: str) -> None:
    with pytest.raises(LabError, match=re.escape(message)):
        parse("train", words)


def test_given_holds_typed_values_of_exactly_the_options_that_were_set() -> None:
    words = ["--lr", "1e-2", "--betas", "0.9", "0.99", "--no-channels-last", "--resume"]
    options = parse("train", [*words, "--seed=3", "--out", "here"])
    betas = (0.9, 0.99)
    assert options.given() == {"lr": 0.01, "betas": betas, "channels_last": False, "seed": 3}
    assert (options.resume, options.overwrite, str(options.out)) == (True, False, "here")
    assert parse("train", ["--channels-last"]).given() == {"channels_last": True}
    assert parse("train", []).given() == {}
    assert parse("compare", ["--lr=sgdm=1", "--momentum=0.5"]).given() == {
        "lr": "sgdm=1",
        "momentum": 0.5,
    }


def test_options_may_appear_between_directories() -> None:
    given = parse("report", ["a", "--rows", "lr", "b"])
    assert [str(each) for each in given.runs] == ["a", "b"]
