"""FSDP2: Newton steps of sharded models equal those of one process on the joined batch."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from ranks import Found, Job, Results, assert_same_bits, of, on_ranks
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

import sgdph
from distributed.sharded_runs import (
    WIDTH,
    Case,
    ConvNet,
    Optimizer,
    Transformer,
    batch,
    channelwise,
    everything,
    loss_on,
    sharded,
    sharded_run,
    train_sharded,
    train_whole,
    whole,
    whole_run,
    worst,
)
from sgdph.distributed import fully_sharded
from sgdph.integrations import fsdp

# At its first forward, torch 2.6's FSDP2 needs methods of streams that only CUDA's have.
pytestmark = [
    pytest.mark.xdist_group("fsdp"),
    pytest.mark.skipif(
        not hasattr(torch.cpu.Stream, "record_event"), reason="this FSDP2 does not run on CPUs"
    ),
]

# Rounding. A multiplier enlarges it by τ/ε = 10.
TOLERANCE = 1e-12

HUTCHINSON = (("estimator", "hutchinson"), ("seed", 3))
ALL = (("refresh", "all"), ("foreach", True))

ON_TWO = {
    "sharded": Case(steps=20),
    "ignored": Case(steps=20, ignored=True),
    "root": Case(by_block=False, max_norm=0.1),
    "root, ignored": Case(by_block=False, ignored=True, checkpointed=True),
    "kept after forward": Case(reshard_after_forward=False, micro_batches=2),
    "accumulated, ignored": Case(micro_batches=2, ignored=True, max_norm=0.1),
    "synced last": Case(micro_batches=3, sync="last"),
    "AdamW": Case(adamw=True, settings=HUTCHINSON),
    "all": Case(settings=ALL),
    "exact": Case(settings=(("estimator", "exact"), ("hessian_interval", 3))),
    "convolutions, ignored": Case(model=ConvNet, ignored=True),
}
ON_FOUR = {
    "sharded": Case(steps=20, max_norm=0.1),
    "ignored": Case(ignored=True, max_norm=0.1, micro_batches=2, sync="last"),
    "int": Case(reshard_after_forward=2),
    "checkpointed": Case(checkpointed=True, micro_batches=2),
    "convolutions": Case(model=ConvNet),
    "AdamW, ignored": Case(adamw=True, ignored=True),
    "all": Case(settings=(*HUTCHINSON, *ALL, ("hessian_momentum", 0.99))),
}


def assert_equal_to_one_process(results: Results, job: str, case: Case) -> None:
    first, *others = of(results, job)
    for other in others:
        assert_same_bits(first, other)
    expected = whole_run(case, len(results))
    weights = {name: value for name, value in expected.items() if name.startswith("weight ")}
    # These figures are in docs/distributed.md.
    print(f"{job}, {len(results)} ranks: {worst(first, weights):.1e} {worst(first, expected):.1e}")
    assert worst(first, expected) < TOLERANCE


@pytest.mark.parametrize("name", ON_TWO)
def test_two_ranks_equal_one_process(name: str, on_2: Results) -> None:
    assert_equal_to_one_process(on_2, f"run {name}", ON_TWO[name])


@pytest.mark.parametrize("name", ON_FOUR)
def test_four_ranks_equal_one_process(name: str, on_4: Results) -> None:
    assert_equal_to_one_process(on_4, f"run {name}", ON_FOUR[name])


# ---- errors, and the state after an error --------------------------------------------------------


def message_of(kind: type[Exception], call: Callable[[], Any]) -> str:
    with pytest.raises(kind) as info:
        call()
    return str(info.value)


def create_graph(model: nn.Module, optimizer: Optimizer, loss: Tensor) -> None:
    loss.backward(create_graph=True)
    optimizer.step()


def plain_backward(model: nn.Module, optimizer: Optimizer, loss: Tensor) -> None:
    loss.backward()
    optimizer.step()


WITHOUT: dict[str, Callable[[nn.Module, Optimizer, Tensor], Any]] = {
    "optimizer.backward": lambda model, optimizer, loss: optimizer.backward(loss),
    "update_hessian": lambda model, optimizer, loss: optimizer.update_hessian(loss),
    "closure": lambda model, optimizer, loss: optimizer.update_hessian(closure=lambda: loss),
    "check_curvature": lambda model, optimizer, loss: sgdph.check_curvature(
        lambda: loss, optimizer
    ),
    "hessian_block": lambda model, optimizer, loss: sgdph.hessian_block(
        loss, optimizer.newton_parameters[-1]
    ),
    "create_graph": create_graph,
    "loss.backward": plain_backward,
}


def without_integration(rank: int, *, ignored: bool) -> dict[str, str]:
    found = {}
    for name, call in WITHOUT.items():
        model, optimizer = sharded(Case(ignored=ignored))
        loss = loss_on(model, rank, 0, 0)
        found[name] = message_of(RuntimeError, lambda c=call: c(model, optimizer, loss))  # noqa: B023
    return found


@pytest.mark.parametrize("name", WITHOUT)
@pytest.mark.parametrize("ignored", [False, True])
def test_without_the_integration_an_error_names_it(name: str, ignored: bool, on_2: Results) -> None:
    for found in of(on_2, f"without, ignored {ignored}"):
        assert "sgdph.integrations.fsdp.backward(model, optimizer, loss)" in found[name]


def plain_steps_between(rank: int) -> dict[str, Any]:
    """At a step without a product ``loss.backward()`` is enough, unless parameters are ignored."""
    found: dict[str, Any] = {}
    for ignored in (False, True):
        case = Case(ignored=ignored, settings=(("hessian_interval", 2),))
        model, optimizer = sharded(case)
        train_sharded(case, model, optimizer, rank, range(1))
        optimizer.zero_grad()
        loss_on(model, rank, 1, 0).backward()
        if ignored:
            found["message"] = message_of(RuntimeError, optimizer.step)
        else:
            optimizer.step()
            found["run"] = everything(model, optimizer, [])
    return found


def test_plain_backwards_work_unless_parameters_are_ignored(on_2: Results) -> None:
    case = Case(steps=2, settings=(("hessian_interval", 2),))
    for found in of(on_2, "plain steps between"):
        assert "not averaged, so the ranks" in found["message"]
        assert worst(found["run"], whole_run(case, 2)) < TOLERANCE


def refused_models(rank: int) -> dict[str, str]:
    case = Case()
    model, optimizer = sharded(case)
    loss = loss_on(model, rank, 0, 0)
    plain = case.build()
    found = {
        "no module sharded by fully_shard": message_of(
            ValueError, lambda: fsdp.backward(plain, case.optimizer(plain), loss)
        ),
        "is not in FSDPTransformer": message_of(
            ValueError, lambda: fsdp.backward(sharded(case)[0], optimizer, loss)
        ),
        "expected the sharded model": message_of(
            TypeError, lambda: fsdp.backward(loss, optimizer, loss)
        ),
        "only these two take": message_of(
            TypeError, lambda: fsdp.backward(model, torch.optim.SGD([loss.detach()]), loss)
        ),
    }
    built_before = case.build()
    early = case.optimizer(built_before)
    case.shard(built_before)
    found["Build the optimizer after fully_shard"] = message_of(
        ValueError, lambda: fsdp.backward(built_before, early, loss)
    )
    unnamed = Case(ignored=True).build()
    stale = sgdph.SGDPH(unnamed.parameters(), lr=0.02)
    Case(ignored=True).shard(unnamed)
    found["0.0 of the optimizer is not in FSDPTransformer"] = message_of(
        ValueError, lambda: fsdp.backward(unnamed, stale, loss)
    )
    model.unshard()
    copies = case.optimizer(model)
    found["gathered copies"] = message_of(ValueError, lambda: fsdp.backward(model, copies, loss))
    alone = [DeviceMesh("cpu", [each]) for each in range(2)][rank]
    model, optimizer = sharded(case, mesh=alone)
    loss = loss_on(model, rank, 0, 0)
    found["process_group="] = message_of(ValueError, lambda: fsdp.backward(model, optimizer, loss))
    model = case.build()
    with torch.no_grad():
        model.norm.bias += rank
    model = Case(ignored=True).shard(model)
    optimizer = case.optimizer(model)
    loss = loss_on(model, rank, 0, 0)
    found["parameter norm.bias, which fully_shard ignores, differs"] = message_of(
        ValueError, lambda: fsdp.backward(model, optimizer, loss)
    )
    return found


def refused_in_several_modules(rank: int) -> dict[str, str]:
    linear = functools.partial(nn.Linear, WIDTH, WIDTH, bias=False, dtype=torch.float64)
    net = nn.Sequential(linear(), nn.LayerNorm(WIDTH, dtype=torch.float64), linear())
    x = torch.ones(2, WIDTH, dtype=torch.float64)
    for each in (net[0], net[2]):
        fully_shard(each)
    optimizer = sgdph.SGDPH(sgdph.param_groups(net), lr=0.02)
    closure = lambda: net(x).square().mean()  # noqa: E731
    message = message_of(RuntimeError, lambda: optimizer.update_hessian(closure=closure))
    found = {"the model is sharded by fully_shard": message}
    first, second = sharded(), fully_shard(nn.Sequential(nn.Linear(3, 3), nn.Tanh()).double())
    loss = second(first[0](batch(rank, 0, 0)[0])).square().mean()
    message = message_of(RuntimeError, lambda: fsdp.backward(*first, loss))
    return found | {"including those of a second network": message}


def test_a_loss_through_other_sharded_modules_raises_an_error(on_2: Results) -> None:
    for found in of(on_2, "refused, several modules"):
        for expected, message in found.items():
            assert expected in message


def test_wrong_models_and_optimizers_raise_an_error(on_2: Results) -> None:
    for found in of(on_2, "refused models"):
        for expected, message in found.items():
            assert expected in message


class Tripwire(torch.autograd.Function):
    """The identity. Once armed, it fails in a backward that makes a graph."""

    is_armed = False

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        if Tripwire.is_armed and torch.is_grad_enabled():
            raise ZeroDivisionError
        return gradient


class Mined(Transformer):
    def forward(self, x: Tensor) -> Tensor:
        x = Tripwire.apply(self.embed(x))
        for block in self.blocks:
            x = Tripwire.apply(block(x))
        return self.head(self.norm(x))


MINED = Case(model=Mined)


def after_an_error(rank: int, *, case: Case) -> dict[str, Any]:
    model, optimizer = sharded(case)
    train_sharded(case, model, optimizer, rank, range(2))
    model.blocks[0].set_reshard_after_backward(False)
    Tripwire.is_armed = True
    optimizer.zero_grad()
    loss = loss_on(model, rank, 2, 0)
    with pytest.raises(ZeroDivisionError):
        fsdp.backward(model, optimizer, loss)
    Tripwire.is_armed = False
    gathered = [n for n, p in model.named_parameters() if not isinstance(p, DTensor)]
    model.blocks[0].set_reshard_after_backward(True)
    train_sharded(case, model, optimizer, rank, range(2, case.steps))
    return {"gathered": gathered, "run": everything(model, optimizer, [])}


def test_an_error_in_the_product_leaves_nothing_behind(on_2: Results) -> None:
    for found in of(on_2, "after an error"):
        # The user wanted these weights to stay gathered.
        assert all(name.startswith("blocks.0") for name in found["gathered"])
        assert worst(found["run"], whole_run(MINED, 2)) < TOLERANCE


def settings_after(rank: int) -> list[list[bool]]:
    """The user's own settings, before and after a due step."""
    model, optimizer = sharded()
    model.blocks[1].set_reshard_after_backward(False)
    model.set_requires_gradient_sync(False)
    model.blocks[0].set_requires_gradient_sync(True)
    found = []
    for _ in range(2):
        groups = [g for m in fully_sharded.fsdp_modules(model) for g in fully_sharded._groups(m)]
        found.append([flag for g in groups for flag in (g.reshard_after_backward, g.reduce_grads)])
        fsdp.backward(model, optimizer, loss_on(model, rank, 0, 0))
    return found


