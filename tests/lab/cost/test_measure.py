import dataclasses
import gc
from collections.abc import Callable

import pytest
import torch
from torch import nn

from sgdph.lab.cost import step as step_module
from sgdph.lab.cost.figures import CellFigures, CostSettings
from sgdph.lab.cost.measure import label, measure_cell, metered, spread, time_round
from sgdph.lab.cost.step import Contestant, build_workload
from sgdph.lab.cost.systems import SYSTEMS
from sgdph.lab.errors import LabError

CPU = torch.device("cpu")

# All tests of this file run in one worker, so that the module's fixture is made only once.
pytestmark = pytest.mark.xdist_group("cost")


class Counted:
    """A reporter that counts the announced and the finished steps."""

    def __init__(self) -> None:
        self.announced = self.done = 0

    def cell_started(self, name: str, steps: int) -> None:
        self.announced += steps

    def step_finished(self) -> None:
        self.done += 1

    def cell_finished(self, name: str, message: str) -> None:
        pass


def settings(*systems: str, **others: object) -> CostSettings:
    values = {"models": ("resnet8",), "batch_sizes": (2,), "rounds": 1, "visits": 2, **others}
    return CostSettings(systems=systems, **values)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def everything() -> CellFigures:
    """Measure every system on ResNet8 with two images, in two rounds at two places."""
    reporter = Counted()
    figures = measure_cell("resnet8", 2, settings(*SYSTEMS, rounds=2), CPU, reporter)
    assert reporter.done == reporter.announced > 0
    return figures


def test_every_system_is_measured(everything: CellFigures) -> None:
    assert [system.name for system in everything.systems] == list(SYSTEMS)
    assert everything.parameters == 75_290
    assert everything.newton == 14
    assert everything.visited == ["bn.weight", "blocks.2.bn2.bias"]
    assert everything.environment["threads"] == torch.get_num_threads()
    for system in everything.systems:
        for name, kind in system.kinds.items():
            places = 2 if SYSTEMS[system.name].refresh == "cyclic" and name == "refresh" else 1
            assert kind.process_seconds is not None
            assert len(kind.process_seconds) == len(kind.wall_seconds) == 2
            assert min(kind.process_seconds) > 0
            for figures in (kind.peak_bytes, kind.total_peak_bytes, kind.flops):
                assert figures is not None
                assert len(figures) == places
                assert min(figures) > 0


def test_steps_without_second_derivatives_cost_as_much_as_sgdm(everything: CellFigures) -> None:
    by_name = {system.name: system.kinds for system in everything.systems}
    sgdm = by_name["sgdm"]["plain"]
    assert sgdm.peak_bytes is not None
    names = ("sgdph-interval10", "sgdph-hutchinson-all-interval10", "sophiah", "adamw")
    for name in (*names, "adamw-ph-interval10"):
        plain = by_name[name]["plain"]
        assert plain.flops == sgdm.flops
        assert plain.peak_bytes is not None
        assert plain.peak_bytes[0] == pytest.approx(sgdm.peak_bytes[0], rel=0.05)


def test_the_cost_of_a_refresh_depends_on_place_not_on_interval(everything: CellFigures) -> None:
    by_name = {system.name: system.kinds for system in everything.systems}
    every, tenth = (by_name[name]["refresh"] for name in ("sgdph", "sgdph-interval10"))
    assert every.flops == tenth.flops
    assert every.peak_bytes is not None
    assert tenth.peak_bytes is not None
    assert tenth.peak_bytes == pytest.approx(every.peak_bytes, rel=0.01)
    assert every.peak_bytes[0] > 1.1 * every.peak_bytes[1]


def test_second_derivatives_cost_at_least_their_floor(everything: CellFigures) -> None:
    by_name = {system.name: system for system in everything.systems}
    sgdm = by_name["sgdm"].kinds["plain"].flops[0]
    for name, system in by_name.items():
        if system.floor is not None:
            share = sum(k.share * sum(k.flops) / len(k.flops) for k in system.kinds.values())
            assert share / sgdm >= system.floor > 1, name
    first, last = by_name["sgdph-plain"].kinds["refresh"].flops
    assert first > 1.5 * sgdm
    # Behind the last norm layer is only the linear layer. It takes two products, and one more for
    # the gradient where that is not shared.
    linear = 2 * 2 * 64 * 10
    assert 2 * linear <= last - sgdm <= 3 * linear


