"""log_multipliers: which values it computes, and that each kind of logger gets them."""

from __future__ import annotations

import logging
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from small import bn_net, train
from torch.utils.tensorboard import SummaryWriter

import sgdph


def trained(steps: int) -> sgdph.SGDPH:
    model = bn_net()
    settings = {"second_order_lr": 3e-3, "eps": 1e-2, "hessian_momentum": 0.8}
    optimizer = sgdph.SGDPH(model.named_parameters(), **settings)
    train(model, optimizer, range(steps))
    return optimizer


@pytest.mark.parametrize("steps", [0, 2, 6])
def test_logged_values_follow_from_the_state(steps: int) -> None:
    optimizer = trained(steps)
    newton = optimizer.newton_parameters
    names = {id(p): name for name, p in named_members(optimizer)}
    expected, medians = {}, []
    for place, p in enumerate(newton):
        # The parameters are refreshed in turn, one per step.
        count, median = len(range(place, steps, len(newton))), 1.0
        if count:
            average = optimizer.state[p]["hessian"].abs() / (1 - 0.8**count)
            multiplier = 3e-3 / (average + 1e-2)
            median = multiplier.flatten().sort().values[(p.numel() - 1) // 2].item()
            medians.append(median)
        expected[f"a_multiplier/{names[id(p)]}"] = median
        expected[f"a_refreshes/{names[id(p)]}"] = count
    expected["a/refreshed"] = len(medians)
    if medians:
        expected["a/multiplier_min"] = min(medians)
        expected["a/multiplier_median"] = statistics.median_high(medians)
        expected["a/multiplier_max"] = max(medians)
    assert len(expected) >= 2 * 3 + 1
    assert sgdph.log_multipliers(optimizer, prefix="a") == pytest.approx(expected, rel=1e-5)


def named_members(optimizer: sgdph.SGDPH) -> list[tuple[str, torch.Tensor]]:
    members = [p for group in optimizer.param_groups for p in group["params"]]
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    return list(zip(names, members, strict=True))


class Recorder:
    def __init__(self) -> None:
        self.got: list[tuple[dict[str, float], int]] = []

    def record(self, figures: dict[str, float], step: int) -> None:
        self.got.append((figures, step))


class WandBLike(Recorder):
    log = Recorder.record


class FabricLike(Recorder):
    log_dict = Recorder.record

    def log(self, name: str, value: float, step: int) -> None:
        raise AssertionError("one figure at a time")


class LoggerLike(Recorder):
    log_metrics = Recorder.record


@pytest.mark.parametrize("kind", [WandBLike, FabricLike, LoggerLike])
def test_each_kind_of_logger_gets_the_values(kind: Any) -> None:
    optimizer, logger = trained(3), kind()
    figures = sgdph.log_multipliers(optimizer, logger, 7)
    assert logger.got == [(figures, 7)]
    assert figures == sgdph.log_multipliers(optimizer)


def test_tensorboard_gets_the_values(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer = SummaryWriter(tmp_path)
    figures = sgdph.log_multipliers(trained(3), writer, 7)
    writer.close()
    read = events.EventAccumulator(str(tmp_path)).Reload()
    assert set(read.Tags()["scalars"]) == set(figures)
    for name, value in figures.items():
        [scalar] = read.Scalars(name)
        assert (scalar.step, scalar.value) == (7, pytest.approx(value, rel=1e-6))


def test_bad_arguments_raise_errors() -> None:
    optimizer = trained(1)
    for wrong in ([], logging.getLogger()):
        with pytest.raises(
            TypeError, match=rf"SummaryWriter, to wandb.*got {type(wrong).__name__}"
        ):
            sgdph.log_multipliers(optimizer, wrong, 1)
    with pytest.raises(ValueError, match="needs `step`"):
        sgdph.log_multipliers(optimizer, WandBLike())
    with pytest.raises(TypeError, match=r"expected an sgdph\.SGDPH"):
        sgdph.log_multipliers(torch.optim.SGD(bn_net().parameters()), WandBLike(), 1)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_nan_makes_min_median_and_max_nan(place: int) -> None:
    optimizer = trained(6)
    optimizer.state[optimizer.newton_parameters[place]]["hessian"].fill_(math.nan)
    figures = sgdph.log_multipliers(optimizer)
    assert all(math.isnan(figures[f"sgdph/multiplier_{name}"]) for name in ("min", "median", "max"))
