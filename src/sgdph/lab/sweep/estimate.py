"""How long runs would take here, from a few steps of each kind on images of noise."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch.nn import functional as F  # noqa: N812 - the name that every torch reader expects

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.data.dataset import Dataset, plan_epoch
from sgdph.lab.data.tensors import TensorDataset
from sgdph.lab.errors import LabError
from sgdph.lab.run.evaluation import EVALUATION_BATCH, evaluate
from sgdph.lab.run.precision import Arithmetic
from sgdph.lab.run.start import prepare
from sgdph.lab.run.step import optimization_step
from sgdph.lab.sweep.plan import PlannedRun

STEPS, WARM_UP = 5, 2
# A step that takes longer than so many seconds is timed on fewer images.
LONG_STEP = 1.0
FEW_IMAGES = 8


@dataclass(frozen=True)
class Shape:
    """What a set of images asks of the machine.

    Attributes:
        channels: Channels of an image.
        size: Height and width in pixels.
        classes: Number of classes.
        train: Training images.
        test: Test images.
    """

    channels: int
    size: int
    classes: int
    train: int
    test: int


SHAPES: Mapping[str, Shape] = {
    "mnist5k": Shape(1, 28, 10, 1_000, 4_000),
    "digits": Shape(1, 8, 10, 1_297, 500),
    "fashion-mnist": Shape(1, 28, 10, 60_000, 10_000),
    "cifar10": Shape(3, 32, 10, 50_000, 10_000),
    "cifar100": Shape(3, 32, 100, 50_000, 10_000),
    "mini-imagenet": Shape(3, 224, 100, 50_000, 10_000),
    "imagenet": Shape(3, 224, 1_000, 1_281_167, 50_000),
}


@dataclass(frozen=True)
class Timing:
    """What was measured of one kind of run.

    Attributes:
        step: Seconds of a training step at the run's batch size.
        evaluation: Seconds of evaluating one image.
        scaled: Whether the step was timed on fewer images than a batch.
    """

    step: float
    evaluation: float
    scaled: bool


Key: TypeAlias = tuple[object, ...]
"""What a step's time depends on."""


def timing_key(config: RunConfig) -> Key:
    """Tell runs apart whose steps take different times."""
    shape = shape_of(config)
    return (
        config.model,
        config.optimizer,
        config.batch_size,
        (shape.channels, shape.size),
        config.precision,
        config.channels_last,
        (config.estimator, config.refresh, config.hessian_interval),
    )


def shape_of(config: RunConfig) -> Shape:
    """Return the shape of a run's images, as many as it takes.

    Raises:
        LabError: If the data set's shape is not known.
    """
    if config.dataset not in SHAPES:
        raise LabError(
            f"times are estimated for {', '.join(SHAPES)} only; got --dataset {config.dataset}"
        )
    shape = SHAPES[config.dataset]
    train = min(config.train_size or shape.train, shape.train)
    test = shape.test
    if config.validation_size is not None:
        train, test = train - config.validation_size, config.validation_size
    return dataclasses.replace(
        shape, size=config.image_size or shape.size, train=max(1, train), test=test
    )


def seconds_of(config: RunConfig, timing: Timing) -> float:
    """Estimate how long a run takes: its steps and evaluations, without reading files."""
    shape = shape_of(config)
    steps = -(-shape.train // config.batch_size)
    return config.epochs * (steps * timing.step + shape.test * timing.evaluation)


def measure_all(
    runs: Sequence[PlannedRun], told: Callable[[str], None] = lambda line: None
) -> dict[Key, Timing]:
    """Time each kind of run once.

    Args:
        runs: The runs.
        told: Receives a line before each timing.

    Returns:
        The timing of every run's :func:`timing_key`.
    """
    timings: dict[Key, Timing] = {}
    for planned in runs:
        key = timing_key(planned.config)
        if key not in timings:
            config = planned.config
            told(f"timing {config.model}, {config.optimizer}, batch {config.batch_size}")
            timings[key] = measure(config)
    return timings


def measure(config: RunConfig) -> Timing:
    """Time a run's training step (median of five) and its evaluation.

    Where a step of the whole batch would take long, it is timed on eight images and scaled up,
    which holds for networks whose convolutions outweigh everything else.

    Args:
        config: The run.
    """
    size = min(config.batch_size, FEW_IMAGES)
    few = time_step(config, size, steps=3)
    scale = config.batch_size / size
    scaled = few * scale > LONG_STEP and scale > 1
    step = few * scale if scaled else time_step(config, config.batch_size, STEPS)
    images = FEW_IMAGES if scaled else EVALUATION_BATCH
    prepared = prepare(one_process(config, images), noise(config, images))
    arithmetic = Arithmetic.of(config)
    evaluate(prepared.state.model, prepared.data, arithmetic)
    started = time.perf_counter()
    evaluate(prepared.state.model, prepared.data, arithmetic)
    return Timing(step, (time.perf_counter() - started) / images, scaled)


def one_process(config: RunConfig, batch: int) -> RunConfig:
    """Return the run with another batch, in this process alone."""
    return dataclasses.replace(config, batch_size=batch, processes=1, track=None)


def time_step(config: RunConfig, batch: int, steps: int) -> float:
    """Return the median seconds of a training step on so many images of noise."""
    prepared = prepare(one_process(config, batch), noise(config, batch))
    data, state = prepared.data, prepared.state
    plan = plan_epoch(data, torch.Generator().manual_seed(0))
    state.model.train()
    arithmetic = Arithmetic.of(config)
    seconds = []
    for _ in range(WARM_UP + steps):
        started = time.perf_counter()
        for images, labels in data.training_batches(plan, batch):
            loss = F.cross_entropy(arithmetic.logits(state.model, images), labels)
            optimization_step(state.optimizer, loss, state.scaler)
        if data.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[WARM_UP:])


def noise(config: RunConfig, count: int) -> Dataset:
    """Make a data set of random images, of the shape of the run's own."""
    shape = shape_of(config)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(
        256,
        (count, shape.channels, shape.size, shape.size),
        generator=generator,
        dtype=torch.uint8,
    )
    labels = torch.randint(shape.classes, (count,), generator=generator)
    return TensorDataset(
        name=config.dataset,
        classes=shape.classes,
        crop_padding=4 if config.dataset.startswith("cifar") else 0,
        flip=config.dataset.startswith("cifar"),
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
        mean=torch.full((shape.channels, 1, 1), 127.5),
        std=torch.full((shape.channels, 1, 1), 74.0),
    )
