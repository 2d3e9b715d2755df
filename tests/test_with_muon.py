"""sgdph.muon: which optimizer gets which parameter, and the steps of one made by hand."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference.nets import BasicBlock, batches, flat, head, loss_of
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import sgdph

needs_torch_muon = pytest.mark.skipif(
    not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9"
)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        self.scale = nn.Parameter(torch.ones(8))
        self.experts = nn.Parameter(torch.ones(2, 8, 8))


class Gpt(nn.Module):
    """Tied embedding and head, and its own tables, scalars and stacked experts."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.ones(4, 8))
        self.tokens = nn.Embedding(11, 8)
        self.block = Block()
        self.norm = nn.LayerNorm(8)
        self.temperature = nn.Parameter(torch.ones(()))
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.tokens.weight


class RelativeEmbed(nn.Module):
    """An embedding that inherits from no known class."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5, 8))


def resnet() -> nn.Module:
    stem = [nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU()]
    return nn.Sequential(*stem, BasicBlock(3, 4), *head(4))


def mlp() -> nn.Module:
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(16, 4), nn.LayerNorm(4), nn.GELU()),
        *(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 3)),
    )


def with_lookalike() -> nn.Module:
    return nn.Sequential(RelativeEmbed(), nn.Conv1d(8, 8, 3), nn.LSTM(8, 4), nn.Linear(4, 3))


def weight_normed() -> nn.Module:
    layers = [weight_norm(nn.Conv2d(1, 3, 3)), weight_norm(nn.Conv2d(3, 3, 3))]
    return nn.Sequential(*layers, nn.Flatten(), weight_norm(nn.Linear(12, 3)))


def vit() -> nn.Module:
    timm: Any = pytest.importorskip("timm")
    model: nn.Module = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    return model


def gpt2() -> nn.Module:
    pytest.importorskip("transformers")
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=4, n_embd=4, n_layer=1, n_head=2))


def llama() -> nn.Module:
    pytest.importorskip("transformers")
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 8, "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2))


# For each network, the hidden weights and what AdamW gets. The rest takes Newton steps.
ROLES: dict[Callable[[], nn.Module], tuple[set[str], set[str]]] = {
    resnet: (
        {"3.conv1.weight", "3.conv2.weight", "3.projection.weight"},
        {"0.weight", "6.weight", "6.bias"},
    ),
    mlp: ({"1.weight", "4.weight"}, {"6.weight", "6.bias"}),
    Gpt: (
        {
            "block.attention.in_proj_weight",
            "block.attention.out_proj.weight",
            "block.up.weight",
            "block.down.weight",
        },
        {"positions", "tokens.weight", "block.scale", "block.experts", "temperature"},
    ),
    with_lookalike: (
        {"1.weight", "2.weight_ih_l0", "2.weight_hh_l0"},
        {"0.weight", "3.weight", "3.bias"},
    ),
    weight_normed: (
        {"1.parametrizations.weight.original1"},
        {
            "0.parametrizations.weight.original1",
            "3.parametrizations.weight.original1",
            "3.bias",
        },
    ),
    vit: (
        {f"blocks.0.{name}.weight" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")},
        {"cls_token", "pos_embed", "patch_embed.proj.weight", "head.weight", "head.bias"},
    ),
    gpt2: (
        {
            f"transformer.h.0.{name}.weight"
            for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        },
        {"transformer.wte.weight", "transformer.wpe.weight"},
    ),
    llama: (
        {
            f"model.layers.0.{name}_proj.weight"
            for name in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o")
        }
        | {f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")},
        {"model.embed_tokens.weight", "lm_head.weight"},
    ),
}


def parameters_of(optimizer: torch.optim.Optimizer) -> list[int]:
    return [id(p) for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize("make", ROLES, ids=lambda make: make.__name__)
def test_each_parameter_goes_to_the_right_optimizer(make: Callable[[], nn.Module]) -> None:
    pytest.importorskip("pytorch_optimizer")
    model = make()
    hidden, others = ROLES[make]
    optimizer = sgdph.muon(model)
    muon, adamw = optimizer.first_order
    assert (type(muon).__name__, type(adamw)) == ("Muon", torch.optim.AdamW)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[i] for i in parameters_of(muon)} == hidden
    assert {names[i] for i in parameters_of(adamw)} == others
    assert {names[id(p)] for p in optimizer.newton_parameters} == (
        set(names.values()) - hidden - others
    )
    assert sorted(parameters_of(optimizer)) == sorted(names)
    named = [n for group in optimizer.param_groups for n in group["param_names"]]
    assert sorted(named) == sorted(names.values())


def by_hand(
    model: nn.Module, muon: torch.optim.Optimizer, others: list[Tensor]
) -> sgdph.PartialHessian:
    adamw = torch.optim.AdamW(others, lr=2e-3, weight_decay=0.1)
    return sgdph.PartialHessian(
        [muon, adamw],
        sgdph.param_groups(model, weight_decay=0.1),
        lr=0.03,
        estimator="hutchinson",
        hessian_interval=2,
    )


def torch_muon(model: nn.Module, hidden: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Muon(hidden, lr=0.05, weight_decay=0.1)


def library_muon(model: nn.Module, hidden: list[Tensor]) -> torch.optim.Optimizer:
    from pytorch_optimizer import Muon

    return Muon([{"params": hidden, "use_muon": True}], lr=0.05, weight_decay=0.1)


@pytest.mark.parametrize(
    ("make", "muon", "old_torch"),
    [
        pytest.param(mlp, torch_muon, False, marks=needs_torch_muon),
        (mlp, library_muon, True),
        (resnet, library_muon, False),
    ],
    ids=["matrices", "matrices-old-torch", "kernels"],
)
def test_steps_equal_those_of_a_partial_hessian_made_by_hand(
    make: Callable[[], nn.Module],
    muon: Callable[[nn.Module, list[Tensor]], torch.optim.Optimizer],
    old_torch: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if muon is library_muon:
        pytest.importorskip("pytorch_optimizer")
    if old_torch:
        monkeypatch.delattr(torch.optim, "Muon", raising=False)
    torch.manual_seed(0)
    model, twin = make(), make()
    twin.load_state_dict(model.state_dict())
    settings = {"adamw_lr": 2e-3, "newton_lr": 0.03, "weight_decay": 0.1}
    optimizer = sgdph.muon(model, 0.05, **settings, estimator="hutchinson", hessian_interval=2)
    hidden, others = ROLES[make]
    named = dict(twin.named_parameters())
    ours = muon(twin, [p for name, p in named.items() if name in hidden])
    other = by_hand(twin, ours, [p for name, p in named.items() if name in others])
    assert type(optimizer.first_order[0]) is type(ours)
    data = batches("conv_bias", dtype=torch.float32)
    for batch in [*data, *data]:
        for m, o in ((model, optimizer), (twin, other)):
            o.zero_grad()
            o.backward(loss_of(m, batch))
            o.step()
    assert torch.equal(flat(model), flat(twin))


def test_channelwise_weight_decay_may_differ() -> None:
    pytest.importorskip("pytorch_optimizer")
    optimizer = sgdph.muon(resnet(), weight_decay=0.1, channelwise_weight_decay=0.0)
    found = {
        name: group["weight_decay"]
        for group in optimizer.param_groups
        for name in group["param_names"]
    }
    assert {name for name, decay in found.items() if decay == 0.1} == {
        name
        for name in found
        if name.endswith("weight") and ".bn" not in name and name != "1.weight"
    }
    assert set(found.values()) == {0.0, 0.1}


def test_muon_gets_the_only_hidden_weight_even_if_it_comes_first() -> None:
    pytest.importorskip("pytorch_optimizer")
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 3))
    muon, _ = sgdph.muon(model).first_order
    assert parameters_of(muon) == [id(model[0].weight)]


def test_without_pytorch_optimizer_the_error_names_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(ImportError, match=r"for kernels: pip install pytorch_optimizer"):
        sgdph.muon(resnet())
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ImportError, match=r"before torch 2\.9: pip install pytorch_optimizer"):
        sgdph.muon(mlp())


def test_unsuitable_models_raise_errors() -> None:
    with pytest.raises(ValueError, match=r"no hidden weights.*PartialHessian with torch\.optim"):
        sgdph.muon(nn.Sequential(nn.Embedding(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)))
    with pytest.raises(TypeError, match=r"expects a torch\.nn\.Module, got list"):
        sgdph.muon([nn.Parameter(torch.ones(2, 2))])


def test_bad_settings_of_the_newton_steps_raise_errors() -> None:
    if not hasattr(torch.optim, "Muon"):
        pytest.importorskip("pytorch_optimizer")
    with pytest.raises(TypeError, match="hessian_intervall"):
        sgdph.muon(mlp(), hessian_intervall=2)
    with pytest.raises(ValueError, match="lr"):
        sgdph.muon(mlp(), newton_lr=-1.0)