def test_a_step_restores_the_user_s_fsdp_settings(on_2: Results) -> None:
    for before, after in of(on_2, "settings after"):
        assert before == after == [True, False, True, True, False, False]


# ---- scaled losses, low precision, cleared gradients ---------------------------------------------


def scaled(rank: int, *, way: str, ignored: bool) -> Found:
    """Scale the loss by powers of two, so that nothing is rounded."""
    case = Case(ignored=ignored)
    model, optimizer = sharded(case)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    for step in range(case.steps):
        optimizer.zero_grad()
        loss = loss_on(model, rank, step, 0)
        if way == "loss_scale":
            fsdp.backward(model, optimizer, 4 * loss, loss_scale=4.0)
            for p in model.parameters():
                p.grad /= 4
            optimizer.step()
        else:
            fsdp.backward(model, optimizer, scaler.scale(loss))
            scaler.step(optimizer)
            scaler.update()
    return everything(model, optimizer, [])


SCALED = [("loss_scale", False), ("loss_scale", True), ("scaler", False)]


@pytest.mark.parametrize(("way", "ignored"), SCALED)
def test_scaled_losses_equal_unscaled_ones(way: str, ignored: bool, on_2: Results) -> None:
    for found in of(on_2, f"scaled {way}, ignored {ignored}"):
        assert worst(found, whole_run(Case(), 2)) < TOLERANCE


