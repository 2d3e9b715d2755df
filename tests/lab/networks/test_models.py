import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import sgdph
from lab.conftest import same_bits
from sgdph.lab.cli import parse
from sgdph.lab.config.run_config import differences
from sgdph.lab.errors import LabError
from sgdph.lab.networks.models import build_model
from sgdph.lab.networks.resnet import BasicBlock, Bottleneck, PaddedShortcut, ResNet, no_norm
from sgdph.lab.options.resolution import resolve


@pytest.mark.parametrize(
    ("name", "channels", "classes", "parameters"),
    [
        ("resnet18", 3, 100, 11_220_132),
        # 16 * 9 * 2 less than the 75,290 with three input channels.
        ("resnet8", 1, 10, 75_002),
        ("resnet8-gn", 3, 10, 75_290),
        ("resnet8-in", 3, 10, 75_290),
        ("resnet8-ln", 3, 10, 75_290),
        # torchvision's count for ImageNet, minus 990 classes with 513 parameters each.
        ("torchvision:resnet18", 3, 10, 11_689_512 - 990 * 513),
        ("torchvision:resnet18-wn", 3, 10, 11_689_512 - 990 * 513),
        # Each of 4,800 channels has a bias, instead of batch norm's scale and shift.
        ("torchvision:resnet18-plain", 3, 10, 11_689_512 - 990 * 513 - 4_800),
    ],
)
def test_parameter_counts(name: str, channels: int, classes: int, parameters: int) -> None:
    assert count(build_model(name, in_channels=channels, classes=classes)) == parameters


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# Numbers of convolution weights, of their output channels, and of the linear layer's parameters.
FORMS = {
    # 0.27 M and 0.85 M in table 6 of He et al. (2016).
    "resnet8": (74_160, 240, 650),
    "resnet20": (267_696, 688, 650),
    "resnet56": (848_304, 2_032, 650),
    # The specification gives the counts 11,173,962 and 23,520,842.
    "resnet18": (11_159_232, 4_800, 5_130),
    "resnet50": (23_447_232, 26_560, 20_490),
    "vgg11": (9_217_728, 2_752, 5_130),
    "vgg19": (20_018_880, 5_504, 5_130),
    "vgg19-narrow": (312_984, 688, 650),
}


@pytest.mark.parametrize("name", FORMS)
def test_parameter_counts_of_every_form(name: str) -> None:
    """Every output channel has scale and shift, or a bias, or length and bias."""
    weights, channels, linear = FORMS[name]
    counts = {
        form: count(build_model(name + form, in_channels=3, classes=10))
        for form in ("-bn", "-plain", "-wn", "")
    }
    assert counts["-bn"] == counts["-wn"] == weights + 2 * channels + linear
    assert counts["-plain"] == weights + channels + linear
    assert counts[""] == counts["-plain" if name.startswith("vgg") else "-bn"]


def test_the_table_gives_the_specified_counts_of_resnet18_and_resnet50() -> None:
    weights, channels, linear = zip(FORMS["resnet18"], FORMS["resnet50"], strict=True)
    totals = [w + 2 * c + f for w, c, f in zip(weights, channels, linear, strict=True)]
    assert totals == [11_173_962, 23_520_842]


def test_both_names_of_a_network_give_the_same_network() -> None:
    for long, short in (("resnet20-bn", "resnet20"), ("vgg11-plain", "vgg11")):
        config = resolve({"model": long})
        assert config.model == short
        assert differences(parse("train", ["--model", long]).given(), config) == []
        assert differences(parse("train", ["--model", short]).given(), config) == []
        torch.manual_seed(0)
        first = build_model(long, in_channels=1, classes=3).state_dict()
        torch.manual_seed(0)
        second = build_model(short, in_channels=1, classes=3).state_dict()
        assert same_bits(first, second)


