"""Four ranks: the ways under DistributedDataParallel, groups of ranks, and sharded parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import (
    WAYS,
    Found,
    Job,
    Results,
    assert_near,
    assert_same_bits,
    everything,
    loss_on,
    network,
    of,
    on_ranks,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import sgdph

pytestmark = pytest.mark.xdist_group("four_ranks")

RANKS = 4
STEPS = 5
SETTINGS: dict[str, Any] = {"lr": 0.05, "momentum": 0.9}
DECAY = 1e-2


def built(**settings: Any) -> tuple[nn.Module, sgdph.SGDPH]:
    model = network()
    groups = sgdph.param_groups(model, weight_decay=DECAY)
    return model, sgdph.SGDPH(groups, **SETTINGS, **settings)


def train(loss: Callable[[int], Tensor], optimizer: sgdph.SGDPH, way: str = "backward") -> None:
    for step in range(STEPS):
        optimizer.zero_grad()
        WAYS[way](optimizer, functools.partial(loss, step))
        optimizer.step()


def in_one_process(ranks: range, way: str = "backward") -> Found:
    model, optimizer = built()
    train(lambda step: torch.stack([loss_on(model, r, step) for r in ranks]).mean(), optimizer, way)
    return everything(model, optimizer)


# ---- the ways, and process groups ----------------------------------------------------------------


def by_way(rank: int, *, way: str) -> Found:
    model, optimizer = built()
    replica = DistributedDataParallel(model)
    train(lambda step: loss_on(replica, rank, step), optimizer, way)
    return everything(model, optimizer)


@pytest.mark.parametrize("way", WAYS)
def test_four_ranks_equal_one_process_on_the_joined_batch(way: str, ranks: Results) -> None:
    first, *others = of(ranks, way)
    for other in others:
        assert_same_bits(first, other)
    # Differences cancel nine digits of the gradient, so the rounding errors are larger.
    tolerance = 1e-7 if way == "closure" else 1e-10
    assert_near(first, in_one_process(range(RANKS), way), tolerance)


PAIRS = (range(2), range(2, 4))


def in_pairs(rank: int) -> Found:
    groups = [dist.new_group(list(pair)) for pair in PAIRS]
    group = groups[rank // 2]
    model, optimizer = built(process_group=group)
    replica = DistributedDataParallel(model, process_group=group)
    train(lambda step: loss_on(replica, rank, step), optimizer)
    return everything(model, optimizer)


def test_each_process_group_trains_as_a_separate_run(ranks: Results) -> None:
    results = of(ranks, "in pairs")
    for pair in PAIRS:
        assert_same_bits(*[results[rank] for rank in pair])
        assert_near(results[pair[0]], in_one_process(pair))


# ---- ZeroRedundancyOptimizer ---------------------------------------------------------------------


def zero_refused(rank: int) -> list[str]:
    model = network()
    messages = []
    for params in (list(model.parameters()), sgdph.param_groups(model)):
        with pytest.raises(ValueError, match="ZeroRedundancyOptimizer") as info:
            ZeroRedundancyOptimizer(params, optimizer_class=sgdph.SGDPH, lr=0.05)
        messages.append(str(info.value))
    return messages


def test_zero_around_sgdph_raises_an_error_on_every_rank(ranks: Results) -> None:
    for messages in of(ranks, "zero refused"):
        for message in messages:
            assert "Give ZeroRedundancyOptimizer torch.optim.SGD" in message
            assert "SGDPH the channel-wise groups" in message


def zero_beside(rank: int) -> Found:
    """What the error message recommends."""
    model = network()
    replica = DistributedDataParallel(model)
    groups = sgdph.param_groups(model, weight_decay=DECAY)
    newton = [group for group in groups if group["channelwise"]]
    weights = [p for group in groups if not group["channelwise"] for p in group["params"]]
    optimizer = sgdph.SGDPH(newton, **SETTINGS)
    sharded = ZeroRedundancyOptimizer(
        weights, optimizer_class=torch.optim.SGD, weight_decay=DECAY, **SETTINGS
    )
    for step in range(STEPS):
        replica.zero_grad()
        optimizer.backward(loss_on(replica, rank, step))
        optimizer.step()
        sharded.step()
    # The sharded weights have no state here.
    weights_only = everything(model, optimizer)
    return {name: value for name, value in weights_only.items() if "momentum" not in name}


def test_zero_for_the_weights_beside_sgdph_takes_the_same_steps(ranks: Results) -> None:
    first, *others = of(ranks, "zero beside")
    for other in others:
        assert_same_bits(first, other)
    whole = in_one_process(range(RANKS))
    assert_near(first, {name: value for name, value in whole.items() if "momentum" not in name})


# ---- sharded parameters --------------------------------------------------------------------------


def sharded(kind: str) -> nn.Module:
    model = network()
    mesh = init_device_mesh("cpu", (RANKS,))
    if kind == "fsdp2":
        return fully_shard(model, mesh=mesh)
    if kind == "tensor parallel":
        return parallelize_module(model, mesh, {"0": ColwiseParallel(output_layouts=Replicate())})
    return FullyShardedDataParallel(
        model, use_orig_params=kind == "fsdp1 original", device_id=torch.device("cpu")
    )


KINDS = ("fsdp2", "tensor parallel", "fsdp1 original", "fsdp1 flat")
REFUSED = KINDS[1:]


def sharding_refused(rank: int, *, kind: str) -> list[str]:
    model = sharded(kind)
    ways: list[Callable[[], Any]] = [lambda: list(model.parameters())]
    if kind != "fsdp1 flat":  # it has one flat parameter without a role
        ways.append(lambda: sgdph.param_groups(model))
    messages = []
    for way in ways:
        with pytest.raises(ValueError, match="sharded") as info:
            sgdph.SGDPH(way())
        messages.append(str(info.value))
    optimizer = sgdph.SGDPH([torch.zeros(3, requires_grad=True)])
    with pytest.raises(ValueError, match="sharded"):
        optimizer.add_param_group({"params": list(model.parameters())})
    assert len(optimizer.param_groups) == 1
    return messages


@pytest.mark.parametrize("kind", REFUSED)
def test_sharded_parameters_raise_an_error(kind: str, ranks: Results) -> None:
    """Those of FSDP2 do not: see test_fsdp.py."""
    for messages in of(ranks, f"refused {kind}"):
        for message in messages:
            assert "DistributedDataParallel" in message
            assert "channelwise=False" in message


def norms_in_tensor_parallel(rank: int) -> Found:
    """The norm of a tensor-parallel model is whole on every rank, and all ranks have one batch."""
    model = sharded("tensor parallel")
    norm = {"params": list(model[1].parameters()), "channelwise": True}
    rest = [*model[0].parameters(), *model[3].parameters()]
    optimizer = sgdph.SGDPH([norm, {"params": rest, "channelwise": False}], **SETTINGS)
    train(lambda step: loss_on(model, 0, step), optimizer)
    return {f"hessian {i}": optimizer.state[p]["hessian"] for i, p in enumerate(norm["params"])}


def test_unsharded_norms_of_a_tensor_parallel_model_take_newton_steps(ranks: Results) -> None:
    model = network()
    norm = {"params": list(model[1].parameters()), "channelwise": True}
    rest = [*model[0].parameters(), *model[3].parameters()]
    optimizer = sgdph.SGDPH([norm, {"params": rest, "channelwise": False}], **SETTINGS)
    train(lambda step: loss_on(model, 0, step), optimizer)
    expected = {f"hessian {i}": optimizer.state[p]["hessian"] for i, p in enumerate(norm["params"])}
    for found in of(ranks, "norms in tensor parallel"):
        assert_near(found, expected)


def norm_before_tensor_parallel(rank: int) -> str:
    """Torch's collectives between the ranks have no second derivative."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 4, bias=False), nn.Tanh()).double()
    plan = {"1": ColwiseParallel(output_layouts=Replicate())}
    model = parallelize_module(model, init_device_mesh("cpu", (RANKS,)), plan)
    groups = [
        {"params": list(model[0].parameters()), "channelwise": True},
        {"params": list(model[1].parameters()), "channelwise": False},
    ]
    optimizer = sgdph.SGDPH(groups, **SETTINGS)
    with pytest.raises(RuntimeError, match="returns a gradient without a graph") as info:
        optimizer.backward(loss_on(model, rank, 0))
    return str(info.value)


