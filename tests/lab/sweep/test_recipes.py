"""The recipes match the paper's text, and all of them can be run."""

from pathlib import Path

import pytest
import yaml

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.errors import LabError
from sgdph.lab.sweep.plan import Plan, make_plan
from sgdph.lab.sweep.recipe import load_recipe, parse_recipe, recipe_names

SCALES = ("paper", "gpu-hour", "cpu")
TABLES = [f"table{k}" for k in range(1, 9)]
SEVEN = {"sgdm", "adam", "adamw", "adabelief", "adahessian", "apollo", "sgdph"}
# Numbers of cells and seeds in the paper's grids; Table 3's number of seeds is lost.
COUNTS = {
    "table1": (2 * 4 * 7, 4),
    "table2": (2 * 7, 4),
    "table3": (6, 1),
    "table4": (5, 4),
    "table5": (5, 4),
    "table6": (2 * 4 * 3, 4),
    "table7": (3, 4),
    "table8": (5, 4),
}


def plan(name: str, scale: str = "paper", **given: object) -> Plan:
    return make_plan(load_recipe(name), scale, given)


def cells(name: str, scale: str = "paper") -> list[RunConfig]:
    return list(plan(name, scale).cells.values())


def test_every_experiment_of_the_paper_has_a_recipe() -> None:
    assert recipe_names() == [*TABLES, "figure3", "figure4", "figure5", "cost"]


@pytest.mark.parametrize("name", TABLES)
def test_recipes_match_the_papers_grids(name: str) -> None:
    found = plan(name)
    count, seeds = COUNTS[name]
    assert len(found.cells) == count
    assert found.seeds == tuple(range(seeds))
    runs = found.runs()
    assert len({run.name for run in runs}) == len({run.config for run in runs}) == count * seeds
    for config in found.cells.values():
        mini = name in ("table2", "table3")
        assert (config.epochs, config.schedule) == (100 if mini else 200, "step")
        assert config.schedule_every == (30 if mini else 60)
        # For a GPU; a CPU computes in float32.
        assert config.precision == "tf32"
        assert config.batch_size == (256 if mini else 128) or name == "table8"


@pytest.mark.parametrize("name", recipe_names())
@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_resolves_and_states_its_time(name: str, scale: str) -> None:
    recipe = load_recipe(name)
    assert recipe.paper
    assert recipe.scale(scale).description
    assert recipe.scale(scale).time
    if name == "cost":
        assert recipe.scale(scale).cost
        return
    assert plan(name, scale).runs()
    systems = {(each.optimizer, each.label) for each in cells(name, scale)}
    # At scale cpu, these also have SGDM, to show what is specific to SGD-PH.
    more = {("sgdm", None)} if name in ("table5", "table8") and scale == "cpu" else set()
    assert systems == {(each.optimizer, each.label) for each in cells(name)} | more


def test_a_figure_has_the_runs_of_its_table() -> None:
    for figure, table in (("figure3", "table1"), ("figure4", "table2"), ("figure5", "table4")):
        assert plan(figure).runs() == plan(table).runs()
        assert load_recipe(figure).runs_of == table
        assert load_recipe(figure).title != load_recipe(table).title


def test_table_1_matches_the_papers_text() -> None:
    found = cells("table1")
    assert {each.optimizer for each in found} == SEVEN
    assert {each.dataset for each in found} == {"cifar10", "cifar100"}
    assert {each.model for each in found} == {"resnet18", "resnet50", "vgg11-bn", "vgg19-bn"}
    rates = {each.optimizer: each.lr for each in found}
    assert rates["sgdm"] == 0.1
    assert rates["adam"] == rates["adamw"] == rates["adabelief"] == 1e-3
    ours = [each for each in found if each.optimizer == "sgdph"]
    assert {(each.lr, each.weight_decay) for each in ours} == {(0.01, 0.005)}
    assert {(each.momentum, each.hessian_momentum) for each in ours} == {(0.9, 0.9)}
    assert {(each.second_order_lr, each.eps) for each in ours} == {(1e-3, 1e-4)}


