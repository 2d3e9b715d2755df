"""The first state of a run, from its configuration: data, device, model, optimizer, schedule."""

from __future__ import annotations

import copy
import ctypes
import hashlib
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, StepLR

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.data.dataset import Dataset
from sgdph.lab.data.loading import load_dataset
from sgdph.lab.data.tensors import TextDataset
from sgdph.lab.errors import LabError
from sgdph.lab.networks.external import check_output, is_external
from sgdph.lab.networks.models import build_model
from sgdph.lab.networks.registry import NETWORKS, reads_text
from sgdph.lab.optimizers.build import make_optimizer
from sgdph.lab.optimizers.channelwise_decay import set_channelwise_decay
from sgdph.lab.optimizers.registry import BASELINES
from sgdph.lab.run.checkpoint import TrainingState
from sgdph.lab.run.distributed import ALONE, Team
from sgdph.lab.run.precision import Arithmetic, check_precision
from sgdph.lab.run.tracking import check_tracker


@dataclass(frozen=True)
class PreparedRun:
    """A run that is ready to begin; nothing is on the disk yet.

    Attributes:
        config: The run's configuration.
        data: Its data set, on the run's device.
        state: Its state before the first epoch.
        team: The processes that train it.
    """

    config: RunConfig
    data: Dataset
    state: TrainingState
    team: Team = ALONE


def pick_device(name: str, team: Team = ALONE) -> torch.device:
    """Return the device with this name; ``"auto"`` prefers a CUDA GPU.

    If several processes train the run, each takes the GPU of its local rank.

    Raises:
        LabError: If there is no such device here, or it is one GPU and there are several processes.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if team.size > 1 and name == "cuda":
        name = f"cuda:{team.local_rank}"
    elif team.size > 1 and name.startswith("cuda:"):
        raise LabError(
            f"--device {name} is one GPU, and {team.size} processes need one each; take --device "
            "cuda, and CUDA_VISIBLE_DEVICES to choose among them"
        )
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise LabError(
            f"--device {name} cannot be used here: {str(error).splitlines()[0]}; expected auto, "
            "cpu or a device that torch sees on this machine, like cuda:0"
        ) from error
    if device.type == "cuda" and team.size > 1:
        torch.cuda.set_device(device)
    return device


def derive_seed(seed: int, purpose: str) -> int:
    """Derive an independent seed for one purpose from the run's seed."""
    digest = hashlib.sha256(f"{purpose}:{seed}".encode()).digest()
    return int.from_bytes(digest[:7], "little")


def build_schedule(
    optimizer: torch.optim.Optimizer, name: str, epochs: int, every: int | None = None
) -> LRScheduler:
    """Return the learning-rate schedule, to be stepped once per epoch.

    ``cosine`` falls to 0 (Loshchilov & Hutter, "SGDR", ICLR 2017). ``step`` multiplies by 0.1 each
    time ``every`` epochs are over, by default 30% of all (the SGD-PH paper's "every 60 of 200").
    ``constant`` does not change.
    """
    if name == "cosine":
        return CosineAnnealingLR(optimizer, T_max=epochs)
    if name == "step":
        return StepLR(optimizer, step_size=every or max(1, round(0.3 * epochs)), gamma=0.1)
    return ConstantLR(optimizer, factor=1.0)


def check_kind(model: str, data: Dataset) -> None:
    """Raise LabError if an image network is given text, or a text network images."""
    text = isinstance(data, TextDataset)
    if text != reads_text(model):
        takes = "images" if text else "windows of text"
        for_text = [name for name, network in NETWORKS.items() if network.reads_text]
        raise LabError(
            f"--model {model} takes {takes}, and --dataset {data.name} holds "
            f"{'text' if text else 'images'}; for text use --model {' or '.join(for_text)}, for "
            "images another"
        )


def check_batch(config: RunConfig, data: Dataset) -> None:
    """Raise LabError if the batch exceeds the data, or cannot be divided among the processes."""
    size, count = config.batch_size, data.train_count
    if size > count:
        raise LabError(
            f"--batch-size {size} is more than the {count} training images; take at most {count}"
        )
    if size % config.processes:
        raise LabError(
            f"--batch-size {size} is the images of a step over all processes, and cannot be "
            f"divided among {config.processes}; take a multiple of {config.processes}"
        )


def check_processes(config: RunConfig) -> None:
    """Raise LabError if a run has several processes, but its optimizer allows only one."""
    if config.processes > 1 and BASELINES[config.optimizer].create_graph:
        raise LabError(
            f"{config.optimizer} takes second derivatives of each process's own loss, and these "
            "are not averaged over processes; train it in one process, without torchrun"
        )