def test_a_norm_before_a_tensor_parallel_layer_raises_an_error(ranks: Results) -> None:
    for message in of(ranks, "norm before tensor parallel"):
        assert "update_hessian(closure=...)" in message


def exchanged_for_shards(rank: int) -> list[str]:
    """As Accelerate does: the optimizer is built first, and its groups get the shards later."""
    takes: list[Callable[[sgdph.SGDPH], Any]] = [
        lambda optimizer: optimizer.step(),
        lambda optimizer: optimizer.update_hessian(torch.ones((), requires_grad=True)),
    ]
    messages = []
    for take in takes:
        model = network()
        optimizer = sgdph.SGDPH(sgdph.param_groups(model), **SETTINGS)
        names = {p: name for name, p in model.named_parameters()}
        shards = dict(fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,))).named_parameters())
        for group in optimizer.param_groups:
            group["params"] = [shards[names[p]] for p in group["params"]]
        with pytest.raises(RuntimeError, match="changed by hand") as info:
            take(optimizer)
        messages.append(str(info.value))
    return messages


def test_replacing_parameters_by_shards_raises_an_error(ranks: Results) -> None:
    for messages in of(ranks, "exchanged for shards"):
        for message in messages:
            assert "Build a new optimizer from the present model" in message


# At its first forward, torch 2.6's FSDP2 needs methods of streams that only CUDA's have.
FIRST_ORDER = [
    kind for kind in KINDS if kind != "fsdp2" or hasattr(torch.cpu.Stream, "record_event")
]


