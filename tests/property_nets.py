"""Small networks, one kind of layer each, for tests that compare a step with plain torch.

Networks that test the shape of the graph are in ``property_graphs``, random ones in
``property_random``. All are added to the table ``NETS``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

import sgdph


def curved(out: Tensor) -> Tensor:
    """A loss with curvature in every direction, for an output of any shape."""
    out = out.flatten(1)
    targets = torch.arange(out.shape[0]) % out.shape[1]
    return functional.cross_entropy(out, targets) + 0.3 * out.square().mean()


@dataclass
class Case:
    """A network, its batch, and the function that computes the loss from both."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    loss_of: Callable[..., Tensor] = lambda model, *inputs: curved(model(*inputs))
    newton_of: Callable[[nn.Module], list[nn.Parameter]] | None = None
    """The Newton parameters; ``None`` lets their roles decide."""
    as_is: bool = False
    """Leave norm layers and biases as torch initialises them."""

    def loss(self) -> Tensor:
        torch.default_generator.manual_seed(7)  # for dropout
        return self.loss_of(self.model, *self.inputs)

    def newton(self) -> list[nn.Parameter]:
        if self.newton_of is not None:
            return self.newton_of(self.model)
        groups = sgdph.param_groups(self.model)
        return [p for group in groups if group["channelwise"] for p in group["params"]]

    def leaves(self) -> dict[str, Tensor]:
        """Every leaf that may get a gradient, by name."""
        inputs = {f"input {i}": x for i, x in enumerate(self.inputs)}
        return {**dict(self.model.named_parameters()), **inputs}


Make = Callable[[], Case]
NETS: dict[str, Make] = {}


def net(make: Make) -> Make:
    NETS[make.__name__] = make
    return make


