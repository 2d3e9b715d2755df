import pytest
import torch
from torch import nn

from sgdph.lab.config import LabError
from sgdph.lab.encoder import HEADS, LAYERS, LENGTH, VOCABULARY, WIDTH, Encoder
from sgdph.lab.models import build_model
from sgdph.lab.resnet import BasicBlock, Bottleneck, PaddedShortcut


@pytest.mark.parametrize(
    ("name", "channels", "classes", "parameters"),
    [
        ("resnet18", 3, 10, 11_173_962),
        ("resnet18", 3, 100, 11_220_132),
        # 16 * 9 * 3 less than with a colour stem: 75,290.
        ("resnet8", 3, 10, 75_290),
        ("resnet8", 1, 10, 75_002),
        # He et al. (2016), table 6: 0.27 M.
        ("resnet20", 3, 10, 269_722),
        # The same table: 0.85 M.
        ("resnet56", 3, 10, 853_018),
        ("resnet50", 3, 10, 23_520_842),
        # 9 c_in c_out per convolution, 2 c_out per batch norm, 5,130 of the linear layer.
        ("vgg11-bn", 3, 10, 9_217_728 + 5_504 + 5_130),
        ("vgg19-bn", 3, 10, 20_018_880 + 11_008 + 5_130),
    ],
)
def test_parameter_counts(name: str, channels: int, classes: int, parameters: int) -> None:
    model = build_model(name, in_channels=channels, classes=classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet8", 8),
        ("resnet20", 20),
        ("resnet56", 56),
        ("resnet18", 18),
        ("vgg11-bn", 9),
        ("vgg19-bn", 17),
    ],
)
def test_the_number_in_the_name_counts_the_layers(name: str, layers: int) -> None:
    # The original VGG counts three linear layers where these have one.
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
    "name", ["resnet8", "resnet20", "resnet56", "resnet18", "resnet50", "vgg11-bn", "vgg19-bn"]
)
def test_every_size_goes_through(name: str, size: int) -> None:
    model = build_model(name, in_channels=1, classes=7)
    assert model(torch.zeros(2, 1, size, size)).shape == (2, 7)


def test_the_padded_shortcut_keeps_the_channels_in_the_middle() -> None:
    x = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    y = PaddedShortcut(5)(x)
    assert y.shape == (2, 8, 3, 2)
    assert torch.equal(y[:, 2:5], x[:, :, ::2, ::2])
    assert not y[:, :2].any()
    assert not y[:, 5:].any()


def test_a_block_whose_convolutions_are_silent_passes_its_shortcut_on() -> None:
    block = BasicBlock(3, 8, 2, PaddedShortcut(5))
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(x), block.shortcut(x).relu())


def test_a_bottleneck_whose_last_convolution_is_silent_passes_its_shortcut_on() -> None:
    block = Bottleneck(3, 8, 2, PaddedShortcut(5))
    nn.init.zeros_(block.bn3.weight)
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(block(x), block.shortcut(x).relu())


def test_resnet50_has_as_many_convolutions_as_its_name_says() -> None:
    model = build_model("resnet50", in_channels=3, classes=10)
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    # 49 and the linear layer, and a projection in each of the four stages.
    assert convolutions == 49 + 4


def test_small_images_are_padded_for_vgg() -> None:
    torch.manual_seed(0)
    model = build_model("vgg11-bn", in_channels=1, classes=3)
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(model(x), model(nn.functional.pad(x, (2, 2, 2, 2))))


def test_torchvisions_networks_by_name() -> None:
    model = build_model("torchvision:resnet18", in_channels=3, classes=7)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    with pytest.raises(LabError, match=r"3 channels.*cannot take 1"):
        build_model("torchvision:resnet18", in_channels=1, classes=7)
    with pytest.raises(LabError, match="torchvision has no network 'resnet19'"):
        build_model("torchvision:resnet19", in_channels=3, classes=7)


def test_the_encoder_can_be_differentiated_twice() -> None:
    torch.manual_seed(0)
    model = Encoder(5)
    assert (len(model.layers), WIDTH, HEADS, LENGTH) == (LAYERS, 256, 4, 64) == (12, 256, 4, 64)
    logits = model(torch.randint(0, VOCABULARY, (2, LENGTH)))
    assert logits.shape == (2, 5)
    p = model.layers[0].norm1.weight
    (gradient,) = torch.autograd.grad(logits.logsumexp(1).sum(), p, create_graph=True)
    (product,) = torch.autograd.grad(gradient.sum(), p)
    assert product.isfinite().all()
    assert product.any()


def test_the_weights_come_from_torchs_generator() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        model = build_model("resnet8", in_channels=1, classes=10)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(LabError, match=r"one of resnet8, .* or torchvision:NAME; got 'resnet9'"):
        build_model("resnet9", in_channels=1, classes=10)