@pytest.mark.parametrize("form", ["-plain", "-wn"])
@pytest.mark.parametrize("name", [*FORMS, "torchvision:resnet18"])
def test_without_norms_signal_and_gradients_neither_explode_nor_vanish(
    name: str, form: str
) -> None:
    torch.manual_seed(0)
    model = build_model(name + form, in_channels=3, classes=10)
    logits = model(torch.randn(4, 3, 16, 16))
    # The logits are small at the start. The plain VGG19 has the smallest.
    assert 0.01 < logits.std().item() < 0.5
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    weights = [p.grad for p in model.parameters() if p.grad is not None and p.ndim == 4]
    norms = [weight.norm().item() for weight in weights]
    assert max(norms) < 5
    assert min(norms) > 1e-4


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet8", 8),
        ("resnet20", 20),
        ("resnet56", 56),
        ("resnet18", 18),
        ("vgg11-bn", 9),
        ("vgg19-bn", 17),
        ("vgg11", 9),
        ("vgg19", 17),
        ("vgg19-wn", 17),
        ("vgg19-narrow", 17),
        ("resnet8-wn", 8),
    ],
)
def test_networks_have_the_expected_number_of_layers(name: str, layers: int) -> None:
    # VGG's number counts the three linear layers of the original. These networks have one.
    model = build_model(name, in_channels=3, classes=10)
    counted = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear)
        or (isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3))
    ]
    assert len(counted) == layers


@pytest.mark.parametrize("size", [8, 28, 32])
@pytest.mark.parametrize(
    "name",
    [
        *("resnet8", "resnet20", "resnet56", "resnet18", "resnet50"),
        *("resnet8-gn", "resnet8-in", "resnet8-ln", "resnet8-wn"),
        *("vgg11", "vgg11-bn", "vgg19-bn", "vgg19-wn"),
    ],
)
def test_images_of_every_size_give_logits(name: str, size: int) -> None:
    model = build_model(name, in_channels=1, classes=7)
    assert model(torch.zeros(2, 1, size, size)).shape == (2, 7)


def test_the_padded_shortcut_puts_the_channels_in_the_middle() -> None:
    x = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    y = PaddedShortcut(5)(x)
    assert y.shape == (2, 8, 3, 2)
    assert torch.equal(y[:, 2:5], x[:, :, ::2, ::2])
    assert not y[:, :2].any()
    assert not y[:, 5:].any()


def test_a_basic_block_with_a_zero_branch_returns_its_shortcut() -> None:
    block = BasicBlock(3, 8, 2, PaddedShortcut(5), nn.BatchNorm2d)
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(x), block.shortcut(x).relu())


def test_a_bottleneck_with_a_zero_branch_returns_its_shortcut() -> None:
    block = Bottleneck(3, 8, 2, PaddedShortcut(5), nn.BatchNorm2d)
    nn.init.zeros_(block.bn3.weight)
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(x), block.shortcut(x).relu())


def test_resnet50_has_53_convolutions() -> None:
    model = build_model("resnet50", in_channels=3, classes=10)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    # The 50 layers are 49 convolutions and the linear layer. Four stages add a projection each.
    assert convolutions == 49 + 4


def test_small_images_are_padded_for_vgg() -> None:
    torch.manual_seed(0)
    model = build_model("vgg11-bn", in_channels=1, classes=3)
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(model(x), model(nn.functional.pad(x, (2, 2, 2, 2))))


@pytest.mark.parametrize("name", ["resnet8", "resnet8-gn", "vgg11-bn"])
def test_the_initial_weights_are_the_same_as_in_earlier_runs(name: str) -> None:
    """All layers draw in order, then the convolutions draw He's weights, and nothing else draws."""
    torch.manual_seed(3)
    model = build_model(name, in_channels=3, classes=10)
    state = torch.get_rng_state()
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    torch.manual_seed(3)
    drawn = [
        nn.Conv2d(m.in_channels, m.out_channels, m.kernel_size, bias=False) for m in convolutions
    ]
    linear = nn.Linear(model.fc.in_features, 10)
    for mine, theirs in zip(drawn, convolutions, strict=True):
        nn.init.kaiming_normal_(mine.weight, mode="fan_out", nonlinearity="relu")
        assert torch.equal(mine.weight, theirs.weight)
        assert theirs.bias is None
    assert torch.equal(linear.weight, model.fc.weight)
    assert torch.equal(linear.bias, model.fc.bias)
    assert torch.equal(torch.get_rng_state(), state)