EXACT = (("estimator", "exact"), ("refresh", "all"))
BFLOAT16 = Case(dtype=torch.float32, steps=1, settings=EXACT)


def in_bfloat16(rank: int) -> Found:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model, optimizer = sharded(BFLOAT16, mp_policy=policy)
    train_sharded(BFLOAT16, model, optimizer, rank, range(BFLOAT16.steps))
    return everything(model, optimizer, [])


def test_mixed_precision_is_near_float32(on_2: Results) -> None:
    first, second = of(on_2, "bfloat16")
    assert_same_bits(first, second)
    expected = whole_run(BFLOAT16, 2)
    for name, value in expected.items():
        if name.startswith("hessian "):
            assert first[name].dtype == torch.float32
            assert (first[name] - value).norm() < 0.03 * value.norm(), name
        if name.startswith("weight "):
            torch.testing.assert_close(first[name], value, rtol=0, atol=5e-3)


def skipped_batches(rank: int, *, ignored: bool, set_to_none: bool, micro_batches: int) -> Found:
    """Skip a batch after its backward by ``model.zero_grad``, unknown to the optimizer."""
    case = Case(ignored=ignored, steps=3)
    model, optimizer = sharded(case)
    for step in range(case.steps):
        for micro in range(micro_batches):
            fsdp.backward(model, optimizer, loss_on(model, rank, 50 + step, micro))
        model.zero_grad(set_to_none)
        fsdp.backward(model, optimizer, loss_on(model, rank, step, 0))
        optimizer.step()
        model.zero_grad(set_to_none)
    return everything(model, optimizer, [])


