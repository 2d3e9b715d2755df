from pathlib import Path

import pytest
import torch

from sgdph.lab.cli import parse
from sgdph.lab.errors import LabError
from sgdph.lab.networks.models import build_model
from sgdph.lab.optimizers.registry import BASELINES
from sgdph.lab.options.options import parse_optimizers, parse_seeds
from sgdph.lab.options.resolution import parse_per_optimizer, resolve, resolve_many
from sgdph.lab.run.start import build_optimizer
from sgdph.lab.sweep.plan import make_plan
from sgdph.lab.sweep.recipe import load_recipe


def test_unset_options_take_the_documented_defaults() -> None:
    config = resolve(parse("train", []).given())
    assert (config.dataset, config.model, config.optimizer) == ("mnist5k", "resnet8", "sgdph")
    assert config.momentum == 0.9
    assert (config.second_order_lr, config.hessian_momentum, config.eps) == (1e-3, 0.9, 1e-4)
    assert (config.estimator, config.refresh, config.hessian_interval) == ("row_sum", "cyclic", 1)
    assert resolve({"optimizer": "sgdm"}).momentum == 0.9
    assert resolve({"optimizer": "adamw"}).betas == (0.9, 0.999)


@pytest.mark.parametrize(
    ("optimizer", "of_the_paper", "on_mnist5k"),
    [
        ("sgdph", (0.01, 5e-3), (0.1, 5e-3)),
        ("sgdm", (0.1, 5e-4), (0.1, 5e-3)),
        ("adamw", (1e-3, 0.05), (0.01, 0.05)),
    ],
)
def test_default_rates_and_decays_are_the_papers_except_on_mnist5k(
    optimizer: str, of_the_paper: tuple[float, float], on_mnist5k: tuple[float, float]
) -> None:
    for dataset in ("digits", "cifar10", "cifar100"):
        config = resolve({"optimizer": optimizer, "dataset": dataset})
        assert (config.lr, config.weight_decay) == of_the_paper
    config = resolve({"optimizer": optimizer, "dataset": "mnist5k"})
    assert (config.lr, config.weight_decay) == on_mnist5k
    assert resolve({"optimizer": optimizer, "lr": 0.02}).lr == 0.02


def test_keep_checkpoints_is_parsed_as_a_list_of_epochs() -> None:
    given = parse("train", ["--keep-checkpoints", "3, 0,12,3"]).given()
    assert given["keep_checkpoints"] == (0, 3, 12)
    for text in ("1-2", "-1", "1,", "half"):
        with pytest.raises(LabError, match=r"--keep-checkpoints must be epochs like 0,3,12"):
            parse("train", [f"--keep-checkpoints={text}"])


def test_a_relative_data_directory_is_made_absolute() -> None:
    given = parse("train", ["--data-dir", "here"]).given()
    assert given["data_dir"] == str(Path("here").resolve())


def test_the_error_for_another_optimizers_setting_lists_its_optimizers() -> None:
    with pytest.raises(LabError, match=r"adamw has no setting --momentum.*sgdph, sgdm, muon"):
        resolve({"optimizer": "adamw", "momentum": 0.5})


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0-2", (0, 1, 2)), ("0,3,7", (0, 3, 7)), ("4", (4,)), ("5, 0-1", (5, 0, 1))],
)
def test_seeds_are_parsed(text: str, seeds: tuple[int, ...]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "0-", "-1", "2-0", "0,0", "0-2,1", "0;1", "1.5"])
def test_invalid_seeds_raise_an_error(text: str) -> None:
    with pytest.raises(LabError, match="--seeds"):
        parse_seeds(text)


@pytest.mark.parametrize("text", ["", "sgd", "sgdm,sgdm", "sgdm,"])
def test_invalid_optimizer_lists_raise_an_error(text: str) -> None:
    with pytest.raises(LabError, match="optimizer"):
        parse_optimizers(text)


