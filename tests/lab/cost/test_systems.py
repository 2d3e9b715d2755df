import importlib.util

import pytest
import torch
from small import batch, bn_net, loss_of
from torch import Tensor, nn

import sgdph
from sgdph.lab.cost.authors import AuthorsSGDPH, newton_names
from sgdph.lab.cost.systems import ONLY_NAMED, SYSTEMS, USUAL, Kind, choose_systems
from sgdph.lab.errors import LabError

CYCLIC = [name for name, system in SYSTEMS.items() if system.refresh == "cyclic"]
EVERY_TENTH = [name for name, system in SYSTEMS.items() if system.interval == 10]

# With this seed, the row sums of the scale have both signs, and so have those of the shift.
SIGNED = 1


def step(name: str, model: nn.Module, optimizer: torch.optim.Optimizer, kind: Kind) -> None:
    optimizer.zero_grad()
    SYSTEMS[name].backward(optimizer, loss_of(model), kind)
    optimizer.step()


def refreshed(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    names = {p: name for name, p in model.named_parameters()}
    return {
        names[p]: state["refreshes"]
        for p, state in optimizer.state.items()
        if state.get("refreshes", 0) > 0
    }


@pytest.mark.parametrize("name", CYCLIC)
def test_a_cyclic_refresh_is_of_the_parameter_at_its_place(name: str) -> None:
    model = bn_net()
    newton = newton_names(model)
    assert newton == ["0.bias", "1.weight", "1.bias"]
    optimizer = SYSTEMS[name].build(model)
    expected: dict[str, int] = {}
    for place in (2, 0, 0):
        SYSTEMS[name].go_to(optimizer, place, "refresh")
        step(name, model, optimizer, "refresh")
        expected[newton[place]] = expected.get(newton[place], 0) + 1
        assert refreshed(model, optimizer) == expected


@pytest.mark.parametrize("name", EVERY_TENTH)
def test_a_plain_step_takes_no_second_derivative(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    grad = torch.autograd.grad

    def counted(*args: object, **kwargs: object) -> tuple[Tensor, ...]:
        calls.append(args)
        return grad(*args, **kwargs)  # type: ignore[arg-type]

    model, system = bn_net(), SYSTEMS[name]
    optimizer = system.build(model)
    monkeypatch.setattr(torch.autograd, "grad", counted)
    took = []
    for kind in ("refresh", "plain", "plain", "refresh", "plain"):
        calls.clear()
        system.go_to(optimizer, 1, kind)
        step(name, model, optimizer, kind)
        took.append(bool(calls))
    assert took == [True, False, False, True, False]


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_moves_every_parameter(name: str) -> None:
    model, system = bn_net(), SYSTEMS[name]
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = system.build(model)
    for kind in system.weights:
        system.go_to(optimizer, 0, kind)
        step(name, model, optimizer, kind)
    optimizer.zero_grad()
    assert all(
        p.isfinite().all() and not torch.equal(p, q)
        for p, q in zip(model.parameters(), before, strict=True)
    )


def test_weights_are_the_shares_of_the_kinds_of_step() -> None:
    assert SYSTEMS["sgdm"].weights == {"plain": 1.0}
    assert SYSTEMS["sgdph"].weights == {"refresh": 1.0}
    assert SYSTEMS["sophiah"].weights == {"refresh": 0.1, "plain": 0.9}


def dense_row_sum(model: nn.Module, p: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss_of(model), p, create_graph=True)
    rows = [torch.autograd.grad(entry, p, retain_graph=True)[0] for entry in gradient]
    return torch.stack(rows).sum(1)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_authors_sgdph_uses_the_row_sum(place: int) -> None:
    model = bn_net(torch.float64, SIGNED)
    p = dict(model.named_parameters())[newton_names(model)[place]]
    expected = dense_row_sum(model, p)
    optimizer = AuthorsSGDPH(model, 1e-3, 5e-4)
    optimizer.param_groups[0]["cursor"] = place
    step("authors", model, optimizer, "refresh")
    average = optimizer.state[p]["hessian_average"]
    torch.testing.assert_close(average, 0.1 * expected.abs(), rtol=1e-12, atol=1e-14)


def test_authors_sgdph_differentiates_to_this_and_later_parameters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    targets: list[list[str]] = []
    model = bn_net()
    names = {id(p): name for name, p in model.named_parameters()}
    grad = torch.autograd.grad

    def noted(outputs: Tensor, inputs: list[Tensor], **kwargs: bool) -> tuple[Tensor, ...]:
        targets.append([names[id(p)] for p in inputs])
        return grad(outputs, inputs, **kwargs)

    optimizer = AuthorsSGDPH(model, 1e-3, 5e-4)
    optimizer.param_groups[0]["cursor"] = 1
    optimizer.zero_grad()
    loss_of(model).backward(create_graph=True)
    monkeypatch.setattr(torch.autograd, "grad", noted)
    optimizer.step()
    assert targets == [["1.weight", "1.bias", "4.weight", "4.bias"]]
    assert all(p.grad is not None and p.grad.grad_fn is None for p in model.parameters())


def test_authors_sgdph_takes_the_same_steps_as_sgdph() -> None:
    ours, theirs = (bn_net(torch.float64, SIGNED) for _ in range(2))
    optimizer = sgdph.SGDPH(sgdph.param_groups(ours, weight_decay=5e-3), lr=0.01)
    authors = AuthorsSGDPH(theirs, 0.01, 5e-3)
    for number in range(8):
        for model, each in ((ours, optimizer), (theirs, authors)):
            x, y = batch(number, torch.float64)
            each.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward(create_graph=True)
            each.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-11, atol=1e-13)


def test_sgdm_comes_first_and_some_systems_must_be_named() -> None:
    assert [s.name for s in choose_systems(["sgdph", "sgdm"])] == ["sgdm", "sgdph"]
    assert set(USUAL) | ONLY_NAMED == set(SYSTEMS)
    assert not set(USUAL) & ONLY_NAMED
    assert {"sgdm-math", "sgdph-exact"} < ONLY_NAMED


def test_unknown_and_repeated_systems_raise_an_error() -> None:
    with pytest.raises(LabError, match=r"unknown system 'sgd'; did you mean sgdm\?"):
        choose_systems(["sgd"])
    with pytest.raises(LabError, match="names one twice"):
        choose_systems(["sgdph", "sgdph"])


@pytest.mark.parametrize(
    ("name", "package"), [("adahessian-timm", "timm"), ("sophiah", "pytorch_optimizer")]
)
def test_the_error_names_the_package_to_install(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    choose_systems(["sgdph"])
    with pytest.raises(LabError, match=f"'pip install {package}'"):
        choose_systems([name])
