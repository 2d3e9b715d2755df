"""The measurement at a checkpoint: dense blocks on batches, and the results from them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that every torch reader expects

from sgdph import hessian_block
from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.data.dataset import Dataset, plan_epoch
from sgdph.lab.inspect.figures import (
    BlockRecord,
    CheckpointFigures,
    InspectSettings,
    Plan,
)
from sgdph.lab.inspect.multipliers import (
    held_averages,
    hyperparameter,
    multiplier_records,
)
from sgdph.lab.inspect.parameters import NewtonParameter, newton_parameters
from sgdph.lab.inspect.sketch import BlockSketch, finite, flat, off_diagonal_share
from sgdph.lab.progress import StepReporter
from sgdph.lab.run.checkpoint import load_checkpoint
from sgdph.lab.run.environment import describe_environment
from sgdph.lab.run.start import PreparedRun, derive_seed, prepare
from sgdph.lab.run.step import wait_for


def measure_checkpoint(
    config: RunConfig,
    data: Dataset,
    checkpoint: Path,
    plan: Plan,
    settings: InspectSettings,
    reporter: StepReporter,
) -> CheckpointFigures:
    """Compute the dense blocks of the chosen parameters at a checkpoint, and the results.

    Every checkpoint of a run uses the same 2B training batches. They are augmented as in training,
    and drawn with the run's seed. The model is in training mode, as for the optimizer.

    Args:
        config: Configuration of the run.
        data: Its data set.
        checkpoint: The checkpoint file.
        plan: The chosen parameters.
        settings: Numbers of batches and probes, and the precision.
        reporter: Receives the progress, block by block.

    Raises:
        LabError: If the checkpoint cannot be read, or does not belong to the run.
    """
    started = time.perf_counter()
    run = at_checkpoint(config, data, checkpoint, settings.float64)
    state = run.state
    parameters = newton_parameters(state.model)
    chosen = [each for each in parameters if each.name in plan.chosen]
    sketches, seconds = take_blocks(run, chosen, settings, reporter)
    held = held_averages(state.optimizer, parameters, config)
    beta2 = hyperparameter(config, "hessian_momentum")
    blocks = []
    for each in chosen:
        sketch = sketches[each.name]
        average, refreshes = held.get(each.name, (None, None))
        blocks.append(
            BlockRecord(
                epoch=state.epoch,
                name=each.name,
                label=each.label,
                kind=each.kind,
                shape=tuple(each.tensor.shape),
                size=each.size,
                batches=settings.batches,
                batch_size=config.batch_size,
                seconds=seconds[each.name],
                off_diagonal_share_batch=finite(fmean(sketch.shares)),
                off_diagonal_share_mean=finite(off_diagonal_share(sketch.mean)),
                negative_share_batch=fmean(sketch.negatives),
                negative_share_mean=(sketch.mean.diagonal() < 0).double().mean().item(),
                diagonal=sketch.reference.abs().mean().item(),
                refreshes=refreshes,
                errors=flat(sketch.errors(beta2, average)),
            )
        )
    return CheckpointFigures(
        epoch=state.epoch,
        step=state.step,
        seconds=time.perf_counter() - started,
        environment=describe_environment(run.data.device),
        examples=run.data.train_count,
        blocks=blocks,
        multipliers=multiplier_records(run, parameters, held, sketches),
        pictures={name: sketches[name].mean for name in plan.pictured},
    )


def at_checkpoint(
    config: RunConfig, data: Dataset, checkpoint: Path | None, float64: bool
) -> PreparedRun:
    """Prepare a run and load a checkpoint; without one, it stays before its first step."""
    run = prepare(config, data)
    if checkpoint is not None:
        load_checkpoint(checkpoint, run.state)
    if float64:
        run.state.model.double()
    return run


def take_blocks(
    run: PreparedRun,
    chosen: Sequence[NewtonParameter],
    settings: InspectSettings,
    reporter: StepReporter,
) -> tuple[dict[str, BlockSketch], dict[str, float]]:
    """Compute the blocks of the chosen parameters on 2B batches.

    Returns:
        Summaries of the blocks and the seconds that they took, both by parameter name.
    """
    count = 2 * settings.batches
    sketches = {
        each.name: BlockSketch(count, settings.probes, run.config.seed, each.index)
        for each in chosen
    }
    seconds = dict.fromkeys(sketches, 0.0)
    device = run.data.device
    reporter.cell_started(f"epoch {run.state.epoch}", count * len(chosen))
    with training_mode(run.state.model):
        for i, batch in enumerate(draw_batches(run, count)):
            loss = loss_on(run, batch, i, settings.float64)
            for each in chosen:
                started = time.perf_counter()
                sketches[each.name].add(hessian_block(loss, each.tensor))
                wait_for(device)
                seconds[each.name] += time.perf_counter() - started
                reporter.step_finished()
    return sketches, seconds


def draw_batches(run: PreparedRun, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield full training batches, augmented as in training, the same at every call.

    The orders of as many epochs as needed are drawn from a separate generator. Batches of one epoch
    share no examples. Batches of different epochs may.
    """
    data, size = run.data, run.config.batch_size
    generator = torch.Generator().manual_seed(derive_seed(run.config.seed, "inspect"))
    per_epoch = data.train_count // size
    for i in range(count):
        if i % per_epoch == 0:
            batches = data.training_batches(plan_epoch(data, generator), size)
        yield next(batches)


def loss_on(run: PreparedRun, batch: tuple[Tensor, Tensor], index: int, float64: bool) -> Tensor:
    """Compute the training loss (nats) on a batch; ``index`` seeds the dropout masks."""
    inputs, labels = batch
    if float64 and inputs.is_floating_point():
        inputs = inputs.double()
    device = inputs.device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(derive_seed(run.config.seed, f"forward {index}"))
        return F.cross_entropy(run.state.model(inputs), labels)


@contextlib.contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into training mode; restore its modes and buffers at the end."""
    modes = {module: module.training for module in model.modules()}
    saved = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    model.train()
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in saved:
                buffer.copy_(before)
        for module, mode in modes.items():
            module.training = mode