def test_table_4_matches_the_papers_text() -> None:
    found = {each.label: (each.model, each.optimizer, each.lr) for each in cells("table4")}
    assert found["SGDM"] == ("vgg19", "sgdm", 0.01)
    assert found["SGDM+WN"] == ("vgg19-wn", "sgdm", 0.01)
    assert found["SGD-PH+WN"] == ("vgg19-wn", "sgdph", 0.01)
    decays = {each.label: each.weight_decay for each in cells("table4")}
    assert (decays["SGDM"], decays["SGDM+WN"], decays["SGD-PH+WN"]) == (1e-4, 1e-4, 1e-3)


def test_the_ablations_match_the_papers_text() -> None:
    assert [(each.lr, each.weight_decay) for each in cells("table5")] == [
        (0.01, 0.01),
        (0.01, 0.002),
        (0.01, 0.005),
        (0.02, 0.005),
        (0.005, 0.005),
    ]
    for system in ("sgdph", "sgdm"):
        grid = [each for each in cells("table5", "cpu") if each.optimizer == system]
        middle = grid[2]
        factors = [(each.lr / middle.lr, each.weight_decay / middle.weight_decay) for each in grid]
        assert factors == [
            (pytest.approx(each.lr / 0.01), pytest.approx(each.weight_decay / 0.005))
            for each in cells("table5")
        ]
    assert {each.second_order_lr for each in cells("table6")} == {0.01, 0.001, 0.0001}
    assert [each.hessian_momentum for each in cells("table7")] == [0.8, 0.9, 0.99]
    assert [each.batch_size for each in cells("table8")] == [16, 32, 64, 128, 256]


def test_settings_lost_in_the_paper_are_not_attributed_to_it() -> None:
    settings = load_recipe("table1").scale("paper").settings
    for optimizer, name in (("sgdm", "weight_decay"), ("apollo", "lr"), ("adahessian", "lr")):
        assert settings[optimizer][name].source.startswith("lost")
    assert settings["sgdph"]["weight_decay"].source == "paper"


def test_given_options_override_the_recipe_and_are_reported() -> None:
    changed = plan("table1", "cpu", epochs=3, dataset="digits", threads=1)
    assert {each.epochs for each in changed.cells.values()} == {3}
    # The schedule's steps scale with the epochs. A train size applies to its own data set only.
    assert {each.schedule_every for each in changed.cells.values()} == {1}
    assert {each.train_size for each in changed.cells.values()} == {None}
    # The two data sets have become one.
    assert len(changed.cells) * 2 == len(cells("table1", "cpu"))
    assert changed.overrides == {"epochs": 3, "dataset": "digits"}
    title = changed.layout.title or ""
    assert "deviates" in title
    assert "epochs 3" in title
    assert "deviates" not in (plan("table1", "cpu").layout.title or "")


def test_settings_from_a_file_override_the_recipe_but_not_a_cell() -> None:
    tuned = {"sgdph": {"lr": 0.5, "weight_decay": 0.25}, "sgdm": {"lr": 0.75}}
    changed = make_plan(load_recipe("table1"), "cpu", {}, None, tuned)
    found = changed.cells.values()
    assert {each.lr for each in found if each.optimizer == "sgdph"} == {0.5}
    assert {each.lr for each in found if each.optimizer == "sgdm"} == {0.75}
    assert {each.weight_decay for each in found if each.optimizer == "sgdm"} == {2.05e-4}
    assert "the file has no settings of adam, adamw, adabelief, adahessian, apollo." in changed.note
    changed = make_plan(load_recipe("table4"), "cpu", {}, None, tuned)
    assert [each.lr for each in changed.cells.values()] == [0.01, 0.01, 0.01, 0.75, 0.5]
    assert "fixes lr for mnist5k-SGDM and mnist5k-SGDM+WN; " in changed.note
    assert "fixes lr and weight_decay for mnist5k-SGD-PH+WN." in changed.note
    assert "tuned settings" in (changed.layout.title or "")
    assert not make_plan(load_recipe("table7"), "cpu", {}, None, tuned).note


