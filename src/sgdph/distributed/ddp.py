"""Hiding our passes from ``DistributedDataParallel``, and checks of its join contexts."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator, Sequence

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel

from sgdph.autograd.graph import Region

_ENQUEUED = "_static_graph_delay_allreduce_enqueued"


@contextlib.contextmanager
def static_graph_unnoticed(region: Region) -> Iterator[None]:
    """Keep ``DistributedDataParallel(static_graph=True)`` from taking our pass as its backward.

    When the first gradient passes the output of the wrapped model, DDP schedules a reduction of all
    gradients for the end of the running backward. Our pass leaves no gradients to reduce, and DDP
    would not schedule the reduction again.
    """
    waiting = []
    for node in region.nodes:
        if type(node).__name__ == "_DDPSinkBackward":
            wrapper = node.ddp_weakref()
            if not getattr(wrapper, _ENQUEUED, True):
                waiting.append(wrapper)
    for wrapper in waiting:
        setattr(wrapper, _ENQUEUED, True)
    try:
        yield
    finally:
        for wrapper in waiting:
            setattr(wrapper, _ENQUEUED, False)


@contextlib.contextmanager
def forwards_unnoticed() -> Iterator[None]:
    """Let every wrapped model that is called inside run only its forward.

    Without this, a wrapper prepares for a backward that never runs. ``static_graph=True`` would
    learn its graph from the wrong pass and then reduce nothing. A join context would count an extra
    batch. Buffers would be broadcast once more.
    """
    changed: list[tuple[DistributedDataParallel, dict[str, object]]] = []
    seen: set[int] = set()

    def rest(module: nn.Module, arguments: object) -> None:
        if isinstance(module, DistributedDataParallel) and id(module) not in seen:
            seen.add(id(module))
            resting: dict[str, object] = {
                "require_backward_grad_sync": False,
                "require_forward_param_sync": False,
                "_join_config": module._join_config._replace(enable=False),
                _ENQUEUED: True,
            }
            changed.append((module, {name: getattr(module, name, None) for name in resting}))
            vars(module).update(resting)

    handle = register_module_forward_pre_hook(rest)
    try:
        yield
    finally:
        handle.remove()
        for wrapper, before in changed:
            vars(wrapper).update(before)


class Wrappers:
    """The ``DistributedDataParallel`` wrappers of some parameters, found once."""

    def __init__(self) -> None:
        self._found: list[weakref.ref[DistributedDataParallel]] | None = None
        self._accepted: list[object] = []

    def accept_joins(self, params: Sequence[Tensor]) -> None:
        """Accept the join contexts that the wrappers of ``params`` are in now.

        A wrapper keeps a context's configuration after the context ends. So a configuration is
        accepted by identity. The next context, which may not include the optimizer, sets a new one.
        """
        wrappers = [reference() for reference in self._of(params)]
        self._accepted = [w._join_config for w in wrappers if w is not None]

    def refuse_join_without_optimizer(self, params: Sequence[Tensor]) -> None:
        """Raise an error inside a join context that does not include the optimizer.

        In it, a rank without batches shadows only the collectives of the model. Our collective
        would be matched with another one: gloo ends the process, and NCCL may wait forever.

        Raises:
            RuntimeError: A wrapper of ``params`` is inside such a context.
        """
        for reference in self._of(params):
            wrapper = reference()
            config = None if wrapper is None else wrapper._join_config
            if config is None or any(config is accepted for accepted in self._accepted):
                continue
            if config.enable and not config.throw_on_early_termination:
                raise RuntimeError(
                    "the model is inside a join context that does not include this optimizer. A "
                    "rank without batches would then not take part in the mean of the curvature. "
                    "In place of `with model.join():` write `with Join([model, optimizer]):` "
                    "(torch.distributed.algorithms.join)"
                )

    def _of(self, params: Sequence[Tensor]) -> list[weakref.ref[DistributedDataParallel]]:
        if self._found is None:
            # A parameter has no reference to its wrapper, so search all objects, once.
            ours = {id(p) for p in params}
            wrappers = [o for o in gc.get_objects() if issubclass(type(o), DistributedDataParallel)]
            self._found = [
                weakref.ref(w) for w in wrappers if any(id(p) in ours for p in w.parameters())
            ]
        return self._found
