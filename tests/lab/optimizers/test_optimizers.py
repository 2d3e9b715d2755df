"""Each optimizer of the comparison trains, resumes to the same bits, and leaves no graph behind."""

import copy
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from lab.conftest import checkpoint_of, interrupt_at, same_bits, start, tiny_config, without_seconds
from sgdph.lab.data.dataset import Dataset
from sgdph.lab.errors import LabError
from sgdph.lab.networks.models import build_model
from sgdph.lab.optimizers import registry as baselines
from sgdph.lab.optimizers.adahessian import Adahessian
from sgdph.lab.optimizers.muon import split_for_muon
from sgdph.lab.optimizers.registry import BASELINES
from sgdph.lab.options.resolution import resolve
from sgdph.lab.run.directory import RunDirectory
from sgdph.lab.run.start import build_optimizer, prepare
from sgdph.lab.run.step import optimization_step

# Optimizers of libraries, with the settings that they need to learn within a dozen steps.
LIBRARIES: Mapping[str, Mapping[str, Any]] = {
    "adam": {"lr": 0.01},
    "adabelief": {"lr": 0.01},
    "adahessian": {"lr": 0.1},
    "apollo": {"lr": 0.02, "optimizer_args": {"warmup_steps": 2, "init_lr": 0.01}},
    "sophiah": {"lr": 0.3, "optimizer_args": {"update_period": 3}},
    "muon": {"lr": 0.02, "optimizer_args": {"adamw_lr": 0.01}},
    "soap": {"lr": 0.01, "optimizer_args": {"precondition_frequency": 2}},
}
SECOND_ORDER = [name for name, baseline in BASELINES.items() if baseline.create_graph]
# The cheap setting of the partial Hessian.
JOINT = {
    "estimator": "hutchinson",
    "refresh": "all",
    "hessian_interval": 3,
    "hessian_momentum": 0.99,
}
# All optimizers without Newton steps, except those in tests/lab/run/test_training.py, and a few
# with them.
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    **{
        name: (name, LIBRARIES.get(name, {}))
        for name, baseline in BASELINES.items()
        if baseline.multiplier is None and name not in ("sgdm", "adamw")
    },
    "muon-ph": ("muon-ph", {"newton_lr": 0.05, **JOINT}),
    "soap-ph-shuffled": ("soap-ph-shuffled", {}),
    # Without these arguments, a run uses the library's defaults for them.
    "adahessian, each third": ("adahessian", {"optimizer_args": {"update_each": 3}}),
    "sophiah, rademacher": ("sophiah", {"optimizer_args": {"hessian_distribution": "rademacher"}}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_optimizers_learn_and_resume_to_the_same_bits(
    tmp_path: Path, digits: Dataset, variant: str
) -> None:
    name, options = VARIANTS[variant]
    config = tiny_config(optimizer=name, seed=3, schedule="step", **options)
    start(config, tmp_path / "whole", digits)
    # Stop after the second step of epoch 2. The checkpoint is that of epoch 1, after four steps.
    with pytest.raises(KeyboardInterrupt):
        start(config, tmp_path / "cut", digits, interrupt_at(6))
    torch.manual_seed(99)
    cut, whole = RunDirectory(tmp_path / "cut"), RunDirectory(tmp_path / "whole")
    start(cut.read_config(), cut.path, digits)
    assert same_bits(checkpoint_of(cut.path), checkpoint_of(whole.path))
    lines = whole.read_metrics()
    assert without_seconds(cut.read_metrics()) == without_seconds(lines)
    if name == variant and name in LIBRARIES:
        assert lines[-1]["train_loss"] < 0.9 * lines[0]["train_loss"]


class Box:
    """Wraps what autograd saves, so that a weak reference can see it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@pytest.mark.parametrize("name", [*LIBRARIES, "sgdph", "sgdm", "adamw"])
def test_no_step_leaves_a_graph_behind(name: str) -> None:
    torch.manual_seed(0)
    model = build_model("resnet8", in_channels=1, classes=3)
    optimizer = build_optimizer(model, tiny_config(optimizer=name))
    seen: list[weakref.ref[Box]] = []

    def pack(tensor: Tensor) -> Box:
        box = Box(tensor)
        seen.append(weakref.ref(box))
        return box

    def take_a_step() -> None:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
            loss = F.cross_entropy(model(torch.randn(4, 1, 8, 8)), torch.tensor([0, 1, 2, 0]))
            optimization_step(optimizer, loss)

    for _ in range(2):
        take_a_step()
        assert seen
        # Without the garbage collector, which would not find a cycle through autograd anyway.
        assert not any(reference() for reference in seen)
        assert all(p.grad is None or not p.grad.requires_grad for p in model.parameters())


@pytest.mark.parametrize(("name", "argument"), [("adahessian", "update_each"), ("sophiah", None)])
def test_gradients_are_differentiated_only_if_a_step_needs_it(
    name: str, argument: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {argument: 3} if argument else {"update_period": 3}
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    optimizer = build_optimizer(model, resolve({"optimizer": name, "optimizer_args": given}))
    graphs, products, grad = [], [], torch.autograd.grad
    backward = torch.Tensor.backward

    def watched(self: Tensor, *args: Any, **kwargs: Any) -> None:
        graphs.append(kwargs.get("create_graph", False))
        backward(self, *args, **kwargs)

    def counted(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        products.append(len(graphs))
        return grad(*args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "backward", watched)
    monkeypatch.setattr(torch.autograd, "grad", counted)
    for _ in range(7):
        optimization_step(optimizer, model(torch.randn(5, 4)).square().sum())
    assert graphs == [step % 3 == 0 for step in range(7)]
    assert products == [1, 4, 7]


class Dense:
    """AdaHessian as in its paper (Yao et al., 2021, Alg. 1), on dense Hessians in float64."""

    def __init__(self, model: nn.Module, generator: torch.Generator, **settings: Any) -> None:
        self.model, self.generator, self.settings = model, generator, settings
        self.m = [torch.zeros_like(p) for p in model.parameters()]
        self.v = [torch.zeros_like(p) for p in model.parameters()]
        self.steps = 0

    def step(self, x: Tensor, y: Tensor) -> None:
        names = [name for name, _ in self.model.named_parameters()]
        params = [p.detach().clone() for p in self.model.parameters()]
        sizes = [p.numel() for p in params]

        def loss(flat: Tensor) -> Tensor:
            parts = [part.view_as(p) for part, p in zip(flat.split(sizes), params, strict=True)]
            out = torch.func.functional_call(self.model, dict(zip(names, parts, strict=True)), x)
            return F.cross_entropy(out, y)

        flat = torch.cat([p.flatten() for p in params])
        gradient = torch.autograd.functional.jacobian(loss, flat)
        hessian = torch.autograd.functional.hessian(loss, flat)
        probes = [
            torch.randint(0, 2, p.shape, generator=self.generator) * 2.0 - 1.0 for p in params
        ]
        z = torch.cat([probe.flatten() for probe in probes]).double()
        estimate = z * (hessian @ z)
        self.steps += 1
        beta1, beta2 = self.settings["betas"]
        updated = []
        for index, p in enumerate(params):
            g = gradient.split(sizes)[index].view_as(p)
            d = estimate.split(sizes)[index].view_as(p)
            if p.ndim == 4:
                averaged = torch.empty_like(d)
                for out in range(p.shape[0]):
                    for into in range(p.shape[1]):
                        averaged[out, into] = d[out, into].abs().sum() / p[out, into].numel()
                d = averaged
            self.m[index] = beta1 * self.m[index] + (1 - beta1) * g
            self.v[index] = beta2 * self.v[index] + (1 - beta2) * d**2
            m = self.m[index] / (1 - beta1**self.steps)
            v = self.v[index] / (1 - beta2**self.steps)
            decayed = p * (1 - self.settings["lr"] * self.settings["weight_decay"])
            updated.append(decayed - self.settings["lr"] * m / (v.sqrt() + self.settings["eps"]))
        with torch.no_grad():
            for p, value in zip(self.model.parameters(), updated, strict=True):
                p.copy_(value)


def convolutional() -> nn.Module:
    torch.manual_seed(5)
    layers = (nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3))
    return nn.Sequential(*layers).double()


def test_adahessian_averages_the_diagonal_over_each_kernel() -> None:
    config = resolve({"optimizer": "adahessian", "seed": 4})
    mine, theirs = convolutional(), convolutional()
    optimizer = build_optimizer(mine, config)
    assert isinstance(optimizer, Adahessian)
    generator = torch.Generator().manual_seed(2147483647 + 4)
    settings = {name: getattr(config, name) for name in ("lr", "betas", "eps", "weight_decay")}
    dense = Dense(theirs, generator, **settings)
    x = torch.randn(6, 2, 4, 4, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    for _ in range(4):
        optimization_step(optimizer, F.cross_entropy(mine(x), y))
        dense.step(x, y)
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11)
    averages = optimizer.state[mine[0].weight]["exp_hessian_diag_sq"]
    assert torch.equal(averages, averages[:, :, :1, :1].expand_as(averages))


def test_the_seed_sets_adahessians_probes_and_changes_no_other_draws() -> None:
    def after(seed: int) -> Tensor:
        model = convolutional()
        config = resolve({"optimizer": "adahessian", "seed": seed})
        optimizer = build_optimizer(model, config)
        before = torch.get_rng_state()
        optimization_step(optimizer, model(torch.ones(2, 2, 4, 4).double()).square().sum())
        assert torch.equal(torch.get_rng_state(), before)
        return model[0].weight.detach()

    assert torch.equal(after(1), after(1))
    assert not torch.equal(after(1), after(2))


def test_resumed_adahessian_sums_over_a_kernel_in_the_same_order() -> None:
    """An estimate that overwrites an old one has the old memory layout. A new one does not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 7), nn.Tanh(), nn.Flatten(), nn.Linear(64, 2))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(4, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    config = resolve({"optimizer": "adahessian"})
    optimizer = build_optimizer(model, config)

    def step(network: nn.Module, of_it: torch.optim.Optimizer) -> Tensor:
        optimization_step(of_it, network(x).square().sum())
        return network[0].weight.detach()

    step(model, optimizer)
    other = copy.deepcopy(model)
    resumed = build_optimizer(other, config)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(step(other, resumed), step(model, optimizer))


@pytest.mark.parametrize("model", ["resnet8", "resnet8-wn"])
def test_muon_takes_the_hidden_convolutions(model: str) -> None:
    network = build_model(model, in_channels=3, classes=10)
    hidden, others = split_for_muon(network)
    names = {id(p): name for name, p in network.named_parameters()}
    expected = {
        f"blocks.{block}.conv{k}."
        + ("weight" if model == "resnet8" else "parametrizations.weight.original1")
        for block in range(3)
        for k in (1, 2)
    }
    assert {names[id(p)] for p in hidden} == expected
    assert {names[id(p)] for p in others} == set(names.values()) - expected


def test_muon_does_not_take_embeddings_positions_or_the_output_layer() -> None:
    network = build_model("transformer", in_channels=20, classes=20)
    hidden, _ = split_for_muon(network)
    names = {id(p): name for name, p in network.named_parameters()}
    assert {names[id(p)].partition(".")[2].partition(".")[2] for p in hidden} == {
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
        "linear1.weight",
        "linear2.weight",
    }
    assert len(hidden) == 8


@pytest.mark.parametrize("name", list(BASELINES))
def test_the_constructor_takes_all_settings_and_arguments(name: str) -> None:
    baseline = BASELINES[name]
    # Some constructors ignore a misspelt name.
    taken = baseline.constructor_arguments()
    assert set(baseline.defaults) | set(baseline.arguments) <= set(taken)
    assert not set(baseline.arguments) & baselines.SETTINGS


def test_the_error_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "is_installed", lambda package: False)
    model = convolutional()
    with pytest.raises(LabError, match=r"adabelief comes from pytorch_optimizer.*pip install"):
        build_optimizer(model, resolve({"optimizer": "adabelief"}))
    with pytest.raises(LabError, match="adahessian comes from timm, which is not installed"):
        build_optimizer(model, resolve({"optimizer": "adahessian"}))


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_second_order_with_processes_or_float16_raises_an_error(name: str, digits: Dataset) -> None:
    for option, words in (({"processes": 5}, "process"), ({"precision": "float16"}, "float16")):
        with pytest.raises(LabError, match=rf"(?s)(?=.*{words}).*{name} .*; "):
            prepare(tiny_config(optimizer=name, **option), digits)
    assert {"adahessian", "sophiah"} == set(SECOND_ORDER)
