r"""Hessian-vector products from gradients alone, for losses that cannot be differentiated twice.

The central difference :math:`Hv \approx (g(w + \delta v) - g(w - \delta v)) / 2\delta` has an error
of :math:`O(\delta^2)` from the third derivative and of :math:`O(u / \delta)` from gradients rounded
to :math:`u` (Nocedal & Wright, "Numerical Optimization", 2006, section 8.1). It needs two more
passes, but no graph of a gradient. So it also works for cuDNN's recurrent layers,
``SyncBatchNorm`` and compiled models.

Both passes must see the same function of the weights. Buffers and the global random generators are
reset for each (:mod:`sgdph.curvature.side_effects`). A closure may have other sources of change: a
loader, a counter, a generator of its own. These are noticed without further passes: the losses at
both ends must differ by the integral of the slope between them, which is estimated from the slopes
at both ends. If they do not, the closure is called again at the same weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sgdph.algorithm import curvature_dtype
from sgdph.autograd.differentiability import REENTRANT_WORKAROUND
from sgdph.curvature.estimators import check_loss, silenced_hooks, unit_vectors
from sgdph.curvature.side_effects import buffers_kept, moved, random_numbers_kept
from sgdph.distributed.ddp import forwards_unnoticed
from sgdph.names import Estimator
from sgdph.validation import unknown_estimator

Closure = Callable[[], Tensor]
Check = Callable[[Sequence[Tensor], Sequence[Tensor | None]], None]
BackwardContext = Callable[[Tensor], contextlib.AbstractContextManager[None]]

# δ as a share of a parameter's scale. The cube root of float32's precision would be best for smooth
# float32 gradients. 5% is well above it, because gradients of a bfloat16 autocast are rounded a
# thousand times more coarsely; 5% works for both (docs/second-derivatives.md has the errors).
_SHARE = 0.05
_SHARE_OF_FLOAT64 = 1e-5
# The scale of parameters that are zero, such as new biases: small compared with the activations of
# order one that they are added to.
_LEAST_SCALE = 0.1
# If two losses at the same weights differ by a larger share, the closure is not one function.
# Kernels that sum in a different order each time stay far below it.
_SAME_LOSS = 1e-4
# The expected share of the bound on the quadrature's error. A lower value catches a few more wrong
# closures, but makes more correct ones prove themselves by further calls.
_SHARE_OF_BOUND = 0.5
# The allowed rounding error of slopes: under a bfloat16 autocast it is one percent.
_SLOPE_ERROR = 0.02


def curvature_of_differences(
    closure: Closure,
    params: Sequence[Tensor],
    estimator: Estimator,
    probes: Sequence[Tensor] | None = None,
    *,
    check: Check | None = None,
) -> tuple[list[Tensor | None], Tensor]:
    """Estimate each parameter's block from differences of gradients.

    The closure is called twice for each product, with the same random numbers both times.
    Afterwards, the weights, the buffers of the modules that it calls (running statistics) and the
    random generators are restored.

    Args:
        closure: Computes the loss at the current weights, and returns it with its graph.
        params: Leaves, each of any shape; at least one.
        estimator: See :func:`sgdph.curvature.estimators.curvature_of_gradients`.
        probes: See :func:`sgdph.curvature.estimators.curvature_of_gradients`.
        check: Called with the parameters and gradients of each pass. It raises an error if no
            difference can be taken.

    Returns:
        Per parameter a tensor of its shape and its curvature's dtype, or ``None`` if the loss does
        not depend on it; and the loss of the last pass, with what is left of its graph.

    Raises:
        TypeError, ValueError, RuntimeError: The closure did not return a real scalar with a graph,
            or returned another loss at the same weights; the estimator is unknown; or ``check``
            raised.
    """
    differences = GradientDifferences(closure, check)
    found: list[Tensor | None]
    if estimator == "hutchinson":
        if probes is None:
            raise ValueError("estimator 'hutchinson' needs a probe per parameter, got none")
        products = differences.product(params, probes)
        pairs = zip(products, probes, strict=True)
        found = [None if h is None else h * z.to(h.dtype) for h, z in pairs]
    elif estimator == "exact":
        found = [_diagonal(differences, p) for p in params]
    elif estimator == "row_sum":
        found = [differences.product([p], [torch.ones_like(p)])[0] for p in params]
    else:
        raise unknown_estimator(estimator)
    differences.check_closure()
    assert differences.loss is not None, "there was no parameter to differentiate for"
    return found, differences.loss


def _diagonal(differences: GradientDifferences, p: Tensor) -> Tensor | None:
    diagonal = torch.zeros(p.numel(), dtype=curvature_dtype(p), device=p.device)
    for i, vector in enumerate(unit_vectors(p)):
        row = differences.product([p], [vector])[0]
        if row is None:
            return None
        diagonal[i] = row.flatten()[i]
    return diagonal.reshape(p.shape)


class _Pass(NamedTuple):
    """One pass of the closure.

    Attributes:
        params: The leaves that were moved.
        steps: How far each was moved.
        loss: The loss, without its graph.
        slope: The loss's derivative along the vectors.
        gradients: One per parameter.
    """

    params: Sequence[Tensor]
    steps: Sequence[Tensor]
    loss: Tensor
    slope: Tensor
    gradients: Sequence[Tensor | None]


class GradientDifferences:
    """Hessian-vector products from calls of one closure.

    Args:
        closure: See :func:`curvature_of_differences`.
        check: See :func:`curvature_of_differences`.
        during_backward: Takes a pass's loss, and returns a context for the pass's backward.

    Attributes:
        loss: The loss of the last pass, with what is left of its graph.
    """

    def __init__(
        self,
        closure: Closure,
        check: Check | None = None,
        during_backward: BackwardContext | None = None,
    ) -> None:
        self._closure = closure
        self._check = check
        self._during_backward = during_backward
        self._first: list[_Pass] = []
        self._mismatches: list[Tensor] = []
        self.loss: Tensor | None = None

    def product(
        self,
        params: Sequence[Tensor],
        vectors: Sequence[Tensor],
        share: float | None = None,
    ) -> list[Tensor | None]:
        """Multiply the joint Hessian of ``params`` with ``vectors``.

        Args:
            params: Leaves; at least one.
            vectors: One per parameter, shaped like it, with entries from -1 to 1.
            share: δ as a share of the parameters' scale; ``None`` chooses it by their dtype.
        """
        distance = _distance(params, share)
        steps = [
            distance.to(p.device) * v.to(p.dtype) for p, v in zip(params, vectors, strict=True)
        ]
        with forwards_unnoticed():
            ahead = self._pass(params, vectors, steps)
            behind = self._pass(params, vectors, [-step for step in steps])
        self._first = self._first or [ahead, behind]
        self._mismatches.append(_mismatch(ahead, behind, distance))
        return [
            None
            if a is None or b is None
            else (a.to(curvature_dtype(p)) - b.to(curvature_dtype(p))) / (2 * distance.to(p.device))
            for p, a, b in zip(params, ahead.gradients, behind.gradients, strict=True)
        ]

    def check_closure(self) -> None:
        """Check that the closure was one function of the weights in all passes so far.

        Waits for the device. Calls the closure up to twice more if losses do not fit the slopes.

        Raises:
            RuntimeError: Called again at the weights of an earlier pass, it returned another loss.
        """
        mismatches, self._mismatches = self._mismatches, []
        if not mismatches or not torch.stack(mismatches).max() > 0:
            return
        # The last pass first, so that a closure that alternates between two losses is caught.
        for before in reversed(self._first):
            with forwards_unnoticed(), self._at(before.params, before.steps):
                again = self._closure()
            refuse_another_loss(before.loss, again)

    def _pass(
        self, params: Sequence[Tensor], vectors: Sequence[Tensor], steps: Sequence[Tensor]
    ) -> _Pass:
        with self._at(params, steps):
            self.loss = self._closure()
            check_loss(self.loss)
            around = self._during_backward
            context = contextlib.nullcontext() if around is None else around(self.loss)
            with silenced_hooks(params), context, _backward_explained():
                gradients = torch.autograd.grad(self.loss, params, allow_unused=True)
        if self._check is not None:
            self._check(params, gradients)
        loss = self.loss.detach()
        dtype = curvature_dtype(loss)
        slope = loss.new_zeros((), dtype=dtype)
        for g, v in zip(gradients, vectors, strict=True):
            if g is not None:
                slope = slope + (g.to(dtype) * v.to(dtype)).sum().to(loss.device)
        return _Pass(params, steps, loss.reshape(()).to(dtype), slope, gradients)

    @contextlib.contextmanager
    def _at(self, params: Sequence[Tensor], steps: Sequence[Tensor]) -> Iterator[None]:
        with (
            moved(params, steps),
            random_numbers_kept(params),
            buffers_kept(),
            torch.enable_grad(),
        ):
            yield


def _mismatch(ahead: _Pass, behind: _Pass, distance: Tensor) -> Tensor:
    """Compare two losses with the slopes at both points; above 0 if they may not fit.

    If the slope is monotonic between the points, the error of the trapezoidal rule is at most the
    difference of the slopes at both ends times δ, and usually far less. If a closure draws another
    batch, the error is the difference of the batches' losses, which is larger.
    """
    distance = distance.to(ahead.loss.device)
    rule = ahead.loss - behind.loss - distance * (ahead.slope + behind.slope)
    by_curvature = _SHARE_OF_BOUND * distance * (ahead.slope - behind.slope).abs()
    by_rounding = _SLOPE_ERROR * distance * (ahead.slope.abs() + behind.slope.abs())
    unnoticed = _SAME_LOSS * (ahead.loss.abs() + behind.loss.abs())
    return rule.abs() - by_curvature - by_rounding - unnoticed


def refuse_another_loss(first: Tensor, again: Tensor) -> None:
    """Raise an error if a closure returned two losses at the same weights. Waits for the device.

    Raises:
        RuntimeError: The losses differ.
    """
    a, b = float(first.detach()), float(again.detach())
    if abs(a - b) > _SAME_LOSS * max(abs(a), abs(b)):
        raise RuntimeError(
            "the closure is not a function of the weights: at the same weights it returned "
            f"{a:.6g} and then {b:.6g}. Every call must compute the same loss: fetch the batch "
            "outside the closure, and draw random numbers from the global generators of torch, "
            "numpy or Python only, because these are restored before each call"
        )


def _distance(params: Sequence[Tensor], share: float | None) -> Tensor:
    """Choose δ: one value for all ``params``, so that a joint product uses the joint Hessian."""
    dtype = curvature_dtype(params[0])
    if share is None:
        share = _SHARE_OF_FLOAT64 if dtype == torch.float64 else _SHARE
    device = params[0].device
    squares = torch.stack([p.detach().to(dtype).square().sum().to(device) for p in params])
    count = sum(p.numel() for p in params)
    return share * (squares.sum() / max(count, 1)).sqrt().clamp(min=_LEAST_SCALE)


@contextlib.contextmanager
def _backward_explained() -> Iterator[None]:
    """Replace torch's error by one that says what to do, if a closure's loss has no gradient."""
    try:
        yield
    except RuntimeError as error:
        if "backward through the graph a second time" in str(error):
            raise RuntimeError(
                "the closure has called backward itself. It must only compute and return the "
                "loss; call backward after update_hessian"
            ) from error
        if "use_reentrant" in str(error) or "Checkpointing is not compatible" in str(error):
            raise RuntimeError(
                f"no gradient can be taken of this loss: {REENTRANT_WORKAROUND}"
            ) from error
        raise
