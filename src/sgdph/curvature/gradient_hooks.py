"""Hooks on parameters that report when a backward adds to ``.grad``."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle, unserializable_hook

from sgdph.autograd.lean import register_second_derivatives


class Listener(Protocol):
    """The object that is notified."""

    def before_accumulation(self, p: Tensor, gradient: Tensor) -> None:
        """Note the gradient of one backward, just before it is added to ``p.grad``."""

    def after_accumulation(self, p: Tensor) -> None:
        """Note that a backward has just added to ``p.grad``."""


class GradientHooks:
    """Hooks on parameters, once on each, which are removed when the listener is deleted.

    A model may outlive many optimizers, and each would leave its hooks on the parameters.

    Args:
        listener: The object that is notified. It is not kept alive.
        leaf_of: Returns the tensor that gets a parameter's gradient: the parameter, unless it is
            sharded; ``None`` if that tensor is not known yet.
    """

    def __init__(self, listener: Listener, leaf_of: Callable[[Tensor], Tensor | None]) -> None:
        # Registered now, because no code of ours runs before a backward(create_graph=True).
        register_second_derivatives()
        self._handles: dict[int, list[RemovableHandle]] = {}
        self._listener = weakref.ref(listener)
        self._leaf_of = leaf_of
        weakref.finalize(listener, _remove, self._handles).atexit = False

    def __contains__(self, p: Tensor) -> bool:
        """Return whether ``p`` has the hooks."""
        return id(p) in self._handles

    def watch(self, p: Tensor) -> None:
        """Put hooks on the leaf of ``p``, unless it has them or the leaf is not known yet."""
        leaf = None if id(p) in self._handles else self._leaf_of(p)
        if leaf is not None:
            self._handles[id(p)] = _watch_gradient(p, leaf, self._listener)


def _remove(handles: Mapping[int, Iterable[RemovableHandle]]) -> None:
    for of_parameter in handles.values():
        for handle in of_parameter:
            handle.remove()


def _watch_gradient(
    p: Tensor, leaf: Tensor, reference: weakref.ref[Listener]
) -> list[RemovableHandle]:
    # The hooks live as long as the parameter, or are removed; they must not keep the optimizer
    # alive.
    @unserializable_hook  # type: ignore[untyped-decorator]
    def before(gradient: Tensor) -> None:
        listener, p = reference(), p_reference()
        if listener is not None:
            # The user's hooks, which come later, may write into it.
            shared = torch.is_grad_enabled() and len(p._backward_hooks or ()) > 1
            listener.before_accumulation(p, gradient.clone() if shared else gradient)

    @unserializable_hook  # type: ignore[untyped-decorator]
    def after(_: Tensor) -> None:
        listener = reference()
        if listener is not None:
            listener.after_accumulation(p_reference())

    # A sharded parameter is not a leaf of the loss, so the hooks may hold it. A weak reference to a
    # DTensor would prevent torch from converting it (``model.to``).
    p_reference: Any = weakref.ref(p) if leaf is p else lambda: p
    handles: list[RemovableHandle] = [
        leaf.register_hook(before),  # type: ignore[no-untyped-call]
        leaf.register_post_accumulate_grad_hook(after),  # type: ignore[no-untyped-call]
    ]
    _put_first(handles[0].id, leaf)
    return handles


def _put_first(hook: int, leaf: Tensor) -> None:
    """Let a hook see the gradient of the loss, before the user's hooks change it.

    Torch reads the dict in its order of insertion, whatever ``OrderedDict.move_to_end`` did.
    """
    hooks: Any = leaf._backward_hooks
    ordered = {hook: hooks[hook], **hooks}
    hooks.clear()
    hooks.update(ordered)


def detach_gradients(params: Iterable[Tensor]) -> None:
    """Release the graphs that ``backward(create_graph=True)`` has left in ``.grad``."""
    for p in params:
        if p.grad is not None and p.grad.grad_fn is not None:
            p.grad = p.grad.detach()
