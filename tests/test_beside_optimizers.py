"""PartialHessian against an oracle: the bare first-order optimizer and the slow reference."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from reference.algorithm1 import ReferenceSGDPH
from reference.drive import package_probe
from reference.nets import CLASSES, batches, flat, loss_of
from torch import Tensor, nn
from torch.optim import Optimizer

import sgdph

STEPS = 100
BOUND = 1e-10
LR = 5e-3

Named = list[tuple[str, Tensor]]


def convolutional() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU()),
        *(nn.Conv2d(3, 2, 2, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(8, CLASSES)),
    )


def of_matrices() -> nn.Module:
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(16, 4, bias=False), nn.LayerNorm(4), nn.GELU()),
        *(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, CLASSES)),
    )


@dataclass(frozen=True)
class Beside:
    """A first-order half: its class, settings, network, and how to build it if not as one."""

    path: str
    settings: dict[str, Any] = field(default_factory=dict)
    net: Callable[[], nn.Module] = convolutional
    build: Callable[[Beside, list[Named]], list[Optimizer]] | None = None

    @property
    def constructor(self) -> Callable[..., Optimizer]:
        """The class. Skips the test if its package is missing or torch is too old for it."""
        module, _, name = self.path.rpartition(".")
        package = pytest.importorskip(module)
        if not hasattr(package, name):
            pytest.skip(f"torch {torch.__version__} has no {name}")
        return getattr(package, name)

    def over(self, groups: list[Named]) -> list[Optimizer]:
        """Make the optimizers over groups of parameters, some of which may be empty."""
        if self.build is not None:
            return self.build(self, groups)
        listed = [{"params": [p for _, p in named]} for named in groups]
        return [self.constructor(listed, **self.settings)]


def muon_and_adamw(case: Beside, groups: list[Named]) -> list[Optimizer]:
    """Torch's Muon takes only matrices."""
    named = [each for group in groups for each in group]
    matrices = [p for _, p in named if p.ndim == 2]
    rest = [{"params": [p for _, p in named if p.ndim != 2]}]
    return [case.constructor(matrices, **case.settings), torch.optim.AdamW(rest, lr=3e-3)]


def muon_of_kernels(case: Beside, groups: list[Named]) -> list[Optimizer]:
    """The library's Muon orthogonalises the flagged groups, and steps the others as AdamW."""
    parts = [
        {"params": [p for _, p in named if (p.ndim > 1) is kernels], "use_muon": kernels}
        for named in groups
        for kernels in (True, False)
    ]
    return [case.constructor(parts, **case.settings)]


def one_of_each_shape(case: Beside, groups: list[Named]) -> list[Optimizer]:
    """One optimizer for kernels and matrices, and one for the others."""
    named = [each for group in groups for each in group]
    parts = [[p for _, p in named if (p.ndim > 1) is matrices] for matrices in (True, False)]
    return [case.constructor([{"params": part}], **case.settings) for part in parts]


