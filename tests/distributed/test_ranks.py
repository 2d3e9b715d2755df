"""Two ranks under DistributedDataParallel: wrapper options, uneven batches, hooks, traffic."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from importlib.util import find_spec
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
    rank_batch,
)
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel

import sgdph

pytestmark = pytest.mark.xdist_group("ranks")

RANKS = 2
STEPS = 4
WRAPPERS: dict[str, dict[str, Any]] = {
    "default": {},
    "find_unused": {"find_unused_parameters": True},
    "bucket_views": {"gradient_as_bucket_view": True},
    "buffers_apart": {"broadcast_buffers": False},
    "static_graph": {"static_graph": True},
}
ALL_AT_ONCE = {"estimator": "hutchinson", "refresh": "all", "hessian_momentum": 0.99}


Either = sgdph.SGDPH | sgdph.PartialHessian


def adabelief(params: Any, **settings: Any) -> torch.optim.Optimizer:
    """It counts its steps in its groups. AdamW counts them in the state of each parameter."""
    from pytorch_optimizer import AdaBelief

    made: torch.optim.Optimizer = AdaBelief(params, **settings)
    return made


FIRST_ORDER: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adabelief": adabelief,
}


def built(*, beside: str | None = None, **settings: Any) -> tuple[nn.Module, Either]:
    model = network()
    groups = sgdph.param_groups(model, weight_decay=1e-2)
    if beside is not None:
        first_order = FIRST_ORDER[beside](model.parameters(), lr=1e-3, weight_decay=1e-2)
        return model, sgdph.PartialHessian(first_order, groups, lr=0.05, **settings)
    return model, sgdph.SGDPH(groups, lr=0.05, **settings)


def wrapped(**settings: Any) -> tuple[nn.Module, DistributedDataParallel, Either]:
    model, optimizer = built()
    return model, DistributedDataParallel(model, **settings), optimizer


def one_step(
    replica: nn.Module, optimizer: Either, rank: int, step: int, way: str = "backward"
) -> None:
    optimizer.zero_grad()
    WAYS[way](optimizer, lambda: loss_on(replica, rank, step))
    optimizer.step()


def mean_of_losses(model: nn.Module, step: int, sizes: tuple[int, ...] = (5, 5)) -> Tensor:
    return torch.stack([loss_on(model, r, step, n) for r, n in enumerate(sizes)]).mean()


def in_one_process(
    loss: Callable[[nn.Module, int], Tensor], steps: int, way: str = "backward", **settings: Any
) -> Found:
    model, optimizer = built(**settings)
    for step in range(steps):
        optimizer.zero_grad()
        WAYS[way](optimizer, lambda step=step: loss(model, step))
        optimizer.step()
    return everything(model, optimizer)


# ---- the wrapper's options, and differences of gradients -----------------------------------------


def by_differences(rank: int, *, wrapper: str) -> Found:
    model, replica, optimizer = wrapped(**WRAPPERS[wrapper])
    for step in range(STEPS):
        one_step(replica, optimizer, rank, step, "closure")
    return everything(model, optimizer)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_differences_of_gradients_equal_one_process(wrapper: str, ranks: Results) -> None:
    first, second = of(ranks, f"differences {wrapper}")
    assert_same_bits(first, second)
    # Differences cancel nine digits of the gradient, so the rounding errors are larger.
    assert_near(first, in_one_process(mean_of_losses, STEPS, "closure"), tolerance=1e-7)


# ---- uneven batches ------------------------------------------------------------------------------

UNEVEN = (5, 2)


def uneven_last_batch(rank: int, *, way: str, beside: str | None = None) -> Found:
    model, optimizer = built(beside=beside)
    replica = DistributedDataParallel(model)
    for step in range(STEPS):
        optimizer.zero_grad()
        size = UNEVEN[rank] if step == STEPS - 1 else 5
        WAYS[way](optimizer, lambda step=step, size=size: loss_on(replica, rank, step, size))
        optimizer.step()
    return everything(model, optimizer)


@pytest.mark.parametrize("beside", [None, "adamw"])
@pytest.mark.parametrize("way", ["update_hessian", "backward"])
def test_with_an_uneven_last_batch_all_ranks_have_equal_weight(
    way: str, beside: str | None, ranks: Results
) -> None:
    def loss(model: nn.Module, step: int) -> Tensor:
        return mean_of_losses(model, step, UNEVEN if step == STEPS - 1 else (5, 5))

    first, second = of(ranks, f"uneven {way} {beside}")
    assert_same_bits(first, second)
    assert_near(first, in_one_process(loss, STEPS, beside=beside))


BATCHES = (2, 5)
JOINS: dict[str, dict[str, Any]] = {
    "over all": {},
    "over active": {"divide_by_initial_world_size": False},
}


# Whether curvature is from differences, and the first-order optimizer beside.
JOINED_BY: list[tuple[bool, str | None]] = [(False, None), (True, None), (False, "adamw")]
if find_spec("pytorch_optimizer"):
    JOINED_BY += [(False, "adabelief")]


def joined(
    rank: int, *, join: str, interval: int, closure: bool, beside: str | None = None
) -> list[Found]:
    model, optimizer = built(hessian_interval=interval, beside=beside)
    replica = DistributedDataParallel(model)
    found = []
    # Afterwards the ranks continue together, at the same step and with the same momenta.
    for steps, context in [
        (range(BATCHES[rank]), Join([replica, optimizer], **JOINS[join])),
        (range(max(BATCHES), max(BATCHES) + 3), contextlib.nullcontext()),
    ]:
        with context:
            for step in steps:
                one_step(replica, optimizer, rank, step, "closure" if closure else "backward")
        found.append(everything(model, optimizer))
    return found


@pytest.mark.parametrize(("closure", "beside"), JOINED_BY)
@pytest.mark.parametrize("interval", [1, 2])
@pytest.mark.parametrize("join", JOINS)
def test_a_rank_that_has_joined_counts_as_zero(
    join: str, interval: int, closure: bool, beside: str | None, ranks: Results
) -> None:
    def loss(model: nn.Module, step: int) -> Tensor:
        if BATCHES[0] <= step < BATCHES[1]:
            alone = loss_on(model, 1, step)
            return alone if join == "over active" else alone / RANKS
        return mean_of_losses(model, step)

    results = of(ranks, f"joined {join} {interval} {closure} {beside}")
    way, tolerance = ("closure", 1e-7) if closure else ("backward", 1e-10)
    for i, steps in enumerate((max(BATCHES), max(BATCHES) + 3)):
        assert_same_bits(results[0][i], results[1][i])
        settings = {"hessian_interval": interval, "beside": beside}
        expected = in_one_process(loss, steps, way, **settings)
        assert_near(results[0][i], expected, tolerance)


def join_refusals(rank: int) -> list[str]:
    _, replica, optimizer = wrapped()
    with pytest.raises(RuntimeError) as info, replica.join():
        one_step(replica, optimizer, rank, 0)
    with pytest.raises(ValueError, match="first") as first:
        Join([optimizer, replica])
    return [str(info.value), str(first.value)]


def test_join_without_the_optimizer_raises_an_error(ranks: Results) -> None:
    for without, leading in of(ranks, "join refusals"):
        assert "`with Join([model, optimizer]):`" in without
        assert "Join([model, optimizer])" in leading


def join_that_throws(rank: int) -> list[str]:
    _, replica, optimizer = wrapped()
    done = []

    def until_one_runs_out() -> None:
        with replica.join(throw_on_early_termination=True):
            for step in range(BATCHES[rank]):
                one_step(replica, optimizer, rank, step)
                done.append(str(step))

    with pytest.raises(RuntimeError, match="exhausted"):
        until_one_runs_out()
    return done


def test_join_with_early_termination_needs_no_optimizer(ranks: Results) -> None:
    assert of(ranks, "join that throws") == [["0", "1"], ["0", "1"]]


# ---- hooks of the gradients' reduction -----------------------------------------------------------


def compressed(rank: int, *, hook: str) -> dict[str, Found]:
    model, replica, optimizer = wrapped()
    if hook == "fp16":
        replica.register_comm_hook(None, default_hooks.fp16_compress_hook)
    else:
        state = powerSGD_hook.PowerSGDState(None, start_powerSGD_iter=2, min_compression_rate=0.1)
        replica.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    found = {}
    for step in range(6):
        one_step(replica, optimizer, rank, step)
        found[str(step)] = everything(model, optimizer)
    return found


@pytest.mark.parametrize("hook", ["fp16", "power_sgd"])
def test_compressed_gradients_leave_the_curvature_exact(hook: str, ranks: Results) -> None:
    first, second = of(ranks, f"compressed {hook}")
    for step in first:
        assert_same_bits(first[step], second[step])
    # Before the first step the weights are still the same, and so is the curvature.
    exact = in_one_process(mean_of_losses, 1)
    torch.testing.assert_close(first["0"]["hessian 1"], exact["hessian 1"], rtol=0, atol=1e-12)
    later = in_one_process(mean_of_losses, 6)
    gap = max(float((first["5"][name] - value).abs().max()) for name, value in later.items())
    assert 1e-8 < gap < 0.5  # the gradients were compressed, but are still close


# ---- traffic -------------------------------------------------------------------------------------


@contextlib.contextmanager
def counted() -> Iterator[list[int]]:
    """The bytes of every collective that Python starts: DDP starts its own in C++."""
    sizes: list[int] = []
    original = dist.all_reduce

    def all_reduce(tensor: Tensor, *arguments: Any, **settings: Any) -> Any:
        sizes.append(tensor.numel() * tensor.element_size())
        return original(tensor, *arguments, **settings)

    dist.all_reduce = all_reduce
    try:
        yield sizes
    finally:
        dist.all_reduce = original


def traffic(rank: int, *, settings: dict[str, Any]) -> list[list[int]]:
    model, optimizer = built(**settings)
    replica = DistributedDataParallel(model)
    steps = []
    for step in range(4):
        optimizer.zero_grad()
        with counted() as sizes:
            for micro in range(2):
                with replica.no_sync() if micro == 0 else contextlib.nullcontext():
                    optimizer.backward(loss_on(replica, rank, 10 * step + micro))
            optimizer.step()
        steps.append(sizes)
    return steps


FLOAT64 = 8


ONE = [FLOAT64 * (4 + 1)]  # a Newton parameter has four numbers; one counts the ranks that had it


@pytest.mark.parametrize(
    ("name", "expected"),
    [("cyclic", [ONE] * 4), ("interval", [ONE, [], ONE, []]), ("all", [[3 * ONE[0]]] * 4)],
)
def test_a_refresh_needs_one_collective_of_the_parameter_s_size(
    name: str, expected: list[list[int]], ranks: Results
) -> None:
    assert of(ranks, f"traffic {name}") == [expected, expected]


# ---- mixed precision -----------------------------------------------------------------------------


def overflow_on_one_rank(rank: int, *, of_what: str) -> list[Found]:
    model, replica, optimizer = wrapped()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    found = []
    for step in range(6):
        optimizer.zero_grad()
        loss = loss_on(replica, rank, step)
        breaks = step in (1, 4) and rank == 1
        handles = []
        if breaks and of_what == "gradient":
            # The hooks run before DDP's reduction. The pass of a product does not call them.
            handles = [p.register_hook(lambda g: g * math.inf) for p in model.parameters()]
            optimizer.update_hessian(scaler.scale(loss), loss_scale=scaler.get_scale())
        elif breaks:
            optimizer.update_hessian(scaler.scale(loss) * math.inf)
        else:
            optimizer.update_hessian(scaler.scale(loss), loss_scale=scaler.get_scale())
        scaler.scale(loss).backward()
        for handle in handles:
            handle.remove()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        found.append({**everything(model, optimizer), "scale": torch.tensor(scaler.get_scale())})
    return found


def test_an_overflow_on_one_rank_skips_the_step_of_both(ranks: Results) -> None:
    first, second = of(ranks, "overflow of gradient")
    for ours, theirs in zip(first, second, strict=True):
        assert_same_bits(ours, theirs)
    assert [int(found["step"]) for found in first] == [1, 1, 2, 3, 3, 4]
    assert float(first[-1].pop("scale")) == 256.0
    model, optimizer = built()
    for step in (0, 2, 3, 5):
        optimizer.zero_grad()
        optimizer.backward(mean_of_losses(model, step))
        optimizer.step()
    assert_near(first[-1], everything(model, optimizer))


def test_curvature_that_is_infinite_on_one_rank_is_left_out_on_both(ranks: Results) -> None:
    first, second = of(ranks, "overflow of curvature")
    for ours, theirs in zip(first, second, strict=True):
        assert_same_bits(ours, theirs)
    # Steps 1 and 4 would refresh the second of three parameters, so it never gets an average.
    assert [int(found["step"]) for found in first] == [1, 2, 3, 4, 5, 6]
    assert all(found["refreshes 2"] == 0 for found in first[1:])
    assert float(first[-1]["refreshes 1"]) == float(first[-1]["refreshes 3"]) == 2


def scaled_and_accumulated(rank: int) -> Found:
    model, replica, optimizer = wrapped()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(STEPS):
        optimizer.zero_grad()
        for micro in range(2):
            with replica.no_sync() if micro == 0 else contextlib.nullcontext():
                loss = loss_on(replica, rank, 10 * step + micro) / 2
                optimizer.backward(scaler.scale(loss), loss_scale=scaler.get_scale())
        scaler.step(optimizer)
        scaler.update()
    return everything(model, optimizer)


def test_scaled_and_accumulated_losses_equal_one_process(ranks: Results) -> None:
    def loss(model: nn.Module, step: int) -> Tensor:
        return (mean_of_losses(model, 10 * step) + mean_of_losses(model, 10 * step + 1)) / 2

    first, second = of(ranks, "scaled and accumulated")
    assert_same_bits(first, second)
    assert_near(first, in_one_process(loss, STEPS))


def autocast(rank: int) -> dict[str, Any]:
    model = network().float()
    optimizer = sgdph.SGDPH(sgdph.param_groups(model), lr=0.05)
    replica = DistributedDataParallel(model)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = (replica(rank_batch(rank, 0).float()) - 1).square().mean()
        optimizer.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
    return {"losses": losses, "end": everything(model, optimizer)}


def test_ranks_under_autocast_stay_bit_identical_and_learn(ranks: Results) -> None:
    first, second = of(ranks, "autocast")
    assert_same_bits(first["end"], second["end"])
    assert first["losses"][-1] < 0.5 * first["losses"][0]
    assert first["end"]["hessian 1"].dtype == torch.float32


# ---- stop and resume -----------------------------------------------------------------------------


def wrapped_beside() -> tuple[nn.Module, DistributedDataParallel, Either]:
    model, optimizer = built(beside="adamw")
    return model, DistributedDataParallel(model), optimizer


def resumed(rank: int, *, beside: str | None = None) -> list[Found]:
    found = []
    build = wrapped_beside if beside else wrapped
    for stop in (None, 5):
        model, replica, optimizer = build()
        for step in range(9):
            if step == stop:
                # Load what rank 0 saved, as with checkpoints.
                saved = [{"model": model.state_dict(), "optimizer": optimizer.state_dict()}]
                dist.broadcast_object_list(saved, 0)
                model, replica, optimizer = build()
                model.load_state_dict(saved[0]["model"])
                optimizer.load_state_dict(saved[0]["optimizer"])
            one_step(replica, optimizer, rank, step)
        found.append(everything(model, optimizer))
    return found


@pytest.mark.parametrize("job", ["resumed", "resumed beside AdamW"])
def test_every_rank_resumes_bit_for_bit_from_one_checkpoint(job: str, ranks: Results) -> None:
    for whole, again in of(ranks, job):
        assert_same_bits(whole, again)
    assert_same_bits(*[results[0] for results in of(ranks, job)])


# ---- compiled models -----------------------------------------------------------------------------

COMPILED_STEPS = 8


def compiled(rank: int, *, place: str) -> tuple[Found, list[int]]:
    from torch._dynamo.utils import counters

    # Otherwise the graphs of the previous job would be reused.
    torch._dynamo.reset()
    counters.clear()
    model, optimizer = built(hessian_interval=2)
    if place == "inside":
        sgdph.compiled(model, optimizer, backend="aot_eager")
    replica = DistributedDataParallel(model, static_graph=place == "static")
    if place != "inside":
        sgdph.compiled(replica, optimizer, backend="aot_eager")
    graphs = []
    for step in range(COMPILED_STEPS):
        one_step(replica, optimizer, rank, step)
        graphs.append(counters["stats"]["unique_graphs"])
    return everything(model, optimizer), graphs


@pytest.mark.parametrize("place", ["inside", "around", "static"])
def test_compiled_models_equal_one_process(place: str, ranks: Results) -> None:
    (first, graphs), (second, others) = of(ranks, f"compiled {place}")
    assert_same_bits(first, second)
    assert_near(first, in_one_process(mean_of_losses, COMPILED_STEPS, hessian_interval=2))
    # Compiled at the second step, the first that is not due, and never again.
    assert graphs == others == [0] + [1] * (COMPILED_STEPS - 1)


# ---- all jobs, in one start of the processes -----------------------------------------------------

JOBS: dict[str, Job] = {
    **{f"differences {w}": functools.partial(by_differences, wrapper=w) for w in WRAPPERS},
    **{
        f"uneven {w} {b}": functools.partial(uneven_last_batch, way=w, beside=b)
        for w in ("update_hessian", "backward")
        for b in (None, "adamw")
    },
    **{
        f"joined {j} {i} {c} {b}": functools.partial(
            joined, join=j, interval=i, closure=c, beside=b
        )
        for j in JOINS
        for i in (1, 2)
        for c, b in JOINED_BY
    },
    "join refusals": join_refusals,
    "join that throws": join_that_throws,
    **{f"compressed {h}": functools.partial(compressed, hook=h) for h in ("fp16", "power_sgd")},
    "traffic cyclic": functools.partial(traffic, settings={}),
    "traffic interval": functools.partial(traffic, settings={"hessian_interval": 2}),
    "traffic all": functools.partial(traffic, settings=ALL_AT_ONCE),
    "overflow of gradient": functools.partial(overflow_on_one_rank, of_what="gradient"),
    "overflow of curvature": functools.partial(overflow_on_one_rank, of_what="curvature"),
    "scaled and accumulated": scaled_and_accumulated,
    "autocast": autocast,
    **{
        f"compiled {place}": functools.partial(compiled, place=place)
        for place in ("inside", "around", "static")
    },
    "resumed": resumed,
    "resumed beside AdamW": functools.partial(resumed, beside="adamw"),
}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return on_ranks(JOBS, RANKS, tmp_path_factory.mktemp("ranks"))