def build(name: str, dtype: torch.dtype = torch.float64) -> Case:
    """Build the network of that name; every call builds an equal one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        torch.default_generator.manual_seed(zlib.crc32(name.encode()))
        case = NETS[name]()
        if not case.as_is:
            _randomise(case.model)
        return case
    finally:
        torch.set_default_dtype(before)


def _randomise(model: nn.Module) -> None:
    # Scales of 1, shifts of 0 and fresh running statistics would hide a missing factor.
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn_like(p))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.3 * torch.randn_like(buffer))
            elif name.endswith("running_var"):
                buffer.add_(0.5 * torch.rand_like(buffer))


def every_parameter(model: nn.Module) -> list[nn.Parameter]:
    return list(model.parameters())


class Call(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def conv(inputs: int, outputs: int, kernel: int = 3, **settings: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, **{"padding": kernel // 2, "bias": False, **settings})


def conv_bn(inputs: int, outputs: int, *last: nn.Module, **settings: object) -> nn.Sequential:
    return nn.Sequential(conv(inputs, outputs, **settings), nn.BatchNorm2d(outputs), *last)


def sequential(name: str, shape: tuple[int, ...], *layers: Callable[[], nn.Module]) -> None:
    NETS[name] = lambda: Case(nn.Sequential(*(make() for make in layers)), (torch.randn(shape),))


IMAGES = (3, 2, 5, 5)


def stem() -> nn.Module:
    return conv_bn(2, 4, nn.ReLU())


def middle() -> nn.Module:
    return conv(4, 4)


def head() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def _around(name: str, *layers: Callable[[], nn.Module]) -> None:
    """Layers in the middle of a batch-norm network, with a norm layer on either side."""
    sequential(name, IMAGES, stem, *layers, lambda: nn.BatchNorm2d(4), nn.Softplus, head)


# Convolutions.
_around("plain", middle)
_around("conv_with_bias", lambda: conv(4, 4, bias=True))
_around("pointwise", lambda: conv(4, 4, 1))
_around("grouped", lambda: conv(4, 4, groups=2, bias=True))
_around("depthwise", lambda: conv(4, 8, groups=4), nn.ReLU, lambda: conv(8, 4, 1))
_around("dilated", lambda: conv(4, 4, dilation=2, padding=2))
_around("strided", lambda: conv(4, 4, stride=2, padding=0))
_around("asymmetric", lambda: nn.Conv2d(4, 4, (3, 2), stride=(2, 1), padding=(0, 1)))
_around("circular", lambda: conv(4, 4, padding=(2, 1), padding_mode="circular", bias=True))
_around("reflected", lambda: conv(4, 4, padding_mode="reflect"))
_around("same", lambda: conv(4, 4, 2, padding="same", dilation=(1, 2)))
_around(
    "transposed",
    lambda: nn.ConvTranspose2d(4, 4, 3, stride=2, output_padding=1, groups=2, padding=1),
)
_around("transposed_dilated", lambda: nn.ConvTranspose2d(4, 4, (2, 3), dilation=2, bias=False))
sequential(
    "conv_bias_alone",
    IMAGES,
    lambda: conv(2, 3, bias=True),
    nn.SiLU,
    lambda: conv(3, 4, bias=True, stride=2),
    nn.GELU,
)
sequential(
    "one_dimension",
    (3, 2, 6),
    lambda: nn.Conv1d(2, 4, 3, padding=1, bias=False),
    lambda: nn.BatchNorm1d(4),
    nn.ReLU,
    lambda: nn.Conv1d(4, 3, 3, stride=2, groups=1),
    lambda: nn.ConvTranspose1d(3, 4, 3, stride=2, output_padding=1),
    lambda: nn.BatchNorm1d(4),
    nn.Tanh,
)
sequential(
    "three_dimensions",
    (2, 2, 3, 4, 3),
    lambda: nn.Conv3d(2, 4, 2, padding=1, bias=False),
    lambda: nn.BatchNorm3d(4),
    nn.ReLU,
    lambda: nn.Conv3d(4, 2, (1, 2, 3), groups=2, dilation=(1, 2, 1)),
    lambda: nn.ConvTranspose3d(2, 2, 2, stride=2, bias=False),
    lambda: nn.BatchNorm3d(2),
    nn.Softplus,
)
sequential("unbatched", (2, 5, 5), lambda: conv(2, 4, bias=True), nn.SiLU, lambda: conv(4, 3))

# Norm layers.
_around("group_norm", middle, lambda: nn.GroupNorm(2, 4), nn.GELU, middle)
_around("instance_norm", middle, lambda: nn.InstanceNorm2d(4, affine=True), nn.ReLU)
_around(
    "instance_norm_tracking",
    lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    nn.ReLU,
    middle,
)
_around("layer_norm_2d", middle, lambda: nn.LayerNorm((4, 5, 5)), nn.ReLU)
_around("bn_not_affine", middle, lambda: nn.BatchNorm2d(4, affine=False), nn.ReLU)
_around(
    "bn_without_statistics",
    middle,
    lambda: nn.BatchNorm2d(4, track_running_stats=False),
    nn.ReLU,
    middle,
)
_around("bn_cumulative", lambda: nn.BatchNorm2d(4, momentum=None, eps=0.1), nn.ReLU, middle)
_around("bn_in_eval", lambda: nn.BatchNorm2d(4).eval(), nn.ReLU, middle)
_around("bn_after_bn", lambda: nn.BatchNorm2d(4), lambda: nn.BatchNorm2d(4))
sequential("bn_first", IMAGES, lambda: nn.BatchNorm2d(2), stem, middle)
sequential(
    "perceptron",
    (8, 3),
    lambda: nn.Linear(3, 5),
    lambda: nn.BatchNorm1d(5),
    nn.SiLU,
    lambda: nn.Linear(5, 4),
    lambda: nn.LayerNorm(4),
    nn.Tanh,
    lambda: nn.Linear(4, 4),
    lambda: nn.RMSNorm(4),
    lambda: nn.Linear(4, 3),
)
sequential("one_layer", (4, 3), lambda: nn.LayerNorm(3))
sequential("norm_then_linear", (4, 3), lambda: nn.LayerNorm(3), lambda: nn.Linear(3, 3))


@net
def whole_in_eval() -> Case:
    case = NETS["plain"]()
    case.model.eval()
    return case


@net
def frozen_gamma() -> Case:
    case = NETS["plain"]()
    case.model[0][1].weight.requires_grad_(False)
    case.model[2].bias.requires_grad_(False)
    return case


class ComputedNorm(nn.Module):
    """Batch norm with a computed scale, which is not a leaf, and an optional shift."""

    def __init__(self, channels: int, shift: bool) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.gain = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(channels)) if shift else None

    def forward(self, x: Tensor) -> Tensor:
        scale = self.log_scale.exp() * self.gain
        return functional.batch_norm(x, None, None, scale, self.bias, training=True)


@net
def computed_gamma() -> Case:
    norms = ComputedNorm(4, True), nn.ReLU(), middle(), ComputedNorm(4, False)
    model = nn.Sequential(stem(), middle(), *norms, nn.ReLU(), head())
    return Case(model, (torch.randn(IMAGES),), newton_of=every_parameter)


# Computed weights.
class Squash(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.tanh() * 0.9


class StandardisedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        mean, std = self.weight.mean((1, 2, 3), True), self.weight.std((1, 2, 3), keepdim=True)
        return functional.conv2d(x, (self.weight - mean) / (std + 0.1), self.bias, padding=1)


def _parametrised(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Squash())
    return layer


def _parametrised_bias() -> nn.Module:
    layer = conv(4, 4, bias=True)
    parametrize.register_parametrization(layer, "bias", Squash())
    return layer


_around("weight_norm", lambda: parametrizations.weight_norm(conv(4, 4, bias=True)), nn.ReLU)
_around("spectral_norm", lambda: parametrizations.spectral_norm(conv(4, 4)), nn.ReLU)
_around("parametrised", lambda: _parametrised(conv(4, 4)), nn.ReLU, _parametrised_bias)
_around("standardised", lambda: StandardisedConv(4, 4, 3), nn.ReLU)


@net
def weight_norm_alone() -> Case:
    first = parametrizations.weight_norm(conv(2, 4, bias=True))
    second = parametrizations.weight_norm(nn.ConvTranspose2d(4, 3, 3), dim=1)
    last = nn.utils.weight_norm(nn.Linear(7, 3))
    return Case(nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last), (torch.randn(IMAGES),))


def _with_a_channel_of_zeros(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        layer.weight[1].zero_()
    return layer


@net
def weight_norm_applied() -> Case:
    model = nn.Sequential(
        *(_with_a_channel_of_zeros(conv(2, 4, bias=True)), nn.SiLU()),
        *(nn.ConvTranspose2d(4, 3, 3, stride=2), nn.Softplus()),
        *(conv(3, 6, groups=3, bias=True), nn.GELU()),
        *(nn.Conv2d(6, 4, 2, stride=2, bias=False), nn.Tanh(), head()),
    )
    return Case(sgdph.apply_weight_norm(model), (torch.randn(IMAGES),))
