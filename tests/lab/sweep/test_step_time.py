"""The average step time: without the first step, over a whole cycle, for any refresh interval."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sgdph.lab.run.step import optimization_step
from sgdph.lab.sweep import step_time
from sgdph.lab.sweep.plan import complete
from sgdph.lab.sweep.step_time import average_step, time_step


class FakeStep:
    """Steps of known duration, on a fake clock.

    The first step takes 100 s. After that, a step with a refresh takes 2 s at the input and 1 s at
    the output, and a step without a refresh takes 1 s.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.taken: list[tuple[float, bool]] = []

    def clock(self) -> float:
        return self.now

    def take(self, place: float, due: bool) -> None:
        self.now += 100 if not self.taken else 2 - place if due else 1
        self.taken.append((place, due))


@pytest.mark.parametrize(("interval", "seconds"), [(1, 1.5), (10, 1.05)])
def test_the_average_excludes_the_first_step_and_weights_refreshes(
    interval: int, seconds: float
) -> None:
    step = FakeStep()
    assert average_step(step.take, interval, step.clock) == pytest.approx(seconds)
    # Each step takes longer than the time limit, so only one of each kind is timed.
    assert step.taken == [(0.0, True), (0.5, True), (0.5, False)][: 2 if interval == 1 else 3]


def test_short_steps_are_measured_over_the_whole_cycle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_time, "SECONDS_PER_TIMING", 1000)
    step = FakeStep()
    assert average_step(step.take, 1, step.clock) == pytest.approx(1.5)
    assert [place for place, _ in step.taken[1:]] == list(step_time.PLACES)


@pytest.mark.parametrize("optimizer", ["sgdph", "sgdm", "sophiah"])
def test_a_run_is_timed_at_the_places_of_its_cycle(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if optimizer == "sophiah":
        pytest.importorskip("pytorch_optimizer")
    seen: list[tuple[Any, Any]] = []

    def watched(stepped: torch.optim.Optimizer, *rest: Any) -> None:
        group = stepped.param_groups[-1]
        seen.append((group.get("cursor"), getattr(stepped, "create_graph_due", None)))
        optimization_step(stepped, *rest)

    monkeypatch.setattr(step_time, "optimization_step", watched)
    config = complete(
        {
            "dataset": "cifar10",
            "image_size": 8,
            "model": "resnet8",
            "optimizer": optimizer,
            "device": "cpu",
        }
    )
    # Time stands still, so every place is visited.
    assert time_step(config, 2, lambda: 0.0) == 0
    if optimizer == "sgdph":
        # Seven batch norms have a scale and a shift each.
        assert [cursor for cursor, _ in seen] == [0, 7, 3, 10, 1, 12]
    elif optimizer == "sgdm":
        assert len(seen) == 6
    else:
        assert [due for _, due in seen] == [True] * 6 + [False] * 5
