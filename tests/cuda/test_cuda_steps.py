"""Steps on a GPU: no wait for the device, constant memory, the same result on every path."""

from __future__ import annotations

import contextlib
import gc
import itertools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from on_devices import (
    CUDA,
    OPTIMIZERS,
    Batch,
    Waits,
    assert_near,
    averages,
    built,
    by_sgdph,
    data,
    needs_inductor,
    no_waits,
    on,
    train,
    weights,
)
from small import WAYS
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import sgdph
from sgdph.autograd.attention_derivative import AttentionDerivative, AttentionSettings
from sgdph.distributed.reduction import Collected, Ranks

OLD = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 15)


class Everything(nn.Module):
    """Every norm and activation that has its own second derivative in this package."""

    def __init__(self) -> None:
        super().__init__()
        self.images = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.GELU(), nn.Hardswish()),
            *(nn.Conv2d(8, 8, 3, padding=1), nn.SiLU(), nn.Mish(), nn.Dropout(0.1)),
        )
        settings: dict[str, Any] = {"activation": "gelu", "batch_first": True}
        self.rows = nn.TransformerEncoderLayer(8, 2, 16, 0.0, norm_first=True, **settings)
        self.last = nn.Sequential(nn.RMSNorm(8), nn.GELU("tanh"), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.rows(self.images(x).flatten(2).mT).mean(1))
        return logits


def images(device: str, count: int = 3) -> list[Batch]:
    torch.manual_seed(0)
    return [
        Batch(torch.randn(6, 1, 4, 4).to(device), (torch.arange(6) % 3).to(device))
        for _ in range(count)
    ]


SETTINGS = [("row_sum", "cyclic"), ("row_sum", "all"), ("hutchinson", "all"), ("exact", "cyclic")]
STEPS = [
    pytest.param("cuda", optimizer, *settings, 2, autocast, marks=pytest.mark.cuda)
    for optimizer, settings, autocast in itertools.product(OPTIMIZERS, SETTINGS, [False, True])
]


# Torch's operations on the device "meta" are written in Python, and slow.
@pytest.mark.parametrize(
    ("device", "optimizer", "estimator", "refresh", "interval", "autocast"),
    [
        ("meta", "sgdph", "row_sum", "cyclic", 1, False),
        ("meta", "adamw", "hutchinson", "all", 2, False),
        *STEPS,
    ],
)
@pytest.mark.filterwarnings("ignore:estimator='hutchinson'")
def test_no_step_waits_for_the_device(
    device: str, optimizer: str, estimator: str, refresh: str, interval: int, autocast: bool
) -> None:
    model = Everything().to(device)
    if device == "cuda":
        # On "meta" torch 2.6 has no kernel for its derivative.
        sgdph.apply_weight_norm(model.last)
    settings = {"estimator": estimator, "refresh": refresh, "hessian_interval": interval}
    chosen = OPTIMIZERS[optimizer](model, **settings)
    given = images(device)
    # In the first steps, libraries and optimizers create what they keep.
    train(model, chosen, given, 3 if device == "cuda" else 1)
    with no_waits(device):
        for step in range(9 if device == "cuda" else 3):
            batch = given[step % len(given)]
            with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
                loss = functional.cross_entropy(model(batch.inputs), batch.labels)
            # Micro-batches, and a clearing in place, at some steps.
            list(WAYS.values())[step % 3](chosen, loss / 2)
            if step % 2:
                chosen.backward(functional.cross_entropy(model(batch.inputs), batch.labels) / 2)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            chosen.step()
            chosen.zero_grad(set_to_none=step % 2 == 0)


@on("meta")
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("needs", [(True,) * 5, (True, False, False, False, False)])
def test_the_derivative_of_attention_does_not_wait_for_the_device(
    is_causal: bool, needs: tuple[bool, ...], device: str
) -> None:
    g, q, k, v = (torch.randn(2, 4, 6, 8).to(device) for _ in range(4))
    bias = None if is_causal else torch.randn(1, 4, 6, 6).to(device)
    settings = AttentionSettings(is_causal, None, 0.0)
    # Vectors for all three gradients, for that of the keys alone, and for none.
    for vectors in ([q, k, v], [None, k, None], [None, None, None]):
        with no_waits(device):
            AttentionDerivative([g, q, k, v], bias, q, settings, vectors, needs).compute()