LIBRARY = "pytorch_optimizer"
OPTIMIZERS = {
    "sgd": Beside("torch.optim.SGD", {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.01}),
    "sgd-nesterov": Beside("torch.optim.SGD", {"lr": 0.02, "momentum": 0.9, "nesterov": True}),
    "sgd-dampening": Beside("torch.optim.SGD", {"lr": 0.05, "momentum": 0.8, "dampening": 0.4}),
    "adam": Beside("torch.optim.Adam", {"lr": 3e-3, "amsgrad": True}),
    "adamw": Beside("torch.optim.AdamW", {"lr": 3e-3, "weight_decay": 0.1}),
    "radam": Beside("torch.optim.RAdam", {"lr": 3e-3}),
    "nadam": Beside("torch.optim.NAdam", {"lr": 3e-3}),
    "muon": Beside("torch.optim.Muon", {"lr": 0.02}, of_matrices, muon_and_adamw),
    "library-muon": Beside(f"{LIBRARY}.Muon", {"lr": 0.02}, build=muon_of_kernels),
    "soap": Beside(f"{LIBRARY}.SOAP", {"lr": 3e-3}),
    "adabelief": Beside(f"{LIBRARY}.AdaBelief", {"lr": 3e-3}),
    "adamw-schedulefree": Beside("schedulefree.AdamWScheduleFree", {"lr": 5e-3}),
    "sgd-schedulefree": Beside("schedulefree.SGDScheduleFree", {"lr": 0.1, "warmup_steps": 5}),
}
# These have more state than their groups and a state for each parameter.
MORE_STATE = {
    "madgrad": Beside(f"{LIBRARY}.MADGRAD", {"lr": 3e-3}),
    "two-madgrads": Beside(f"{LIBRARY}.MADGRAD", {"lr": 3e-3}, build=one_of_each_shape),
    "ranger21": Beside(f"{LIBRARY}.Ranger21", {"lr": 3e-3, "num_iterations": 100}),
}
SCHEDULE_FREE = [name for name in OPTIMIZERS if name.endswith("schedulefree")]
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "hutchinson": {
        "estimator": "hutchinson",
        "refresh": "all",
        "hessian_interval": 3,
        "hessian_momentum": 0.99,
    },
    "exact": {"estimator": "exact", "weight_decay": 0.1, "second_order_lr": 2e-2, "eps": 5e-3},
}


def build(case: Beside, dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = case.net().to(dtype)
        with torch.no_grad():  # scales of exactly 1 and shifts of exactly 0 hide mistakes
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
    return model


def by_role(model: nn.Module) -> tuple[Named, Named]:
    """The Newton parameters of these networks and the others, found without the package."""
    named = list(model.named_parameters())
    newton = [(name, p) for name, p in named[:-1] if p.ndim == 1]
    return newton, [each for each in named if each[0] not in dict(newton)]


def groups_of(model: nn.Module, *, together: bool) -> list[Named]:
    """All parameters in one group, or the Newton parameters in one of their own."""
    return [list(model.named_parameters())] if together else list(by_role(model))


def compound(
    case: Beside, model: nn.Module, *, together: bool = True, lr: float = LR, **newton: Any
) -> sgdph.PartialHessian:
    first_order = case.over(groups_of(model, together=together))
    optimizer = sgdph.PartialHessian(first_order, sgdph.param_groups(model), lr, **newton)
    optimizer.train()
    return optimizer


class Oracle:
    """The bare optimizers over the first-order parameters, the reference over the Newton ones."""

    def __init__(self, model: nn.Module, bare: Sequence[Optimizer], **newton: Any) -> None:
        self.model, self.bare = model, bare
        group = {"params": [p for _, p in by_role(model)[0]], "channelwise": True}
        self.reference = ReferenceSGDPH([group], lr=LR, probe=package_probe(), **newton)

    def step(self, loss: Tensor) -> None:
        """Take both steps from the same weights."""
        self.model.zero_grad()
        loss.backward(retain_graph=True)
        self.reference.step([lambda: loss])
        for optimizer in self.bare:
            optimizer.step()


def in_training(optimizers: list[Optimizer]) -> list[Optimizer]:
    for optimizer in optimizers:
        getattr(optimizer, "train", lambda: None)()
    return optimizers


def losses(steps: range, *models: nn.Module) -> Iterator[tuple[Tensor, ...]]:
    data = batches("conv_bias", dtype=next(models[0].parameters()).dtype)
    for step in steps:
        yield tuple(loss_of(model, data[step % len(data)]) for model in models)


def train(model: nn.Module, optimizer: sgdph.PartialHessian, steps: range) -> None:
    for (loss,) in losses(steps, model):
        optimizer.zero_grad()
        optimizer.backward(loss)
        optimizer.step()


def assert_follows(
    model: nn.Module, optimizer: sgdph.PartialHessian, oracle: Oracle, steps: range
) -> None:
    for step, (loss, twin) in zip(steps, losses(steps, model, oracle.model), strict=True):
        optimizer.zero_grad()
        optimizer.backward(loss)
        optimizer.step()
        oracle.step(twin)
        gap = (flat(model) - flat(oracle.model)).abs().max()
        assert gap <= BOUND, f"step {step}: off by {gap:.1e}"


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, "default") for name in OPTIMIZERS),
        # The halves are independent of each other, so not every pair is tested.
        *((name, "hutchinson") for name in ("sgd-nesterov", "adamw", "library-muon")),
        *((name, "exact") for name in ("sgd", "muon", "adamw-schedulefree")),
    ],
)
def test_steps_follow_the_bare_optimizer_and_the_reference(name: str, settings: str) -> None:
    case, newton = OPTIMIZERS[name], SETTINGS[settings]
    twin = build(case)
    oracle = Oracle(twin, in_training(case.over([[], by_role(twin)[1]])), **newton)
    model = build(case)
    start = flat(model)
    optimizer = compound(case, model, together=settings == "default", **newton)
    assert_follows(model, optimizer, oracle, range(STEPS))
    assert ((flat(model) - start).abs() > 1e-6).all()


