"""Check which optimizers of torch, timm, pytorch_optimizer and schedulefree work in PartialHessian.

    python benchmarks/beside_every_optimizer.py [--steps 6]

Each optimizer is built with all parameters of a small network and wrapped in PartialHessian. A
second copy of the network takes the same steps without it: the bare optimizer updates only the
first-order parameters, and SGDPH the Newton parameters. Both must end with bitwise equal
parameters. The script prints the optimizers that do not work, and why.
"""

from __future__ import annotations

import argparse
import inspect
import random
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy
import pytorch_optimizer
import schedulefree
import timm.optim
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

import sgdph

Kind = type[Optimizer]


def kinds() -> Iterator[tuple[str, Kind]]:
    """Yield every available optimizer class, named with its package."""
    for name, kind in vars(torch.optim).items():
        if inspect.isclass(kind) and issubclass(kind, Optimizer) and kind is not Optimizer:
            yield f"torch.{name}", kind
    for name in ("AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree"):
        yield f"schedulefree.{name}", getattr(schedulefree, name)
    for name in sorted(pytorch_optimizer.get_supported_optimizers()):
        yield f"pytorch_optimizer.{name}", pytorch_optimizer.load_optimizer(name)
    seen = {kind for kind in vars(torch.optim).values() if inspect.isclass(kind)}
    for name in timm.optim.list_optimizers():
        try:
            kind = timm.optim.get_optimizer_class(name, bind_defaults=False)
        except (ImportError, RuntimeError, AssertionError):
            continue  # needs apex or bitsandbytes
        if kind not in seen:
            seen.add(kind)
            yield f"timm.{name}", kind


def network(dtype: torch.dtype) -> nn.Module:
    """Build a network with convolution kernels, a matrix, a norm layer and biases."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.ReLU()),
        *(nn.Conv2d(3, 2, 2, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)),
    ).to(dtype)


def make(kind: Kind, model: nn.Module) -> Optimizer:
    """Build an optimizer for a model, with the arguments that it requires."""
    taken = inspect.signature(kind.__init__).parameters
    given = {
        name: value
        for name, value in {"num_iterations": 100, "num_data": 5, "lr": 1e-2}.items()
        if name in taken and not isinstance(taken[name].default, float)
    }
    params: list[Any] = list(model.parameters())
    kernels, others = [p for p in params if p.ndim > 1], [p for p in params if p.ndim == 1]
    by_flag = [{"params": kernels, "use_muon": True}, {"params": others, "use_muon": False}]
    optimizer: Optimizer
    if "model" in taken:
        optimizer = kind(model, **given)
    # These two take only matrices.
    elif kind is getattr(torch.optim, "Muon", None) or kind.__name__ == "SpectralSphere":
        optimizer = kind([p for p in params if p.ndim == 2], **given)
    elif any("use_muon" in inspect.getsource(base) for base in kind.__mro__ if is_library_s(base)):
        optimizer = kind(by_flag, **given)
    else:
        optimizer = kind(params, **given)
    getattr(optimizer, "train", lambda: None)()
    return optimizer


def is_library_s(kind: type) -> bool:
    """Return whether a class is from ``pytorch_optimizer``."""
    return kind.__module__.startswith("pytorch_optimizer.optimizer")


def losses(model: nn.Module, steps: int, dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield one loss for each step, and seed the random generators that optimizers use."""
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(5, 1, 4, 4, generator=generator, dtype=torch.float64).to(dtype)
        y = torch.randint(3, (5,), generator=generator)
        loss = functional.cross_entropy(model(x), y)
        torch.manual_seed(step)
        numpy.random.seed(step)  # noqa: NPY002  Kron draws from it
        random.seed(step)
        yield loss


def bare_path(kind: Kind, steps: int, dtype: torch.dtype) -> list[Tensor]:
    """Train with the bare optimizer and SGDPH side by side; return the final parameters."""
    model = network(dtype)
    groups = [group for group in sgdph.param_groups(model) if group["channelwise"]]
    bare, newton = make(kind, model), sgdph.SGDPH(groups)
    taken = {id(p) for p in newton.newton_parameters}
    for group in bare.param_groups:
        group["params"] = [p for p in group["params"] if id(p) not in taken]
    for loss in losses(model, steps, dtype):
        model.zero_grad()
        newton.backward(loss)
        bare.step()
        newton.step()
    return [p.detach() for p in model.parameters()]


def verdict(kind: Kind, steps: int, dtype: torch.dtype) -> str:
    """Return whether an optimizer works, and if not, why."""
    model = network(dtype)
    try:
        first_order = make(kind, model)
    except Exception as error:
        return f"cannot be made: {error}"
    groups = [group for group in sgdph.param_groups(model) if group["channelwise"]]
    try:
        optimizer = sgdph.PartialHessian(first_order, groups)
    except ValueError as error:
        return f"refused: {error}"
    try:
        for loss in losses(model, steps, dtype):
            optimizer.zero_grad()
            optimizer.backward(loss)
            optimizer.step()
    except Exception as error:
        return f"raises at its step: {error}"
    expected = bare_path(kind, steps, dtype)
    if not all(map(torch.equal, model.parameters(), expected)):
        return "takes other steps"
    finite = all(bool(p.isfinite().all()) for p in model.parameters())
    return "serves" if finite else "leaves the finite numbers"


def main() -> None:
    """Check all optimizers, and print those that do not work."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=6)
    steps = parser.parse_args().steps
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    # Some of them need the number of ranks.
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    counts: dict[str, Counter[str]] = {}
    for name, kind in kinds():
        found = verdict(kind, steps, torch.float64)
        if "dtype" in found:
            found = verdict(kind, steps, torch.float32)
        short, _, why = found.partition(": ")
        counts.setdefault(name.partition(".")[0], Counter())[short] += 1
        if found != "serves":
            print(f"{name}: {short}{': ' if why else ''}{why.splitlines()[0] if why else ''}")
    for package, count in counts.items():
        print(f"{package}: {', '.join(f'{n} {short}' for short, n in count.most_common())}")


if __name__ == "__main__":
    main()