SKIPPED = [(False, False, 2), (False, True, 1), (True, False, 1)]


@pytest.mark.parametrize(("ignored", "set_to_none", "micro_batches"), SKIPPED)
def test_a_skipped_batch_leaves_no_curvature(
    ignored: bool, set_to_none: bool, micro_batches: int, on_4: Results
) -> None:
    for found in of(on_4, f"skipped {ignored} {set_to_none} {micro_batches}"):
        assert worst(found, whole_run(Case(steps=3), 4)) < TOLERANCE


# ---- what else users do --------------------------------------------------------------------------


class Sometimes(Transformer):
    """Only one of two ranks' losses depends on the last norm, alternately."""

    turn = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x) if self.turn % 2 else x)


SOMETIMES = Case(model=Sometimes, ignored=True, steps=4)


def train_sometimes(model: nn.Module, optimizer: Optimizer, rank: int | None) -> Found:
    for group in optimizer.param_groups:
        group["cursor"] = len(optimizer.newton_parameters) - 2
    for step in range(SOMETIMES.steps):
        optimizer.zero_grad()
        losses = []
        for each in range(2) if rank is None else [rank]:
            model.turn = each + step
            losses.append(loss_on(model, each, step, 0))
        loss = torch.stack(losses).mean()
        optimizer.backward(loss) if rank is None else fsdp.backward(model, optimizer, loss)
        optimizer.step()
    return everything(model, optimizer, [])


