"""Lightning: a callback that takes the partial Hessian before each backward; Fabric: a function.

``lightning`` and ``pytorch_lightning`` (2.4 or later) are the same code under two names. The
callback works with trainers of both.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from typing import Any

from torch import Tensor

from sgdph.autograd.graph import graph_nodes, is_leaf
from sgdph.compilation import uncompiled_while_due
from sgdph.integrations.ahead import ahead_of, around
from sgdph.integrations.wrapped import take_scaled
from sgdph.metrics import log_multipliers as read_multipliers
from sgdph.partial_hessian import PartialHessian
from sgdph.step import SecondOrderOptimizer
from sgdph.wrappers import wrapped_sgdph

try:
    from lightning.pytorch.callbacks import Callback
except ImportError:
    from pytorch_lightning.callbacks import Callback


class PartialHessianCallback(Callback):
    """A callback that takes the partial Hessian before each backward; the module does not change.

    It works for automatic and manual optimisation (``self.manual_backward(loss)``). It uses the
    loss of the backward. That loss is divided by ``accumulate_grad_batches``, and under
    ``16-mixed`` multiplied by the gradient scaler's scale, which is passed to the optimizer too.

    It works with :class:`sgdph.SGDPH` and :class:`sgdph.PartialHessian`. With several optimizers,
    each takes the curvature of a loss that reaches its parameters. Optimizers of other classes are
    ignored.

    Schedule-free first-order optimizers of a ``PartialHessian`` are in training mode in each
    training step. From validation or the end of an epoch until the next training step, the model
    has their averaged weights. Checkpoints that are saved then contain these weights.

    A compiled module, or a module with compiled parts, runs uncompiled in training steps that need
    a partial Hessian, and compiled in all others.

    ``Tuner.lr_find`` and ``Tuner.scale_batch_size`` remove a trainer's callbacks while they train.
    The curvature is then taken just before the strategy's backward.

    Args:
        log_multipliers: Send the figures of :func:`sgdph.log_multipliers` to the trainer's loggers,
            every ``log_every_n_steps`` steps. With several optimizers, the names contain their
            numbers: ``sgdph0/multiplier_median``.

    Example:
        >>> trainer = lightning.Trainer(callbacks=[PartialHessianCallback()])
        >>> trainer.fit(module, loader)
    """

    def __init__(self, *, log_multipliers: bool = False) -> None:
        self._log_multipliers = log_multipliers
        self._last_step = 0
        self._backward_ran = False
        self._while_fitting = ExitStack()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Prepare for compiled code, and for a tuner, which calls only this hook."""
        self._while_fitting.close()
        if stage == "fit":

            def take_for_tuner(loss: Tensor) -> None:
                if self not in trainer.callbacks:
                    scaler = getattr(trainer.precision_plugin, "scaler", None)
                    self._take(trainer, loss if scaler is None else scaler.scale(loss))

            def uncompiled(_: object) -> AbstractContextManager[None]:
                return uncompiled_while_due(_second_order(trainer))

            def train(batch: object) -> AbstractContextManager[None]:
                _tell(trainer, "train")
                return uncompiled(batch)

            enter = self._while_fitting.enter_context
            enter(around(trainer.strategy, "training_step", train))
            enter(ahead_of(trainer.strategy, "backward", take_for_tuner))
            if pl_module.automatic_optimization:
                # Checkpointing reruns code in the backward. Manual backwards run in the training
                # step.
                enter(around(trainer.strategy, "backward", uncompiled))

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Restore the strategy; called by the trainer."""
        self._while_fitting.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Restore the strategy; called by the trainer."""
        self._while_fitting.close()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Let schedule-free optimizers set the averaged weights; called by the trainer."""
        _tell(trainer, "eval")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Set the averaged weights, because checkpoints follow; called by the trainer."""
        _tell(trainer, "eval")

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Take the partial Hessian of ``loss`` if one is due; called by the trainer."""
        self._take(trainer, loss)
        self._backward_ran = True

    @staticmethod
    def _take(trainer: Any, loss: Tensor) -> None:
        """Take the partial Hessians that are due from a loss, scaled like in the backward."""
        due = [each for each in _second_order(trainer) if each.hessian_due]
        if len(trainer.optimizers) > 1:
            # A generator's loss does not concern a discriminator whose parameters are frozen. If
            # there is only one optimizer, update_hessian raises an error if the loss misses it.
            due = [each for each in due if _reaches(loss, each)]
        for optimizer in due:
            optimizer.update_hessian(loss, loss_scale=_scale(trainer.precision_plugin))

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the multipliers at steps where the trainer logs; called by the trainer."""
        if not (self._log_multipliers and trainer.loggers):
            return
        # The same test as in Lightning's monitors. Only the last micro-batch takes a step.
        stepped, self._last_step = trainer.global_step != self._last_step, trainer.global_step
        if not (stepped and trainer._logger_connector.should_update_logs):
            return
        for i, optimizer in enumerate(trainer.optimizers):
            if isinstance(optimizer, SecondOrderOptimizer):
                prefix = "sgdph" if len(trainer.optimizers) == 1 else f"sgdph{i}"
                figures = read_multipliers(optimizer, prefix=prefix)
                pl_module.log_dict(figures, on_step=True, on_epoch=False, batch_size=1)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Let a step without a preceding backward do nothing; called by the trainer.

        ``StochasticWeightAveraging`` adds a pass for batch norm's statistics. It ends in a step
        with gradients left over from training, for which there is no curvature.
        """
        if pl_module.automatic_optimization:
            if isinstance(optimizer, SecondOrderOptimizer) and not self._backward_ran:
                optimizer.zero_grad()
            self._backward_ran = False


def fabric_backward(fabric: Any, optimizer: Any, loss: Tensor, **arguments: Any) -> None:
    """Take the partial Hessian if one is due, then run ``fabric.backward(loss)``.

    Under mixed precision, Fabric raises an error for differentiation outside its ``backward``. So
    the partial Hessian is taken inside it.

    Args:
        fabric: The ``lightning.Fabric``.
        optimizer: The :class:`sgdph.SGDPH` or :class:`sgdph.PartialHessian`, before or after
            ``fabric.setup``.
        loss: The loss. If micro-batches accumulate, divide it by their number.
        arguments: Passed on to ``fabric.backward``.

    Raises:
        TypeError: ``optimizer`` contains neither of these.
        RuntimeError: As in :meth:`sgdph.SGDPH.update_hessian`.
    """
    inner, precision = wrapped_sgdph(optimizer), fabric.strategy.precision

    def take(loss: Tensor) -> None:
        take_scaled(inner, loss, getattr(precision, "scaler", None))

    with ahead_of(fabric.strategy, "backward", take):
        fabric.backward(loss, **arguments)


def _scale(precision: Any) -> float:
    scaler = getattr(precision, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())


def _second_order(trainer: Any) -> list[SecondOrderOptimizer]:
    return [each for each in trainer.optimizers if isinstance(each, SecondOrderOptimizer)]


def _tell(trainer: Any, mode: str) -> None:
    for optimizer in trainer.optimizers:
        if isinstance(optimizer, PartialHessian):
            getattr(optimizer, mode)()


def _reaches(loss: Tensor, optimizer: SecondOrderOptimizer) -> bool:
    leaves = {id(node.variable) for node in graph_nodes([loss]) if is_leaf(node)}
    return any(id(p) in leaves for group in optimizer.param_groups for p in group["params"])
