"""Devices and networks for the tests of this folder, and a detector of waits for a device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from reference.nets import NETS, Batch, batches
from small import WAYS
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import sgdph

Optimizer = sgdph.SGDPH | sgdph.PartialHessian
CUDA = pytest.param("cuda", marks=pytest.mark.cuda)


def on(*stand_ins: str) -> pytest.MarkDecorator:
    """Run a test on a GPU, and on devices that stand in for one where there is none."""
    return pytest.mark.parametrize("device", [*stand_ins, CUDA])


class Transformer(nn.Module):
    """A layer of layer norms, attention and GELU over the rows of an image."""

    def __init__(self, width: int = 4, heads: int = 2) -> None:
        super().__init__()
        settings: dict[str, Any] = {"dropout": 0.0, "activation": "gelu", "batch_first": True}
        self.layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, norm_first=True, **settings
        )
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.layer(x.squeeze(1)).mean(1))
        return logits


class FusedRmsNorm(nn.Module):
    """RMS norm by the operator that is one kernel on CUDA, and several operations elsewhere."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        shape = list(self.weight.shape)
        out: Tensor = torch.ops.aten._fused_rms_norm(x, shape, self.weight, 1e-6)[0]
        return out


def _rows(norm: Callable[[int], nn.Module]) -> nn.Module:
    layers = [nn.Flatten(), nn.Linear(16, 4), norm(4), nn.Mish(), nn.Linear(4, 4), norm(4)]
    return nn.Sequential(*layers, nn.Hardswish(), nn.Linear(4, 3))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **NETS,
    "transformer": Transformer,
    "batch_norm_1d": lambda: _rows(nn.BatchNorm1d),
}
if hasattr(torch.ops.aten, "_fused_rms_norm"):
    NETWORKS["fused_rms_norm"] = lambda: _rows(FusedRmsNorm)


def built(name: str, device: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A network, always with the same weights, none of them at a special value."""
    torch.manual_seed(0)
    model = NETWORKS[name]().double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.to(device, dtype)


def data(name: str, device: str, dtype: torch.dtype = torch.float64) -> list[Batch]:
    return [Batch(b.inputs.to(device), b.labels.to(device)) for b in batches(name, dtype=dtype)]


def by_sgdph(model: nn.Module, **settings: Any) -> Optimizer:
    groups = sgdph.param_groups(model, weight_decay=1e-3)
    return sgdph.SGDPH(groups, lr=0.05, **settings)


def beside_adamw(model: nn.Module, **settings: Any) -> Optimizer:
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return sgdph.PartialHessian(adamw, sgdph.param_groups(model), lr=0.05, **settings)


OPTIMIZERS = {"sgdph": by_sgdph, "adamw": beside_adamw}


def train(
    model: nn.Module, optimizer: Optimizer, given: list[Batch], steps: int, way: str | None = None
) -> None:
    """Take steps. Without a way, use each of the three in turn."""
    ways = list(WAYS.values()) if way is None else [WAYS[way]]
    for step in range(steps):
        batch = given[step % len(given)]
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(batch.inputs), batch.labels)
        ways[step % len(ways)](optimizer, loss)
        optimizer.step()


def averages(optimizer: Optimizer) -> Tensor:
    """The curvature that has entered the averages of all Newton parameters, as one vector."""
    states = [optimizer.state[p] for p in optimizer.newton_parameters]
    assert all("hessian" in state for state in states)
    return torch.cat([state["hessian"].flatten() for state in states]).cpu().double()


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).cpu().double()


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Check the largest error, as a share of the largest expected number."""
    assert found.shape == expected.shape
    error = float((found - expected).abs().max() / expected.abs().max())
    assert error <= tolerance, error


def needs_inductor() -> None:
    """Skip a test if inductor has no Triton, or Triton has no C compiler or headers."""
    pytest.importorskip("triton", reason="inductor needs triton")
    try:
        torch.compile(torch.sin)(torch.ones(8, device="cuda"))
    except Exception as error:
        pytest.skip(f"inductor compiles nothing here: {str(error).strip().splitlines()[:1]}")


class Waits(TorchDispatchMode):
    """Records every operation at which the host waits for a device.

    On a GPU torch itself reports waits (:func:`no_waits`). This class applies the same rules to
    stand-ins.

    Args:
        device: The type of the device that the host waits for.
    """

    # lift_fresh: torch.tensor(..., device=...) has copied numbers from the host.
    _NAMES = (
        *("_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select"),
        "lift_fresh",
    )
    _COPIES = ("_to_copy", "copy_", "copy")

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        here = [t for t in self._tensors(args) if t.device.type == self._device]
        waits = bool(here) and name in self._NAMES
        if name in self._COPIES:
            waits = self._is_waiting_copy(name, args, kwargs, result)
        if waits or self._asks_for_places(name, here):
            self.found.append(str(func))
        return result

    @staticmethod
    def _tensors(args: tuple[Any, ...]) -> list[Tensor]:
        nested = [a if isinstance(a, (list, tuple)) else [a] for a in args]
        return [t for each in nested for t in each if isinstance(t, Tensor)]

    @staticmethod
    def _asks_for_places(name: str, here: list[Tensor]) -> bool:
        masks = (torch.bool, torch.uint8)
        return name.startswith(("index", "_index")) and any(t.dtype in masks for t in here[1:])

    def _is_waiting_copy(self, name: str, args: Any, kwargs: Any, result: Tensor) -> bool:
        source = args[0] if name == "_to_copy" else args[1]
        if not isinstance(source, Tensor) or source.device == result.device:
            return False
        if self._device not in (source.device.type, result.device.type):
            return False
        non_blocking = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        # After a copy to the host, nothing may continue before the numbers are there.
        return result.device.type != self._device or not non_blocking


@contextlib.contextmanager
def no_waits(device: str) -> Iterator[None]:
    """Fail if the host waits for the device in this context."""
    waits = Waits(device)
    before = torch.cuda.get_sync_debug_mode() if device == "cuda" else 0
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        with waits:
            yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode(before)
    assert waits.found == []
