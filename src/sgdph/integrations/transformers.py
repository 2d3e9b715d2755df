"""Hugging Face ``Trainer``: the partial Hessian before each of its backwards.

No callback of ``Trainer`` runs between a loss and its backward. So a mixin overrides its
``training_step``. The mixin also works with other trainers (``Seq2SeqTrainer``).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor
from transformers import Trainer

from sgdph.compilation import uncompiled_while_due
from sgdph.integrations.accelerate import update_hessian
from sgdph.integrations.ahead import ahead_of
from sgdph.wrappers import wrapped_sgdph


class PartialHessianMixin:
    """A mixin for ``Trainer`` classes: ``class Mine(PartialHessianMixin, Seq2SeqTrainer)``.

    The partial Hessian is taken from the loss that the trainer passes to its accelerator. That loss
    is divided by the accumulation steps, or normalised by ``num_items_in_batch``. A model compiled
    by ``torch_compile=True`` runs uncompiled in the steps that need a partial Hessian, and compiled
    in all others.
    """

    accelerator: Any
    optimizer: Any

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
        >>> groups = param_groups(model, weight_decay=0.01)
        >>> optimizer = SGDPH(groups, lr=0.01, estimator="hutchinson")
        >>> trainer = PartialHessianTrainer(model, args, train_dataset=data,
        ...                                 optimizers=(optimizer, None))
        >>> trainer.train()
    """
