"""Trackers: the real TensorBoard, and stand-ins for the packages of the others."""

import importlib.machinery
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lab.conftest import (
    checkpoint_of,
    interrupt_at,
    same_bits,
    start,
    tiny_config,
    without_seconds,
)
from sgdph.lab import cli
from sgdph.lab.data.dataset import Dataset
from sgdph.lab.errors import LabError
from sgdph.lab.run.directory import RunDirectory
from sgdph.lab.run.start import prepare


class Service:
    """A stand-in for ``wandb`` or ``trackio``: holds runs by ID, each with its steps."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[int, dict[str, Any]]] = {}
        self.begun: list[dict[str, Any]] = []
        self.finished = 0
        self.fails_at: int | None = None

    def init(self, **options: Any) -> "Service":
        self.begun.append(options)
        self.current = self.runs.setdefault(options.get("id", options["name"]), {})
        return self

    def log(self, figures: Mapping[str, Any], step: int) -> None:
        if step == self.fails_at:
            raise ConnectionError("the service is down")
        self.current[step] = dict(figures)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture(params=["wandb", "trackio"])
def service(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Service:
    stand_in, module = Service(), types.ModuleType(request.param)
    module.__spec__ = importlib.machinery.ModuleSpec(request.param, None)
    module.init = stand_in.init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, request.param, module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    stand_in.name = request.param  # type: ignore[attr-defined]
    return stand_in


def scalars(path: Path) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(path)).Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def expected(lines: list[dict[str, Any]], name: str) -> dict[int, float]:
    return {line["epoch"]: pytest.approx(line[name]) for line in lines}


def test_tensorboard_has_all_metrics_of_a_resumed_run(tmp_path: Path, digits: Dataset) -> None:
    config, run = tiny_config(track="tensorboard"), RunDirectory(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        start(config, run.path, digits, interrupt_at(6))
    start(config, run.path, digits)
    found, lines = scalars(run.path), run.read_metrics()
    assert len(lines) == 3
    for name in ("train_loss", "test_accuracy", "lr", "seconds"):
        assert found[name] == expected(lines, name)
    inner = [{"epoch": line["epoch"], **line["newton_multiplier"]} for line in lines]
    assert found["newton_multiplier/median"] == expected(inner, "median")
    start(tiny_config(), tmp_path / "plain", digits)
    assert same_bits(checkpoint_of(run.path), checkpoint_of(tmp_path / "plain"))


def test_resuming_discards_later_epochs_that_an_earlier_session_logged(
    tmp_path: Path, digits: Dataset
) -> None:
    config, run = tiny_config(track="tensorboard", keep_checkpoints=(1,)), tmp_path / "run"
    start(config, run, digits)
    (run / "epoch-1.pt").replace(run / "last.pt")
    events = EventAccumulator(str(run))
    with pytest.raises(KeyboardInterrupt):
        start(config, run, digits, interrupt_at(1))
    assert [e.step for e in events.Reload().Scalars("train_loss")] == [1]


def test_a_service_gets_all_metrics_and_a_resumed_run_continues_there(
    tmp_path: Path, digits: Dataset, service: Service
) -> None:
    name = service.name  # type: ignore[attr-defined]
    config, run = tiny_config(track=name), RunDirectory(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        start(config, run.path, digits, interrupt_at(6))
    start(config, run.path, digits)
    start(config, tmp_path / "run" / "run", digits)
    (sent, other), lines = service.runs.values(), run.read_metrics()
    assert {step: figures["train_loss"] for step, figures in sent.items()} == expected(
        lines, "train_loss"
    )
    assert sent[1]["newton_multiplier/max"] == lines[0]["newton_multiplier"]["max"]
    assert len(other) == 3
    assert service.finished == 3
    for options in service.begun:
        assert options["project"] == "sgdph"
        assert options["resume"] == "allow"
        assert options["config"]["lr"] == config.lr


def test_a_failing_tracker_is_dropped_with_a_warning_and_the_run_continues(
    tmp_path: Path, digits: Dataset, service: Service
) -> None:
    service.fails_at = 2
    config = tiny_config(track=service.name)  # type: ignore[attr-defined]
    with pytest.warns(
        UserWarning, match="stopped accepting metrics.*the service is down"
    ) as warned:
        summary = start(config, tmp_path / "run", digits)
    assert len([w for w in warned if "stopped accepting metrics" in str(w.message)]) == 1
    assert summary["status"] == "finished"
    assert [list(steps) for steps in service.runs.values()] == [[1]]
    start(tiny_config(), tmp_path / "plain", digits)
    found, plain = (RunDirectory(tmp_path / name).read_metrics() for name in ("run", "plain"))
    assert without_seconds(found) == without_seconds(plain)


def test_a_tracker_that_cannot_start_raises_an_error_with_a_workaround(
    tmp_path: Path, digits: Dataset, monkeypatch: pytest.MonkeyPatch, service: Service
) -> None:
    def no_login(**options: Any) -> None:
        raise PermissionError("not logged in")

    name = service.name  # type: ignore[attr-defined]
    monkeypatch.setattr(sys.modules[name], "init", no_login)
    with pytest.raises(LabError, match=r"could not be started \(.*not logged in.*--track none"):
        start(tiny_config(track=name), tmp_path / "run", digits)
    assert cli.main(["train", f"--out={tmp_path / 'run'}", "--resume", "--track=none"]) == 0


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_the_error_names_a_missing_package_before_anything_is_written(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    with pytest.raises(LabError, match=f"pip install {name}"):
        prepare(tiny_config(track=name), digits)
