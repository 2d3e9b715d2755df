r"""Hessian-vector products from gradients alone, for losses that cannot be differentiated twice.

The central difference :math:`Hv \approx (g(w + \delta v) - g(w - \delta v)) / 2\delta` has an error
of :math:`O(\delta^2)` from the third derivative and of :math:`O(u / \delta)` from gradients rounded
to :math:`u` (Nocedal & Wright, "Numerical Optimization", 2006, section 8.1). Two passes more, and
no graph of a gradient: fused attention, cuDNN's recurrent layers, ``SyncBatchNorm`` and compiled
models all have what it takes.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from sgdph.algorithm import curvature_dtype
from sgdph.ddp import forwards_unnoticed
from sgdph.hessian import Estimator, check_loss, silenced_hooks

Closure = Callable[[], Tensor]
Check = Callable[[Sequence[Tensor], Sequence[Tensor | None]], None]

# The distance of the two points, as a share of a parameter's scale. Well above the cube root of
# float32's precision, which would be best for smooth float32 gradients: those of a bfloat16
# autocast are rounded a thousand times more coarsely, and a share of 5% serves both
# (docs/second-derivatives.md has the errors).
_SHARE = 0.05
_SHARE_OF_FLOAT64 = 1e-5
# The scale of parameters that are zero, as biases are at first: small against the activations of
# order one that they are added to.
_LEAST_SCALE = 0.1


def curvature_of_differences(
    closure: Closure,
    params: Sequence[Tensor],
    estimator: Estimator,
    probes: Sequence[Tensor] | None = None,
    *,
    check: Check | None = None,
) -> tuple[list[Tensor | None], Tensor]:
    """Estimate each parameter's block from differences of gradients.

    The closure is called twice for each product, with the same random numbers both times. Weights,
    buffers of the modules that it calls (running statistics) and the random generators are
    afterwards as they were.

    Args:
        closure: Computes the loss at the weights as they are then, and returns it with its graph.
        params: Leaves, each of any shape; at least one.
        estimator: See :func:`sgdph.hessian.curvature_of_gradients`.
        probes: See :func:`sgdph.hessian.curvature_of_gradients`.
        check: Looks at the gradients of each pass, and raises where no difference can be made.

    Returns:
        Per parameter a tensor of its shape and curvature's dtype, ``None`` where the loss does not
        depend on it; and a loss that the closure returned, with its graph.

    Raises:
        TypeError, ValueError, RuntimeError: The closure returned no real scalar with a graph; or
            as ``check``.
    """
    differences = _Differences(closure, check)
    if estimator == "hutchinson":
        if probes is None:
            raise ValueError("estimator 'hutchinson' needs a probe per parameter, got none")
        products = differences.product(params, probes)
        pairs = zip(products, probes, strict=True)
        found: list[Tensor | None] = [None if h is None else h * z.to(h.dtype) for h, z in pairs]
    elif estimator == "exact":
        found = [_diagonal(differences, p) for p in params]
    else:
        found = [differences.product([p], [torch.ones_like(p)])[0] for p in params]
    assert differences.loss is not None, "there was no parameter to differentiate for"
    return found, differences.loss


def _diagonal(differences: _Differences, p: Tensor) -> Tensor | None:
    diagonal = torch.zeros(p.shape, dtype=curvature_dtype(p), device=p.device)
    for i in range(p.numel()):
        basis = torch.zeros_like(p)
        basis.view(-1)[i] = 1
        row = differences.product([p], [basis])[0]
        if row is None:
            return None
        diagonal.view(-1)[i] = row.reshape(-1)[i]
    return diagonal


class _Differences:
    """Takes products by calling one closure."""

    def __init__(self, closure: Closure, check: Check | None) -> None:
        self._closure = closure
        self._check = check
        self.loss: Tensor | None = None

    def product(self, params: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[Tensor | None]:
        """Multiply the joint Hessian of ``params`` with ``vectors``, of entries -1, 0 and 1."""
        distance = _distance(params)
        steps = [
            distance.to(p.device) * v.to(p.dtype) for p, v in zip(params, vectors, strict=True)
        ]
        with _buffers_kept(), forwards_unnoticed():
            ahead = self._gradients(params, steps)
            behind = self._gradients(params, [-step for step in steps])
        return [
            None
            if a is None or b is None
            else (a.to(curvature_dtype(p)) - b.to(curvature_dtype(p))) / (2 * distance.to(p.device))
            for p, a, b in zip(params, ahead, behind, strict=True)
        ]

    def _gradients(
        self, params: Sequence[Tensor], steps: Sequence[Tensor]
    ) -> Sequence[Tensor | None]:
        with _moved(params, steps), _random_numbers_kept(params), torch.enable_grad():
            self.loss = self._closure()
            check_loss(self.loss)
            with silenced_hooks(params):
                gradients = torch.autograd.grad(self.loss, params, allow_unused=True)
        if self._check is not None:
            self._check(params, gradients)
        return gradients


def _distance(params: Sequence[Tensor]) -> Tensor:
    """Choose δ: one for all, so that a joint product is one of the joint Hessian."""
    dtype = curvature_dtype(params[0])
    share = _SHARE_OF_FLOAT64 if dtype == torch.float64 else _SHARE
    device = params[0].device
    squares = torch.stack([p.detach().to(dtype).square().sum().to(device) for p in params])
    count = sum(p.numel() for p in params)
    return share * (squares.sum() / max(count, 1)).sqrt().clamp(min=_LEAST_SCALE)


@contextlib.contextmanager
def _moved(params: Sequence[Tensor], steps: Sequence[Tensor]) -> Iterator[None]:
    """Move the weights, and bring the very same tensors back.

    Through ``.data``: a change in place would invalidate the graph of a loss computed before.
    """
    before = [p.data for p in params]
    for p, step in zip(params, steps, strict=True):
        p.data = p.data + step
    try:
        yield
    finally:
        for p, data in zip(params, before, strict=True):
            p.data = data


@contextlib.contextmanager
def _random_numbers_kept(params: Sequence[Tensor]) -> Iterator[None]:
    """Give every pass the same random numbers (dropout's), those that the next forward gets too."""
    devices = {p.device for p in params if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        yield


@contextlib.contextmanager
def _buffers_kept() -> Iterator[None]:
    """Let all modules that are called inside work on copies of their buffers.

    Batch norm's statistics are changed in place at every forward. Bringing old values back would
    be one change more, and invalidate the graph of a loss computed before.
    """
    replaced: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
    copies: dict[int, Tensor] = {}
    seen: set[int] = set()

    def replace(module: nn.Module, arguments: object) -> None:
        for each in [] if id(module) in seen else module.modules():
            if id(each) in seen:
                continue
            seen.add(id(each))
            for name, buffer in each._buffers.items():
                if buffer is not None:
                    replaced.append((each._buffers, name, buffer))
                    copies.setdefault(id(buffer), buffer.detach().clone())
                    each._buffers[name] = copies[id(buffer)]

    handle = register_module_forward_pre_hook(replace)
    try:
        with _uncompiled(), warnings.catch_warnings():
            # An OptimizedModule and the module inside it are both seen; the second changes nothing.
            warnings.filterwarnings("ignore", message=r".*when there are global hooks on modules")
            yield
    finally:
        handle.remove()
        for buffers, name, buffer in replaced:
            buffers[name] = buffer


def _uncompiled() -> contextlib.AbstractContextManager[object]:
    """Run compiled models as they were written: a compiled one traces hooks into what it runs."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance
