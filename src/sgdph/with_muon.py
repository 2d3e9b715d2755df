"""Muon, AdamW and Newton steps, each for the parameters that it suits."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.optimizer import Optimizer

from sgdph.partial_hessian import PartialHessian
from sgdph.roles import output_layer, param_groups, parameters_with_roles

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def muon(
    model: nn.Module,
    lr: float = 0.02,
    *,
    adamw_lr: float = 3e-4,
    newton_lr: float = 1e-2,
    weight_decay: float = 0.0,
    channelwise_weight_decay: float | None = None,
    **newton: Any,
) -> PartialHessian:
    """Combine Muon for hidden weights, AdamW for the rest, and Newton steps for norms and biases.

    The role of a parameter in the model decides:

    * Newton steps for the channel-wise parameters, as :func:`sgdph.param_groups` finds them.
    * Muon for the hidden weights: parameters of two or more dimensions that their layer calls a
      weight (``weight``, ``in_proj_weight``, …). Kernels are orthogonalised as matrices, one row
      for each output channel.
    * AdamW for all others: embeddings (``torch.nn.Embedding``, and parameters of modules whose
      class is named ``…Embed…``), the output layer, position tables, class tokens, scalars, stacked
      experts. Also for the kernel of the first layer, if it is a convolution and not the only
      hidden weight (Jordan et al., 2024).

    ``torch.optim.Muon`` is used if it exists (torch 2.9 or later) and all hidden weights are
    matrices; otherwise ``pytorch_optimizer.Muon``, which also takes kernels. Both scale a step by
    √max(1, rows/columns). Settings without an argument here keep the default of their optimizer.

    Args:
        model: The network. Its parameters are not touched.
        lr: Learning rate of Muon.
        adamw_lr: Learning rate of AdamW.
        newton_lr: Learning rate of the Newton steps: the default of :class:`sgdph.PartialHessian`.
        weight_decay: λ of every parameter. Muon and AdamW decay by ``lr · λ``, each with its own.
        channelwise_weight_decay: λ of the channel-wise parameters and of the output layer's bias,
            if it should differ; ``0.0`` switches weight decay off for them.
        **newton: Other arguments of :class:`sgdph.PartialHessian`, such as ``estimator`` and
            ``hessian_interval``.

    Returns:
        The optimizer. Its ``first_order`` are Muon and AdamW.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``model`` has no hidden weights; or as in :class:`sgdph.PartialHessian`.
        ImportError: ``pytorch_optimizer`` is needed and not installed.

    Example:
        >>> optimizer = muon(model, estimator="hutchinson", hessian_interval=10)
    """
    groups = param_groups(model, weight_decay, channelwise_weight_decay=channelwise_weight_decay)
    hidden = {id(p) for p in hidden_weights(model)}
    if not hidden:
        raise ValueError(
            f"{type(model).__name__} has no hidden weights for Muon to train; use "
            "sgdph.PartialHessian with torch.optim.AdamW"
        )
    parts: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for group in groups:
        if group["channelwise"]:
            continue
        named = list(zip(group["param_names"], group["params"], strict=True))
        for is_hidden, listed in parts.items():
            chosen = [each for each in named if (id(each[1]) in hidden) is is_hidden]
            if chosen:
                listed.append({"params": chosen, "weight_decay": group["weight_decay"]})
    first_order = [_muon(parts[True], lr)]
    if parts[False]:
        first_order.append(torch.optim.AdamW(parts[False], adamw_lr))
    return PartialHessian(first_order, groups, newton_lr, **newton)


def hidden_weights(model: nn.Module) -> list[Tensor]:
    """Return the parameters that Muon trains, in registration order; see :func:`muon`."""
    output = output_layer(model)
    elsewhere = {id(p) for p in _embeddings(model)}
    elsewhere |= {id(p) for p in output.parameters()} if output is not None else set()
    weights: list[Tensor] = [
        p
        for name, p, owner, is_channelwise in parameters_with_roles(model)
        if not is_channelwise and _is_weight(p, owner, name.rpartition(".")[2])
    ]
    hidden = [p for p in weights if id(p) not in elsewhere]
    begins_with_kernel = bool(hidden) and weights[0] is hidden[0] and hidden[0].ndim > 2
    return hidden[1:] if begins_with_kernel and len(hidden) > 1 else hidden


def _embeddings(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        if isinstance(module, _EMBEDDINGS):
            # Including the parameters of its parametrisations.
            yield from module.parameters()
        elif "Embed" in type(module).__name__:
            yield from module.parameters(recurse=False)


def _is_weight(p: Tensor, owner: nn.Module, local: str) -> bool:
    """Return whether ``p`` is a layer's matrix or kernel, and not a table or another tensor."""
    is_named_so = "weight" in local or isinstance(owner, parametrize.ParametrizationList)
    return is_named_so and p.ndim >= 2 and not p.is_complex()


def _muon(groups: list[dict[str, Any]], lr: float) -> Optimizer:
    """Build torch's Muon if it can be used, else that of ``pytorch_optimizer``."""
    shapes = [p.ndim for group in groups for _, p in group["params"]]
    if hasattr(torch.optim, "Muon") and all(ndim == 2 for ndim in shapes):
        return torch.optim.Muon(groups, lr)
    try:
        library = importlib.import_module("pytorch_optimizer")
    except ImportError as error:
        needed = "for kernels" if any(ndim > 2 for ndim in shapes) else "before torch 2.9"
        raise ImportError(
            f"sgdph.muon needs pytorch_optimizer {needed}: pip install pytorch_optimizer"
        ) from error
    made: Optimizer = library.Muon([{**group, "use_muon": True} for group in groups], lr)
    return made
