"""Weight norm on networks of torchvision and timm: apply it, fold it, load the plain network."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import sgdph


def vision(name: str, **settings: int) -> nn.Module:
    network: nn.Module = torchvision.models.get_model(name, weights=None, **settings)
    return network


def tiny_vit() -> nn.Module:
    settings = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    return torchvision.models.VisionTransformer(image_size=32, patch_size=16, **settings)


# The network, and the size of its images.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (lambda: vision("resnet18", num_classes=10), 64),
    "vgg11": (lambda: vision("vgg11", num_classes=10).features, 32),
    "mobilenet_v3_small": (lambda: vision("mobilenet_v3_small", num_classes=10), 64),
    "vit": (tiny_vit, 32),
    "timm/resnet18": (lambda: timm.create_model("resnet18", num_classes=10), 64),
    "timm/convnext_atto": (lambda: timm.create_model("convnext_atto", num_classes=10), 64),
    "timm/vit_tiny": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=10),
        32,
    ),
    # Convolutions that standardise their weight themselves.
    "timm/nfnet": (lambda: timm.create_model("nf_regnet_b0", num_classes=10), 64),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_weight_norm_can_be_applied_and_folded_back(name: str) -> None:
    torch.manual_seed(0)
    make, size = NETWORKS[name]
    plain = make().eval()
    x = torch.randn(2, 3, size, size)
    weights = {key: value.clone() for key, value in plain.state_dict().items()}

    def output(model: nn.Module) -> Tensor:
        # With and without gradients, because transformers use another path without them.
        with torch.no_grad():
            quick: Tensor = model(x)
        torch.testing.assert_close(model(x).detach(), quick, rtol=1e-5, atol=1e-5)
        return quick

    expected = output(plain)
    scale = float(expected.abs().max().clamp_min(1.0))
    model = sgdph.apply_weight_norm(copy.deepcopy(plain))
    torch.testing.assert_close(output(model), expected, rtol=0, atol=2e-6 * scale)
    groups = sgdph.param_groups(model)
    assert sum(name.endswith("original0") for name in groups[0]["param_names"]) > 5
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))

    before = output(model)
    sgdph.fold_weight_norm(model)
    assert torch.equal(output(model), before)
    assert [key for key, _ in model.named_parameters()] == [
        key for key, _ in plain.named_parameters()
    ]
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, weights[key], rtol=1e-6, atol=1e-6)
    plain.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(output(plain), before)


def test_lengths_have_almost_no_effect_in_a_standardised_convolution() -> None:
    """The page on weight normalisation warns of this, and of the same with batch norm."""
    torch.manual_seed(0)
    model = sgdph.apply_weight_norm(timm.create_model("nf_regnet_b0", num_classes=3), ["stem.conv"])
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    g, v = (model.stem.conv.parametrizations.weight.get_parameter(f"original{i}") for i in (0, 1))
    assert g.grad is not None
    assert v.grad is not None
    assert g.grad.abs().max() * g.abs().max() < 1e-2 * v.grad.abs().max() * v.abs().max()
