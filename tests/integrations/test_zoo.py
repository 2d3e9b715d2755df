"""``benchmarks/zoo.py``: what it reports for right, wrong, refused and broken networks."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from preloaded import PRELOADED
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

import sgdph

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    zoo = importlib.import_module("zoo")
    monkeypatch.setattr(zoo, "PRELOADED", PRELOADED)
    return zoo


@pytest.fixture
def comparison(zoo: Any) -> Any:
    return importlib.import_module("network_zoo.comparison")


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * 2


class Layer(nn.Module):
    """A layer whose forward is a function of a tensor."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _once(x: Tensor) -> Tensor:
    return _Once.apply(x)


def _single(x: Tensor) -> Tensor:
    if x.dtype != torch.float32:
        raise RuntimeError("not for this dtype")
    return x.sin()


def _in_single_inside(x: Tensor) -> Tensor:
    return (x.float() / 3).to(x.dtype)


def _broken(x: Tensor) -> Tensor:
    raise ValueError("a broken layer\nwith more to say")


def _deadly(x: Tensor) -> Tensor:
    os._exit(7)


def _attention(x: Tensor) -> Tensor:
    # The memory layout after a linear layer: tokens first, then heads.
    x = x.transpose(1, 2).contiguous().transpose(1, 2)
    return nn.functional.scaled_dot_product_attention(x, x, 2 * x)


FUNCTIONS = {
    "attention": _attention,
    "tanh": torch.tanh,
    "gate": nn.functional.hardsigmoid,
    "once": _once,
    "single": _single,
    "single-inside": _in_single_inside,
    "broken": _broken,
    "deadly": _deadly,
    "endless": lambda x: x / 0,
}


def build(name: str) -> Any:
    """A small network around a function."""
    from network_zoo.network import Built, classification, images

    layers = (
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        Layer(FUNCTIONS[name]),
        nn.Dropout(0.3),
        nn.Conv2d(4, 4, 3, bias=False),
        nn.GroupNorm(2, 4),
        nn.Flatten(),
        nn.Linear(64, 5),
    )
    inputs = (images(8), torch.tensor([1, 4]))
    return Built(f"a network with {name}", nn.Sequential(*layers), inputs, classification)


