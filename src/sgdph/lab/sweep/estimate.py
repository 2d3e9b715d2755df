"""How long runs would take here: a range, from a few steps on images of noise.

Each network is timed once, with one optimizer. Each optimizer is timed once, on the smallest
network. The ratio of two optimizers there is assumed to hold for the other networks. So a table of
seven optimizers and four networks takes eleven short timings instead of 28.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.optimizers.registry import SETTINGS
from sgdph.lab.sweep.cores import FLOPS_PER_SECOND, with_default_threads
from sgdph.lab.sweep.plan import PlannedRun
from sgdph.lab.sweep.shapes import image_flops, shape_of
from sgdph.lab.sweep.step_time import SECONDS_PER_TIMING, time_step

# Optimizers are compared on images of at most this height and width, in pixels.
SMALL_IMAGE = 64
# n threads are faster than one by n to these powers: at most the first, at least the second.
GAIN = (1.0, 0.4)
# A training step takes as long as three forward passes, an evaluation as long as one.
FORWARDS = 3
# Factors between the estimate and the ends of its range: SPREAD if this very step was timed,
# WIDE_SPREAD if only parts of it were.
SPREAD, WIDE_SPREAD = (0.8, 1.4), (0.5, 1.6)

Key: TypeAlias = tuple[object, ...]
"""What a timing depends on."""


@dataclass(frozen=True)
class Range:
    """A range of seconds.

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
        low, high = (float(f"{each / size:.2g}") for each in (self.low, self.high))
        return f"{low:g} to {high:g} {name}" if low != high else f"{high:g} {name}"


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
        # All networks are timed with this optimizer, and all optimizers with this network.
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
        # With the optimizer that the network was timed with: with others, evaluation is no slower.
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
    """Return what the time of a run's network depends on, besides the number of images."""
    shape = shape_of(config)
    return (
        *(config.model, shape.channels, shape.size, config.precision, config.channels_last),
        config.device,
    )


def optimizer_key(config: RunConfig) -> Key:
    """Return what the time of a run's optimizer depends on."""
    return (config.optimizer, config.estimator, config.refresh, config.hessian_interval)


def flops_of(config: RunConfig) -> float:
    """Return the FLOPs of a run's forward pass on one image."""
    return image_flops(config.model, shape_of(config))


def affordable_images(config: RunConfig) -> int:
    """Return the number of images that a run's step is timed on.

    It is at most the batch size, and at most as many as take about ``SECONDS_PER_TIMING`` seconds,
    judged by their FLOPs. Unless the batch has one image, it is at least two, because some networks
    cannot train on one.
    """
    images = SECONDS_PER_TIMING * FLOPS_PER_SECOND / (FORWARDS * flops_of(config))
    return min(config.batch_size, max(2, int(images)))


def with_small_images(config: RunConfig) -> RunConfig:
    """Return a run on images that are small enough for timing every optimizer.

    A network that takes images of one size only keeps that size.
    """
    size = shape_of(config).size
    small = dataclasses.replace(config, image_size=min(size, SMALL_IMAGE))
    only_its_own = math.isinf(flops_of(small)) and math.isfinite(flops_of(config))
    return config if only_its_own else small


def with_optimizer(config: RunConfig, other: RunConfig) -> RunConfig:
    """Return a run with the optimizer of another, its settings included."""
    names = ("optimizer", "optimizer_args", *SETTINGS)
    return dataclasses.replace(config, **{name: getattr(other, name) for name in names})
