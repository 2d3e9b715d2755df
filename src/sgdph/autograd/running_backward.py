"""The checks of :mod:`~sgdph.autograd.graph_checks` for ``loss.backward(create_graph=True)``."""

from __future__ import annotations

import sys
import threading
from types import FrameType

import torch
from torch import Tensor
from torch.autograd import graph

from sgdph.autograd.graph import Node, Region, graph_nodes
from sgdph.autograd.graph_checks import WRONG_IN_TORCH, check_region, is_custom
from sgdph.autograd.norm_shift import lacks_scale, may_lack_scale
from sgdph.autograd.saved_tensors import warn_of_lost_history


class RunningBackward:
    """Checks of the graph of the ``loss.backward(create_graph=True)`` that is running.

    The loss is not passed to this package in that case, and the gradients' graph does not show
    everything. So the arguments of the calling backward are read from its frame.
    """

    def __init__(self) -> None:
        self._task: int | None = None
        self._is_plain = True

    def objection(self, p: Tensor) -> str | None:
        """Return why a partial Hessian from the gradient that reaches ``p`` would be wrong.

        Returns:
            The message of the error to raise if a partial Hessian is taken; ``None`` if nothing
            was found.
        """
        task = torch._C._current_graph_task_id()
        if task != self._task:
            # Once per backward. The roots are not stored, because they would outlive it.
            self._task = task
            self._is_plain = not any(
                is_custom(node)
                or type(node).__name__ in WRONG_IN_TORCH
                or (may_lack_scale(node) and lacks_scale(node))
                for node in graph_nodes(_roots_of_running_backward())
            )
        if self._is_plain:
            return None
        for root in _roots_of_running_backward():
            region = Region(root, [p])
            try:
                custom = check_region(region, corrected=False)
            except RuntimeError as error:
                return str(error)
            for node in custom:
                warn_of_lost_history(node, region)
        return None


def _roots_of_running_backward() -> list[Node]:
    frames = sys._current_frames()
    own = _roots_in(frames.pop(threading.get_ident()))
    # On an accelerator the hooks run in a thread of the engine, while the caller's thread waits.
    return own or [root for frame in frames.values() for root in _roots_in(frame)]


def _roots_in(frame: FrameType | None) -> list[Node]:
    code = graph._engine_run_backward.__code__
    while frame is not None:
        # Reading the locals of other frames would keep them alive.
        if frame.f_code is code:
            roots = frame.f_locals[code.co_varnames[0]]
            return [root.grad_fn if isinstance(root, Tensor) else root.node for root in roots]
        frame = frame.f_back
    return []
