"""Transformers of other packages with their default attention, which is torch's fused one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import timm
import torch
from small import WAYS
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import sgdph
from sgdph.autograd.graph import Region

pytestmark = [pytest.mark.xdist_group("transformers"), pytest.mark.filterwarnings("ignore")]

LENGTH, VOCABULARY = 8, 32
IDS = torch.randint(VOCABULARY, (4, LENGTH), generator=torch.Generator().manual_seed(0))
PADDED = (torch.arange(LENGTH) < torch.tensor([[LENGTH], [6], [3], [1]])).long()


def text_loss(model: nn.Module, labels: Tensor) -> Tensor:
    """The loss of texts of four lengths."""
    loss: Tensor = model(input_ids=IDS, attention_mask=PADDED, labels=labels).loss
    return loss


def gpt2() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """Causal, with padding."""
    sizes = {"vocab_size": VOCABULARY, "n_positions": LENGTH, "n_embd": 8, "n_layer": 2}
    off = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    model = GPT2LMHeadModel(GPT2Config(**sizes, n_head=2, bos_token_id=0, eos_token_id=0, **off))
    return model, lambda m: text_loss(m, IDS.masked_fill(PADDED == 0, -100))


def llama() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """Grouped queries, and RMS norm; no mask but the causal one."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 8, "intermediate_size": 12}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, attention_bias=True))
    return model, lambda m: m(input_ids=IDS, labels=IDS).loss


def bert() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """Every token sees every other one, except padding."""
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 8, "intermediate_size": 12}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": LENGTH}
    off = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0)
    model = BertForSequenceClassification(BertConfig(**sizes, **layers, **off))
    return model, lambda m: text_loss(m, IDS[:, 0] % 2)


def vit() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """A ViT of timm."""
    model = timm.create_model("test_vit", img_size=32, num_classes=4)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return model, lambda m: cross_entropy(m(images.to(next(m.parameters()))), torch.arange(4))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("build", [gpt2, llama, bert, vit])
def test_curvature_equals_that_of_math_attention(
    build: Callable[[], tuple[nn.Module, Callable[[nn.Module], Tensor]]], way: str
) -> None:
    found, fused = [], []
    for context in (contextlib.nullcontext(), sdpa_kernel(SDPBackend.MATH)):
        torch.manual_seed(0)
        model, loss_of = build()
        model = model.double()
        with torch.no_grad():
            for p in model.parameters():
                # With the initial weights, attention is nearly uniform over the tokens.
                p.add_(0.3 * torch.randn_like(p))
        optimizer = sgdph.SGDPH(
            sgdph.param_groups(model), estimator="hutchinson", refresh="all", hessian_momentum=0.99
        )
        with context:
            loss = loss_of(model)
            nodes = {type(node).__name__ for node in Region(loss, [*model.parameters()]).nodes}
            fused.append(any("FlashAttention" in name for name in nodes))
            WAYS[way](optimizer, loss)
        optimizer.step()
        found.append([s["hessian"] for s in optimizer.state.values() if "hessian" in s])
    assert fused == [True, False]
    assert len(found[0]) == len(found[1]) > 4
    # The curvature of a key's bias is zero, except for rounding.
    largest = max(float(h.abs().max()) for h in found[1])
    for one, other in zip(*found, strict=True):
        assert float((one - other).abs().max()) <= 1e-10 * largest