def test_settings_from_a_file_without_an_effect_raise_an_error() -> None:
    tuned = {"sgdph": {"lr": 0.5, "weight_decay": 0.25}, "sgdm": {"lr": 0.75}, "muon": {"lr": 0.1}}
    with pytest.raises(
        LabError, match=r"no effect on table5: the recipe fixes lr and weight_decay"
    ):
        make_plan(load_recipe("table5"), "cpu", {}, None, tuned)
    with pytest.raises(LabError, match="no effect on table7: the file has no settings of sgdph"):
        make_plan(load_recipe("table7"), "cpu", {}, None, {"muon": tuned["muon"]})


def test_arguments_from_a_file_are_merged_with_the_recipes() -> None:
    tuned = {"apollo": {"lr": 0.5, "optimizer_args": {"beta": 0.95, "eps": 1e-3}}}
    found = make_plan(load_recipe("table1"), "cpu", {}, None, tuned).cells.values()
    apollo = next(each for each in found if each.optimizer == "apollo")
    assert (apollo.lr, apollo.eps) == (0.5, 1e-3)
    assert [apollo.setting(name) for name in ("beta", "warmup_steps")] == [0.95, 20]


def test_one_network_for_systems_with_different_ones_raises_an_error() -> None:
    with pytest.raises(LabError, match="--model does not fit table4"):
        plan("table4", "cpu", model="resnet8")


OWN = """
format: sgdph-recipe-1
title: mine
paper: nothing
settings: {sgdm: {lr: {value: 1e-2, source: me}}}
scales:
  cpu:
    description: small
    time: seconds
    seeds: [5]
    options: {dataset: digits, epochs: 1, optimizer: sgdm}
    axes: [{model: [resnet8, resnet20]}]
"""