def build_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """Build a run's optimizer over all parameters of a model that is already on its device.

    Raises:
        LabError: If the optimizer rejects a value or has no use for ``channelwise_decay``, or if
            its package is missing.
    """
    fields = {name: getattr(config, name) for name in BASELINES[config.optimizer].defaults}
    # The configuration of an older run may lack a setting; then the library's default applies.
    settings = {name: value for name, value in fields.items() if value is not None}
    arguments = {**settings, **dict(config.optimizer_args or ())}
    optimizer = make_optimizer(config.optimizer, model, arguments, config.seed)
    if config.channelwise_decay != "same":
        baseline = BASELINES[config.optimizer]
        if baseline.multiplier is not None or baseline.create_graph:
            raise LabError(
                f"--channelwise-decay {config.channelwise_decay} is for first-order optimizers, "
                f"but {config.optimizer} uses curvature. Leave the option out; in a recipe you "
                "can set it for single optimizers"
            )
        set_channelwise_decay(optimizer, model, config.channelwise_decay)
    return optimizer


def seed_generators(seed: int) -> None:
    """Seed the global generators of torch, Python and NumPy."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - what libraries draw from


def check_external(name: str, model: nn.Module, data: Dataset) -> None:
    """Raise LabError if a network of torchvision or timm does not accept the data set's images."""
    # Reading image files draws from torch's generator, whose state must not change.
    with torch.random.fork_rng(devices=[]):
        images, _ = next(iter(data.evaluation_batches(1)))
    check_output(name, model, images, data.classes)


def check_lone_image(config: RunConfig, model: nn.Module, data: Dataset) -> None:
    """Raise LabError if a batch would have one image, and the network cannot train on one.

    Batch norm cannot if it sees a single pixel per image. The network is tried on one image only if
    there is such a batch. Neither its state nor the random numbers of the run change.
    """
    rest = data.train_count % config.batch_size // config.processes
    if (rest or config.batch_size // config.processes) != 1:
        return
    model = copy.deepcopy(model).train()
    devices = [data.device] if data.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        image, _ = next(iter(data.evaluation_batches(1)))
        try:
            Arithmetic.of(config).logits(model, image)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            where = "the last batch of an epoch" if rest else "every batch"
            each = " in each process" if config.processes > 1 else ""
            raise LabError(
                f"{where} has one image{each}, and a batch norm of --model {config.model} cannot "
                f"train on one; change --batch-size {config.batch_size}, or the "
                f"{data.train_count} training images with --train-size"
            ) from error


def load_data(config: RunConfig, *, download: bool = False) -> Dataset:
    """Load the data set of a run, with a download if ``download`` asks for it."""
    return load_dataset(
        config.dataset,
        data_dir=Path(config.data_dir) if config.data_dir is not None else None,
        train_size=config.train_size,
        validation_size=config.validation_size,
        download=download,
        image_size=config.image_size,
        workers=config.data_workers,
    )


def keep_freed_memory() -> None:
    """Make glibc keep freed memory; with another C library this has no effect.

    By default, glibc returns the memory of every large tensor to the system. Using new memory then
    costs one page fault per page: a third of the time of evaluating ResNet-8 on a virtual machine.
    """
    if not sys.platform.startswith("linux"):
        return
    trim_threshold, mmap_threshold = -1, -3
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    # The largest threshold that glibc accepts. Larger tensors are still returned to the system.
    mallopt(mmap_threshold, 32 * 1024 * 1024)
    mallopt(trim_threshold, 1024 * 1024 * 1024)


def prepare(config: RunConfig, data: Dataset, team: Team = ALONE) -> PreparedRun:
    """Build a run's first state from its configuration and seed.

    This seeds the global generators, and sets torch's number of threads if the configuration names
    one. It makes cuDNN deterministic; without that, a resumed run would differ in its last bits.

    Args:
        config: The run's configuration.
        data: Its data set, on any device.
        team: The processes that train it. All build the same state. Afterwards each process draws
            its own numbers from the global generators, for example for dropout.

    Raises:
        LabError: If the configuration does not fit the data, the machine or the optimizer.
    """
    check_kind(config.model, data)
    check_batch(config, data)
    check_processes(config)
    check_tracker(config.track)
    keep_freed_memory()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device, arithmetic = pick_device(config.device, team), Arithmetic.of(config)
    check_precision(config, device)
    arithmetic.set_backends(device)
    seed_generators(config.seed)
    model = build_model(config.model, in_channels=data.channels, classes=data.classes)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    data = data.to(device)
    if is_external(config.model):
        check_external(config.model, model, data)
    check_lone_image(config, model, data)
    optimizer = build_optimizer(model, config)
    schedule = build_schedule(optimizer, config.schedule, config.epochs, config.schedule_every)
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "data"))
    scaler = arithmetic.scaler(device)
    state = TrainingState(config, model, optimizer, schedule, generator, scaler)
    if not team.first:
        seed_generators(derive_seed(config.seed, f"process {team.rank}"))
    return PreparedRun(config, data, state, team)
