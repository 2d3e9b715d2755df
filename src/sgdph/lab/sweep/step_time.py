"""How long a training step of a run takes on this machine, measured on a few images of noise.

A single step would mislead. The first step chooses kernels and creates the optimizer's state. A
refresh costs more near the input than near the output, so the first refreshes of a cycle are the
most expensive. And if only every n-th step refreshes, the other steps are cheaper.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F  # noqa: N812 - the name that every torch reader expects

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.data.dataset import Dataset, plan_epoch
from sgdph.lab.data.tensors import noise_dataset
from sgdph.lab.data.text import noise_text
from sgdph.lab.run.precision import Arithmetic
from sgdph.lab.run.start import prepare
from sgdph.lab.run.step import attention_for, go_to, optimization_step, wait_for
from sgdph.lab.sweep.shapes import shape_of

# Steps of one kind are timed until together they have taken this long; at least one is timed.
SECONDS_PER_TIMING = 0.15
# Their positions in the cycle, as fractions of it. The median of the first few is near the middle.
PLACES = (1 / 2, 1 / 4, 3 / 4, 1 / 8, 7 / 8)

Clock = Callable[[], float]


def time_step(config: RunConfig, images: int, clock: Clock | None = None) -> float:
    """Measure the time of an average training step on images of noise, in one thread.

    Args:
        config: The run.
        images: Images in the batch.
        clock: Returns seconds. The default is the process's CPU time, because other programs that
            run now say nothing about later. On a GPU, the default is the wall clock.

    Returns:
        Seconds.

    Raises:
        LabError: If the run cannot be prepared.
    """
    alone = dataclasses.replace(config, batch_size=images, processes=1, threads=1, track=None)
    prepared = prepare(alone, noise(config, images))
    data, state, arithmetic = prepared.data, prepared.state, Arithmetic.of(alone)
    on_cpu = data.device.type == "cpu"
    plan = plan_epoch(data, torch.Generator().manual_seed(0))
    state.model.train()
    count = len(getattr(state.optimizer, "newton_parameters", ()))
    interval = refresh_interval(state.optimizer)

    def take(place: float, due: bool) -> None:
        go_to(state.optimizer, int(place * count), due=due if interval > 1 else None)
        for inputs, labels in data.training_batches(plan, images):
            with attention_for(state.optimizer):
                logits = arithmetic.logits(state.model, inputs)
            loss = F.cross_entropy(logits, labels)
            optimization_step(state.optimizer, loss, state.scaler)
        wait_for(data.device)

    return average_step(
        take, interval, clock or (time.process_time if on_cpu else time.perf_counter)
    )


def average_step(take: Callable[[float, bool], None], interval: int, clock: Clock) -> float:
    """Measure the average time of a step, over steps that refresh and steps that do not.

    Args:
        take: Takes a step, given the place in the cycle (0 to 1) and whether it refreshes.
        interval: One of this many steps refreshes.
        clock: Returns seconds.

    Returns:
        Seconds.
    """
    # Warm-up. A refresh at the first place needs all kernels that are needed at the others.
    take(0.0, True)
    refresh = _median(lambda place: take(place, True), clock)
    if interval == 1:
        return refresh
    plain = _median(lambda place: take(place, False), clock)
    return (refresh + (interval - 1) * plain) / interval


def _median(take: Callable[[float], None], clock: Clock) -> float:
    seconds: list[float] = []
    for place in PLACES:
        started = clock()
        take(place)
        seconds.append(clock() - started)
        if sum(seconds) >= SECONDS_PER_TIMING:
            break
    return statistics.median(seconds)


def refresh_interval(optimizer: torch.optim.Optimizer) -> int:
    """Return the number of steps per step that takes second derivatives, at least 1."""
    own = [group.get("hessian_interval", 1) for group in optimizer.param_groups]
    # update_period is SophiaH's name for it.
    return int(max(*own, getattr(optimizer, "update_period", 1)))


def noise(config: RunConfig, count: int) -> Dataset:
    """Return a data set of random images or text with the shape of the run's own."""
    shape = shape_of(config)
    if config.dataset == "pydoc":
        return noise_text(config.dataset, train=count, test=count)
    size = (shape.channels, shape.size, shape.size)
    return noise_dataset(config.dataset, size, shape.classes, train=count, test=count)