def test_a_custom_recipe_file_can_be_used(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(OWN)
    found = make_plan(load_recipe(str(file)), "cpu", {})
    assert found.recipe == "mine"
    assert [run.config.model for run in found.runs()] == ["resnet8", "resnet20"]
    # Without a dot, YAML parses it as text.
    assert {run.config.lr for run in found.runs()} == {0.01}


def test_a_recipe_without_epochs_has_the_default_number(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(OWN.replace("epochs: 1,", "schedule: step, schedule_every: 4,"))
    found = make_plan(load_recipe(str(file)), "cpu", {"epochs": 6})
    # Half of the default 12.
    assert {run.config.schedule_every for run in found.runs()} == {2}


def test_cells_with_the_same_name_raise_an_error(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(OWN.replace("{model: [resnet8, resnet20]}", "{lr: [0.1, 0.03]}"))
    with pytest.raises(LabError, match="both be called digits-resnet8-sgdm, and differ in lr"):
        make_plan(load_recipe(str(file)), "cpu", {})
    file.write_text(file.read_text() + "layout: {rows: [lr]}\n")
    found = make_plan(load_recipe(str(file)), "cpu", {})
    assert [run.config.lr for run in found.runs()] == [0.1, 0.03]


def in_scale(**changes: object) -> dict[str, object]:
    """Return what to change in :data:`OWN` for other values in its scale."""
    return {"scales": {"cpu": {**yaml.safe_load(OWN)["scales"]["cpu"], **changes}}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "else"}, "expected 'format: sgdph-recipe-1'"),
        ({"title": None}, "'title'"),
        ({"settings": {"sgdm": {"lr": 0.1}}}, "sgdm's lr must be .value"),
        ({"scales": {"laptop": yaml.safe_load(OWN)["scales"]["cpu"]}}, "got laptop"),
        ({"layout": {"rows": ["colour"]}}, "'colour'"),
        # A misspelt name would have no effect.
        ({"setings": {}}, "mine.yaml: unknown key 'setings'; did you mean settings.* of format,"),
        ({"layout": {"row": ["lr"]}}, "mine.yaml, layout: unknown key 'row'; did you mean rows"),
        ({"layout": {"title": "x"}}, "mine.yaml, layout: unknown key 'title'; expected one of"),
        (in_scale(sed=[0]), "mine.yaml, scale cpu: unknown key 'sed'; did you mean seeds"),
        (in_scale(cost={}), "scale cpu: unknown key beside cost 'axes'; expected one of"),
        ({"runs_of": "table1"}, "mine.yaml: unknown key beside runs_of 'scales'; expected one"),
        ({"settings": {"sgmd": {}}}, "mine.yaml, settings: unknown optimizer 'sgmd'; did .* sgdm"),
        (in_scale(settings={"sgmd": {}}), "scale cpu, settings: unknown optimizer 'sgmd'; did"),
        ({"settings": {"sgdm": [0.1]}}, "mine.yaml: settings of sgdm must be a mapping"),
        (in_scale(seeds="0-2"), r"scale cpu: seeds must be a list .* \[0, 1, 2\]; got '0-2'"),
        (in_scale(seeds=["0-2"]), r"seeds must be a list .*; got \['0-2'\]"),
        (in_scale(seeds=[]), "mine.yaml, scale cpu: seeds is empty; name at least one"),
        (in_scale(seeds=[0, 0]), r"mine.yaml, scale cpu: seeds names a seed twice: \[0, 0\]"),
        (in_scale(axes={"lr": [0.1]}), "mine.yaml, scale cpu: axes must be a list of axes"),
        (in_scale(axes=[{"lr": 0.1}]), "scale cpu: an axis must be .*; got {'lr': 0.1}"),
        (in_scale(axes=[{"lr": []}]), r"scale cpu: an axis must be .*; got {'lr': \[\]}"),
        (in_scale(axes=[["sgdm"]]), r"scale cpu: an axis must be .*; got \['sgdm'\]"),
        (in_scale(axes=[[{"label": 3}]]), "scale cpu, cell {'label': 3}: label must be a text"),
        (in_scale(options={"label": 3}), "mine.yaml, scale cpu: label must be a text; got 3"),
        (in_scale(options=[]), "mine.yaml, scale cpu: options must be a mapping"),
    ],
)
def test_an_invalid_recipe_raises_an_error(change: dict[str, object], message: str) -> None:
    values = {**yaml.safe_load(OWN), **change}
    text = yaml.safe_dump({key: value for key, value in values.items() if value is not None})
    with pytest.raises(LabError, match=message):
        parse_recipe(text, "mine", "mine.yaml")


def test_settings_without_a_value_are_empty() -> None:
    values = {**yaml.safe_load(OWN), "layout": None, "settings": None, **in_scale(settings=None)}
    recipe = parse_recipe(yaml.safe_dump(values), "mine", "mine.yaml")
    assert recipe.scale("cpu").settings == {}
    values["settings"] = {"sgdm": None}
    recipe = parse_recipe(yaml.safe_dump(values), "mine", "mine.yaml")
    assert recipe.scale("cpu").settings == {"sgdm": {}}


def test_a_boolean_argument_in_a_recipe_must_be_true_or_false() -> None:
    options = {"dataset": "digits", "optimizer": "sgdm", "optimizer_args": {"nesterov": "tru"}}
    text = yaml.safe_dump({**yaml.safe_load(OWN), **in_scale(options=options)})
    with pytest.raises(LabError, match="nesterov must be true or false; got 'tru'"):
        make_plan(parse_recipe(text, "mine", "mine.yaml"), "cpu", {})


def test_an_unknown_recipe_or_scale_raises_an_error() -> None:
    with pytest.raises(LabError, match="unknown recipe"):
        load_recipe("table9")
    with pytest.raises(LabError, match="one of paper, gpu-hour, cpu"):
        load_recipe("table1").scale("laptop")