def test_the_total_peak_includes_parameters_states_and_the_batch(everything: CellFigures) -> None:
    parameters = 4 * everything.parameters
    inputs = 4 * 2 * 3 * 32 * 32 + 2 * 8
    by_name = {system.name: system.kinds for system in everything.systems}
    for name, states in (("sgdm", 1), ("adamw", 2)):
        kind = by_name[name]["plain"]
        assert kind.peak_bytes is not None
        assert kind.total_peak_bytes is not None
        held = kind.total_peak_bytes[0] - kind.peak_bytes[0]
        # Parameters, one momentum or two averages, the batch, and the buffers of batch norm.
        assert parameters * (1 + states) + inputs < held < parameters * (1.05 + states) + inputs


def test_contestants_train_copies_and_leave_the_original_unchanged() -> None:
    chosen = settings("sgdph")
    workload = build_workload("resnet8", 2, chosen, CPU)
    original = [p.detach().clone() for p in workload.model.parameters()]
    first, second = (Contestant(SYSTEMS[n], workload, compiled=False) for n in ("sgdm", "sgdph"))
    first.step("plain")
    mine = [p for g in first.optimizer.param_groups for p in g["params"]]
    yours = [p for g in second.optimizer.param_groups for p in g["params"]]
    assert not {id(p) for p in mine} & {id(p) for p in yours}
    assert all(not torch.equal(p, q) for p, q in zip(mine, original, strict=True))
    unmoved = {p.shape: p for p in original}
    assert all(p.shape in unmoved for p in yours)
    for p, q in zip(workload.model.parameters(), original, strict=True):
        assert torch.equal(p, q)


def test_the_seed_decides_weights_and_batch() -> None:
    one, two, other = (
        build_workload("resnet8", 2, settings("sgdph", seed=seed), CPU) for seed in (1, 1, 2)
    )
    assert torch.equal(one.inputs, two.inputs)
    assert torch.equal(one.model.conv.weight, two.model.conv.weight)  # type: ignore[arg-type]
    assert not torch.equal(one.inputs, other.inputs)


def test_workloads_have_the_right_shapes_and_memory_format() -> None:
    images = build_workload("resnet8", 2, settings("sgdph", channels_last=True), CPU)
    assert images.inputs.is_contiguous(memory_format=torch.channels_last)
    assert images.model.conv.weight.is_contiguous(  # type: ignore[union-attr, operator]
        memory_format=torch.channels_last
    )
    tokens = build_workload("encoder12", 3, settings("sgdph", channels_last=True), CPU)
    assert tokens.inputs.shape == (3, 64)
    large = build_workload("torchvision:resnet18", 2, settings("sgdph"), CPU)
    assert large.inputs.shape == (2, 3, 224, 224)
    assert large.model.fc.out_features == 1000  # type: ignore[union-attr]


def test_bfloat16_runs_under_autocast() -> None:
    workload = build_workload("resnet8", 2, settings("sgdph", precision="bfloat16"), CPU)
    seen = []
    workload.model.conv.register_forward_hook(  # type: ignore[union-attr, operator]
        lambda module, inputs, output: seen.append(output.dtype)
    )
    workload.loss(workload.model).backward()
    assert seen == [torch.bfloat16]
    assert {p.dtype for p in workload.model.parameters()} == {torch.float32}
    figures = measure_cell("resnet8", 2, settings("sgdph", precision="bfloat16"), CPU, Counted())
    assert len(figures.systems) == 2


@pytest.mark.parametrize(
    ("count", "visits", "places"),
    [
        (40, 5, [0, 10, 20, 29, 39]),
        (4, None, [0, 1, 2, 3]),
        (4, 9, [0, 1, 2, 3]),
        (40, 2, [0, 39]),
        (9, 1, [4]),
    ],
)
def test_places_are_spread_from_the_first_to_the_last(
    count: int, visits: int | None, places: list[int]
) -> None:
    assert spread(count, visits) == places


def test_only_a_cyclic_refresh_is_measured_at_every_place() -> None:
    assert metered(SYSTEMS["sgdm"], [3, 5]) == [(3, "plain")]
    assert metered(SYSTEMS["sgdph-interval10"], [3, 5]) == [
        (3, "refresh"),
        (5, "refresh"),
        (3, "plain"),
    ]
    assert metered(SYSTEMS["sgdph-hutchinson-all"], [3, 5]) == [(3, "refresh")]