def unused_on_one_rank(rank: int) -> Found:
    return train_sometimes(*sharded(SOMETIMES), rank)


def test_an_ignored_parameter_may_be_unused_on_one_rank(on_2: Results) -> None:
    first, second = of(on_2, "unused on one rank")
    assert_same_bits(first, second)
    model = SOMETIMES.build()
    expected = train_sometimes(model, SOMETIMES.optimizer(model), None)
    assert worst(first, expected) < TOLERANCE


MOVED = Case(max_norm=0.1, reshard_after_forward=False)


def moved_and_evaluated(rank: int) -> Found:
    """``model.to`` replaces tensors; an evaluation leaves weights gathered."""
    model, optimizer = sharded(MOVED)
    norms = train_sharded(MOVED, model, optimizer, rank, range(2))
    for step in range(2, MOVED.steps):
        model.to("cpu")
        optimizer.zero_grad()
        fsdp.backward(model, optimizer, loss_on(model, rank, step, 0))
        with torch.no_grad():
            loss_on(model, rank, 99, 0)
        norms.append(fsdp.clip_grad_norm_(model, MOVED.max_norm))
        optimizer.step()
    return everything(model, optimizer, norms)


def test_a_model_may_be_moved_and_evaluated_between_steps(on_2: Results) -> None:
    for found in of(on_2, "moved"):
        assert worst(found, whole_run(MOVED, 2)) < TOLERANCE


def with_an_ignored_head(rank: int) -> Found:
    """First-order parameters that are not sharded."""
    case = Case(steps=3)
    model = case.build()
    ignored = channelwise(model) | set(model.head.parameters())
    model = case.shard(model, ignored_params=ignored)
    optimizer = case.optimizer(model)
    train_sharded(case, model, optimizer, rank, range(case.steps))
    return everything(model, optimizer, [])


def test_ignored_first_order_parameters_are_averaged(on_2: Results) -> None:
    for found in of(on_2, "ignored head"):
        assert worst(found, whole_run(Case(steps=3), 2)) < TOLERANCE


def twins(rank: int) -> Found:
    """Two models of one optimizer, whose parameters have the same names."""
    case = Case(ignored=True, steps=2)
    models = nn.ModuleList([case.shard(case.build()) for _ in range(2)])
    groups = [group for model in models for group in sgdph.param_groups(model)]
    optimizer = sgdph.SGDPH(groups, lr=0.02)
    for step in range(case.steps):
        optimizer.zero_grad()
        loss = sum(loss_on(model, rank, step, 0) for model in models)
        fsdp.backward(models, optimizer, loss)
        optimizer.step()
    return {name: whole(p) for name, p in models.named_parameters()}


def test_two_models_may_have_the_same_parameter_names(on_2: Results) -> None:
    first, second = of(on_2, "twins")
    assert_same_bits(first, second)


ORDERS = (1.0, 3.0, float("inf"))


def clipped_between(rank: int, *, ignored: bool) -> Found:
    """Gradients are changed in place between micro-batches, and the curvature stays."""
    model, optimizer = sharded(Case(ignored=ignored))
    for micro in range(2):
        fsdp.backward(model, optimizer, loss_on(model, rank, 0, micro))
        fsdp.clip_grad_norm_(model, 0.1)
    optimizer.step()
    return everything(model, optimizer, [])


@pytest.mark.parametrize("ignored", [False, True])
def test_clipping_between_micro_batches_keeps_the_curvature(ignored: bool, on_4: Results) -> None:
    model = Case().build()
    optimizer = Case().optimizer(model)
    for micro in range(2):
        losses = [loss_on(model, rank, 0, micro) for rank in range(4)]
        optimizer.backward(torch.stack(losses).mean())
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    for found in of(on_4, f"clipped between, ignored {ignored}"):
        assert worst(found, everything(model, optimizer, [])) < TOLERANCE


