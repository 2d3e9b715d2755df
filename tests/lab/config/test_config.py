import dataclasses

import pytest
import yaml

from lab.conftest import tiny_config
from sgdph.lab.config.run_config import differences
from sgdph.lab.config.yaml import from_yaml, revived, to_yaml, with_tuples
from sgdph.lab.errors import LabError
from sgdph.lab.options.resolution import resolve


@pytest.mark.parametrize("optimizer", ["sgdph", "sgdm", "adamw"])
def test_yaml_round_trip(optimizer: str) -> None:
    kept = (0, 3)
    config = tiny_config(optimizer=optimizer, seed=7, data_dir="/somewhere", keep_checkpoints=kept)
    assert from_yaml(to_yaml(config)) == config


def test_yaml_has_the_flags_names_and_only_settings_of_the_optimizer() -> None:
    values = yaml.safe_load(to_yaml(tiny_config(optimizer="adamw")))
    assert values["betas"] == [0.9, 0.999]
    assert values["lr"] == 1e-3
    assert "momentum" not in values
    assert "hessian_momentum" not in values


def test_a_number_that_yaml_parses_as_text_is_read_as_a_number() -> None:
    text = to_yaml(tiny_config()).replace("lr: 0.01", "lr: 1e-2")
    assert from_yaml(text).lr == 0.01


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("format: sgdph-run-1", "format: other", "not a run's configuration"),
        ("epochs: 3\n", "", "missing keys: epochs"),
        ("epochs: 3", "epoch: 3\nepochs: 3", "unknown key 'epoch'; did you mean epochs?"),
        ("epochs: 3", "epochs: three", "epochs must be a whole number; got 'three'"),
        ("epochs: 3", "epochs: true", "epochs must be a whole number; got True"),
        ("epochs: 3", "epochs: 0", "epochs must be at least 1; got 0"),
        ("dataset: digits", "dataset: digit", "unknown dataset 'digit'; did you mean digits?"),
        ("lr: 0.01", "lr: -1.0", "lr must be at least 0; got -1.0"),
        ("lr: 0.01", "lr: .nan", "lr must be finite; got nan"),
        ("format: sgdph-run-1", "format: [", "not valid YAML"),
        ("seed: 0", "seed: 0\nkeep_checkpoints: [0, 4]", "between 0 and the 3 epochs; got 4"),
        (
            "seed: 0",
            "seed: 0\nkeep_checkpoints: [0, x]",
            "must be a whole number; got 'x'",
        ),
    ],
)
def test_the_error_names_an_invalid_file_and_what_is_wrong(
    old: str, new: str, message: str
) -> None:
    text = to_yaml(tiny_config())
    assert old in text
    with pytest.raises(LabError, match=r"some/config\.yaml") as raised:
        from_yaml(text.replace(old, new), "some/config.yaml")
    assert message in str(raised.value)


def test_differences_list_changed_fields_but_not_device_or_data_directory() -> None:
    saved = tiny_config()
    given = {"lr": 0.5, "epochs": 3, "seed": 1, "device": "cuda", "threads": 9, "data_dir": "/x"}
    found = differences(given, saved)
    assert found == ["lr: the run has 0.01, given 0.5", "seed: the run has 0, given 1"]


def test_a_renamed_field_is_read_under_its_old_name() -> None:
    config = tiny_config(data_workers=2)
    text = to_yaml(config).replace("data_workers: 2", "workers: 2")
    assert "\nworkers: 2" in text
    assert from_yaml(text) == config
    assert revived({"workers": 2}) == with_tuples({"workers": 2}) == {"data_workers": 2}


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        resolve({}).epochs = 1  # type: ignore[misc]
