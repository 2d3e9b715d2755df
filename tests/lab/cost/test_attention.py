"""The cost of a transformer's training step, and which attention it uses."""

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from sgdph.lab.cost import step as step_module
from sgdph.lab.cost.authors import newton_names
from sgdph.lab.cost.figures import CostSettings
from sgdph.lab.cost.flops import FlopCounter, ProductFlops
from sgdph.lab.cost.measure import label, measure_cell
from sgdph.lab.cost.step import TEXT_NETWORKS, Contestant, Workload, build_workload
from sgdph.lab.cost.summary import summarise
from sgdph.lab.cost.systems import SYSTEMS, Kind
from sgdph.lab.networks.gpt import GPT

from .test_measure import CPU, Counted, settings

VOCABULARY, LENGTH, WIDTH, HEADS, LAYERS, BATCH = 11, 6, 8, 2, 2, 3
# FLOPs of one product in the attention of all layers.
ATTENTION = LAYERS * 2 * BATCH * LENGTH**2 * WIDTH


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """Register a tiny decoder that is quick to measure, and return its name."""
    network = step_module.TextNetwork(
        lambda: GPT(VOCABULARY, LENGTH, WIDTH, HEADS, LAYERS), VOCABULARY, LENGTH
    )
    monkeypatch.setitem(step_module.TEXT_NETWORKS, "tiny", network)  # type: ignore[arg-type]
    return "tiny"


def flops_of_step(name: str, workload: Workload, kind: Kind) -> FlopCounter:
    contestant = Contestant(SYSTEMS[name], workload, compiled=False)
    contestant.go_to(0, kind)
    with FlopCounter() as counter:
        contestant.step(kind)
    return counter


def test_sgdm_uses_fused_attention_and_sgdm_math_does_not(tiny: str) -> None:
    workload = build_workload(tiny, BATCH, settings(), CPU)
    fused, math = (flops_of_step(name, workload, "plain") for name in ("sgdm", "sgdm-math"))
    linear = 2 * BATCH * LENGTH * WIDTH * (12 * WIDTH * LAYERS + VOCABULARY)
    assert fused.attention_backward == 5 * ATTENTION
    assert fused.total == 3 * linear + 7 * ATTENTION
    assert math.attention_backward == 0
    assert math.total == 3 * linear + 6 * ATTENTION


@pytest.mark.parametrize("name", ["sgdph", "sgdph-interval10", "sgdph-hutchinson-all"])
def test_the_flops_of_a_step_equal_the_floor(tiny: str, name: str) -> None:
    figures = measure_cell(tiny, BATCH, settings(name, visits=None), CPU, Counted())
    assert len(figures.visited) == figures.newton == 8 * LAYERS + 2
    sgdm, system = summarise(figures)
    assert sgdm.flops == 1
    assert system.floor is not None
    assert system.floor > 1.01
    assert system.flops == pytest.approx(system.floor, rel=1e-12)


BY_TORCH_ALONE = ("authors", "adahessian-timm", "adahessian", "sophiah")


def test_systems_that_differentiate_by_torch_use_and_show_math_attention(tiny: str) -> None:
    chosen = settings("sgdm-math", "adamw", *BY_TORCH_ALONE)
    figures = measure_cell(tiny, BATCH, chosen, CPU, Counted())
    labels = {system.name: system.label for system in figures.systems}
    assert labels == {
        "sgdm": "SGDM",
        "sgdm-math": "SGDM, math attention",
        "adamw": "AdamW",
        "authors": "SGD-PH, the authors' way [math attention]",
        "adahessian-timm": "AdaHessian (timm) [math attention]",
        "adahessian": "AdaHessian (pytorch_optimizer) [math attention]",
        "sophiah": ("SophiaH (pytorch_optimizer), interval 10 [math attention where it refreshes]"),
    }
    flops = {system.name: system.kinds for system in figures.systems}
    assert flops["sophiah"]["plain"].flops == flops["sgdm"]["plain"].flops
    workload = build_workload(tiny, BATCH, chosen, CPU)
    for name in BY_TORCH_ALONE:
        assert flops_of_step(name, workload, "refresh").attention_backward == 0


