"""Weight normalisation with the rest: errors, optimizer, DDP, checkpoints, export."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import assert_near, assert_same_bits, on_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, parametrize, prune
from user_warnings import warns_here

import sgdph
from weight_norm.test_weight_norm import G, V, conv_net, images, loss_of, names, old_style

LISTED = r"'0' \(Conv2d\), '2' \(ConvTranspose2d\), '4' \(Conv2d\), '8' \(Linear\)"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def shape_of(model: nn.Module) -> tuple[Any, ...]:
    """Everything that a call with an error must leave as it was."""
    modules = [(name, type(module)) for name, module in model.named_modules()]
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    return names(model), [id(p) for p in model.parameters()], modules, hooks


def refused(
    call: Callable[..., object], model: nn.Module, match: str, *args: Any, kind: Any = ValueError
) -> None:
    before, values = shape_of(model), copy.deepcopy(dict(model.state_dict()))
    with pytest.raises(kind, match=match):
        call(model, *args)
    assert shape_of(model) == before
    for name, value in model.state_dict().items():
        if not isinstance(value, nn.parameter.UninitializedParameter):
            assert torch.equal(value, values[name])


@pytest.mark.parametrize(
    ("layers", "kind", "match"),
    [
        (["q.*"], ValueError, rf"has 'q\.\*', which matches no layer .* has {LISTED}"),
        (["0", "1"], ValueError, rf"names '1', a Softplus, which cannot .* has {LISTED}"),
        (["0", nn.BatchNorm2d], ValueError, rf"the type BatchNorm2d, .* has {LISTED}"),
        ([""], ValueError, r"names '', a Sequential"),
        ([], ValueError, rf"no layer .* was chosen; Sequential has {LISTED}"),
        ("0", TypeError, r"got '0'; did you mean a list"),
        (nn.Linear, TypeError, r"got .*Linear.*; did you mean a list"),
        (7, TypeError, "iterable of names and module types"),
        ([nn.Linear(2, 2)], TypeError, "got a Linear itself"),
        ([int], TypeError, "got <class 'int'>"),
    ],
)
def test_bad_layers_raise_an_error(layers: Any, kind: type[Exception], match: str) -> None:
    refused(sgdph.apply_weight_norm, conv_net(), match, layers, kind=kind)


def test_choosing_a_container_raises_an_error() -> None:
    model = nn.Sequential(conv_net())
    refused(sgdph.apply_weight_norm, model, r"'0', a Sequential.* write '0\.\*'", ["0"])


def test_the_error_shortens_a_long_list_of_layers() -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(50)))
    refused(sgdph.apply_weight_norm, model, r"'19' \(Linear\), 30 more$", ["x"])


@pytest.mark.parametrize("call", [sgdph.apply_weight_norm, sgdph.fold_weight_norm])
def test_an_argument_that_is_not_a_module_raises_type_error(call: Callable[..., object]) -> None:
    with pytest.raises(TypeError, match=r"_weight_norm expects a torch.nn.Module, got generator"):
        call(conv_net().parameters())


def test_a_model_with_nothing_to_do_raises_an_error() -> None:
    refused(
        sgdph.apply_weight_norm, nn.ReLU(), "ReLU has no layer that can be.*ConvTranspose1d to 3d"
    )
    refused(sgdph.fold_weight_norm, conv_net(), "Sequential has no weight-normalised weight")


def test_applying_or_folding_twice_raises_an_error() -> None:
    model = sgdph.apply_weight_norm(conv_net(), ["4"])
    refused(sgdph.apply_weight_norm, model, r"'4': weight-normalised already; sgdph.fold")
    refused(sgdph.apply_weight_norm, model, r"'4': weight-normalised already", ["4"])
    sgdph.apply_weight_norm(model, ["0"])
    sgdph.fold_weight_norm(model)
    refused(sgdph.fold_weight_norm, model, "no weight-normalised weight")
    sgdph.apply_weight_norm(model)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (old_style, "weight-normalised already"),
        (parametrizations.spectral_norm, "computed already, by SpectralNorm; remove"),
        (nn.utils.spectral_norm, "computed already, by SpectralNorm; remove"),
        (lambda layer: prune.l1_unstructured(layer, "weight", 3), "already, by L1Unstructured;"),
        (lambda layer: parametrizations.spectral_norm(old_orthogonal(layer)), "by Half, Spectral"),
        (lambda layer: layer.register_parameter("weight", None), "computed already; remove"),
    ],
)
def test_computed_weights_raise_errors(change: Callable[[nn.Module], object], match: str) -> None:
    model = conv_net()
    change(model[8])
    refused(sgdph.apply_weight_norm, model, match)
    sgdph.apply_weight_norm(model, [nn.Conv2d])


class Half(nn.Module):
    def forward(self, tensor: Tensor) -> Tensor:
        return tensor / 2


def old_orthogonal(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Half())


def test_a_shared_weight_raises_an_error() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 3), "output": nn.Linear(3, 5)})
    model["output"].weight = model["embedding"].weight
    match = r"'output': one weight shared by 'embedding' and 'output'.*leave it out"
    refused(sgdph.apply_weight_norm, model, match)
    chain = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    chain[2].weight = chain[0].weight
    refused(sgdph.apply_weight_norm, chain, r"'0', '2': one weight shared by '0' and '2'")
    refused(sgdph.apply_weight_norm, chain, r"'2': one weight shared by '0' and '2'", ["1", "2"])
    sgdph.apply_weight_norm(chain, ["1"])


def test_unsupported_layers_raise_an_error() -> None:
    grouped = nn.Sequential(nn.Linear(2, 2), nn.ConvTranspose2d(4, 4, 3, groups=2))
    refused(sgdph.apply_weight_norm, grouped, r"'1': a transposed convolution with groups")
    lazy = nn.Sequential(nn.Linear(2, 2), nn.LazyConv2d(3, 1))
    refused(sgdph.apply_weight_norm, lazy, r"'1': not initialised yet; run a batch")
    complex_ = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.complex64))
    refused(sgdph.apply_weight_norm, complex_, r"'1': weights of torch.complex64, where real")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: initialising no elements does nothing
        empty = nn.Linear(0, 3)
    refused(sgdph.apply_weight_norm, empty, r"the model itself: an empty weight, of shape \(3, 0\)")


def stacked_new(layer: nn.Module) -> None:
    parametrize.register_parametrization(parametrizations.weight_norm(layer), "weight", Half())


def stacked_inside(layer: nn.Module) -> None:
    originals = parametrizations.weight_norm(layer).parametrizations.weight
    parametrize.register_parametrization(originals, "original1", Half())


def stacked_old(layer: nn.Module) -> None:
    prune.l1_unstructured(old_style(layer), "weight_v", 3)


@pytest.mark.parametrize("stack", [stacked_new, stacked_inside, stacked_old])
def test_folding_a_stacked_weight_raises_an_error(stack: Callable[[nn.Module], None]) -> None:
    model = sgdph.apply_weight_norm(conv_net(), ["0", "2", "4"])
    stack(model[8])
    refused(sgdph.fold_weight_norm, model, r"^8\.weight has another parametrisation")


def test_lengths_are_newton_and_directions_first_order() -> None:
    model = sgdph.apply_weight_norm(conv_net())
    groups = {g["channelwise"]: set(g["param_names"]) for g in sgdph.param_groups(model)}
    lengths = {f"{i}.{G}" for i in (0, 2, 4, 8)}
    assert groups[True] == lengths | {"0.bias", "2.bias", "4.bias"}
    assert groups[False] == {f"{i}.{V}" for i in (0, 2, 4, 8)} | {"8.bias"}
    # By shape, the two pitfalls of the docstring: the last layer's g and the transposed one's.
    by_shape = sgdph.SGDPH(model.named_parameters())
    missed = {f"8.{G}", f"2.{G}"}
    assert set(by_shape.multipliers()) == (groups[True] | {"8.bias"}) - missed


def test_state_dict_and_deepcopy() -> None:
    model = sgdph.apply_weight_norm(conv_net())
    other = sgdph.apply_weight_norm(conv_net())
    optimizers = [sgdph.SGDPH(sgdph.param_groups(m)) for m in (model, other)]

    def train(which: int, steps: int) -> None:
        for _ in range(steps):
            optimizers[which].zero_grad()
            optimizers[which].backward(loss_of((model, other)[which]))
            optimizers[which].step()

    train(0, 5)
    other.load_state_dict(model.state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    assert torch.equal(copy.deepcopy(model)(images()), model(images()))
    train(0, 5)
    train(1, 5)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
    old = nn.Sequential(old_style(nn.Linear(3, 2)))
    new = sgdph.apply_weight_norm(nn.Sequential(nn.Linear(3, 2)))
    new.load_state_dict(old.state_dict())
    assert torch.equal(new[0].get_parameter(G), old[0].weight_g)


def under_ddp(rank: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = sgdph.apply_weight_norm(conv_net().double())
    replica = DistributedDataParallel(model)
    for call in (sgdph.apply_weight_norm, sgdph.fold_weight_norm):
        with pytest.raises(ValueError, match="before wrapping it"):
            call(replica)
    optimizer = sgdph.SGDPH(sgdph.param_groups(replica))
    for step in range(8):
        optimizer.zero_grad()
        optimizer.backward(rank_loss(replica, rank, step))
        optimizer.step()
    return model.state_dict()


def rank_loss(model: nn.Module, rank: int, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(10 * step + rank)
    x = torch.randn(5, 2, 5, 5, generator=generator, dtype=torch.float64)
    return model(x).square().mean()


def test_ddp_equals_one_process_on_the_joined_batch(tmp_path: Path) -> None:
    first, second = (found["ddp"] for found in on_ranks({"ddp": under_ddp}, 2, tmp_path))
    model = sgdph.apply_weight_norm(conv_net().double())
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    for step in range(8):
        optimizer.zero_grad()
        optimizer.backward((rank_loss(model, 0, step) + rank_loss(model, 1, step)) / 2)
        optimizer.step()
    assert_same_bits(first, second)
    assert_near(first, dict(model.state_dict()))


def test_only_the_folded_network_can_be_pickled() -> None:
    model = sgdph.apply_weight_norm(conv_net())
    with pytest.raises(RuntimeError, match="only supported through state_dict"):
        pickle.dumps(model)
    folded = sgdph.fold_weight_norm(copy.deepcopy(model))
    restored = pickle.loads(pickle.dumps(folded))
    assert torch.equal(restored(images()), model(images()))


@pytest.mark.parametrize("folded", [True, False])
def test_torch_export(folded: bool) -> None:
    model = sgdph.apply_weight_norm(conv_net()).eval()
    expected = model(images())
    if folded:
        sgdph.fold_weight_norm(model)
    program = torch.export.export(model, (images(),))
    torch.testing.assert_close(program.module()(images()), expected)
    assert set(program.state_dict) == set(model.state_dict())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("folded", [True, False])
def test_onnx(folded: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnx = pytest.importorskip("onnx")
    reference = pytest.importorskip("onnx.reference")
    model = sgdph.apply_weight_norm(conv_net()).eval()
    expected = model(images())
    if folded:
        sgdph.fold_weight_norm(model)
    path = tmp_path / "net.onnx"
    torch.onnx.export(model, (images(),), path, dynamo=True, verbose=False)
    graph = onnx.load(path)
    weights = {tensor.name for tensor in graph.graph.initializer}
    if folded:
        assert {"0.weight", "2.weight", "4.weight"} <= weights
    evaluator = reference.ReferenceEvaluator(graph)
    (name,) = (value.name for value in graph.graph.input)
    (logits,) = evaluator.run(None, {name: images().numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-5)


def test_an_optimizer_built_before_applying_warns_at_its_first_step() -> None:
    # Weights are never refreshed, so no refresh misses them. Biases and scales stay.
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    sgdph.apply_weight_norm(model)
    with warns_here("unknown to the optimizer.*weight norm"):
        optimizer.backward(model(torch.randn(5, 3)).pow(2).sum())


def test_an_optimizer_built_after_applying_does_not_warn(recwarn: pytest.WarningsRecorder) -> None:
    model = sgdph.apply_weight_norm(
        nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    )
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    optimizer.backward(model(torch.randn(5, 3)).pow(2).sum())
    assert not recwarn.list


def test_a_default_device_is_ignored() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    nn.init.zeros_(model[1].weight)
    expected = model(torch.ones(1, 3))
    with torch.device("meta"):
        sgdph.apply_weight_norm(model)
    torch.testing.assert_close(model(torch.ones(1, 3)), expected)


@pytest.mark.parametrize("whole", [True, False])
def test_folding_shared_lengths_raises_an_error(whole: bool) -> None:
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    model = sgdph.apply_weight_norm(nn.Sequential(a, b))
    if whole:
        b.parametrizations = a.parametrizations
    else:
        mine, yours = b.parametrizations.weight, a.parametrizations.weight
        mine.original0, mine.original1 = yours.original0, yours.original1
    before = model(torch.ones(1, 3))
    with pytest.raises(ValueError, match="0 and 1 share a weight-normalised weight"):
        sgdph.fold_weight_norm(model)
    torch.testing.assert_close(model(torch.ones(1, 3)), before)


def test_folding_keeps_channels_last() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3)).to(memory_format=torch.channels_last)
    sgdph.fold_weight_norm(sgdph.apply_weight_norm(model))
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