def norms_of_all_orders(rank: int) -> list[Tensor]:
    """Norms of gradients of which some ranks hold no part."""
    model, optimizer = sharded()
    fsdp.backward(model, optimizer, loss_on(model, 0, 0, 0))
    return [fsdp.clip_grad_norm_(model, 1e9, order) for order in ORDERS]


def test_gradient_norms_of_all_orders_equal_torch_s(on_4: Results) -> None:
    model = Case().build()
    loss_on(model, 0, 0, 0).backward()
    expected = [nn.utils.clip_grad_norm_(model.parameters(), 1e9, order) for order in ORDERS]
    for found in of(on_4, "norms"):
        torch.testing.assert_close(found, expected)


# ---- meshes and policies -------------------------------------------------------------------------


def on_a_mesh_of_one(rank: int) -> Found:
    """Each rank is a separate run on the same batches. The weights are still freed."""
    mesh = [DeviceMesh("cpu", [each]) for each in range(2)][rank]
    case = Case(max_norm=0.1, settings=(("process_group", mesh.get_group()),))
    model, optimizer = sharded(case, mesh=mesh)
    norms = train_sharded(case, model, optimizer, 0, range(case.steps))
    return everything(model, optimizer, norms)


def test_a_mesh_of_one_rank_trains_as_one_process(on_2: Results) -> None:
    for found in of(on_2, "mesh of one"):
        assert worst(found, whole_run(Case(max_norm=0.1), 1)) < TOLERANCE


POLICY = Case(max_norm=0.1, micro_batches=2, sync="last", steps=3)


def with_options(rank: int, *, kind: str) -> Found:
    options: dict[str, Any] = {"offload_policy": CPUOffloadPolicy(pin_memory=False)}
    if kind == "hybrid":
        names = ("replicate", "shard")
        options = {"mesh": init_device_mesh("cpu", (2, 2), mesh_dim_names=names)}
    model, optimizer = sharded(POLICY, **options)
    norms = train_sharded(POLICY, model, optimizer, rank, range(POLICY.steps))
    return everything(model, optimizer, norms)


@pytest.mark.parametrize("kind", ["hybrid", "offloaded"])
def test_hybrid_sharding_and_offloading_equal_one_process(kind: str, on_4: Results) -> None:
    assert_equal_to_one_process(on_4, kind, POLICY)


# ---- checkpoints ---------------------------------------------------------------------------------

SAVED = {
    "SGDPH": Case(),
    "AdamW": Case(adamw=True, ignored=True, settings=(*HUTCHINSON, ("hessian_interval", 2))),
}
SAVED_AT = 3


def resumable(model: nn.Module, optimizer: Optimizer, **options: Any) -> dict[str, Any]:
    weights, state = get_state_dict(model, optimizer, options=StateDictOptions(**options))
    return {"model": weights, "optimizer": state}


def saved(rank: int, *, name: str, folder: Path) -> dict[str, Any]:
    case = SAVED[name]
    model, optimizer = sharded(case)
    train_sharded(case, model, optimizer, rank, range(SAVED_AT))
    dcp.save(resumable(model, optimizer), checkpoint_id=folder / name)
    whole_state = copy.deepcopy(resumable(model, optimizer, full_state_dict=True))
    train_sharded(case, model, optimizer, rank, range(SAVED_AT, case.steps))
    run = everything(model, optimizer, [])
    return {
        "run": run,
        "again": loaded(rank, name=name, folder=folder / name, batches=rank),
        "whole": loaded(rank, name=name, folder=whole_state, batches=rank),
    }


def loaded(rank: int, *, name: str, folder: Any, batches: int | range) -> Found:
    """Load files, or a full state on each rank, into another model, and train on."""
    case = SAVED[name]
    model = case.build()
    nn.init.ones_(model.norm.bias)
    model = case.shard(model)
    optimizer = case.optimizer(model)
    load_into(model, optimizer, folder)
    train_sharded(case, model, optimizer, batches, range(SAVED_AT, case.steps))
    return everything(model, optimizer, [])


