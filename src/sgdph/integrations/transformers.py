"""Hugging Face ``Trainer``: the partial Hessian before each of its backwards.

No callback of ``Trainer`` runs between a loss and its backward. So a mixin overrides its
``training_step``. The mixin also works with other trainers (``Seq2SeqTrainer``).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor
from transformers import Trainer

from sgdph.compilation import uncompiled_while_due
from sgdph.integrations.accelerate import update_hessian
from sgdph.integrations.ahead import ahead_of
from sgdph.partial_hessian import PartialHessian
from sgdph.roles import param_groups
from sgdph.step import SecondOrderOptimizer
from sgdph.wrappers import wrapped_sgdph


class PartialHessianMixin:
    """A mixin for ``Trainer`` classes: ``class Mine(PartialHessianMixin, Seq2SeqTrainer)``.

    The partial Hessian is taken from the loss that the trainer passes to its accelerator. That loss
    is divided by the accumulation steps, or normalised by ``num_items_in_batch``. A model compiled
    by ``torch_compile=True`` runs uncompiled in the steps that need a partial Hessian, and compiled
    in all others.

    Args:
        arguments: The trainer's.
        newton: Settings of :class:`sgdph.PartialHessian`, which then adds Newton steps to the
            optimizer that the trainer builds or gets. ``None`` leaves it as it is.
        named: The trainer's.
    """

    _built: PartialHessian | None = None

    accelerator: Any
    model: Any
    optimizer: Any

    def __init__(
        self, *arguments: Any, newton: Mapping[str, Any] | None = None, **named: Any
    ) -> None:
        self._newton = newton
        super().__init__(*arguments, **named)

    def create_optimizer(self, *arguments: Any, **named: Any) -> Any:
        """Build the trainer's own optimizer, and with ``newton`` the Newton steps beside it.

        Raises:
            ValueError: The trainer's optimizer takes Newton steps already.
        """
        trainer: Any = super()
        trainer.create_optimizer(*arguments, **named)
        optimizer = self.optimizer
        # After the first training, the accelerator's wrapper is around it.
        inner = getattr(optimizer, "optimizer", optimizer)
        if self._newton is None or inner is self._built:
            return optimizer
        if isinstance(optimizer, SecondOrderOptimizer):
            raise ValueError(
                f"newton adds Newton steps to another optimizer, and got {type(optimizer).__name__}"
                ", which takes them already; leave out newton"
            )
        groups = param_groups(self.model)
        self.optimizer = self._built = PartialHessian(optimizer, groups, **self._newton)
        return self.optimizer

    def training_step(self, *arguments: Any, **named: Any) -> Tensor:
        """Run the trainer's own training step; its backward takes the curvature first."""
        # The loss is final only there. How it is scaled before differs between models.
        take = partial(update_hessian, self.accelerator, self.optimizer)
        due = uncompiled_while_due([wrapped_sgdph(self.optimizer)])
        with due, ahead_of(self.accelerator, "backward", take):
            step: Any = super()
            loss: Tensor = step.training_step(*arguments, **named)
            return loss


class PartialHessianTrainer(PartialHessianMixin, Trainer):
    """A ``transformers.Trainer`` for :class:`sgdph.SGDPH` and :class:`sgdph.PartialHessian`.

    The model keeps its default attention, ``"sdpa"``. Kernels of other packages, such as
    ``"flash_attention_2"``, have no second derivative.

    Example:
        >>> newton = {"lr": 0.05, "estimator": "hutchinson", "hessian_interval": 10}
        >>> trainer = PartialHessianTrainer(model, args, train_dataset=data, newton=newton)
        >>> trainer.train()  # AdamW as args say, and Newton steps

        >>> groups = param_groups(model, weight_decay=0.01)
        >>> optimizer = SGDPH(groups, lr=0.01, estimator="hutchinson")
        >>> trainer = PartialHessianTrainer(model, args, train_dataset=data,
        ...                                 optimizers=(optimizer, None))
        >>> trainer.train()
    """
