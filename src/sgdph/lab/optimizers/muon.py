"""Which parameters Muon orthogonalises, and which it leaves to AdamW."""

from __future__ import annotations

from torch import Tensor, nn

from sgdph import param_groups


def split_for_muon(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Split a network's parameters into hidden weights and the rest.

    Muon is for hidden weights: not for embeddings, the output layer, a convolutional network's
    first layer, or anything channel-wise (Jordan et al., 2024, the README of their code). Hidden
    are here the weights of two or more dimensions but for the last of them, the first where it is
    a convolution's, those of embeddings, and those that the model holds directly, as it does tables
    of positions. The lengths of weight-normalised weights are channel-wise, whatever their shape.

    Args:
        model: The network.

    Returns:
        The hidden weights, and all other parameters; both in the model's order.
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