@pytest.mark.parametrize(
    "wait",
    [
        lambda t: t.sum().item(),
        lambda t: t.new_tensor(2.0),
        lambda t: t.copy_(torch.zeros(())),
        lambda t: t.nonzero(),
        lambda t: t[t > 0],
        lambda t: torch.zeros(4).to(t.device),
        lambda t: t.cpu(),
        lambda t: bool(t.any()),
    ],
)
@on("meta")
def test_waits_are_detected(wait: Any, device: str) -> None:
    """Test the detector itself: torch's on a GPU, ours elsewhere."""
    t = torch.ones(4, device=device)
    if device == "meta" and OLD and "new_tensor" in wait.__code__.co_names:
        pytest.skip("this torch hides it where there is no GPU")
    if device == "cuda":
        torch.cuda.synchronize()
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), no_waits(device):
        wait(t)
    with no_waits(device):
        torch.zeros(4).to(t.device, non_blocking=True)
        t.new_full((), 2.0)


@contextmanager
def counted_waits(device: str) -> Iterator[list[str]]:
    found: list[str] = []
    waits = Waits(device)
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told, waits:
            warnings.simplefilter("always")
            yield found
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    torch_s = [str(w.message) for w in told if "called a synchronizing" in str(w.message)]
    found += torch_s if device == "cuda" else waits.found


@on("cpu")
def test_a_scaled_step_waits_as_often_as_one_of_sgd(device: str) -> None:
    """``GradScaler.step`` reads once whether a gradient overflowed."""
    counts = []
    for kind in ("sgd", *OPTIMIZERS):
        model = Everything().to(device)
        scaler = torch.amp.GradScaler(device)
        plain = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        optimizer: Any = plain if kind == "sgd" else OPTIMIZERS[kind](model)
        for step in range(3):
            batch = images(device)[0]
            with counted_waits(device) as waits:
                optimizer.zero_grad()
                with torch.autocast(device, torch.float16):
                    loss = functional.cross_entropy(model(batch.inputs), batch.labels)
                if kind == "sgd":
                    scaler.scale(loss).backward()
                else:
                    list(WAYS.values())[step % 2](optimizer, scaler.scale(loss))
                scaler.step(optimizer)
                scaler.update()
        counts.append(len(waits))
    # AdamW keeps its count of steps on the CPU, and reads it there.
    compared = counts if device == "cuda" else counts[:2]
    assert len(set(compared)) == 1, counts


def bytes_in_use(device: str) -> int:
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()
    storages: dict[int, int] = {}
    for t in gc.get_objects():
        # Other tests leave tensors without memory, or without a single piece of memory.
        if type(t) in (Tensor, nn.Parameter) and t.layout == torch.strided:
            with contextlib.suppress(RuntimeError):
                storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
    return sum(storages.values())


@on("cpu")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_memory_stays_constant(optimizer: str, device: str) -> None:
    steps = 500 if device == "cuda" else 40
    small = built("layer_norm_mlp", device, torch.float32)
    model = Everything().to(device) if device == "cuda" else small
    given = images(device)
    chosen = OPTIMIZERS[optimizer](model)
    # A whole sweep in each of the ways, so that every state exists.
    first = 3 * len(chosen.newton_parameters)
    train(model, chosen, given, first)
    chosen.zero_grad()
    before = bytes_in_use(device)
    reserved = torch.cuda.memory_reserved() if device == "cuda" else 0
    train(model, chosen, given, steps - first)
    chosen.zero_grad()
    assert bytes_in_use(device) <= before
    if device == "cuda":
        assert torch.cuda.memory_reserved() <= reserved


@on("cpu")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_foreach_equals_one_tensor_at_a_time(
    optimizer: str, dtype: torch.dtype, device: str
) -> None:
    found = []
    for foreach in (False, True, None):
        model = built("group_norm", device, dtype)
        chosen = OPTIMIZERS[optimizer](model, foreach=foreach)
        train(model, chosen, data("group_norm", device, dtype), 10)
        assert averages(chosen).isfinite().all()
        found.append(weights(model))
    tolerance = 1e-12 if dtype == torch.float64 else 0.02
    assert_near(found[1], found[0], tolerance)
    assert_near(found[2], found[0], tolerance)


