"""The transformers: what they compute, and by which attention."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sgdph.lab.networks.encoder import HEADS, LAYERS, LENGTH, VOCABULARY, WIDTH, Encoder
from sgdph.lab.networks.transformer import Transformer

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "encoder": lambda: Encoder(5),
    "transformer": lambda: Transformer(20),
}


def logits_of(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    return model, model(torch.randint(20, (2, LENGTH)))


def nodes_behind(output: Tensor) -> set[str]:
    """Name the operations that an output was computed by."""
    seen, found = set(), [output.grad_fn]
    while found:
        node = found.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found += [following for following, _ in node.next_functions]
    return {type(node).__name__ for node in seen}


@pytest.mark.parametrize("name", NETWORKS)
def test_attention_is_torchs_default(name: str) -> None:
    _, logits = logits_of(name)
    assert any("Attention" in node for node in nodes_behind(logits))


@pytest.mark.parametrize("name", NETWORKS)
def test_under_math_attention_torch_differentiates_twice(name: str) -> None:
    with sdpa_kernel(SDPBackend.MATH):
        model, logits = logits_of(name)
    torch.testing.assert_close(logits, logits_of(name)[1], rtol=1e-4, atol=1e-5)
    p = model.layers[0].norm1.weight  # type: ignore[index, union-attr]
    (gradient,) = torch.autograd.grad(logits.logsumexp(1).sum(), p, create_graph=True)
    (product,) = torch.autograd.grad(gradient.sum(), p)
    assert product.isfinite().all()
    assert product.any()


def test_the_encoders_shape() -> None:
    model, logits = logits_of("encoder")
    assert (len(model.layers), WIDTH, HEADS, LENGTH) == (LAYERS, 256, 4, 64) == (12, 256, 4, 64)  # type: ignore[arg-type]
    assert VOCABULARY == 1000
    assert logits.shape == (2, 5)
