r"""The partial Hessian of a parameter, from a loss's graph.

For a parameter :math:`p` with block :math:`H = \partial^2 L / \partial p^2`, there are three
estimators of the vector used in place of :math:`H`'s diagonal:

* ``row_sum``: :math:`h = H\mathbf 1` (Eq. 3 of the paper). The paper treats it as the diagonal. It
  is not, because later layers mix the channels, so the block is not diagonal.
* ``hutchinson``: :math:`h = z \odot Hz` with Rademacher :math:`z`;
  :math:`\mathbb E[z \odot Hz] = \operatorname{diag}(H)` (Bekas, Kokiopoulou & Saad, 2007). The
  probes come from :mod:`sgdph.curvature.probes`.
* ``exact``: :math:`h = \operatorname{diag}(H)`, one product per element.

Each product is reverse mode over reverse mode (Pearlmutter, 1994). The engine visits only the part
of the graph between the parameter and the loss.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from sgdph.autograd.differentiability import explain_missing_derivatives
from sgdph.autograd.graph import Region, without_autocast
from sgdph.autograd.graph_checks import check_gradients, check_region, refuse_graphless_gradients
from sgdph.autograd.lean import lean_second_derivatives, register_second_derivatives
from sgdph.autograd.shared_backward import SharedBackward
from sgdph.names import Estimator
from sgdph.validation import is_stochastic, unknown_estimator


def gradients_with_graph(
    loss: Tensor,
    params: Sequence[Tensor],
    region: Region,
    *,
    lean: bool = True,
    once: bool = False,
    shared: SharedBackward | None = None,
) -> list[Tensor | None]:
    """Differentiate ``loss`` once, with a graph for a second time. ``.grad`` is not changed.

    Args:
        loss: A real scalar whose graph has not been freed (:func:`check_loss`). It stays alive.
        params: Leaves of the graph, each of any shape.
        region: The part of the graph between ``loss`` and ``params``.
        lean: See :func:`~sgdph.autograd.lean.lean_second_derivatives`.
        once: Whether only a single product of these gradients will be taken.
        shared: The backward that continues from here, if there is one.

    Returns:
        Per parameter its gradient, with a graph unless the gradient is constant; ``None`` if the
        loss does not depend on the parameter.

    Raises:
        RuntimeError: ``loss`` cannot be differentiated twice.
    """
    if not params:
        return []
    register_second_derivatives()
    custom = check_region(region)
    # A grad_output with a graph makes every gradient in the region depend on something. Then a
    # custom function at the end of the loss also shows whether it makes a graph.
    grad_output = None
    if custom:
        with torch.enable_grad():
            # Cloned, because a leaf's node has no sequence number that shows its age.
            grad_output = torch.ones_like(loss, requires_grad=True).clone()
    asked = [] if shared is None else shared.asked
    leaves = [] if shared is None else shared.asked_leaves
    recording = contextlib.nullcontext() if shared is None else shared.recording()
    with (
        silenced_hooks([*params, *leaves]),
        torch.enable_grad(),
        explain_missing_derivatives(),
        refuse_graphless_gradients(custom, region),
        lean_second_derivatives(region, once, lean=lean, shared=shared),
        recording,
    ):
        inputs = [*map(get_gradient_edge, params), *asked]
        gradients = torch.autograd.grad(
            loss, inputs, grad_output, create_graph=True, allow_unused=True
        )[: len(params)]
    if custom:
        check_gradients(gradients)
    return list(gradients)


def curvature_of_gradients(
    gradients: Sequence[Tensor | None],
    params: Sequence[Tensor],
    estimator: Estimator,
    probes: Sequence[Tensor] | None = None,
    *,
    release: Tensor | None = None,
) -> list[Tensor | None]:
    """Estimate the curvature of each parameter's block from its gradient and the gradient's graph.

    Args:
        gradients: As returned by :func:`gradients_with_graph`.
        params: The parameters of the gradients.
        estimator: One of ``row_sum``, ``hutchinson``, ``exact``. ``hutchinson`` takes one joint
            product over all ``params``. With several of them, each estimate contains the noise of
            the others' cross blocks. The other estimators take each block alone.
        probes: For ``hutchinson``, a probe per parameter, shaped like it.
        release: The loss, if the product should free its graph between loss and ``params``; only
            for a single product.

    Returns:
        Per parameter a tensor of its shape, without a graph; ``None`` if its gradient is ``None``.

    Raises:
        RuntimeError: The gradients' graph cannot be differentiated.
        ValueError: The estimator is unknown, or lacks its probes.
    """
    with silenced_hooks(params), explain_missing_derivatives():
        if estimator == "hutchinson":
            if probes is None:
                raise ValueError("estimator 'hutchinson' needs a probe per parameter, got none")
            return _hutchinson(gradients, params, probes, release)
        pairs = zip(gradients, params, strict=True)
        if estimator == "exact":
            return [None if g is None else _exact(g, p) for g, p in pairs]
        if estimator == "row_sum":
            return [None if g is None else _row_sum(g, p, release) for g, p in pairs]
        raise unknown_estimator(estimator)


def is_one_product(estimator: Estimator, params: Sequence[Tensor]) -> bool:
    """Return whether the estimator takes a single product for all of ``params``.

    Raises:
        ValueError: The estimator is unknown.
    """
    if is_stochastic(estimator):
        return True
    return estimator == "row_sum" and len(params) == 1


def products_per_block(estimator: Estimator, entries: int) -> int:
    """Return how many products the estimator takes for a block with ``entries`` rows.

    Raises:
        ValueError: The estimator is unknown.
    """
    if estimator == "exact":
        return entries
    if estimator == "row_sum" or estimator == "hutchinson":
        return 1
    raise unknown_estimator(estimator)


def unit_vectors(like: Tensor) -> Iterator[Tensor]:
    """Yield the unit vectors shaped like ``like``, in the order of its ``flatten()``."""
    for i in range(like.numel()):
        # Made flat first, because a permuted tensor has no flat view of its memory.
        vector = torch.zeros(like.numel(), dtype=like.dtype, device=like.device)
        vector[i] = 1
        yield vector.reshape(like.shape)


def _row_sum(gradient: Tensor, p: Tensor, release: Tensor | None) -> Tensor:
    return _product([gradient], [p], [torch.ones_like(gradient)], release)[0]


def _exact(gradient: Tensor, p: Tensor) -> Tensor:
    diagonal = gradient.new_zeros(p.numel())
    for i, vector in enumerate(unit_vectors(gradient)):
        diagonal[i] = _product([gradient], [p], [vector])[0].flatten()[i]
    return diagonal.detach().reshape(p.shape)


def _hutchinson(
    gradients: Sequence[Tensor | None],
    params: Sequence[Tensor],
    probes: Sequence[Tensor],
    release: Tensor | None,
) -> list[Tensor | None]:
    used = [i for i, g in enumerate(gradients) if g is not None]
    products = _product(
        [g for g in gradients if g is not None],
        [params[i] for i in used],
        [probes[i] for i in used],
        release,
    )
    estimates: list[Tensor | None] = [None] * len(params)
    for i, product in zip(used, products, strict=True):
        estimates[i] = probes[i].to(product.device) * product
    return estimates


def _product(
    gradients: list[Tensor],
    params: list[Tensor],
    vectors: list[Tensor],
    release: Tensor | None = None,
) -> list[Tensor]:
    """Multiply the joint Hessian of ``params`` with ``vectors``: d(gᵀv)/dp."""
    curved = [i for i, g in enumerate(gradients) if g.requires_grad]
    outputs = [gradients[i] for i in curved]
    cotangents = [vectors[i].to(gradients[i]) for i in curved]
    if release is not None:
        # The product skips nodes that the gradients do not depend on, such as a linear end of the
        # loss. Adding zero times the loss visits these too, so they are freed like the rest.
        outputs.append(release)
        cotangents.append(torch.zeros_like(release))
    if not outputs:
        return [torch.zeros_like(p) for p in params]
    # The graph already has the forward's precision. If the user runs the backward inside autocast,
    # the product's own operations would be rounded too; on CUDA, in older torch, always to float16.
    with without_autocast(outputs[0].device):
        products = torch.autograd.grad(
            outputs, params, cotangents, retain_graph=release is None, allow_unused=True
        )
    return [torch.zeros_like(p) if h is None else h for h, p in zip(products, params, strict=True)]


def check_loss(loss: Tensor) -> None:
    """Check that a loss can be differentiated.

    Raises:
        TypeError, ValueError: It is not a real scalar tensor.
        RuntimeError: It has no graph, or inference mode is on.
    """
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "a partial Hessian cannot be taken inside torch.inference_mode(); leave that context "
            "first"
        )
    if not isinstance(loss, Tensor):
        raise TypeError(f"the loss must be a tensor, got {type(loss).__name__}")
    if math.prod(loss.shape) != 1 or loss.is_complex():
        raise ValueError(
            f"the loss must be a real scalar, got shape {tuple(loss.shape)} and {loss.dtype}; "
            "reduce it first, with .mean() or .sum()"
        )
    if not loss.requires_grad:
        raise RuntimeError(
            "the loss has no graph, so no partial Hessian can be taken. It was computed under "
            "torch.no_grad(), detached, or computed from frozen parameters only"
        )


@contextlib.contextmanager
def silenced_hooks(params: Sequence[Tensor]) -> Iterator[None]:
    """Disable tensor hooks on the parameters inside the context.

    They are meant for the gradient of the user's own backward. Otherwise they would fire twice more
    in every product, on vectors that are not gradients.
    """
    silenced = {
        id(hooks): (hooks, dict(hooks))
        for p in params
        if (hooks := getattr(p, "_backward_hooks", None))
    }
    for hooks, saved in silenced.values():
        hooks.update(dict.fromkeys(saved, _silent))
    try:
        yield
    finally:
        for hooks, saved in silenced.values():
            # A hook whose handle was removed meanwhile is not put back.
            hooks.update({key: hook for key, hook in saved.items() if key in hooks})


def _silent(_: Tensor) -> None:
    return None
