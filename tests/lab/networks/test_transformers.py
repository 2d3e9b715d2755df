"""The transformers: what they compute, and which attention they use."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

from sgdph.lab.networks.encoder import HEADS, LAYERS, LENGTH, VOCABULARY, WIDTH, Encoder
from sgdph.lab.networks.gpt import GPT, Layer
from sgdph.lab.networks.transformer import Transformer

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "encoder": lambda: Encoder(5),
    "transformer": lambda: Transformer(20),
    "gpt": lambda: GPT(20, LENGTH, 32, 4, 2),
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
def test_under_math_attention_torch_can_differentiate_twice(name: str) -> None:
    with sdpa_kernel(SDPBackend.MATH):
        model, logits = logits_of(name)
    torch.testing.assert_close(logits, logits_of(name)[1], rtol=1e-4, atol=1e-5)
    p = model.layers[0].norm1.weight  # type: ignore[index, union-attr]
    (gradient,) = torch.autograd.grad(logits.logsumexp(1).sum(), p, create_graph=True)
    (product,) = torch.autograd.grad(gradient.sum(), p)
    assert product.isfinite().all()
    assert product.any()


def test_the_encoder_has_the_expected_shape() -> None:
    model, logits = logits_of("encoder")
    assert (len(model.layers), WIDTH, HEADS, LENGTH) == (LAYERS, 256, 4, 64) == (12, 256, 4, 64)  # type: ignore[arg-type]
    assert VOCABULARY == 1000
    assert logits.shape == (2, 5)


def test_gpt_2_has_as_many_parameters_as_the_published_one() -> None:
    with torch.device("meta"):
        model = GPT(vocabulary=50_257, length=1024, width=768, heads=12, layers=12)
    assert sum(p.numel() for p in model.parameters()) == 124_439_808


def test_a_decoder_layer_equals_torchs() -> None:
    """``nn.TransformerEncoderLayer`` with a causal mask is the reference."""
    torch.manual_seed(0)
    ours = Layer(16, 2).double()
    theirs = nn.TransformerEncoderLayer(
        16, 2, 64, 0.0, partial(F.gelu, approximate="tanh"), batch_first=True, norm_first=True
    ).double()
    # Both have their parameters in this order, and the norms of torch's layer come last.
    parts = (ours.attention, ours.feed_forward, ours.norm1, ours.norm2)
    mine = [p for part in parts for p in part.parameters()]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), mine, strict=True)))
    x = torch.randn(3, 9, 16, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(9, dtype=torch.float64)
    expected = theirs(x, src_mask=mask, is_causal=True)
    torch.testing.assert_close(ours(x), expected, rtol=1e-12, atol=1e-14)


def test_gpt_is_causal_and_gives_logits_of_the_next_tokens() -> None:
    model, logits = logits_of("gpt")
    assert logits.shape == (2, LENGTH, 20)
    # The logits are small at the start, so that the loss is that of a guess.
    assert 0 < logits.std().item() < 0.5
    ids = torch.randint(20, (1, LENGTH))
    others = ids.clone()
    others[:, 40:] = (others[:, 40:] + 1) % 20
    a, b = model(ids), model(others)
    torch.testing.assert_close(a[:, :40], b[:, :40])
    assert not torch.allclose(a[:, 40:], b[:, 40:])
    torch.testing.assert_close(model(ids[:, :10]), a[:, :10])


def test_output_layer_and_embedding_share_a_weight_also_in_a_copy() -> None:
    model = copy.deepcopy(NETWORKS["gpt"]())
    assert model.head.weight is model.tokens.weight  # type: ignore[union-attr]
