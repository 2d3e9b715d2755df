import pytest
import torch
from torch import nn

from sgdph.lab.config import LabError
from sgdph.lab.models import BasicBlock, PaddedShortcut, build_model


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
    ],
)
def test_parameter_counts(name: str, channels: int, classes: int, parameters: int) -> None:
    model = build_model(name, in_channels=channels, classes=classes)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize(("name", "layers"), [("resnet8", 8), ("resnet20", 20), ("resnet18", 18)])
def test_the_number_in_the_name_counts_the_layers(name: str, layers: int) -> None:
    model = build_model(name, in_channels=3, classes=10)
    counted = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear)
        or (isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3))
    ]
    assert len(counted) == layers


@pytest.mark.parametrize("size", [8, 28, 32])
@pytest.mark.parametrize("name", ["resnet8", "resnet20", "resnet18"])
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


def test_the_weights_come_from_torchs_generator() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        model = build_model("resnet8", in_channels=1, classes=10)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(LabError, match="model must be one of resnet8, resnet20, resnet18"):
        build_model("resnet9", in_channels=1, classes=10)
