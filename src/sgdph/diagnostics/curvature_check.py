"""A check that the products which the optimizer takes are right for the user's loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from sgdph.autograd.graph import Region, graph_nodes
from sgdph.curvature.estimators import check_loss, curvature_of_gradients, gradients_with_graph
from sgdph.curvature.finite_difference import Closure, GradientDifferences, refuse_another_loss
from sgdph.curvature.side_effects import buffers_kept, random_numbers_kept
from sgdph.diagnostics.kinks import PresentPieces
from sgdph.distributed.ddp import forwards_unnoticed, static_graph_unnoticed
from sgdph.roles import parameter_name
from sgdph.step import SecondOrderOptimizer
from sgdph.validation import refuse_sparse_gradients

_RTOL = {torch.float64: 1e-4, torch.float32: 3e-2}
# Distances as shares of a parameter's scale. The first fit most networks. For gradients rounded to
# u, the best distance is near the cube root of u; kinks need smaller ones.
_SHARES = {
    torch.float64: (1e-5, 1e-3, 1e-6, 1e-7, 1e-8),
    torch.float32: (5e-3, 1.25e-3, 2e-2, 3e-4, 8e-2),
}
# Only a disagreement beyond this many times the difference's own error counts.
_OWN_ERRORS = 3
_PROBES = 2
_SEED = 0


def check_curvature(
    closure: Callable[[], Tensor],
    optimizer: SecondOrderOptimizer,
    *,
    rtol: float | None = None,
    raise_exception: bool = True,
) -> dict[str, float]:
    """Compare the exact product of each Newton parameter with differences of gradients.

    It is like ``torch.autograd.gradcheck``. Run it once for a network with your own kernels. If a
    function's backward makes no graph, or treats as constant something that depends on its input,
    the second derivative is wrong, and torch does not notice. Each parameter's Hessian block is
    multiplied by a random vector, by double backward (as in :meth:`SGDPH.backward`) and by central
    differences at several distances; the smallest disagreement counts. Weights, ``.grad``, buffers,
    random generators, the optimizer and pending curvature do not change.

    It takes at least two forward and backward passes per Newton parameter, and up to twenty for one
    that disagrees. Compiled code runs uncompiled. ``docs/second-derivatives.md`` has the limits.

    Args:
        closure: Computes the loss and returns it, without a backward, as for
            :meth:`SGDPH.update_hessian`: a function of the weights, on one batch, without autocast.
        optimizer: Its trainable Newton parameters are checked.
        rtol: The largest accepted relative error. ``None`` is 1e-4 if the whole loss is computed in
            float64, else 3e-2.
        raise_exception: Whether to raise an error if a parameter disagrees.

    Returns:
        Relative errors by parameter name: the norm of the products' difference, beyond the error of
        the differences, over the larger norm. 0 is agreement; 1 means that one product is zero;
        ``inf`` means no finite product or differences. Parameters not in the loss are left out.

    Raises:
        RuntimeError: Parameters disagree or have no exact product; they are named. Or the loss
            reaches none of them, or the closure is not a function of the weights.
        ValueError: Something is computed in less than float32; there are no trainable Newton
            parameters; ``rtol`` is not above 0.
        TypeError: ``closure`` is not callable or returns no tensor; ``optimizer`` takes no partial
            Hessian.

    Example:
        >>> check_curvature(lambda: loss_fn(model(x), y), optimizer)
        {'bn.weight': 1.3e-05, 'bn.bias': 4.1e-06}
    """
    params = _checked_parameters(closure, optimizer, rtol)
    name = partial(parameter_name, optimizer.param_groups)
    together = optimizer._groups.newton[0]["refresh"] == "all"
    with (
        forwards_unnoticed(),
        # Around everything, because a checkpoint recomputes its part during a product.
        random_numbers_kept(params),
        buffers_kept(),
        torch.enable_grad(),
    ):
        loss = _call(closure, params)
        check_loss(loss)
        precision = _precision(loss, params)
        if not bool(loss.isfinite()):
            raise RuntimeError(
                f"the loss is {float(loss):g} at the present weights, so no curvature can be "
                "checked: give weights and a batch at which it is finite"
            )
        refuse_another_loss(loss, _call(closure, params))
        rtol = _RTOL[precision] if rtol is None else rtol
        comparison = _Comparison(closure, loss, rtol, _SHARES[precision])
        generator = torch.Generator().manual_seed(_SEED)
        errors: dict[str, float] = {}
        reasons: dict[str, RuntimeError] = {}
        for _ in range(_PROBES):
            for targets in [params] if together else [[p] for p in params]:
                probes = [_probe(p, generator) for p in targets]
                products = _exact_products(loss, targets, probes, name)
                for p, z, product in zip(targets, probes, products, strict=True):
                    if isinstance(product, RuntimeError):
                        reasons[name(p)] = product
                        errors[name(p)] = math.inf
                    elif product is not None:
                        error = comparison.error(p, z, product)
                        errors[name(p)] = min(error, errors.get(name(p), math.inf))
            wrong = {n: e for n, e in errors.items() if e > rtol}
            params = [p for p in params if name(p) in wrong and name(p) not in reasons]
            if not params:
                break
    if not errors:
        raise RuntimeError(
            "the loss depends on none of the optimizer's trainable Newton parameters. Was it "
            "computed from another model, or do they lie inside a reentrant checkpoint?"
        )
    if wrong and raise_exception:
        raise RuntimeError(_message(wrong, reasons, len(errors), precision))
    return errors


def _checked_parameters(
    closure: Closure, optimizer: SecondOrderOptimizer, rtol: float | None
) -> Sequence[Tensor]:
    if not callable(closure):
        raise TypeError(
            f"closure must be a function that computes the loss, got {type(closure).__name__}"
        )
    if not isinstance(optimizer, SecondOrderOptimizer):
        kind = type(optimizer).__name__
        raise TypeError(f"optimizer must be an SGDPH or a PartialHessian, got {kind}")
    if rtol is not None and (isinstance(rtol, bool) or not isinstance(rtol, (int, float))):
        raise TypeError(f"rtol must be a number or None, got {type(rtol).__name__}")
    if rtol is not None and not 0 < rtol < math.inf:
        raise ValueError(f"rtol must be above 0 and finite, got {rtol}")
    optimizer._curvature.guards.check_take(None, optimizer._groups)
    params = [p for p in optimizer.newton_parameters if p.requires_grad and p.numel()]
    if not params:
        raise ValueError("the optimizer has no trainable Newton parameters to check")
    return params


def _call(closure: Closure, params: Sequence[Tensor]) -> Tensor:
    with random_numbers_kept(params), buffers_kept():
        return closure()


def _precision(loss: Tensor, params: Sequence[Tensor]) -> torch.dtype:
    """Return the lowest precision in the loss's graph; raise an error if it is below float32."""
    outputs = [
        output.dtype
        for node in graph_nodes([loss])
        for output in getattr(node, "_input_metadata", ())
    ]
    dtypes = {d for d in [*outputs, *(p.dtype for p in params)] if d.is_floating_point}
    low = sorted(str(d) for d in dtypes if d.itemsize < 4)
    if low:
        raise ValueError(
            f"parts of the loss are computed in {', '.join(low)}, which is too coarse to check a "
            "second derivative. Run check_curvature in float64 or float32: without autocast, on a "
            "copy of the model and the batch in .double() or .float()"
        )
    return torch.float32 if torch.float32 in dtypes else torch.float64