def test_a_compiled_model_runs_eagerly_for_second_derivatives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stances: list[str] = []
    compiled: list[nn.Module] = []
    set_stance = torch.compiler.set_stance

    def noted(stance: str) -> object:
        stances.append(stance)
        return set_stance(stance)  # type: ignore[arg-type]

    def compile_(model: nn.Module) -> nn.Module:
        compiled.append(model)
        return model

    monkeypatch.setattr(torch.compiler, "set_stance", noted)
    monkeypatch.setattr(torch, "compile", compile_)
    chosen = settings("sgdph-interval10", compile=True)
    workload = build_workload("resnet8", 2, chosen, CPU)
    contestant = Contestant(SYSTEMS["sgdph-interval10"], workload, compiled=True)
    for kind in ("plain", "refresh", "plain"):
        contestant.go_to(0, kind)  # type: ignore[arg-type]
        contestant.step(kind)  # type: ignore[arg-type]
    assert len(compiled) == 1
    assert stances == ["force_eager"]
    assert label(SYSTEMS["sgdph-interval10"], chosen, False).endswith("[eager where it refreshes]")
    assert label(SYSTEMS["adahessian"], chosen, False).endswith("[eager]")
    assert label(SYSTEMS["sgdm"], chosen, False) == "SGDM"
    figures = measure_cell("resnet8", 2, chosen, CPU, Counted())
    assert all(k.peak_bytes is None for s in figures.systems for k in s.kinds.values())


class Noted:
    """Replaces a contestant, and records its turns."""

    def __init__(self, name: str, turns: list[tuple[str, int, str]]) -> None:
        self.system, self.turns = SYSTEMS[name], turns
        self.place = (-1, "")

    def go_to(self, cursor: int, kind: str) -> None:
        self.place = cursor, kind

    def step(self, kind: str) -> None:
        assert not gc.isenabled()
        assert kind == self.place[1]
        self.turns.append((self.system.name, *self.place))
        self.place = (-1, "")


def test_the_systems_alternate_at_each_place() -> None:
    turns: list[tuple[str, int, str]] = []
    contestants = [Noted(name, turns) for name in ("sgdm", "sgdph-interval10")]
    seconds = time_round(contestants, [3, 5], CPU, Counted())  # type: ignore[arg-type]
    assert gc.isenabled()
    assert turns == [
        ("sgdm", 3, "plain"),
        ("sgdph-interval10", 3, "refresh"),
        ("sgdph-interval10", 3, "plain"),
        ("sgdm", 5, "plain"),
        ("sgdph-interval10", 5, "refresh"),
        ("sgdph-interval10", 5, "plain"),
    ]
    assert set(seconds) == {(0, "plain"), (1, "refresh"), (1, "plain")}


def network_of(*layers: nn.Module) -> Callable[[str], nn.Module]:
    return lambda name: nn.Sequential(nn.Flatten(), *layers)


def test_a_step_that_fails_raises_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = (nn.Linear(3072, 4), nn.BatchNorm1d(4), nn.Linear(4, 10))
    monkeypatch.setattr(step_module, "build_network", network_of(*layers))
    with pytest.raises(
        LabError, match=r"sgdm cannot take a training step of mine at batch size 1: Expected more"
    ):
        measure_cell("mine", 1, settings("sgdph"), CPU, Counted())


def test_a_network_without_a_newton_parameter_raises_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(step_module, "build_network", network_of(nn.Linear(3072, 10, bias=False)))
    with pytest.raises(LabError, match="mine has no channel-wise parameter"):
        measure_cell("mine", 2, settings("sgdph"), CPU, Counted())


@pytest.mark.parametrize(
    ("wrong", "flag"),
    [
        ({"rounds": 0}, "--rounds"),
        ({"visits": 0}, "--visits"),
        ({"threads": 0}, "--threads"),
        ({"batch_sizes": (4, 0)}, "--batch-size"),
        ({"batch_sizes": (4, 4)}, "--batch-size"),
        ({"models": ("resnet8", "resnet8")}, "--model"),
        ({"precision": "float16"}, "--precision"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_the_error_on_settings_out_of_bounds_names_the_flag(
    wrong: dict[str, object], flag: str
) -> None:
    with pytest.raises(LabError, match=flag):
        dataclasses.replace(settings("sgdph"), **wrong)  # type: ignore[arg-type]
