"""The split of parameters into those that Muon orthogonalises and those that AdamW trains."""

from __future__ import annotations

from torch import Tensor, nn

from sgdph import param_groups


def split_for_muon(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Split a network's parameters into hidden weights and the rest.

    Muon is for hidden weights: not for embeddings, the output layer, a convolutional network's
    first layer, or anything channel-wise (Jordan et al., 2024, the README of their code). Here,
    hidden weights are all weights of two or more dimensions except:

    * channel-wise parameters, which include the lengths of weight-normalised weights of any shape,
    * weights of embeddings,
    * weights that the model holds directly, such as tables of positions,
    * of the remaining weights: the last one, and the first one if it belongs to a convolution.

    Args:
        model: The network.

    Returns:
        The hidden weights and all other parameters, both in the model's order.
    """
    channelwise = {
        id(p) for group in param_groups(model) if group["channelwise"] for p in group["params"]
    }
    tables = {
        id(p)
        for module in model.modules()
        if module is model or isinstance(module, nn.Embedding)
        for p in module.parameters(recurse=False)
    }
    weights: list[Tensor] = [
        p
        for p in model.parameters()
        if p.ndim >= 2 and id(p) not in channelwise and id(p) not in tables
    ]
    convolutional = bool(weights) and weights[0].ndim > 2
    hidden = weights[convolutional:-1]
    chosen = {id(p) for p in hidden}
    others: list[Tensor] = [p for p in model.parameters() if id(p) not in chosen]
    return hidden, others
