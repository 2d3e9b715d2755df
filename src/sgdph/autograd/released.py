"""Lets go of linear layers' inputs where nobody will read them any more.

In a backward that begins with the pass that a product needs
(:mod:`sgdph.autograd.shared_backward`), the gradient of a linear layer's weight is taken on the
way. The layer's input is not read after that, but its graph node would hold it until the product
has come by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from sgdph.autograd.graph import TELLS_PACKED, Node

_MESSAGE = (
    "optimizer.backward(loss) has already freed the graph of this loss; it replaces "
    "loss.backward(). Compute the loss again. If a hook runs its own backward through this graph, "
    "call optimizer.backward(loss, low_memory=True)"
)


class ReleasedInputs:
    """What is let go of for the sake of one product.

    The product's own pass comes by the layers once more. Their nodes unpack their inputs whether
    they need them or not: that pass finds zeros there, which take no memory. So does a user's hook
    that looks into a node meanwhile. Passes of others get an error.

    No node is held here: what is held here lives as long as the graph, which would hold itself.

    Attributes:
        is_empty: Whether nothing was let go of so far.
        writer: The pass that alone lets go of anything, the first, once that has begun.
    """

    def __init__(self) -> None:
        self.is_empty = True
        # Where what was released lay.
        self._memory: set[int] = set()
        self.writer: int | None = None
        self._reader: int | None = None

    def release(self, node: Node, name: str) -> None:
        """Let go of a tensor that a node saved, by the name under which it did.

        Nothing happens where this torch does not tell which tensors went through hooks of others.
        """
        saved = self._own(node, name)
        if saved is not None:
            self._memory.add(saved.untyped_storage().data_ptr())
            zeros = saved.new_zeros(()).expand(saved.shape)
            self._replace(node, name, lambda: zeros)

    def release_all_but_signs(self, node: Node, name: str) -> Tensor | None:
        """Keep of a tensor that a node saved only where it is positive.

        A ReLU's node needs no more. As a rule the memory is that of the input of a layer, so this
        is done where that was released.

        Returns:
            Where it is positive; ``None`` where nothing was released.
        """
        saved = self._own(node, name)
        if saved is None or saved.untyped_storage().data_ptr() not in self._memory:
            return None
        # Not a number counts as positive, as in ReLU's own kernel.
        positive, dtype = (saved <= 0).logical_not_(), saved.dtype
        self._replace(node, name, lambda: positive.to(dtype))
        return positive

    def _own(self, node: Node, name: str) -> Tensor | None:
        raw = getattr(node, f"_raw_saved_{name}", None)
        if raw is None or not TELLS_PACKED or raw.unpack_hook is not None:
            return None
        # Not in a pass that a user's hook runs meanwhile.
        if self.writer is None or self.writer != torch._C._current_graph_task_id():
            return None
        saved: Tensor | None = getattr(node, f"_saved_{name}")
        # No subclass, which may have no memory.
        if saved is None or saved.is_leaf or type(saved) is not Tensor:
            return None
        self.is_empty = False
        return saved.detach()

    def _replace(self, node: Node, name: str, read: Callable[[], Tensor]) -> None:
        def unpack(_: None) -> Tensor:
            if self._reader is None or self._reader != torch._C._current_graph_task_id():
                raise RuntimeError(_MESSAGE)
            return read()

        getattr(node, f"_raw_saved_{name}").register_hooks(_forget, unpack)

    @contextmanager
    def reading(self, roots: Iterable[Tensor | None]) -> Iterator[None]:
        """Let the pass read that is made meanwhile, and that begins at some of these tensors."""

        def begin(_: object) -> None:
            # A user's hook may begin passes of its own there later.
            if self._reader is None:
                self._reader = torch._C._current_graph_task_id()

        nodes = {t.grad_fn for t in roots if t is not None and t.grad_fn is not None}
        handles = [node.register_prehook(begin) for node in nodes]
        try:
            yield
        finally:
            self._reader = None
            for handle in handles:
                handle.remove()


def _forget(_: Tensor) -> None:
    return None