NORMS = {
    "resnet8": nn.BatchNorm2d,
    "resnet8-gn": nn.GroupNorm,
    "resnet8-in": nn.InstanceNorm2d,
    "resnet8-ln": nn.GroupNorm,
}


@pytest.mark.parametrize("name", NORMS)
def test_every_convolution_has_a_norm(name: str) -> None:
    model = build_model(name, in_channels=3, classes=10)
    assert sum(isinstance(module, NORMS[name]) for module in model.modules()) == 7
    groups = {m.num_groups for m in model.modules() if isinstance(m, nn.GroupNorm)}
    assert groups == {"resnet8-gn": {8}, "resnet8-ln": {1}}.get(name, set())
    newton = sgdph.param_groups(model)[0]
    assert newton["channelwise"]
    assert sum(p.numel() for p in newton["params"]) == 2 * (3 * 16 + 2 * 32 + 2 * 64)


def test_layer_norm_is_over_channels_and_pixels() -> None:
    norm = build_model("resnet8-ln", in_channels=3, classes=10).bn
    x = torch.randn(4, 16, 5, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(norm(x), nn.functional.layer_norm(x, (16, 5, 5)))


@pytest.mark.parametrize("name", ["vgg11-wn", "resnet8-wn"])
def test_weight_norm_is_on_all_convolutions_and_nothing_else(name: str) -> None:
    model = build_model(name, in_channels=3, classes=10)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert parametrize.is_parametrized(module, "weight")
            assert not module.bias.any()
    assert not parametrize.is_parametrized(model.fc)
    groups = sgdph.param_groups(model)
    newton = {name.rpartition(".")[2] for name in groups[0]["param_names"]}
    assert newton == {"original0", "bias"}
    assert "fc.bias" in groups[1]["param_names"]


@pytest.mark.parametrize("name", ["vgg11", "vgg19"])
def test_a_weight_normalised_network_starts_equal_to_the_plain_one(name: str) -> None:
    models = []
    for form in (name, f"{name}-wn"):
        torch.manual_seed(0)
        models.append(build_model(form, in_channels=1, classes=10))
    x = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(models[1](x), models[0](x), rtol=1e-5, atol=1e-6)
    sgdph.fold_weight_norm(models[1])
    models[0].load_state_dict(models[1].state_dict(), strict=True)


def test_without_norms_the_variance_stays_bounded() -> None:
    torch.manual_seed(0)
    model = ResNet(
        16,
        10,
        stem=64,
        widths=(64,),
        blocks=(16,),
        block=BasicBlock,
        projection=False,
        norm=no_norm,
    )
    variances = []
    x = torch.randn(8, 64, 8, 8).relu()
    for block in model.blocks:
        x = block(x)
        variances.append(x.pow(2).mean().item())
    # (1 + 1/16)^16 = 2.6, and ReLU's positive means add to it. Without the factor: 2^16.
    assert variances[-1] / variances[0] < 10
    branch = model.blocks[0].conv2.weight
    assert branch.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5 / 4, rel=0.05)


def test_the_weights_come_from_torchs_generator() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        model = build_model("resnet8", in_channels=1, classes=10)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_an_unknown_network_raises_an_error() -> None:
    with pytest.raises(LabError, match=r"unknown network 'resnet9'; did you mean resnet8\?"):
        build_model("resnet9", in_channels=1, classes=10)
