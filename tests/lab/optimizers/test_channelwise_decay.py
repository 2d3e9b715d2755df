"""A separate weight decay of norm layers and biases."""

from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_optimizer
import torch
from torch import Tensor, nn

from lab.conftest import Command
from sgdph.lab.errors import LabError
from sgdph.lab.optimizers.channelwise_decay import set_channelwise_decay
from sgdph.lab.optimizers.muon import split_for_muon
from sgdph.lab.options.resolution import resolve
from sgdph.lab.run.directory import RunDirectory
from sgdph.lab.run.start import build_optimizer

Make = Callable[[nn.Module, float], torch.optim.Optimizer]
LR, DECAY = 0.05, 0.3


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), nn.Conv2d(6, 4, 3), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(16, 3)).double()


def muon(model: nn.Module, decay: float) -> torch.optim.Optimizer:
    hidden, others = split_for_muon(model)
    groups = [{"params": hidden, "use_muon": True}, {"params": others, "use_muon": False}]
    return pytorch_optimizer.Muon(groups, lr=LR, weight_decay=decay, adamw_wd=decay, adamw_lr=LR)


MAKES: dict[str, Make] = {
    "sgdm": lambda m, d: torch.optim.SGD(m.parameters(), lr=LR, momentum=0.9, weight_decay=d),
    "adam": lambda m, d: torch.optim.Adam(m.parameters(), lr=LR, weight_decay=d),
    "adamw": lambda m, d: torch.optim.AdamW(m.parameters(), lr=LR, weight_decay=d),
    "muon": muon,
}
OWN = {"sgdm": "coupled", "adam": "coupled", "adamw": "decoupled", "muon": "decoupled"}


def walk(make: Make, decay: str, steps: int = 4) -> dict[str, Tensor]:
    model = net()
    optimizer = make(model, DECAY)
    if decay != "same":
        set_channelwise_decay(optimizer, model, decay)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(8, 1, 6, 6, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return dict(model.state_dict())


@pytest.mark.parametrize("name", MAKES)
def test_the_optimizers_own_kind_of_decay_changes_nothing(name: str) -> None:
    torch.testing.assert_close(
        walk(MAKES[name], OWN[name]), walk(MAKES[name], "same"), rtol=1e-12, atol=1e-14
    )


# Muon trains biases with Adam, whose coupled decay is already a case.
KINDS = ("none", "coupled", "decoupled")
CASES = [(n, d) for n in MAKES for d in KINDS if (n, d) != ("muon", "coupled")]


@pytest.mark.parametrize(("name", "decay"), CASES)
def test_one_step_with_each_kind_of_decay_by_hand(name: str, decay: str) -> None:
    """Compare a first step with that of a plain optimizer without decay."""
    model, plain = net(), net()
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    optimizer = MAKES[name](model, DECAY)
    set_channelwise_decay(optimizer, model, decay)
    bare = MAKES[name](plain, 0.0)
    for each in (model, plain):
        each(torch.linspace(-1, 1, 288).double().view(8, 1, 6, 6)).square().mean().backward()
    if decay == "coupled":
        for p in plain.parameters():
            p.grad = p.grad + DECAY * p.detach() if p.grad is not None else None
    optimizer.step()
    bare.step()
    names = ["0.bias", "1.weight", "1.bias", "3.bias", "5.bias"]
    after = dict(plain.named_parameters())
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for key in names:
        p = model.get_parameter(key)
        shrunk = before[key] * rates[p] * DECAY if decay == "decoupled" else 0
        torch.testing.assert_close(p.data, after[key].data - shrunk, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["sgdph", "adamw-ph", "sgdph-fixed1", "adahessian"])
def test_channelwise_decay_is_only_for_first_order_optimizers(optimizer: str) -> None:
    config = resolve({"optimizer": optimizer, "channelwise_decay": "none"})
    with pytest.raises(LabError, match=f"for first-order optimizers, but {optimizer} uses curv"):
        build_optimizer(net(), config)


def test_a_run_records_its_channelwise_decay(sgdph: Command, tmp_path: Path) -> None:
    words = ["--dataset=digits", "--train-size=60", "--epochs=1", "--out", str(tmp_path / "run")]
    code, _, _ = sgdph("train", *words, "--optimizer=sgdm", "--channelwise-decay=coupled")
    assert code == 0
    assert RunDirectory(tmp_path / "run").read_config().channelwise_decay == "coupled"