class Entry:
    """Builds a network. It is a class, because it is pickled for another process."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self) -> Any:
        # A separate process imports this module, but not the tests' fixtures.
        sys.path.insert(0, BENCHMARKS)
        return build(self.name)


def network(name: str, package: str = "timm") -> Any:
    from network_zoo.network import Network

    return Network(package, name, Entry(name))


def scaled(by: float) -> Any:
    """A step whose product is off by a factor."""

    def step(optimizer: sgdph.SGDPH, loss: Tensor) -> None:
        optimizer.backward(loss)
        optimizer.step()
        for state in optimizer.state.values():
            if "hessian" in state:
                state["hessian"] *= by

    return step


def test_a_correct_product_is_ok(comparison: Any) -> None:
    for name in ("tanh", "gate", "single-inside"):
        row = comparison.compare(network(name))
        assert (row.result, row.reason, row.dtype) == ("ok", "", "float64"), name
        assert row.error < 1e-12, name
        assert row.gradient_error < 1e-12, name
        assert row.newton == 4 + 8 + 8, name
        assert row.parameters == 3 * 4 * 9 + 4 + 8 + 4 * 4 * 9 + 8 + 64 * 5 + 5, name


def test_dropout_after_attention_equals_the_oracle(comparison: Any) -> None:
    """The math kernel's output has another memory layout than the fused one's."""
    row = comparison.compare(network("attention"))
    assert (row.result, row.fused_attentions) == ("ok", 1)
    assert row.error < 1e-12


def test_networks_without_float64_are_compared_in_float32(comparison: Any) -> None:
    row = comparison.compare(network("single"))
    assert (row.result, row.dtype) == ("ok", "float32")
    assert 1e-9 < row.error < 1e-3


def test_a_product_off_by_a_thousandth_is_wrong(comparison: Any) -> None:
    row = comparison.compare(network("tanh"), scaled(1.001))
    assert row.result == "wrong"
    assert row.error == pytest.approx(1e-3)
    assert "product" in row.reason


def test_gradients_that_differ_are_wrong(comparison: Any) -> None:
    def step(optimizer: sgdph.SGDPH, loss: Tensor) -> None:
        scaled(1.0)(optimizer, loss)
        optimizer.param_groups[1]["params"][0].grad[0] *= 1.001

    row = comparison.compare(network("tanh"), step)
    assert (row.result, row.error < 1e-12) == ("wrong", True)
    assert "first gradients" in row.reason


def test_a_parameter_without_curvature_has_infinite_error(comparison: Any) -> None:
    def step(optimizer: sgdph.SGDPH, loss: Tensor) -> None:
        scaled(1.0)(optimizer, loss)
        del optimizer.state[optimizer.param_groups[0]["params"][0]]["hessian"]
        optimizer.state[optimizer.param_groups[0]["params"][0]]["refreshes"] = 0

    assert comparison.compare(network("tanh"), step).error == float("inf")


def test_a_refused_network_is_reported_with_its_reason(comparison: Any) -> None:
    row = comparison.compare(network("once"))
    assert row.result == "refused"
    assert "once_differentiable" in row.reason
    assert row.error is None


def test_failures_are_reported_with_their_reason(comparison: Any) -> None:
    row = comparison.compare(network("broken"))
    assert (row.result, row.reason) == ("failed", "ValueError: a broken layer")
    assert comparison.compare(network("endless")).reason == "RuntimeError: the loss is nan"


def test_a_process_that_dies_is_reported_as_failed(zoo: Any) -> None:
    row = zoo.row_of(network("deadly"), timeout=60.0, memory=2**40)
    assert (row.result, row.reason) == ("failed", "its process ended with exit code 7")
    assert row.version == importlib.import_module("timm").__version__


def test_an_interrupted_call_is_resumed(
    zoo: Any, comparison: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same call resumes. It skips networks that are done, unless --again is given."""
    names = {"tanh": "timm", "gate": "torchvision", "broken": "timm"}
    compared = []

    def row_of(one: Any, timeout: float, memory: int) -> Any:
        compared.append(one.key)
        if len(compared) == 2:
            raise KeyboardInterrupt
        return comparison.compare(one)

    def call(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["zoo.py", "--out", str(tmp_path), *words])
        compared.clear()
        return int(zoo.main())

    monkeypatch.setattr(zoo, "row_of", row_of)
    monkeypatch.setattr(zoo, "networks", lambda: [network(*each) for each in names.items()])
    with pytest.raises(KeyboardInterrupt):
        call()
    assert compared == ["timm/tanh", "torchvision/gate"]
    monkeypatch.setattr(
        zoo, "row_of", lambda one, *_: compared.append(one.key) or comparison.compare(one)
    )
    assert call("--only", "*/gate") == 0
    assert compared == ["torchvision/gate"]
    # One of them is broken.
    assert call() == 1
    assert compared == ["timm/broken"]
    rows = zoo.read(tmp_path / "networks.csv")
    assert list(rows) == ["torchvision/gate", "timm/broken", "timm/tanh"]
    assert [row.result for row in rows.values()] == ["ok", "failed", "ok"]
    assert rows["timm/tanh"].error == pytest.approx(comparison.compare(network("tanh")).error)
    assert call("--only", "timm/tanh", "--again") == 0
    assert compared == ["timm/tanh"]
    assert zoo.summary(list(rows.values()))[1].startswith("timm: 1 of 2 ok")


def test_networks_of_each_package_are_ok(zoo: Any, comparison: Any) -> None:
    """Networks of the zoo itself. Its keys are unique."""
    every = zoo.networks()
    keys = [one.key for one in every]
    assert len(set(keys)) == len(keys)
    chosen = {"torchvision/squeezenet1_1", "timm/ghostnet", "transformers/bert"}
    rows = [comparison.compare(one) for one in every if one.key in chosen]
    assert [row.result for row in rows] == ["ok", "ok", "ok"], rows
    assert {row.name for row in rows} == {"squeezenet1_1", "ghostnet_050", "BertForMaskedLM"}
