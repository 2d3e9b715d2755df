"""``--optimizer-args``: parsed, distributed, checked, recorded, and compared when a run resumes."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.conftest import TINY
from sgdph.lab.cli import main, parse
from sgdph.lab.config.run_config import differences
from sgdph.lab.config.yaml import from_yaml, to_yaml
from sgdph.lab.errors import LabError
from sgdph.lab.optimizers.registry import BASELINES
from sgdph.lab.options.optimizer_args import parse_arguments, parse_value, share_arguments
from sgdph.lab.options.resolution import resolve, resolve_many
from sgdph.lab.run.directory import RunDirectory

SMALL = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]


def given_of(*words: str) -> dict[str, Any]:
    """Return the options that ``sgdph train`` was given, parsed."""
    return dict(parse("train", words).given())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("False", False),
        ("none", None),
        ("2", 2),
        ("-1", -1),
        ("1e-3", 1e-3),
        ("0.9,0.99", (0.9, 0.99)),
        ("(2,)", (2,)),
        ("l2", "l2"),
        ("belief,constant", "belief,constant"),
        ("", ""),
    ],
)
def test_values_are_parsed_with_their_types(text: str, value: Any) -> None:
    found = parse_value(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("words", [["nesterov"], ["=1"], ["a b=1"], ["a=1", "a=2"], ["x.y=1"]])
def test_malformed_arguments_raise_an_error(words: list[str]) -> None:
    with pytest.raises(LabError, match="--optimizer-args"):
        parse_arguments(words)


def test_the_configuration_records_all_arguments_that_are_set() -> None:
    given = given_of("--optimizer=apollo", "--optimizer-args", "beta=0.8", "eps=1e-3")
    config = resolve(given)
    assert config.eps == 1e-3
    expected = {**BASELINES["apollo"].arguments, "beta": 0.8}
    assert dict(config.optimizer_args or ()) == expected
    text = to_yaml(config)
    assert yaml.safe_load(text)["optimizer_args"] == expected
    assert from_yaml(text) == config
    assert resolve({"optimizer": "sgdm"}).optimizer_args is None


def test_a_yaml_file_may_contain_numbers_without_a_dot() -> None:
    arguments = yaml.safe_load("{init_lr: 1e-6, warmup_steps: 7, rebound: belief}")
    config = resolve({"optimizer": "apollo", "optimizer_args": arguments})
    held = dict(config.optimizer_args or ())
    assert (held["init_lr"], held["warmup_steps"], held["rebound"]) == (1e-6, 7, "belief")


@pytest.mark.parametrize(
    ("optimizer", "argument"),
    [
        ("adabelief", "weight_decoupled"),
        ("sgdm", "betas"),
        ("sgdph", "seed"),
        ("sgdph", "params"),
        ("sgdph-fixed1", "second_order_lr"),
        ("sgdph-fixed", "eps_warmup"),
        ("adamw-ph-fixed1", "eps_warmup"),
    ],
)
def test_the_error_for_an_unknown_argument_lists_the_known_ones(
    optimizer: str, argument: str
) -> None:
    with pytest.raises(LabError, match=rf"{optimizer} has no argument '{argument}'.*lr, wei"):
        resolve({"optimizer": optimizer, "optimizer_args": {argument: 1}})


@pytest.mark.parametrize(
    ("optimizer", "word", "expected"),
    [
        ("sgdm", "nesterov=no", "sgdm's argument nesterov must be true or false; got 'no'"),
        ("adam", "amsgrad=off", "true or false; got 'off'"),
        ("adamw", "amsgrad=tru", "true or false; got 'tru'"),
        ("sgdph", "eps_warmup=1", "true or false; got 1"),
        ("sgdm", "nesterov=none", "true or false; got None"),
        ("adahessian", "avg_conv_kernel=no", "true or false; got 'no'"),
        ("adamw-ph", "amsgrad=no", "true or false; got 'no'"),
        ("adamw-ph", "newton_maximize=no", "true or false; got 'no'"),
        ("adamw", "foreach=no", "true, false or none; got 'no'"),
        ("sgdph", "foreach=no", "true, false or none; got 'no'"),
        ("adamw", "fused=0", "true, false or none; got 0"),
    ],
)
def test_a_boolean_argument_must_be_true_or_false(optimizer: str, word: str, expected: str) -> None:
    given = parse_arguments([word])
    with pytest.raises(LabError, match=expected):
        resolve({"optimizer": optimizer, "optimizer_args": given})
    (name,) = given
    with pytest.raises(LabError, match=expected):
        resolve_many({}, (optimizer,), (0,), {optimizer: {"optimizer_args": given}})
    for value in (True, False, *[None] * ("none" in expected)):
        config = resolve({"optimizer": optimizer, "optimizer_args": {name: value}})
        assert config.setting(name) is value


def test_a_contradicting_option_and_argument_raise_an_error() -> None:
    given = {"optimizer": "sgdm", "momentum": 0.5}
    with pytest.raises(LabError, match=r"--momentum 0.5 and .* momentum=0.9 contradict"):
        resolve({**given, "optimizer_args": {"momentum": 0.9}})
    assert resolve({**given, "optimizer_args": {"momentum": 0.5}}).momentum == 0.5


def test_an_error_of_the_optimizer_is_reported_and_no_run_is_created(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--optimizer", "apollo", "--optimizer-args", "rebound=elastic"]
    assert main(["train", *SMALL, *words, "--out", str(tmp_path / "run")]) == 2
    assert "apollo cannot use its settings" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_comparison_distributes_arguments_to_its_optimizers() -> None:
    both = ("sgdm", "adamw")
    words = ("foreach=false", "sgdm.nesterov=true", "sgdm.foreach=true", "weight_decay=0.5")
    shares = share_arguments(words, both)
    assert dict(shares["sgdm"]) == {"foreach": True, "nesterov": True, "weight_decay": 0.5}
    assert dict(shares["adamw"]) == {"foreach": False, "weight_decay": 0.5}
    sgdm, adamw = resolve_many({"optimizer_args": words}, both, (0,))
    assert dict(sgdm.optimizer_args or ()) == {"foreach": True, "nesterov": True}
    assert dict(adamw.optimizer_args or ()) == {"foreach": False}
    assert (sgdm.weight_decay, adamw.weight_decay) == (0.5, 0.5)
    with pytest.raises(LabError, match="none of the optimizers has an argument 'nestrov'"):
        share_arguments(("nestrov=true",), both)
    with pytest.raises(
        LabError, match="names sgdph, which is not compared; the optimizers are sgdm, adamw"
    ):
        share_arguments(("sgdph.eps=1",), both)


def test_a_comparisons_options_override_a_settings_file_in_either_form() -> None:
    file = {
        "sgdm": {"lr": 0.235, "weight_decay": 1e-3},
        "adamw": {"optimizer_args": {"eps": 1e-6, "amsgrad": True}},
    }
    given = {"optimizer_args": ("sgdm.lr=0.5", "sgdm.nesterov=true"), "eps": 1e-3}
    sgdm, adamw = resolve_many(given, ("sgdm", "adamw"), (0,), file)
    assert (sgdm.lr, sgdm.weight_decay) == (0.5, 1e-3)
    assert sgdm.optimizer_args == (("nesterov", True),)
    assert (adamw.eps, adamw.optimizer_args) == (1e-3, (("amsgrad", True),))
    with pytest.raises(LabError, match=r"--lr 0.1 and .* lr=0.5 contradict"):
        resolve_many({**given, "lr": "sgdm=0.1"}, ("sgdm", "adamw"), (0,), file)


def test_differences_are_listed_only_for_given_arguments() -> None:
    saved = resolve({"optimizer": "adahessian", "optimizer_args": {"update_each": 2, "eps": 1e-3}})
    same = given_of("--optimizer-args", "update_each=2", "eps=1e-3")
    assert differences(same, saved) == []
    other = given_of("--optimizer-args", "update_each=3", "eps=1e-4", "n_samples=1")
    assert differences(other, saved) == [
        "eps: the run has 0.001, given 0.0001",
        "update_each: the run has 2, given 3",
    ]


def test_resuming_with_different_arguments_raises_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "run")]
    args = ["--optimizer=sgdm", "--optimizer-args", "nesterov=true", "momentum=0.8"]
    assert main(["train", *SMALL, "--epochs=1", *args, *out]) == 0
    config = RunDirectory(tmp_path / "run").read_config()
    assert (config.momentum, config.optimizer_args) == (0.8, (("nesterov", True),))
    assert main(["train", "--resume", *args, *out]) == 0
    assert main(["train", "--resume", "--optimizer-args", "nesterov=false", *out]) == 2
    assert "nesterov: the run has True, given False" in capsys.readouterr().err


def test_a_resumed_comparison_keeps_its_optimizer_arguments(tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "all")]
    words = ["--optimizer-args", "sgdm.nesterov=true", "foreach=false"]
    command = ["compare", *SMALL, "--epochs=1", "--optimizers=sgdm,adam", "--seeds=0"]
    assert main([*command, *words, *out]) == 0
    assert main(["compare", "--resume", "--seeds=1", *out]) == 0
    for seed in (0, 1):
        run = RunDirectory(tmp_path / "all" / f"sgdm-seed{seed}").read_config()
        assert run.optimizer_args == (("foreach", False), ("nesterov", True))
