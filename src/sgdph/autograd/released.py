"""Release of linear layers' inputs that are no longer needed.

If a backward shares its first pass with a product (:mod:`sgdph.autograd.shared_backward`), this
pass also computes the gradients of linear layers' weights. After that, a layer's input is not read
any more, but its graph node would hold it until the product has passed.
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
    """The saved tensors that were released for one product.

    The product's own pass visits the layers again. Their nodes unpack their inputs even if they do
    not need them. This pass finds zeros there, which take no memory, or a ReLU's mask. So does a
    user's hook that reads a node during it. At any other time, reading them raises an error.

    This object must not hold nodes: the graph holds this object, so it would keep itself alive.

    Attributes:
        is_empty: Whether nothing has been released yet.
        writer: The id of the first pass, the only one that releases tensors; ``None`` before it.
    """

    def __init__(self) -> None:
        self.is_empty = True
        # The addresses of the released tensors.
        self._memory: set[int] = set()
        self.writer: int | None = None
        self._reader: int | None = None

    def release(self, node: Node, name: str) -> None:
        """Release the tensor that a node saved under this name.

        Does nothing if the tensor went through a user's pack hook, or if this version of torch does
        not tell.
        """
        saved = self._own(node, name)
        if saved is not None:
            self._memory.add(saved.untyped_storage().data_ptr())
            zeros = saved.new_zeros(()).expand(saved.shape)
            self._replace(node, name, lambda: zeros)

    def release_all_but_signs(self, node: Node, name: str) -> Tensor | None:
        """Replace a tensor that a node saved by a mask of its positive entries.

        A ReLU's node needs only the mask. Usually a layer's input has the same memory, so this is
        done only if that input was released.

        Returns:
            The mask; ``None`` if nothing was replaced.
        """
        saved = self._own(node, name)
        if saved is None or saved.untyped_storage().data_ptr() not in self._memory:
            return None
        # NaN counts as positive, as in ReLU's own kernel.
        positive, dtype = (saved <= 0).logical_not_(), saved.dtype
        self._replace(node, name, lambda: positive.to(dtype))
        return positive

    def _own(self, node: Node, name: str) -> Tensor | None:
        raw = getattr(node, f"_raw_saved_{name}", None)
        if raw is None or not TELLS_PACKED or raw.unpack_hook is not None:
            return None
        # Does nothing in a pass that a user's hook runs meanwhile.
        if self.writer is None or self.writer != torch._C._current_graph_task_id():
            return None
        saved: Tensor | None = getattr(node, f"_saved_{name}")
        # Not for subclasses, which may have no memory.
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
        """Let the pass inside the context, which begins at some of these tensors, read."""

        def begin(_: object) -> None:
            # Only the first pass: a user's hook may later begin its own passes there.
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