def _probe(p: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a vector with entries of random sign, and of sizes between 1/2 and 1.

    Signs alone would miss errors in a small block, because its row sums are often zero by symmetry.
    """
    size = 0.5 + 0.5 * torch.rand(p.shape, generator=generator, dtype=torch.float64)
    sign = torch.randint(0, 2, p.shape, generator=generator) * 2 - 1
    return (sign * size).to(p.device, p.dtype)


def _exact_products(
    loss: Tensor,
    targets: Sequence[Tensor],
    vectors: Sequence[Tensor],
    name: Callable[[Tensor], str],
) -> Sequence[Tensor | RuntimeError | None]:
    """Return ``z ⊙ Hz`` for each block as the optimizer does, or the error that it would raise."""
    try:
        region = Region(loss, targets)
        with static_graph_unnoticed(region):
            gradients = gradients_with_graph(loss, targets, region, once=len(targets) == 1)
            refuse_sparse_gradients(targets, gradients, name)
            return [
                curvature_of_gradients([g], [p], "hutchinson", [z])[0]
                for g, p, z in zip(gradients, targets, vectors, strict=True)
            ]
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if len(targets) == 1:
            return [error]
    pairs = zip(targets, vectors, strict=True)
    return [_exact_products(loss, [p], [z], name)[0] for p, z in pairs]


class _Comparison:
    """A comparison of exact products with differences of gradients.

    Args:
        closure: Computes the loss.
        loss: The loss at the present weights, with its graph.
        rtol: The largest relative error at which the products agree.
        shares: The distances to try, as shares of a parameter's scale.
    """

    def __init__(
        self, closure: Closure, loss: Tensor, rtol: float, shares: Sequence[float]
    ) -> None:
        self._differences = GradientDifferences(closure, during_backward=PresentPieces(loss).kept)
        self._rtol = rtol
        self._shares = shares

    def error(self, p: Tensor, z: Tensor, product: Tensor) -> float:
        """Return the relative error of ``product``, which should be ``z ⊙ Hz``."""
        exact = _flat(product)
        if not exact.isfinite().all():
            return math.inf
        found: dict[float, Tensor] = {}
        smallest = math.inf
        for share in self._shares:
            (difference,) = self._differences.product([p], [z], share)
            if difference is None or not difference.isfinite().all():
                continue
            found[share] = _flat(difference * z)
            smallest = min(smallest, _relative(found[share], exact))
            if smallest <= self._rtol:
                return smallest
        return min(smallest, _error_beyond_own(found, exact))


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().flatten().cpu().double()


def _relative(difference: Tensor, exact: Tensor, own_error: float = 0.0) -> float:
    apart = max(float((difference - exact).norm()) - own_error, 0.0)
    return apart / max(float(difference.norm()), float(exact.norm())) if apart else 0.0


def _error_beyond_own(found: dict[float, Tensor], exact: Tensor) -> float:
    """Return the relative error beyond that of the best differences themselves.

    These are at the two neighbouring distances that agree best. Their own error is their
    disagreement, but at least the rounding (all there is if the block is zero). That is largest at
    the smallest distances and estimated there, so that agreement by chance does not seem exact.
    """
    shares = sorted(found, reverse=True)
    pairs = list(pairwise(shares))
    if not pairs:
        return math.inf
    apart = {pair: float((found[pair[0]] - found[pair[1]]).norm()) for pair in pairs}
    rounding = max(apart[pair] * pair[1] for pair in pairs[-2:])
    best = min(pairs, key=apart.__getitem__)
    own = _OWN_ERRORS * max(apart[best], rounding / best[0])
    return min(_relative(found[share], exact, own) for share in best)


def _message(
    wrong: dict[str, float],
    reasons: dict[str, RuntimeError],
    checked: int,
    precision: torch.dtype,
) -> str:
    parts = []
    disagreeing = {n: e for n, e in wrong.items() if n not in reasons}
    if disagreeing:
        listed = ", ".join(f"{n} (relative error {e:.2g})" for n, e in disagreeing.items())
        parts.append(
            f"the exact product of {len(disagreeing)} of {checked} Newton parameters disagrees "
            f"with differences of gradients: {listed}. A function between them and the loss has a "
            "wrong second derivative: its backward makes no graph or treats as constant something "
            "that depends on its input. Or the loss detaches something on purpose. Replace that "
            "function, use update_hessian(closure=...), or give the parameters' groups "
            "channelwise=False"
        )
        if precision == torch.float32:
            parts.append(
                "In float32 the cause may be rounding in the differences. First check a copy of "
                "the model and the batch in .double()"
            )
    by_reason: dict[str, list[str]] = {}
    for n, error in reasons.items():
        by_reason.setdefault(str(error), []).append(n)
    parts += [
        f"no exact product can be taken of {', '.join(names)}: {reason}"
        for reason, names in by_reason.items()
    ]
    return ". ".join(parts)
