"""The loss scale of a ``GradScaler`` that nobody passed on."""

from __future__ import annotations

import sys

import torch

# GradScaler.step, its helper, and the wrappers that profilers and schedulers put around a step.
_DEEPEST = 12


def scale_of_calling_grad_scaler() -> float:
    """Return the scale of the ``GradScaler`` whose ``step`` is calling the optimizer's, else 1.

    After ``scaler.scale(loss).backward(create_graph=True)`` the gradient's graph still carries the
    scale, whatever ``unscale_`` did to ``.grad``, and ``GradScaler.step`` hands it on to nobody
    without also handing over the unscaling, which would bar users from clipping. So we look who is
    calling.
    """
    frame = sys._getframe(1)
    for _ in range(_DEEPEST):
        if frame.f_back is None:
            break
        frame = frame.f_back
        # Looking at any other frame's locals would keep them alive: the loss, and its graph.
        if frame.f_globals.get("__name__") == torch.amp.GradScaler.__module__:
            caller = frame.f_locals.get("self")
            if isinstance(caller, torch.amp.GradScaler):
                return float(caller.get_scale())
    return 1.0