def test_math_attention_is_not_compiled() -> None:
    assert SYSTEMS["sgdm"].compiles("plain")
    assert SYSTEMS["sophiah"].compiles("plain")
    assert not SYSTEMS["sophiah"].compiles("refresh")
    assert not SYSTEMS["sgdm-math"].compiles("plain")
    compiled = dataclasses.replace(settings(), compile=True)
    assert label(SYSTEMS["sgdm-math"], compiled, True) == "SGDM, math attention [eager]"
    sophia = label(SYSTEMS["sophiah"], compiled, True)
    assert sophia.endswith("[eager, math attention where it refreshes]")


@pytest.mark.parametrize(
    ("name", "parameters", "inputs", "targets"),
    [
        ("encoder12", 9_752_586, (2, 64), (2,)),
        # Embeddings of tokens and positions, 12 w² + 13 w per layer, and the last norm.
        ("gpt6", 256 * (1000 + 64) + 6 * (12 * 256**2 + 13 * 256) + 2 * 256, (2, 64), (2, 64)),
        (
            "gpt2-2",
            768 * (8376 + 512) + 2 * (12 * 768**2 + 13 * 768) + 2 * 768,
            (2, 512),
            (2, 512),
        ),
        ("transformer", 25_440, (2, 64), (2, 64)),
    ],
)
def test_text_networks_have_the_right_sizes_and_shapes(
    name: str, parameters: int, inputs: tuple[int, ...], targets: tuple[int, ...]
) -> None:
    workload = build_workload(name, 2, CostSettings(systems=()), CPU)
    assert sum(p.numel() for p in workload.model.parameters()) == parameters
    assert workload.inputs.shape == inputs
    assert workload.targets.shape == targets
    assert workload.inputs.max() < TEXT_NETWORKS[name].vocabulary


def test_the_transformer_of_sgdph_train_is_measured_on_windows_of_characters() -> None:
    chosen = settings("sgdph", "adahessian", visits=1, rounds=1)
    figures = measure_cell("transformer", BATCH, chosen, CPU, Counted())
    assert (figures.parameters, len(figures.systems)) == (25_440, 3)
    workload = build_workload("transformer", BATCH, chosen, CPU)
    logits = workload.model(workload.inputs).transpose(1, 2)
    expected = F.cross_entropy(logits.flatten(0, 1), workload.targets.flatten())
    torch.testing.assert_close(workload.loss(workload.model), expected)


def test_the_loss_is_the_mean_over_all_positions(tiny: str) -> None:
    workload = build_workload(tiny, BATCH, settings(), CPU)
    logits = torch.randn(BATCH, LENGTH, VOCABULARY, dtype=torch.float64)
    seen: list[Tensor] = []

    def model(ids: Tensor) -> Tensor:
        seen.append(ids)
        return logits

    chosen = logits.log_softmax(-1).gather(-1, workload.targets[..., None])
    torch.testing.assert_close(workload.loss(model), -chosen.mean())
    assert seen[0] is workload.inputs


@pytest.mark.parametrize(
    ("name", "newton"),
    [
        # 12 layers with 2 norms and 4 biases each, the patch embedding's bias, and the last norm.
        ("timm:vit_tiny_patch16_224", 12 * 8 + 3),
        # 12 blocks with a norm and 3 biases each. The stem and 3 downsamplings, with a norm and a
        # bias each. The last norm.
        ("timm:convnext_atto", 12 * 5 + 4 * 3 + 2),
        # 34 norms, 2 biases in each of 9 gates, and the bias of the first linear layer.
        ("torchvision:mobilenet_v3_small", 34 * 2 + 9 * 2 + 1),
    ],
)
def test_a_refresh_of_timm_and_torchvision_networks_adds_one_product(
    name: str, newton: int
) -> None:
    workload = build_workload(name, 2, settings(), CPU)
    assert len(newton_names(workload.model)) == newton
    parameters = dict(workload.model.named_parameters())
    first = [parameters[newton_names(workload.model)[0]]]
    product = ProductFlops.of(workload.loss(workload.model), first, first)
    sgdm = flops_of_step("sgdm", workload, "plain").total
    assert flops_of_step("sgdph", workload, "refresh").total == sgdm + product.joint
