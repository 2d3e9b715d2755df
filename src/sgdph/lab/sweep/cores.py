"""How many CPU threads a run takes, and how many runs are trained at once.

Measured speed of a step with two threads, relative to one thread:

| step | FLOPs of the forward pass | speed |
|---|---|---|
| ResNet-8 on MNIST, batch 25 | 0.5 GFLOP | 1.2 to 1.4 times |
| ResNet-20 on CIFAR-10, batch 25 | 2 GFLOP | 1.4 times |
| ResNet-20 on CIFAR-10, batch 128 | 10 GFLOP | 1.6 times |

Two runs with one thread each come close to 2 times, and they do not wait for each other if other
programs use the cores too. So a run takes one thread for each :data:`FLOPS_PER_THREAD` of its
batch's forward pass, at least one. As many runs train at once as the cores have room for.

The number of threads depends on the run and the cores, not on how many runs there are. It is
recorded in the run's configuration, because the last bits of a result depend on it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

import torch

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.sweep.plan import PlannedRun
from sgdph.lab.sweep.shapes import image_flops, shape_of

FLOPS_PER_THREAD = 2e9
# Processes are started only if the remaining work takes this long on one core, because each process
# takes several seconds to load torch.
SECONDS_WORTH_PROCESSES = 15.0
# For one core of a small virtual machine. On tiny images, a step is mostly overhead.
FLOPS_PER_SECOND, SECONDS_PER_STEP = 3e10, 0.01


def available_cores() -> int:
    """Count the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_each(count: int) -> int:
    """Return how many CPU threads each of ``count`` processes gets."""
    return max(1, available_cores() // count)


def computes_on_cpu(config: RunConfig) -> bool:
    """Return whether a run's steps are computed on this machine's CPU."""
    return config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available())


def default_threads(config: RunConfig, cores: int) -> int | None:
    """Return how many CPU threads a run takes.

    Args:
        config: The run.
        cores: How many cores it may use; ``OMP_NUM_THREADS`` is a further upper limit.

    Returns:
        The number of threads. It is ``None``, which is torch's choice, for a GPU, and for a run in
        several processes, for which ``torchrun`` decides.
    """
    if not computes_on_cpu(config) or config.processes > 1:
        return None
    named = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    most = min(cores, int(named)) if named.isdigit() else cores
    flops = image_flops(config.model, shape_of(config)) * config.batch_size
    return max(1, int(min(flops / FLOPS_PER_THREAD, most)))


def with_default_threads(config: RunConfig) -> RunConfig:
    """Set the number of threads of a run that is trained alone, if it has none."""
    if config.threads is not None:
        return config
    return replace(config, threads=default_threads(config, available_cores()))


def default_jobs(runs: Sequence[PlannedRun], left: Sequence[PlannedRun]) -> int:
    """Return how many runs are trained at once, with ``jobs × threads`` at most the cores.

    Args:
        runs: The runs, with their threads if they have any.
        left: Those that have not ended yet.

    Returns:
        The number of runs. It is 1 if a run uses a GPU or several processes, if a run takes torch's
        choice of threads, or if little is left to compute.
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
    """Estimate roughly how many seconds a run takes on one core.

    A training image costs three forward passes, a test image one, and each step some overhead.
    """
    shape = shape_of(config)
    images = 3 * shape.train + shape.test
    steps = shape.train / config.batch_size
    flops = image_flops(config.model, shape) * images
    return config.epochs * (flops / FLOPS_PER_SECOND + steps * SECONDS_PER_STEP)
