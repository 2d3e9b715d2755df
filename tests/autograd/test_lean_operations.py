"""Lean second derivatives: bit-identical first gradients, half precision, memory of a step."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from property_nets import build
from property_oracle import newton_count, optimizer_of
from property_transformers import TRANSFORMERS
from torch import Tensor, nn
from torch.nn import functional

import sgdph
from sgdph.autograd import lean
from sgdph.autograd.graph import TELLS_PACKED, Graph
from sgdph.lab.cost.memory import StorageTracker

NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm2d(4),
    "evaluated batch norm": lambda: nn.BatchNorm2d(4).eval(),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "layer norm": lambda: nn.LayerNorm((4, 5, 5)),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_first_gradients_equal_torch_s_bit_for_bit(name: str) -> None:
    plain = build(name, torch.float32)
    plain.loss().backward()
    for k in range(0, newton_count(name), 2):
        case = build(name, torch.float32)
        optimizer_of(case, "hutchinson", k).backward(case.loss())
        for leaf, expected in plain.leaves().items():
            assert expected.grad is None or torch.equal(case.leaves()[leaf].grad, expected.grad)


def test_group_norm_in_channels_last_has_torch_s_first_gradients() -> None:
    """Torch's kernel rounds differently in another memory layout."""
    found = []
    for backward in (Tensor.backward, None):
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8), nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8)
        model = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        optimizer = sgdph.SGDPH(sgdph.param_groups(model), estimator="hutchinson")
        x = torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last)
        (backward or optimizer.backward)(model(x).pow(3).mean())
        found.append([p.grad for p in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_every_operation_uses_its_lean_derivative(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No operation of these networks falls back to torch's derivative: each lean hook is used."""
    case = build(name)
    kinds = {type(node).__name__ for node in Graph(case.loss()).following}
    hooked = kinds & {*lean.LEAN, *lean.RELEASING}
    assert hooked
    reached: set[str] = set()
    original = {key: lean.LEAN[key] for key in hooked & set(lean.LEAN)}
    for key, make in original.items():

        def noted(node: Any, *rest: Any, key: str = key, make: Any = make) -> Any:
            hook = make(node, *rest)
            if hook is None:
                return None

            def run(*gradients: Any) -> Any:
                found = hook(*gradients)
                if found is not None:
                    reached.add(key)
                return found

            return run

        monkeypatch.setitem(lean.LEAN, key, noted)
    for k in range(newton_count(name)):
        case = build(name)
        optimizer_of(case, "row_sum", k).backward(case.loss())
    assert reached == set(original)


def curvature(model: nn.Module, x: Tensor, dtype: torch.dtype, setting: dict[str, Any]) -> Tensor:
    model = copy.deepcopy(model).to(dtype)
    norm = model[1]
    optimizer = sgdph.SGDPH(
        [{"params": [norm.weight, norm.bias], "channelwise": True}],
        hessian_momentum=0.99,
        **setting,
    )
    optimizer.backward(model(x.to(dtype)).double().pow(3).mean())
    optimizer.step()
    found = [state["hessian"].flatten() for state in optimizer.state.values() if "hessian" in state]
    return torch.cat(found).double()


@pytest.mark.parametrize("estimator", ["row_sum", "hutchinson"])
@pytest.mark.parametrize("name", NORMS)
def test_curvature_of_norms_in_bfloat16_is_near_float64(name: str, estimator: str) -> None:
    torch.manual_seed(0)
    convs = (nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(2))
    first, last = convs
    model = nn.Sequential(first, NORMS[name](), nn.GELU(), last, NORMS[name](), nn.SiLU())
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.add(0.2 * torch.randn_like(p)).bfloat16())
    x = torch.randn(8, 4, 5, 5).bfloat16()
    joint = {"estimator": estimator, "refresh": "all"}
    exact, rounded = (curvature(model, x, d, joint) for d in (torch.float64, torch.bfloat16))
    assert (exact - rounded).norm() <= 0.03 * exact.norm()


def perceptron(activation: nn.Module, depth: int = 6, width: int = 64) -> nn.Module:
    torch.manual_seed(0)
    layers = [m for _ in range(depth) for m in (nn.Linear(width, width), activation)]
    return nn.Sequential(nn.Linear(8, width), nn.LayerNorm(width), *layers, nn.Linear(width, 3))


def peak(model: nn.Module, backward: Callable[[Tensor], None]) -> int:
    """Return the peak of the bytes that one step adds, forward included."""
    for p in model.parameters():
        p.grad = None
    x = torch.randn(512, 8, generator=torch.Generator().manual_seed(0))
    with StorageTracker() as memory:
        memory.start()
        backward(functional.cross_entropy(model(x), torch.arange(512) % 3))
        return memory.peak().added


@pytest.mark.skipif(not TELLS_PACKED, reason="this torch does not tell which tensors are packed")
@pytest.mark.parametrize(
    ("activation", "kept"), [(nn.ReLU(), 0), (nn.GELU(), 5)], ids=["relu", "gelu"]
)
def test_a_later_linear_layer_holds_only_its_weight_gradient(
    activation: nn.Module, kept: int
) -> None:
    """It holds neither its input nor its output's gradient. ReLU holds signs."""
    model = perceptron(activation)
    optimizer = sgdph.SGDPH(sgdph.param_groups(model))
    for group in optimizer.param_groups:
        group["cursor"] = 1  # layer norm's scale
    base = peak(model, Tensor.backward)
    step = peak(model, optimizer.backward)
    one, weights = 512 * 64 * 4, 6 * 64 * 64 * 4
    # GELU keeps its gradient, then its input's derivative, instead of its output.
    assert step - base <= weights + kept * one


@pytest.mark.skipif(not TELLS_PACKED, reason="this torch does not tell which tensors are packed")
def test_use_of_a_released_input_raises_an_error() -> None:
    """A hook on the layer's input runs after the layer's weight has its gradient."""
    model = perceptron(nn.GELU(), depth=2)
    layer = model[4]
    optimizer = sgdph.SGDPH(sgdph.param_groups(model), estimator="hutchinson")
    for group in optimizer.param_groups:
        group["cursor"] = 1
    errors: list[str] = []

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        def other_pass(_: Tensor) -> None:
            try:
                torch.autograd.grad(output.sum(), layer.weight, retain_graph=True)
            except RuntimeError as error:
                errors.append(str(error))

        inputs[0].register_hook(other_pass)

    handle = layer.register_forward_hook(watch)
    x = torch.randn(16, 8)
    loss = functional.cross_entropy(model(x), torch.arange(16) % 3)
    optimizer.backward(loss)
    assert errors
    assert "optimizer.backward(loss) has already freed" in errors[0], errors
    handle.remove()
    found = layer.weight.grad.clone()
    model.zero_grad()
    functional.cross_entropy(model(x), torch.arange(16) % 3).backward()
    assert torch.equal(found, layer.weight.grad)


def test_a_backward_inside_a_hook_changes_nothing() -> None:
    """It makes a graph through layers whose inputs the first pass has yet to read."""
    found: dict[str, list[Tensor]] = {}
    for kind in ("plain", "sgdph"):
        model = perceptron(nn.GELU(), depth=2)
        optimizer = sgdph.SGDPH(sgdph.param_groups(model), estimator="hutchinson")
        for group in optimizer.param_groups:
            group["cursor"] = 1
        out = model(torch.randn(16, 8, generator=torch.Generator().manual_seed(0)))
        loss = out.sin().sum()
        seen = found.setdefault(kind, [])

        def own_pass(
            _: Tensor, loss: Tensor = loss, model: nn.Module = model, seen: list[Tensor] = seen
        ) -> None:
            if not seen:
                seen.append(torch.zeros(()))  # so that the hook does not call itself again
                with torch.enable_grad():
                    seen += torch.autograd.grad(loss, model[4].weight, create_graph=True)

        out.register_hook(own_pass)
        if kind == "plain":
            loss.backward(retain_graph=True)
        else:
            optimizer.backward(loss)
        seen += [p.grad for p in model.parameters()]
    for one, other in zip(*found.values(), strict=True):
        assert torch.equal(one, other)


def test_a_failed_backward_keeps_no_graph_alive() -> None:
    """Tensors that were released before the error must not keep the graph alive."""
    model = perceptron(nn.GELU(), depth=3)
    optimizer = sgdph.SGDPH(sgdph.param_groups(model), estimator="hutchinson")
    for group in optimizer.param_groups:
        group["cursor"] = 1
    seen: list[weakref.ref[Tensor]] = []

    def fail(_: Tensor) -> None:
        raise ValueError("a user's hook")

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(weakref.ref(output.untyped_storage()))
        output.register_hook(fail)

    handles = [model[5].register_forward_hook(watch)]
    x = torch.randn(16, 8)
    # A branch in the graph, so that a node runs again.
    loss = functional.cross_entropy(model(x), torch.arange(16) % 3) + model[1].weight.sum()
    with pytest.raises(ValueError, match="a user's hook"):
        optimizer.backward(loss)
    del loss
    for handle in handles:
        handle.remove()
    gc.collect()
    assert seen[0]() is None
