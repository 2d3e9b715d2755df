"""Bad input and impossible steps raise errors that say what was given and what to do."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from small import WAYS, assert_same_bits, bn_net, by_update, loss_of, train
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts
from user_warnings import warns_here

import sgdph


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "lr must be at least 0"),
        ({"lr": float("nan")}, "lr must be at least 0"),
        ({"lr": torch.ones(2)}, "one element"),
        ({"momentum": -0.1}, "momentum"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"second_order_lr": -1e-3}, "second_order_lr"),
        ({"hessian_momentum": 1.0}, r"hessian_momentum must lie in \[0, 1\), got 1.0"),
        ({"eps": 0.0}, "eps must be above 0"),
        ({"estimator": "fisher"}, "row_sum, hutchinson, exact, got 'fisher'"),
        ({"refresh": "some"}, "cyclic, all, got 'some'"),
        ({"hessian_interval": 0}, "hessian_interval"),
        ({"hessian_interval": 1.5}, "hessian_interval"),
        ({"seed": "x"}, "seed"),
        ({"lr": None}, "lr must be a number, got None"),
        ({"lr": "0.1"}, r"lr must be a number, got '0.1' \(str\)"),
        ({"momentum": (0.9, 0.99)}, r"momentum must be a number, got \(0.9, 0.99\) \(tuple\)"),
        ({"momentum": torch.ones(2)}, "momentum as a tensor must have one element"),
        ({"weight_decay": "none"}, "weight_decay must be a number"),
        ({"second_order_lr": None}, "second_order_lr must be a number"),
        ({"hessian_momentum": [0.9]}, "hessian_momentum must be a number"),
        ({"eps": None}, "eps must be a number"),
        ({"eps": 1e-4j}, "eps must be a number"),
        ({"estimator": None}, "estimator must be one of"),
        ({"refresh": ["all"]}, "refresh must be one of"),
        ({"hessian_interval": None}, "hessian_interval must be a whole number"),
        ({"maximize": "no"}, "maximize must be True or False, got 'no'"),
        ({"maximize": None}, "maximize must be True or False, got None"),
        ({"eps_warmup": None}, "eps_warmup must be True or False, got None"),
        ({"foreach": "yes"}, r"foreach must be True, False, or None \(where it is faster\)"),
    ],
)
def test_bad_hyperparameters_raise_value_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sgdph.SGDPH(bn_net().parameters(), **settings)
    name = next(iter(settings))
    with pytest.raises(ValueError, match=message):
        sgdph.SGDPH([{"params": list(bn_net().parameters()), name: settings[name]}])


@pytest.mark.parametrize(
    ("name", "value"),
    [("estimator", "exact"), ("refresh", "all"), ("hessian_interval", 2)],
)
def test_settings_that_differ_between_groups_raise_value_error(name: str, value: object) -> None:
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    groups = [{"params": a.parameters()}, {"params": b.parameters(), name: value}]
    with pytest.raises(ValueError, match=f"{name} must be the same in all groups"):
        sgdph.SGDPH(groups)
    optimizer = sgdph.SGDPH(a.parameters())
    with pytest.raises(ValueError, match=f"{name} must be the same in all groups"):
        optimizer.add_param_group({"params": b.parameters(), name: value})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": b.parameters()})
    optimizer.param_groups[1][name] = value
    with pytest.raises(ValueError, match=f"{name} must be the same in all groups"):
        optimizer.step()


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), torch.tensor(0.5), 1])
def test_numbers_of_numpy_and_torch_are_accepted(number: Any) -> None:
    sgdph.SGDPH(bn_net().parameters(), lr=number, eps=number, maximize=np.bool_(True))


def test_a_model_in_place_of_parameters_raises_an_error() -> None:
    model = bn_net()
    for build in (
        sgdph.SGDPH,
        partial(sgdph.PartialHessian, torch.optim.AdamW(model.parameters())),
    ):
        with pytest.raises(TypeError, match=r"got a model \(Sequential\); pass sgdph.param_groups"):
            build(model)  # type: ignore[arg-type]
        build(nn.ParameterList(model.parameters()))


def test_a_group_that_raises_an_error_is_not_added() -> None:
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = sgdph.SGDPH(a.parameters())
    with pytest.raises(TypeError):
        optimizer.add_param_group({"params": b.parameters(), "lr": "high"})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("named", [True, False])
def test_a_set_of_parameters_raises_type_error(named: bool) -> None:
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = sgdph.SGDPH(a.named_parameters() if named else a.parameters())
    with pytest.raises(TypeError, match="ordered collections"):
        optimizer.add_param_group({"params": set(b.parameters())})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("loss_scale", [0, -1.0, float("nan"), float("inf")])
def test_a_bad_loss_scale_in_step_raises_value_error(loss_scale: float) -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    loss_of(model).backward(create_graph=True)
    with pytest.raises(ValueError, match="loss_scale must be above 0 and finite"):
        optimizer.step(loss_scale=loss_scale)
    assert optimizer.param_groups[0]["step"] == 0
    optimizer.step(loss_scale=2.0)


def test_a_bad_channelwise_flag_raises_value_error() -> None:
    with pytest.raises(ValueError, match="channelwise must be True, False, or None"):
        sgdph.SGDPH([{"params": bn_net().parameters(), "channelwise": "yes"}])


@pytest.mark.parametrize("way", WAYS)
def test_a_due_step_without_curvature_raises_an_error(way: str) -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    loss_of(model).backward()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError) as error:
        optimizer.step()
    for words in ("optimizer.backward(loss)", "update_hessian(loss)", "create_graph=True"):
        assert words in str(error.value)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert optimizer.param_groups[0]["step"] == 0
    # The optimizer still works.
    train(model, optimizer, range(2), WAYS[way])


def test_a_step_that_is_not_due_needs_no_curvature() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters(), hessian_interval=2)
    train(model, optimizer, range(1))
    assert not optimizer.hessian_due
    loss_of(model).backward()
    optimizer.step()
    assert optimizer.hessian_due


def test_update_hessian_does_nothing_if_the_step_is_not_due() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters(), hessian_interval=2)
    train(model, optimizer, range(1))
    optimizer.update_hessian(torch.zeros(3))


def test_gradients_may_have_another_dtype_than_their_parameter() -> None:
    parameters = [nn.Parameter(torch.full((3,), 0.5, dtype=torch.bfloat16)) for _ in range(2)]
    if not hasattr(parameters[0], "grad_dtype"):
        pytest.skip("this torch has no grad_dtype")
    p, q = parameters
    # The multiplier is 1 until the first refresh, which comes too late here.
    optimizer = sgdph.SGDPH([{"params": [p], "channelwise": True}], lr=0.1, hessian_interval=9)
    optimizer.param_groups[0]["step"] = 1
    sgd = torch.optim.SGD([q], lr=0.1, momentum=0.9)
    for _ in range(3):
        for each, stepped in ((p, optimizer), (q, sgd)):
            stepped.zero_grad()
            each.grad_dtype = torch.float32
            each.float().pow(3).sum().backward()
            stepped.step()
            stepped.load_state_dict(stepped.state_dict())
    assert p.grad is not None
    assert p.grad.dtype == torch.float32
    torch.testing.assert_close(p, q)


def test_step_without_any_gradient_does_nothing() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    optimizer.step()
    assert optimizer.state_dict()["state"] == {}
    assert optimizer.param_groups[0]["step"] == 0
    assert optimizer.hessian_due


def test_without_channelwise_parameters_it_equals_sgd() -> None:
    model = nn.Linear(4, 3, bias=False)
    twin = copy.deepcopy(model)
    optimizer = sgdph.SGDPH(model.parameters(), lr=0.1)
    sgd = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    assert not optimizer.hessian_due
    for _ in range(5):
        for net, one in ((model, optimizer), (twin, sgd)):
            one.zero_grad()
            loss = net(torch.ones(2, 4)).square().mean()
            optimizer.update_hessian(loss)
            loss.backward()
            one.step()
    assert_same_bits(model, twin)
    assert optimizer.multipliers() == {}


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (1.5, TypeError, "must be a tensor, got float"),
        (torch.ones(3, requires_grad=True), ValueError, r"shape \(3,\).*\.mean\(\)"),
        (torch.ones((), dtype=torch.cfloat, requires_grad=True), ValueError, "real scalar"),
        (torch.ones(()), RuntimeError, "no graph"),
    ],
)
def test_bad_losses_raise_errors(loss: Any, error: type[Exception], message: str) -> None:
    optimizer = sgdph.SGDPH(bn_net().parameters())
    for take in (optimizer.update_hessian, optimizer.backward):
        with pytest.raises(error, match=message):
            take(loss)


def test_a_loss_of_shape_one_is_accepted() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    optimizer.backward(loss_of(model).reshape(1))
    optimizer.step()


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_bad_loss_scale_in_update_hessian_raises_value_error(scale: float) -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    with pytest.raises(ValueError, match="loss_scale must be above 0"):
        optimizer.update_hessian(loss_of(model), loss_scale=scale)


def test_the_loss_of_another_model_raises_an_error() -> None:
    optimizer = sgdph.SGDPH(bn_net().parameters())
    with pytest.raises(RuntimeError, match="none of this optimizer's parameters"):
        optimizer.update_hessian(loss_of(bn_net(seed=1)))


def test_a_loss_that_does_not_depend_on_the_next_parameter_skips_it() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    optimizer.update_hessian(model[4].weight.square().sum())
    model[4].weight.square().sum().backward()
    optimizer.step()
    assert optimizer.param_groups[0]["cursor"] == 1
    assert "hessian" not in optimizer.state.get(model[0].bias, {})
    # The same holds with gradients that are zero instead of absent.
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    by_update(optimizer, model[4].weight.square().sum())
    optimizer.step()
    assert optimizer.param_groups[0]["cursor"] == 2
    assert "hessian" not in optimizer.state[model[1].weight]


def test_loss_that_is_linear_in_the_parameter_has_no_curvature() -> None:
    for feed in WAYS.values():
        a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
        optimizer = sgdph.SGDPH([a, b], lr=0.1)
        feed(optimizer, (2 * a).sum() + b.square().sum())
        optimizer.step()
        assert torch.equal(optimizer.state[a]["hessian"], torch.zeros(3))
        assert optimizer.state[a]["refreshes"].item() == 1
        torch.testing.assert_close(a.detach(), torch.full((3,), 1 - 0.1 * 10 * 2.0))


@pytest.mark.parametrize("way", WAYS)
def test_non_finite_curvature_never_enters_the_average(way: str) -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters(), refresh="all")
    train(model, optimizer, range(3), WAYS[way])
    weights = copy.deepcopy(model.state_dict())
    states = {p: copy.deepcopy(optimizer.state[p]) for p in (model[1].weight, model[1].bias)}
    optimizer.zero_grad()
    WAYS[way](optimizer, loss_of(model) * float("inf"))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)  # the effect of bad gradients is not tested here
    optimizer.step()
    for p, state in states.items():
        assert torch.equal(optimizer.state[p]["hessian"], state["hessian"])
        assert torch.equal(optimizer.state[p]["refreshes"], state["refreshes"])
    assert optimizer.param_groups[0]["step"] == 4
    model.load_state_dict(weights)
    train(model, optimizer, range(4, 6), WAYS[way])
    assert all(p.isfinite().all() for p in model.parameters())


def test_non_finite_curvature_at_the_first_refresh_gives_a_plain_step() -> None:
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = sgdph.SGDPH([a, b], lr=0.1)
    optimizer.update_hessian((a.square() * float("nan")).sum())
    (a.sum() + b.sum()).backward()
    optimizer.step()
    assert optimizer.state[a]["refreshes"].item() == 0
    torch.testing.assert_close(a.detach(), torch.full((3,), 0.9))
    assert optimizer.param_groups[0]["cursor"] == 0  # one Newton parameter: it is also the next one


def test_sparse_and_complex_parameters() -> None:
    sparse = torch.eye(3).to_sparse().requires_grad_()
    with pytest.raises(ValueError, match=r"layout torch.sparse_coo"):
        sgdph.SGDPH([sparse])
    phase = nn.Parameter(torch.ones(3, dtype=torch.cfloat))
    with pytest.raises(ValueError, match=r"complex.*channelwise=False"):
        sgdph.SGDPH([{"params": [phase], "channelwise": True}])
    twin = nn.Parameter(phase.detach().clone())
    optimizer, sgd = sgdph.SGDPH([phase], lr=0.1), torch.optim.SGD([twin], lr=0.1, momentum=0.9)
    for _ in range(3):
        for p, one in ((phase, optimizer), (twin, sgd)):
            one.zero_grad()
            p.abs().square().sum().backward()
            one.step()
    assert torch.equal(phase, twin)


@pytest.mark.parametrize("lr", [0.0, 0.01])
def test_sparse_gradient_of_a_channelwise_parameter_raises_an_error(lr: float) -> None:
    table = nn.Embedding(5, 1, sparse=True)
    optimizer = sgdph.SGDPH([{"params": table.parameters(), "channelwise": True, "lr": lr}])
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match=r"0.0 is channel-wise and has a sparse gradient"):
        optimizer.step()


class WithBiasTables(nn.Module):
    """A recommender with a bias for each user and item, in tables of one column."""

    def __init__(self) -> None:
        super().__init__()
        self.users = nn.Embedding(5, 1, sparse=True)
        self.items = nn.Embedding(4, 1, sparse=True)
        self.head = nn.Linear(3, 1)

    def loss(self) -> Tensor:
        ids = torch.tensor([1, 2])
        biases = self.users(ids) + self.items(ids)
        loss: Tensor = (self.head(torch.ones(2, 3)) + biases).square().mean()
        return loss


@pytest.mark.parametrize("estimator", ["row_sum", "hutchinson", "exact"])
@pytest.mark.parametrize("way", ["closure", *WAYS])
def test_the_sparse_gradient_error_names_parameter_and_workaround(way: str, estimator: Any) -> None:
    model = WithBiasTables()
    optimizer = sgdph.SGDPH(model.named_parameters(), estimator=estimator)

    def take() -> None:
        if way == "closure":
            optimizer.update_hessian(closure=model.loss)
        else:
            WAYS[way](optimizer, model.loss())
        if way == "create_graph":
            optimizer.step()

    with pytest.raises(RuntimeError, match=r"users\.weight is channel-wise.*sparse=False"):
        take()


class OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * 2


@pytest.mark.parametrize("way", WAYS)
def test_a_once_differentiable_function_raises_an_error(way: str) -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())

    def step() -> None:
        x = OnceDifferentiable.apply(model[:2](torch.randn(4, 1, 6, 6)))
        WAYS[way](optimizer, model[2:](x).square().mean())
        optimizer.step()

    with pytest.raises(RuntimeError, match=r"once_differentiable.*channelwise=False"):
        step()


def saving_convolutions() -> Any:
    return create_selective_checkpoint_contexts([torch.ops.aten.convolution.default])


UNSUITABLE_CHECKPOINTS: dict[str, dict[str, Any]] = {
    "use_reentrant=False": {"use_reentrant": True},
    "leave out context_fn.*closure": {"use_reentrant": False, "context_fn": saving_convolutions},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("advice", UNSUITABLE_CHECKPOINTS)
def test_unsuitable_checkpointing_raises_an_error(advice: str, way: str) -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())

    def step(**kwargs: Any) -> None:
        x = torch.randn(4, 1, 6, 6, requires_grad=True)
        x = checkpoint(model[:3], x, **kwargs)
        WAYS[way](optimizer, functional.cross_entropy(model[3:](x), torch.zeros(4).long()))
        optimizer.step()

    with pytest.raises(RuntimeError, match=advice):
        step(**UNSUITABLE_CHECKPOINTS[advice])
    optimizer.zero_grad()
    step(use_reentrant=False)


def test_update_hessian_after_backward_raises_an_error() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    loss = loss_of(model)
    loss.backward()
    with pytest.raises(RuntimeError, match=r"update_hessian\(loss\) before loss\.backward\(\)"):
        optimizer.update_hessian(loss)


def two_losses() -> tuple[nn.Sequential, Tensor, Tensor]:
    model = bn_net()
    h = model[:3](torch.randn(4, 1, 6, 6, generator=torch.Generator().manual_seed(0)))
    first = functional.cross_entropy(model[3:](h), torch.zeros(4).long())
    return model, first, h.square().mean()


def test_a_second_backward_over_one_graph_raises_an_error() -> None:
    model, first, second = two_losses()
    optimizer = sgdph.SGDPH(model.parameters(), refresh="all")
    optimizer.backward(first)
    with pytest.raises(RuntimeError, match=r"sum to optimizer\.backward.*retain_graph=True"):
        optimizer.backward(second)

    # What the error recommends works.
    averages = []
    for summed in (True, False):
        model, first, second = two_losses()
        optimizer = sgdph.SGDPH(model.parameters(), refresh="all")
        if summed:
            optimizer.backward(first + second)
        else:
            for loss in (first, second):
                optimizer.update_hessian(loss)
                loss.backward(retain_graph=True)
        optimizer.step()
        newton = [p for p in model[:3].parameters() if p.ndim == 1]
        averages.append([optimizer.state[p]["hessian"] for p in newton])
    for a, b in zip(*averages, strict=True):
        torch.testing.assert_close(a, b)


def test_stepping_another_optimizer_first_raises_an_error() -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(list(model[:3].parameters()))
    other = torch.optim.SGD(model[3:].parameters(), lr=0.1)
    loss_of(model).backward(create_graph=True)
    other.step()
    with pytest.raises(RuntimeError, match=r"Step SGDPH before the other.*optimizer\.backward"):
        optimizer.step()
    optimizer.zero_grad()
    other.zero_grad()
    loss_of(model).backward(create_graph=True)
    optimizer.step()
    other.step()


@pytest.mark.parametrize(
    ("torch_says", "way_out"),
    [
        ("torch.compile with aot_autograd does not currently support double backward", "stance"),
        ("This backward function was compiled with non-empty donated buffers", "stance"),
        ("derivative for aten::_cudnn_rnn_backward is not implemented", "cudnn.flags"),
        (
            "derivative for aten::_flash_attention_backward is not implemented",
            "use torch.nn.functional.scaled_dot_product_attention",
        ),
        (
            "derivative for aten::_scaled_dot_product_fused_attention_overrideable_backward is not "
            "implemented",
            "SDPBackend.MATH",
        ),
        (
            "Trying to backward through flash_attn._flash_attn_backward.default but no autograd "
            "formula was registered.",
            "use torch.nn.functional.scaled_dot_product_attention",
        ),
        ("derivative for aten::batch_norm_backward_reduce is not implemented", "GroupNorm"),
        ("batch_norm does not support 3rd+ order derivatives.", "channelwise=False"),
        ("batch_norm does not support 3rd+ order derivatives.", "third derivative"),
        ("double backwards on ps_roi_align not supported", "channelwise=False"),
    ],
)
def test_errors_of_kernels_on_other_machines_name_a_workaround(
    torch_says: str, way_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This machine may lack these kernels: torch's message is faked, ours adds a workaround."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError(torch_says)

    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    loss = loss_of(model)
    monkeypatch.setattr(torch.autograd, "grad", refuse)
    with pytest.raises(RuntimeError, match=way_out) as error:
        optimizer.update_hessian(loss)
    assert torch_says in str(error.value)


def test_other_errors_are_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    loss = loss_of(model)

    def run_out(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.autograd, "grad", run_out)
    with pytest.raises(torch.OutOfMemoryError, match=r"^CUDA out of memory$"):
        optimizer.update_hessian(loss)


def test_capture_in_a_cuda_graph_raises_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = bn_net()
    optimizer = sgdph.SGDPH(model.parameters())
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="CUDA graph"):
        optimizer.update_hessian(loss_of(model))
    with pytest.raises(RuntimeError, match="CUDA graph"):
        optimizer.step()


def test_joint_hutchinson_warns_of_its_noise() -> None:
    settings: dict[str, Any] = {"estimator": "hutchinson", "refresh": "all"}
    with warns_here(r"hessian_momentum=0\.9 .*0\.99"):
        sgdph.SGDPH(bn_net().parameters(), **settings)
    with warns_here("0.97"):
        sgdph.SGDPH(
            [{"params": bn_net().parameters(), "hessian_momentum": 0.97}],
            hessian_momentum=0.99,
            **settings,
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sgdph.SGDPH(bn_net().parameters(), hessian_momentum=0.98, **settings)
        sgdph.SGDPH(bn_net().parameters(), estimator="hutchinson")
        sgdph.SGDPH(bn_net().parameters(), refresh="all")
