"""How long runs would take here: a range, from a few steps on images of noise.

Each network is timed once, with one optimizer, and each optimizer once, on the smallest network;
how much longer it takes there than the first one is taken to hold for the others. So a table of
seven optimizers and four networks takes eleven short timings and not 28.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch.nn import functional as F  # noqa: N812 - the name that every torch reader expects

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.data.dataset import Dataset, plan_epoch
from sgdph.lab.data.tensors import noise_dataset
from sgdph.lab.optimizers.registry import SETTINGS
from sgdph.lab.run.precision import Arithmetic
from sgdph.lab.run.start import prepare
from sgdph.lab.run.step import optimization_step
from sgdph.lab.sweep.cores import FLOPS_PER_SECOND, with_default_threads
from sgdph.lab.sweep.plan import PlannedRun
from sgdph.lab.sweep.shapes import image_flops, shape_of

# A step is timed on as many images as take about so long, by their FLOPs, and steps until then.
SECONDS_PER_TIMING = 0.15
MOST_STEPS = 5
# Optimizers are compared on images of at most so many pixels.
SMALL_IMAGE = 64
# How much sooner a run of n threads ends than one of a single thread, as powers of n.
GAIN = (1.0, 0.4)
# A training step takes three times a forward, an evaluation one.
FORWARDS = 3
# How far the time of a run may lie from what was timed: of the very step, or of a part of it.
SPREAD, WIDE_SPREAD = (0.8, 1.4), (0.5, 1.6)

Key: TypeAlias = tuple[object, ...]
"""What a timing depends on."""


@dataclass(frozen=True)
class Range:
    """Seconds between which a time lies.

    Attributes:
        low: The lower end.
        high: The upper end.
    """

    low: float = 0.0
    high: float = 0.0

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.high + other.high)

    def __mul__(self, factor: float) -> Range:
        return Range(self.low * factor, self.high * factor)

    def __str__(self) -> str:
        """Write the range in the unit that fits: ``"4 to 10 min"``."""
        units = (("s", 1.0, 120.0), ("min", 60.0, 7200.0), ("h", 3600.0, 172_800.0))
        name, size = next(
            ((name, size) for name, size, most in units if self.high < most), ("days", 86_400.0)
        )
        low, high = (f"{_two_digits(each / size):g}" for each in (self.low, self.high))
        return f"{low} to {high} {name}" if low != high else f"{high} {name}"


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")


class Estimate:
    """Times steps, each kind once, and estimates runs from them.

    Args:
        runs: The runs that are to be estimated.
        told: Receives a line before each timing.
    """

    def __init__(
        self, runs: Sequence[PlannedRun], told: Callable[[str], None] = lambda line: None
    ) -> None:
        configs = [planned.config for planned in runs]
        self._told = told
        self._timings: dict[Key, float] = {}
        plain = [config for config in configs if config.optimizer == "sgdm"]
        # The optimizer that the networks are timed with, and the network that the others are.
        self._optimizer = next(iter(plain or configs), None)
        self._network = min(map(with_small_images, configs), key=flops_of, default=None)

    def step(self, config: RunConfig) -> Range:
        """Estimate a training step of a run at its batch size."""
        assert self._network is not None
        assert self._optimizer is not None
        images = affordable_images(config)
        network = self._time(with_optimizer(config, self._optimizer))
        plain = self._time(with_optimizer(self._network, self._optimizer))
        own = self._time(with_optimizer(self._network, config))
        timed = images == config.batch_size and (
            network_key(config) == network_key(self._network) or own == plain
        )
        low, high = SPREAD if timed else WIDE_SPREAD
        threads = with_default_threads(config).threads or 1
        seconds = network * own / plain * config.batch_size / images
        return Range(seconds * low / threads ** GAIN[0], seconds * high / threads ** GAIN[1])

    def run(self, config: RunConfig) -> Range:
        """Estimate how long a run takes: its steps and evaluations, without reading files."""
        shape, step = shape_of(config), self.step(config)
        steps = -(-shape.train // config.batch_size)
        # Of the optimizer that the network was timed with: others evaluate no slower.
        plain = self.step(with_optimizer(config, self._optimizer or config))
        evaluations = shape.test / config.batch_size / FORWARDS
        return (step * steps + plain * evaluations) * config.epochs

    def total(self, configs: Sequence[RunConfig]) -> Range:
        """Estimate how long runs take, one after another."""
        return sum(map(self.run, configs), Range())

    def _time(self, config: RunConfig) -> float:
        images = affordable_images(config)
        key = (*network_key(config), *optimizer_key(config), images)
        if key not in self._timings:
            self._told(f"timing {config.model} with {config.optimizer}, {images} images a step")
            self._timings[key] = time_step(config, images)
        return self._timings[key]


def network_key(config: RunConfig) -> Key:
    """Tell runs apart whose networks take different times."""
    shape = shape_of(config)
    return (
        *(config.model, shape.channels, shape.size, config.precision, config.channels_last),
        config.device,
    )


def optimizer_key(config: RunConfig) -> Key:
    """Tell runs apart whose optimizers take different times."""
    return (config.optimizer, config.estimator, config.refresh, config.hessian_interval)


def flops_of(config: RunConfig) -> float:
    """Return the FLOPs of a run's forward on one image."""
    return image_flops(config.model, shape_of(config))


def affordable_images(config: RunConfig) -> int:
    """Return on how many images a run's step is timed, at most its batch."""
    images = SECONDS_PER_TIMING * FLOPS_PER_SECOND / (FORWARDS * flops_of(config))
    return max(1, min(config.batch_size, int(images)))


def with_small_images(config: RunConfig) -> RunConfig:
    """Return a run on images that are small enough to time every optimizer on."""
    size = shape_of(config).size
    return dataclasses.replace(config, image_size=min(size, SMALL_IMAGE))


def with_optimizer(config: RunConfig, other: RunConfig) -> RunConfig:
    """Return a run with the optimizer of another, its settings included."""
    names = ("optimizer", "optimizer_args", *SETTINGS)
    return dataclasses.replace(config, **{name: getattr(other, name) for name in names})


def time_step(config: RunConfig, images: int) -> float:
    """Return the median seconds of a training step on so many images of noise, in one thread.

    On a CPU they are the processor's: what else runs now says nothing of the days to come. The
    first step, which takes longer, counts only where there is no time for another.
    """
    alone = dataclasses.replace(config, batch_size=images, processes=1, threads=1, track=None)
    prepared = prepare(alone, noise(config, images))
    data, state, arithmetic = prepared.data, prepared.state, Arithmetic.of(alone)
    clock = time.process_time if data.device.type == "cpu" else time.perf_counter
    plan = plan_epoch(data, torch.Generator().manual_seed(0))
    state.model.train()
    seconds: list[float] = []
    while len(seconds) < MOST_STEPS and sum(seconds) < SECONDS_PER_TIMING:
        started = clock()
        for inputs, labels in data.training_batches(plan, images):
            loss = F.cross_entropy(arithmetic.logits(state.model, inputs), labels)
            optimization_step(state.optimizer, loss, state.scaler)
        if data.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(clock() - started)
    return statistics.median(seconds[1:] or seconds)


def noise(config: RunConfig, count: int) -> Dataset:
    """Make a data set of random images, of the shape of the run's own."""
    shape = shape_of(config)
    size = (shape.channels, shape.size, shape.size)
    return noise_dataset(config.dataset, size, shape.classes, train=count, test=count)
