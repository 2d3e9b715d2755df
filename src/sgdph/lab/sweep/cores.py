"""How many CPU threads a run takes, and how many runs are trained at once.

Two threads made a step of ResNet-8 on MNIST (batch 25, 0.5 GFLOP forward) 1.2 to 1.4 times as fast
as one, one of ResNet-20 on CIFAR-10 (batch 25, 2 GFLOP) 1.4 times, with batch 128 (10 GFLOP)
1.6 times. Two runs of one thread each come close to 2, and they do not wait for each other where
other programs use the cores too. So a run takes a thread for each :data:`FLOPS_PER_THREAD` of the
forward of its batch, at least one, and as many runs as the cores have room for train at once.

The threads are decided by the run and the cores, not by how many runs there are, and recorded in
the run's configuration: the last bits of a result depend on them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import torch

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.errors import LabError
from sgdph.lab.sweep.plan import PlannedRun
from sgdph.lab.sweep.shapes import Shape, image_flops, shape_of

FLOPS_PER_THREAD = 2e9
# What is left must take this long on one core, or no processes are started for it: each takes
# several seconds to load torch.
SECONDS_WORTH_PROCESSES = 15.0
# Of one core of a small virtual machine; a step of a network on tiny images is mostly overhead.
FLOPS_PER_SECOND, SECONDS_PER_STEP = 3e10, 0.01
# The one set of text has 26 kB for each evaluation, in windows of 64 characters.
TEXT_WINDOWS, TEXT_CHARACTERS = 1_000, 96


def available_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_each(count: int) -> int:
    """Return how many CPU threads each of so many processes gets."""
    return max(1, available_cores() // count)


def check_jobs(count: int | None, flag: str) -> None:
    """Raise LabError unless a number of processes, where one was asked for with a flag, is one."""
    if count is not None and count < 1:
        raise LabError(f"{flag} must be at least 1; got {count}")


def computes_on_cpu(config: RunConfig) -> bool:
    """Whether a run's steps are computed on this machine's CPU."""
    return config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available())


def default_threads(config: RunConfig, cores: int) -> int | None:
    """Return how many CPU threads a run takes.

    Args:
        config: The run.
        cores: How many cores it may use; it takes no more than ``OMP_NUM_THREADS`` either.

    Returns:
        The number; ``None``, which is torch's choice, for a GPU, and for a run of several
        processes, where ``torchrun`` decides.
    """
    if not computes_on_cpu(config) or config.processes > 1:
        return None
    named = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    most = min(cores, int(named)) if named.isdigit() else cores
    flops = image_flops(config.model, _shape(config)) * config.batch_size
    return max(1, int(min(flops / FLOPS_PER_THREAD, most)))


def with_default_threads(config: RunConfig) -> RunConfig:
    """Fill in the threads of a run that is trained alone, where it does not say them."""
    if config.threads is not None:
        return config
    return replace(config, threads=default_threads(config, available_cores()))


def default_jobs(runs: Sequence[PlannedRun], left: Sequence[PlannedRun]) -> int:
    """Return how many runs are trained at once: ``jobs × threads`` is at most the cores.

    Args:
        runs: The runs, with their threads where they have any.
        left: Those that are not at their end yet.

    Returns:
        1 where a run uses a GPU or several processes, takes torch's choice of threads, or where
        little is left to compute.
    """
    threads = [planned.config.threads for planned in runs if computes_on_cpu(planned.config)]
    several = any(planned.config.processes > 1 for planned in runs)
    if several or len(threads) < len(runs) or None in threads or not left:
        return 1
    if sum(run_seconds(planned.config) for planned in left) < SECONDS_WORTH_PROCESSES:
        return 1
    most = max(each for each in threads if each is not None)
    return min(len(left), max(1, available_cores() // most))


def run_seconds(config: RunConfig) -> float:
    """Estimate roughly how long a run takes on one core: a step is three forwards, a test one."""
    shape = _shape(config)
    images = 3 * shape.train + shape.test
    steps = shape.train / config.batch_size
    flops = image_flops(config.model, shape) * images
    return config.epochs * (flops / FLOPS_PER_SECOND + steps * SECONDS_PER_STEP)


def _shape(config: RunConfig) -> Shape:
    try:
        return shape_of(config)
    except LabError:
        return Shape(TEXT_CHARACTERS, 64, TEXT_CHARACTERS, TEXT_WINDOWS, TEXT_WINDOWS)