def half_loaded(rank: int, *, name: str, folder: Path) -> Found:
    return loaded(rank, name=name, folder=folder, batches=range(2 * rank, 2 * rank + 2))


def load_into(model: nn.Module, optimizer: Optimizer, source: Any) -> None:
    state, options = source, StateDictOptions(full_state_dict=not isinstance(source, Path))
    if isinstance(source, Path):
        state = resumable(model, optimizer)
        dcp.load(state, checkpoint_id=source)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=options,
    )


@pytest.mark.parametrize("name", SAVED)
def test_the_same_number_of_ranks_resumes_bit_for_bit(name: str, on_4: Results) -> None:
    for found in of(on_4, f"saved {name}"):
        assert_same_bits(found["run"], found["again"])
        assert_same_bits(found["run"], found["whole"])
        assert worst(found["run"], whole_run(SAVED[name], 4)) < TOLERANCE


@pytest.mark.parametrize("name", SAVED)
def test_fewer_ranks_resume_the_run(name: str, on_2: Results) -> None:
    for found in of(on_2, f"loaded {name}"):
        assert worst(found, whole_run(SAVED[name], 4)) < TOLERANCE


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("name", SAVED)
def test_one_process_resumes_the_run(name: str, on_4: Results, checkpoints: Path) -> None:
    case = SAVED[name]
    model = case.build()
    optimizer = case.optimizer(model)
    load_into(model, optimizer, checkpoints / name)
    train_whole(case, model, optimizer, 4, range(SAVED_AT, case.steps))
    assert worst(everything(model, optimizer, []), whole_run(case, 4)) < TOLERANCE


# ---- all jobs, in one start of the processes -----------------------------------------------------


JOBS_OF_TWO: dict[str, Job] = {
    **{f"run {name}": functools.partial(sharded_run, case=case) for name, case in ON_TWO.items()},
    "without, ignored False": functools.partial(without_integration, ignored=False),
    "without, ignored True": functools.partial(without_integration, ignored=True),
    "plain steps between": plain_steps_between,
    "refused models": refused_models,
    "refused, several modules": refused_in_several_modules,
    "unused on one rank": unused_on_one_rank,
    "moved": moved_and_evaluated,
    "twins": twins,
    "ignored head": with_an_ignored_head,
    "after an error": functools.partial(after_an_error, case=MINED),
    "settings after": settings_after,
    "bfloat16": in_bfloat16,
    "mesh of one": on_a_mesh_of_one,
    **{
        f"scaled {way}, ignored {ignored}": functools.partial(scaled, way=way, ignored=ignored)
        for way, ignored in SCALED
    },
}


JOBS_OF_FOUR: dict[str, Job] = {
    **{f"run {name}": functools.partial(sharded_run, case=case) for name, case in ON_FOUR.items()},
    "norms": norms_of_all_orders,
    "clipped between, ignored False": functools.partial(clipped_between, ignored=False),
    "clipped between, ignored True": functools.partial(clipped_between, ignored=True),
    "hybrid": functools.partial(with_options, kind="hybrid"),
    "offloaded": functools.partial(with_options, kind="offloaded"),
    **{
        f"skipped {a} {b} {c}": functools.partial(
            skipped_batches, ignored=a, set_to_none=b, micro_batches=c
        )
        for a, b, c in SKIPPED
    },
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def on_2(on_4: Results, checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    loads: dict[str, Job] = {
        f"loaded {name}": functools.partial(half_loaded, name=name, folder=checkpoints / name)
        for name in SAVED
    }
    return on_ranks({**JOBS_OF_TWO, **loads}, 2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def on_4(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    saves: dict[str, Job] = {
        f"saved {name}": functools.partial(saved, name=name, folder=checkpoints) for name in SAVED
    }
    return on_ranks({**JOBS_OF_FOUR, **saves}, 4, tmp_path_factory.mktemp("four"))