def sharded_first_order(rank: int, *, kind: str) -> Found:
    """Every rank has the same batch, so that all sums over ranks are known."""
    found = {}
    for name in ("SGDPH", "SGD"):
        model = sharded(kind)
        params = list(model.parameters())
        optimizer = (
            sgdph.SGDPH([{"params": params, "channelwise": False}], **SETTINGS)
            if name == "SGDPH"
            else torch.optim.SGD(params, **SETTINGS)
        )
        for step in range(STEPS):
            optimizer.zero_grad()
            loss_on(model, 0, step).backward()
            optimizer.step()
        for i, p in enumerate(params):
            whole = p.full_tensor() if kind in KINDS[:2] and hasattr(p, "full_tensor") else p
            found[f"{name} {i}"] = whole.detach().clone()
    return found


@pytest.mark.parametrize("kind", FIRST_ORDER)
def test_sharded_first_order_parameters_train_like_sgd(kind: str, ranks: Results) -> None:
    for found in of(ranks, f"first-order {kind}"):
        ours = {n.split()[1]: value for n, value in found.items() if n.startswith("SGDPH")}
        theirs = {n.split()[1]: value for n, value in found.items() if n.startswith("SGD ")}
        assert_same_bits(ours, theirs)
    if kind == "fsdp2":
        whole = network()
        plain = torch.optim.SGD(whole.parameters(), **SETTINGS)
        for step in range(STEPS):
            plain.zero_grad()
            loss_on(whole, 0, step).backward()
            plain.step()
        for i, p in enumerate(whole.parameters()):
            torch.testing.assert_close(ours[str(i)], p.detach(), rtol=0, atol=1e-10)


# ---- all jobs, in one start of the processes -----------------------------------------------------

JOBS: dict[str, Job] = {
    **{way: functools.partial(by_way, way=way) for way in WAYS},
    "in pairs": in_pairs,
    "zero refused": zero_refused,
    "zero beside": zero_beside,
    "exchanged for shards": exchanged_for_shards,
    **{f"refused {kind}": functools.partial(sharding_refused, kind=kind) for kind in REFUSED},
    "norms in tensor parallel": norms_in_tensor_parallel,
    "norm before tensor parallel": norm_before_tensor_parallel,
    **{
        f"first-order {kind}": functools.partial(sharded_first_order, kind=kind)
        for kind in FIRST_ORDER
    },
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return on_ranks(JOBS, RANKS, tmp_path_factory.mktemp("ranks"))