def test_a_setting_is_one_number_for_all_optimizers_or_one_for_each() -> None:
    both = ("sgdm", "sgdph")
    assert parse_per_optimizer("0.5", "lr", both) == {"sgdm": 0.5, "sgdph": 0.5}
    assert parse_per_optimizer("sgdph=1e-3", "lr", both) == {"sgdph": 1e-3}
    for text in ("x", "sgdm=x", "sgdm=0.1,0.2", "sgdm=0.1=0.2", "adamw=0.1", "sgdm=1,sgdm=2"):
        with pytest.raises(LabError, match="--lr"):
            parse_per_optimizer(text, "lr", both)
    beside = ("adamw", "adamw-ph", "muon-ph")
    assert parse_per_optimizer("0.5", "newton_lr", beside) == dict.fromkeys(beside[1:], 0.5)
    with pytest.raises(LabError, match=r"--newton-lr .* like adamw-ph=0.1,muon-ph=0.1; got 'x'"):
        parse_per_optimizer("x", "newton_lr", beside)


def test_a_comparison_gives_each_setting_to_the_optimizers_that_have_it() -> None:
    given = {"lr": "sgdm=0.2", "momentum": 0.8, "eps": 1e-3, "epochs": 2}
    configs = resolve_many(given, ("sgdm", "sgdph", "adamw"), (0, 4))
    assert [(c.optimizer, c.seed) for c in configs[:4]] == [
        ("sgdm", 0),
        ("sgdph", 0),
        ("adamw", 0),
        ("sgdm", 4),
    ]
    sgdm, sgdph, adamw = configs[:3]
    assert (sgdm.lr, sgdm.momentum, sgdm.eps) == (0.2, 0.8, None)
    assert (sgdph.lr, sgdph.momentum, sgdph.eps) == (0.1, 0.8, 1e-3)
    assert (adamw.lr, adamw.momentum, adamw.eps, adamw.epochs) == (0.01, None, 1e-3, 2)


def test_a_settings_file_may_hold_the_channelwise_decay_of_an_optimizer() -> None:
    file = {"sgdm": {"lr": 0.2, "channelwise_decay": "none"}}
    found = resolve_many({}, ("sgdm", "adamw"), (0,), file)
    assert [each.channelwise_decay for each in found] == ["none", "same"]
    (sgdm,) = resolve_many({"channelwise_decay": "same"}, ("sgdm",), (0,), file)
    assert sgdm.channelwise_decay == "same"
    cells = make_plan(load_recipe("table8"), "cpu", {}, None, file).cells.values()
    assert {(each.optimizer, each.channelwise_decay) for each in cells} == {
        ("sgdm", "none"),
        ("sgdph", "same"),
    }


def test_a_setting_that_no_compared_optimizer_has_raises_an_error() -> None:
    with pytest.raises(
        LabError, match="none of sgdm, muon has the setting --eps; it is one of sgdph, adam, adamw"
    ):
        resolve_many({"eps": 1e-3}, ("sgdm", "muon"), (0,))


# Optimizers beside Newton steps are tested in tests/lab/optimizers/test_partial_hessian.py.
ALONE = [name for name, baseline in BASELINES.items() if baseline.first_order is None]


@pytest.mark.parametrize("name", ALONE)
def test_every_optimizer_gets_all_parameters_and_its_settings(name: str) -> None:
    model = build_model("resnet8", in_channels=1, classes=10)
    config = resolve({"optimizer": name, "lr": 0.25, "weight_decay": 0.125})
    optimizer = build_optimizer(model, config)
    groups = optimizer.param_groups
    held = {id(parameter) for group in groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters()}
    # Muon's AdamW has its own settings.
    own = [group for group in groups if group.get("use_muon", True)]
    assert all((group["lr"], group["weight_decay"]) == (0.25, 0.125) for group in own)
    assert isinstance(optimizer, torch.optim.Optimizer)


def test_settings_that_the_optimizer_rejects_raise_an_error() -> None:
    model = build_model("resnet8", in_channels=1, classes=10)
    with pytest.raises(LabError, match="sgdph cannot use its settings"):
        build_optimizer(model, resolve({"eps": -1.0}))