@pytest.mark.parametrize("name", [*OPTIMIZERS, *MORE_STATE])
def test_resuming_a_saved_run_gives_the_same_bits(name: str) -> None:
    case = (OPTIMIZERS | MORE_STATE)[name]
    # In float64, NAdam's bits differ: torch's loading converts its float32 product of momenta.
    model = build(case, torch.float32)
    optimizer = compound(case, model, **SETTINGS["hutchinson"])
    train(model, optimizer, range(7))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(model, optimizer, range(7, 20))

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = build(case, torch.float32)
    resumed = compound(case, other, lr=1.0, **SETTINGS["hutchinson"])
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    train(other, resumed, range(7, 20))
    assert torch.equal(flat(other), flat(model))


@pytest.mark.parametrize("name", [*OPTIMIZERS, *MORE_STATE])
def test_the_run_of_a_bare_optimizer_can_be_continued(name: str) -> None:
    case, together = (OPTIMIZERS | MORE_STATE)[name], name not in ("adam", "soap", "library-muon")
    twin = build(case)
    bare = in_training(case.over(groups_of(twin, together=together)))
    for (loss,) in losses(range(7), twin):
        twin.zero_grad()
        loss.backward()
        for each in bare:
            each.step()

    model = build(case)
    model.load_state_dict(twin.state_dict())
    optimizer = compound(case, model, together=together)
    states = [each.state_dict() for each in bare]
    optimizer.load_state_dict(states if len(states) > 1 else states[0])

    owned = {id(p) for _, p in by_role(twin)[0]}
    for each in bare:
        for group in each.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in owned]
    assert_follows(model, optimizer, Oracle(twin, bare), range(7, 20))
    taken = [p for _, p in by_role(model)[0]]
    assert not any(p in each.state for each in optimizer.first_order for p in taken)


@pytest.mark.parametrize("name", SCHEDULE_FREE)
def test_eval_mode_is_passed_on_and_a_step_in_it_raises_an_error(name: str) -> None:
    case = OPTIMIZERS[name]
    twin, model = build(case), build(case)
    oracle = Oracle(twin, in_training(case.over([[], by_role(twin)[1]])))
    optimizer = compound(case, model)
    assert_follows(model, optimizer, oracle, range(8))
    trained, newton = flat(model), [p.clone() for _, p in by_role(model)[0]]

    optimizer.eval()
    for each in oracle.bare:
        each.eval()
    torch.testing.assert_close(flat(model), flat(twin), rtol=0, atol=BOUND)
    assert (flat(model) - trained).abs().max() > 1e-4
    assert all(map(torch.equal, newton, (p for _, p in by_role(model)[0])))
    for forbidden in (optimizer.backward, optimizer.update_hessian):
        with pytest.raises(RuntimeError, match=r"evaluation mode.*Call optimizer\.train\(\)"):
            forbidden(loss_of(model, batches("conv_bias")[0]))
    with pytest.raises(RuntimeError, match=r"evaluation mode.*Call optimizer\.train\(\)"):
        optimizer.step()

    optimizer.train()
    # The library recomputes the weights.
    torch.testing.assert_close(flat(model), trained, rtol=0, atol=1e-15)
    in_training(oracle.bare)
    assert_follows(model, optimizer, oracle, range(8, 16))