@on("cpu")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("way", WAYS)
def test_autocast_is_near_float32(dtype: torch.dtype, layout: Any, way: str, device: str) -> None:
    """Half-precision curvature does not contain the scale of a scaler either."""
    found = []
    for kind in (None, dtype):
        model = built("bn_resnet", device, torch.float32).to(memory_format=layout)
        batch = data("bn_resnet", device, torch.float32)[0]
        x = batch.inputs.contiguous(memory_format=layout)
        optimizer = by_sgdph(model, refresh="all")
        scaler = torch.amp.GradScaler(device, init_scale=2.0**10, enabled=kind == torch.float16)
        with torch.autocast(device, kind or torch.bfloat16, enabled=kind is not None):
            loss = functional.cross_entropy(model(x), batch.labels)
        WAYS[way](optimizer, scaler.scale(loss))
        scaler.step(optimizer)
        scaler.update()
        found.append(averages(optimizer))
    exact, half = found
    share = 0.15 if dtype == torch.bfloat16 else 0.02
    assert (half - exact).norm() <= share * exact.norm()


@pytest.fixture
def one_rank(device: str, tmp_path: Path) -> Iterator[None]:
    backend = "nccl" if device == "cuda" else "gloo"
    store = f"file://{tmp_path / 'store'}"
    dist.init_process_group(backend, init_method=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@on("cpu")
@pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.usefixtures("one_rank")
def test_one_rank_under_ddp_equals_one_process(device: str) -> None:
    """With NCCL on a GPU. The mean over ranks is also tested by itself."""
    found = []
    for wrapped in (False, True):
        model = built("bn_resnet", device)
        run = DistributedDataParallel(model) if wrapped else model
        optimizer = by_sgdph(model)
        for way in ("update_hessian", "backward"):
            train(run, optimizer, data("bn_resnet", device), 9, way)
        found.append(weights(model))
    assert_near(found[1], found[0], 1e-12)
    ranks = Ranks(None)
    p, q = (nn.Parameter(torch.randn(n, device=device)) for n in (3, 4))
    some, none = torch.tensor(True, device=device), torch.tensor(False, device=device)
    collected = [Collected(p, p.detach() * 2, some), Collected(q, q.detach(), none)]
    ranks.mean(collected)
    with no_waits("cuda" if device == "cuda" else "meta"):
        of_p, of_q, nothing = ranks.mean([*collected, Collected(q, None)])
    assert torch.equal(of_p.h, collected[0].h)
    assert [bool(c.valid) for c in (of_p, of_q, nothing)] == [True, False, False]


@on("cpu")
@pytest.mark.parametrize("name", ["layer_norm_mlp", "transformer"])
def test_a_compiled_model_equals_the_uncompiled_one(name: str, device: str) -> None:
    """With inductor on a GPU: uncompiled at due steps, compiled at all others."""
    if device == "cuda":
        needs_inductor()
    backend = "inductor" if device == "cuda" else "aot_eager"
    found = []
    for is_compiled in (False, True):
        torch._dynamo.reset()
        model = built(name, device, torch.float32)
        optimizer = by_sgdph(model, hessian_interval=3)
        run = sgdph.compiled(model, optimizer, backend=backend) if is_compiled else model
        train(run, optimizer, data(name, device, torch.float32), 9, "backward")
        found.append(weights(model))
    assert_near(found[1], found[0], 1e-4)


@pytest.mark.parametrize("device", [CUDA])
def test_capture_in_a_cuda_graph_raises_an_error(device: str) -> None:
    model = built("group_norm", device, torch.float32)
    optimizer = by_sgdph(model)
    given = data("group_norm", device, torch.float32)
    train(model, optimizer, given, 3)
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="captured in a CUDA graph"), torch.cuda.graph(graph):
        optimizer.step()
    # Training continues afterwards.
    train(model, optimizer, given, 3)
    assert weights(model).isfinite().all()
