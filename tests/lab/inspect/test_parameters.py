from __future__ import annotations

import warnings

import pytest
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from sgdph.lab.inspect.parameters import newton_parameters


class OwnNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.LayerNorm(3).weight.detach().clone())


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        layer: nn.Module = nn.utils.weight_norm(nn.Linear(2, 3))
    return layer


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.BatchNorm2d(3), {"0.weight": "bn scale", "0.bias": "bn shift"}),
        (nn.GroupNorm(1, 3), {"0.weight": "gn scale", "0.bias": "gn shift"}),
        (nn.LayerNorm(3), {"0.weight": "ln scale", "0.bias": "ln shift"}),
        (nn.InstanceNorm1d(3, affine=True), {"0.weight": "in scale", "0.bias": "in shift"}),
        (nn.RMSNorm(3), {"0.weight": "rms scale"}),
        (OwnNorm(), {"0.weight": "norm scale"}),
        (nn.Conv2d(2, 3, 1), {"0.bias": "bias"}),
        (weight_norm(nn.Linear(2, 3)), {"0.bias": "bias", "0.weight g": "weight-norm length"}),
        (old_weight_norm(), {"0.bias": "bias", "0.weight g": "weight-norm length"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_newton_parameters_have_the_right_labels_and_kinds(
    layer: nn.Module, expected: dict[str, str]
) -> None:
    model = nn.Sequential(layer, nn.Linear(3, 2))
    found = newton_parameters(model)
    assert {each.label: each.kind for each in found} == expected
    assert [each.index for each in found] == list(range(len(found)))
    parameters = dict(model.named_parameters())
    assert all(parameters[each.name] is each.tensor for each in found)
