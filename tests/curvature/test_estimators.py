"""Each estimator's partial Hessian against dense float64 blocks, and the probes it uses."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference.algorithm1 import dense_hessian
from reference.drive import WAYS, package_probe, state_of
from reference.nets import batches, build, loss_of
from small import WAYS as CALLS
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from user_warnings import warns_here

import sgdph
from sgdph.curvature.estimators import curvature_of_gradients, is_one_product, products_per_block
from sgdph.curvature.finite_difference import curvature_of_differences
from sgdph.names import ESTIMATORS, Estimator
from sgdph.validation import is_stochastic

NETS = [
    "bn_resnet",
    "conv_bias",
    "layer_norm_mlp",
    "group_norm",
    "instance_norm",
    "weight_norm",
    "rms_norm",
]
BETA2 = 0.75

pytestmark = pytest.mark.filterwarnings("ignore:estimator=.hutchinson. with refresh=.all.")


def newton_of(model: nn.Module) -> list[nn.Parameter]:
    """The channel-wise parameters without the last one."""
    return [p for p in model.parameters() if p.ndim and p.numel() == p.shape[0]][:-1]


@functools.cache
def dense_blocks(net: str) -> list[Tensor]:
    """The Hessian block of each Newton parameter on the first batch."""
    model = build(net)
    newton = newton_of(model)
    grads = torch.autograd.grad(loss_of(model, batches(net)[0]), newton, create_graph=True)
    return [dense_hessian([g], [p]) for g, p in zip(grads, newton, strict=True)]


@functools.cache
def joint_block(net: str) -> Tensor:
    """The Hessian over all Newton parameters together."""
    model = build(net)
    newton = newton_of(model)
    grads = torch.autograd.grad(loss_of(model, batches(net)[0]), newton, create_graph=True)
    return dense_hessian(grads, newton)


def curvatures(
    net: str,
    *,
    way: str = "update_hessian",
    steps: int | None = None,
    scale: float = 1.0,
    micro: int = 1,
    **settings: object,
) -> list[tuple[Tensor, int]]:
    """Return each Newton parameter's curvature, ``D / (1 - beta2)``, and its refresh count.

    The learning rate is 0, so that a whole cycle uses the same weights.
    """
    model = build(net)
    newton = newton_of(model)
    optimizer = sgdph.SGDPH(model.parameters(), lr=0.0, hessian_momentum=BETA2, **settings)
    for _ in range(len(newton) if steps is None else steps):
        optimizer.zero_grad()
        for _ in range(micro):
            WAYS[way](optimizer, loss_of(model, batches(net)[0]) * scale, scale)
        optimizer.step()
    found = []
    for p in newton:
        state = state_of(optimizer, p)
        assert state["hessian"].shape == p.shape
        found.append((state["hessian"] / (1 - BETA2), int(state["refreshes"])))
    return found


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(
        actual.double(), expected.reshape(actual.shape), rtol=1e-9, atol=1e-12
    )


def signed_or_not(estimator: str, block: Tensor, z: Tensor) -> Tensor:
    if estimator == "row_sum":
        return block.sum(dim=1).abs()
    if estimator == "exact":
        return block.diagonal().abs()
    return z * (block @ z)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("net", NETS)
def test_cyclic_refreshes_equal_dense_blocks(net: str, estimator: str, way: str) -> None:
    blocks = dense_blocks(net)
    found = curvatures(net, way=way, estimator=estimator)
    for k, ((h, visits), block) in enumerate(zip(found, blocks, strict=True)):
        assert visits == 1
        z = package_probe()(0, k, h.shape).flatten()
        assert_close(h, signed_or_not(estimator, block, z))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("estimator", ["row_sum", "exact"])
@pytest.mark.parametrize("net", NETS)
def test_a_refresh_of_all_equals_dense_blocks(net: str, estimator: str, way: str) -> None:
    found = curvatures(net, way=way, estimator=estimator, refresh="all", steps=1)
    for (h, visits), block in zip(found, dense_blocks(net), strict=True):
        assert visits == 1
        assert_close(h, signed_or_not(estimator, block, block[0]))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("net", NETS)
def test_joint_hutchinson_equals_the_joint_block(net: str, way: str) -> None:
    found = curvatures(net, way=way, estimator="hutchinson", refresh="all", steps=1)
    z = torch.cat([package_probe()(0, k, h.shape).flatten() for k, (h, _) in enumerate(found)])
    expected = (z * (joint_block(net) @ z)).split([h.numel() for h, _ in found])
    for (h, visits), e in zip(found, expected, strict=True):
        assert visits == 1
        assert_close(h, e)


def test_weight_norm_lengths_are_newton_parameters() -> None:
    # torch keeps g as (C, 1, 1, 1): not a vector, but one number per channel. It registers the
    # bias of a weight-normalised head before g, so by shape alone g is the last one.
    shapes = [tuple(p.shape) for p in newton_of(build("weight_norm"))]
    assert shapes == [(3,), (3, 1, 1, 1), (4,), (4, 1, 1, 1), (3,)]


@pytest.mark.parametrize("estimator", ["row_sum", "exact"])
def test_the_running_average_of_equal_curvatures_is_exact(estimator: str) -> None:
    steps = 3
    found = curvatures("group_norm", estimator=estimator, refresh="all", steps=steps)
    for (scaled, visits), block in zip(found, dense_blocks("group_norm"), strict=True):
        assert visits == steps
        average = scaled * (1 - BETA2)
        expected = signed_or_not(estimator, block, block[0]) * (1 - BETA2**steps)
        assert_close(average, expected)


@pytest.mark.parametrize("refresh", ["cyclic", "all"])
def test_hutchinson_averages_signed_values(refresh: str) -> None:
    net, rounds = "bn_resnet", 6
    count = len(dense_blocks(net))
    steps = rounds if refresh == "all" else rounds * count
    found = curvatures(net, estimator="hutchinson", refresh=refresh, steps=steps)
    sizes = [h.numel() for h, _ in found]
    averages = [torch.zeros(n, dtype=torch.float64) for n in sizes]
    changes_sign = False
    for r in range(steps):
        turn = range(count) if refresh == "all" else [r % count]
        visit = r if refresh == "all" else r // count
        z = [package_probe()(visit, k, torch.Size([sizes[k]])) for k in turn]
        if refresh == "all":
            joint = torch.cat(z)
            h = list((joint * (joint_block(net) @ joint)).split(sizes))
        else:
            h = [z[0] * (dense_blocks(net)[turn[0]] @ z[0])]
        for k, new in zip(turn, h, strict=True):
            changes_sign |= bool((averages[k] * new < 0).any())
            averages[k] = BETA2 * averages[k] + (1 - BETA2) * new
    assert changes_sign  # otherwise signed and unsigned averages would be equal
    for (scaled, visits), expected in zip(found, averages, strict=True):
        assert visits == rounds
        assert_close(scaled * (1 - BETA2), expected)


def test_blocks_are_not_diagonal() -> None:
    # The paper says that they are. Later layers mix the channels, so they are not.
    shares = []
    for block in dense_blocks("bn_resnet"):
        off_diagonal = block - block.diagonal().diag()
        shares.append(float(off_diagonal.norm() / block.norm()))
    assert min(shares) > 0.1
    assert sorted(shares)[1] > 0.2  # all blocks but one
    assert max(shares) > 0.7


def test_row_sum_is_not_the_diagonal() -> None:
    for block in dense_blocks("bn_resnet")[:-2]:
        assert not torch.allclose(block.sum(dim=1).abs(), block.diagonal().abs(), rtol=0.05)


@pytest.mark.parametrize("way", WAYS)
def test_a_softmax_bias_has_row_sum_zero(way: str) -> None:
    # Shifting every logit changes nothing: this is why the last parameter stays first-order.
    model = build("conv_bias")
    *others, bias = model.parameters()
    groups = [
        {"params": others, "channelwise": False},
        {"params": [bias], "channelwise": True},
    ]
    optimizer = sgdph.SGDPH(groups)
    WAYS[way](optimizer, loss_of(model, batches("conv_bias")[0]))
    optimizer.step()
    state = state_of(optimizer, bias)
    assert float(state["refreshes"]) == 1
    assert state["hessian"].abs().max() < 1e-15


@pytest.mark.parametrize("way", ["update_hessian", "backward"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("refresh", ["cyclic", "all"])
def test_curvature_is_divided_by_the_loss_scale(refresh: str, estimator: str, way: str) -> None:
    settings = {"estimator": estimator, "refresh": refresh, "way": way}
    plain = curvatures("layer_norm_mlp", **settings)
    for scale in (1024.0, 0.3):
        scaled = curvatures("layer_norm_mlp", scale=scale, **settings)
        for (h, _), (expected, _) in zip(scaled, plain, strict=True):
            assert_close(h, expected)


def test_loss_scale_may_come_from_a_gradient_scaler() -> None:
    plain = curvatures("layer_norm_mlp")
    scale = float(torch.amp.GradScaler("cpu", init_scale=512.0).get_scale())
    for (h, _), (expected, _) in zip(curvatures("layer_norm_mlp", scale=scale), plain, strict=True):
        assert_close(h, expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("refresh", ["cyclic", "all"])
def test_micro_batches_share_the_probe_and_add_up(refresh: str, estimator: str, way: str) -> None:
    # Three times the same batch: with one probe the sum is three times one product.
    settings = {"estimator": estimator, "refresh": refresh, "way": way}
    once = curvatures("layer_norm_mlp", **settings)
    thrice = curvatures("layer_norm_mlp", micro=3, **settings)
    for (h, _), (expected, _) in zip(thrice, once, strict=True):
        assert_close(h, 3 * expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_micro_batches_add_up_signed_values(estimator: str, way: str) -> None:
    # A loss and its negative have no curvature together; their absolute values would have.
    model = build("layer_norm_mlp")
    optimizer = sgdph.SGDPH(model.parameters(), estimator=estimator, refresh="all")
    batch = batches("layer_norm_mlp")[0]
    WAYS[way](optimizer, loss_of(model, batch))
    WAYS[way](optimizer, -loss_of(model, batch))
    optimizer.step()
    for p in newton_of(model):
        assert state_of(optimizer, p)["hessian"].abs().max() < 1e-15


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("refresh", ["cyclic", "all"])
def test_the_global_generator_is_unchanged(refresh: str, way: str) -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    curvatures("layer_norm_mlp", estimator="hutchinson", refresh=refresh, way=way)
    assert torch.equal(torch.get_rng_state(), before)


def test_probes_do_not_depend_on_the_global_generator() -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(curvatures("layer_norm_mlp", estimator="hutchinson"))
    for (h, _), (other, _) in zip(*found, strict=True):
        assert torch.equal(h, other)


def test_before_a_layer_norm_a_residual_bias_has_row_sum_zero() -> None:
    # Layer norm removes the mean over channels, so one number added to all of them has no effect.
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True)
    model = nn.Sequential(layer, nn.LayerNorm(8), nn.Linear(8, 5)).double()
    with sdpa_kernel(SDPBackend.MATH):
        logits = model(torch.randn(4, 6, 8, dtype=torch.float64)).flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, torch.randint(5, (24,)))
        for p in (layer.self_attn.out_proj.bias, layer.linear2.bias):
            block = sgdph.hessian_block(loss, p)
            assert block.sum(1).abs().max() < 1e-12
            assert block.diagonal().abs().min() > 1e-5
        assert sgdph.hessian_block(loss, layer.linear1.bias).sum(1).abs().max() > 1e-5


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "permuted": lambda t: t.transpose(0, -1).contiguous().transpose(0, -1),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
}


def closure_way(optimizer: sgdph.SGDPH, loss: Callable[[], Tensor]) -> None:
    optimizer.update_hessian(closure=loss)
    loss().backward()


@pytest.mark.parametrize("way", [*WAYS, "closure"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout_gives_the_exact_curvature(layout: str, estimator: str, way: str) -> None:
    torch.manual_seed(0)
    p = nn.Parameter(LAYOUTS[layout](torch.rand(3, 2, 2, 2, dtype=torch.float64)))
    assert p.is_contiguous() == (layout == "contiguous")
    n = p.numel()
    mixing = torch.randn(n, n, dtype=torch.float64)

    def loss() -> Tensor:
        return (mixing @ p.flatten()).sin().sum()

    block = torch.autograd.functional.hessian(
        lambda flat: (mixing @ flat).sin().sum(), p.detach().flatten()
    )
    groups = [{"params": [p], "channelwise": True}]
    optimizer = sgdph.SGDPH(groups, lr=0.0, hessian_momentum=BETA2, estimator=estimator)
    if way == "closure":
        closure_way(optimizer, loss)
    else:
        WAYS[way](optimizer, loss(), 1.0)
    optimizer.step()
    h = optimizer.state[p]["hessian"] / (1 - BETA2)
    z = package_probe()(0, 0, p.shape).flatten()
    expected = signed_or_not(estimator, block, z).reshape(p.shape)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if way == "closure" else {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(h, expected, **tolerance)
    torch.testing.assert_close(sgdph.hessian_block(loss(), p), block, rtol=1e-9, atol=1e-12)
    (found,) = sgdph.diagonality(loss(), p)
    assert found.shape == p.shape
    errors = sgdph.check_curvature(loss, optimizer)
    assert max(errors.values()) < 1e-6


def test_an_unknown_estimator_raises_an_error_everywhere() -> None:
    p = nn.Parameter(torch.ones(3))
    unknown: Any = "rowsum"
    expected = r"estimator must be one of row_sum, hutchinson, exact, got 'rowsum'"

    def loss() -> Tensor:
        return (p**4).sum()

    gradients = torch.autograd.grad(loss(), [p], create_graph=True)
    optimizer = sgdph.SGDPH([{"params": [p], "channelwise": True}])
    uses: list[Callable[[], object]] = [
        lambda: sgdph.SGDPH([p], estimator=unknown),
        lambda: curvature_of_gradients(gradients, [p], unknown),
        lambda: curvature_of_differences(loss, [p], unknown),
        lambda: is_one_product(unknown, [p]),
        lambda: is_stochastic(unknown),
        lambda: products_per_block(unknown, 3),
        lambda: optimizer.backward(loss()),
        lambda: optimizer.update_hessian(loss()),
        lambda: optimizer.update_hessian(closure=loss),
        lambda: (loss().backward(create_graph=True), optimizer.step()),
    ]
    # Set by hand, so no constructor checks it.
    optimizer.param_groups[0]["estimator"] = unknown
    for use in uses:
        with pytest.raises(ValueError, match=expected):
            use()
    with pytest.raises(TypeError, match="positional"):
        sgdph.SGDPH([p], 0.1, unknown)  # type: ignore[misc]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_name_works_in_every_function(estimator: Estimator) -> None:
    p = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    probes = [torch.tensor([1.0, -1.0], dtype=torch.float64)]

    def loss() -> Tensor:
        return p.prod() ** 2

    block = torch.tensor([[8.0, 8.0], [8.0, 2.0]], dtype=torch.float64)
    expected = {"row_sum": [16.0, 10.0], "hutchinson": [0.0, -6.0], "exact": [8.0, 2.0]}[estimator]
    gradients = torch.autograd.grad(loss(), [p], create_graph=True)
    (exact,) = curvature_of_gradients(gradients, [p], estimator, probes)
    (different,), _ = curvature_of_differences(loss, [p], estimator, probes)
    assert torch.equal(sgdph.hessian_block(loss(), p), block)
    for h in (exact, different):
        assert h is not None
        torch.testing.assert_close(h, p.new_tensor(expected), rtol=1e-7, atol=1e-7)
    assert is_stochastic(estimator) is (estimator == "hutchinson")
    assert products_per_block(estimator, 2) == (2 if estimator == "exact" else 1)
    assert is_one_product(estimator, [p]) is (estimator != "exact")


@pytest.mark.parametrize("way", CALLS)
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.BatchNorm1d, nn.RMSNorm])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_row_sum_before_layer_norm_gives_one_warning(
    estimator: Estimator, norm: Callable[[int], nn.Module], way: str
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), norm(4), nn.Tanh(), nn.Linear(4, 1))
    adamw = torch.optim.AdamW(model.parameters())
    optimizer = sgdph.PartialHessian(adamw, sgdph.param_groups(model), estimator=estimator)

    def step() -> None:
        optimizer.zero_grad()
        CALLS[way](optimizer, model(torch.randn(8, 3)).square().mean())
        optimizer.step()

    if estimator == "row_sum" and norm is nn.LayerNorm and way != "create_graph":
        with warns_here("row_sum.*fails before layer norm.*hutchinson"):
            step()
        bias = optimizer.state[model[0].bias]["hessian"]
        assert bias.max() < 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Using backward")
        step()


def test_only_parameters_before_the_layer_norm_cause_that_warning() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 1))
    behind, before = list(model[1].parameters()), [model[0].bias]
    groups = [{"params": params, "channelwise": True} for params in (behind, before)]
    optimizer = sgdph.SGDPH(groups)
    for _ in behind:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.backward(model(torch.randn(8, 3)).square().mean())
        optimizer.step()
    with warns_here("fails before layer norm"):
        optimizer.backward(model(torch.randn(8, 3)).square().mean())
