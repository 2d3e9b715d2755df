"""The Newton parameters of a network, with labels and kinds for display."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrize

from sgdph import param_groups

_NORMS: tuple[tuple[type[nn.Module], str], ...] = (
    (_BatchNorm, "bn"),
    (_InstanceNorm, "in"),
    (nn.LayerNorm, "ln"),
    (nn.GroupNorm, "gn"),
    (nn.RMSNorm, "rms"),
)
_PARAMETRIZED = ".parametrizations."


@dataclass(frozen=True)
class NewtonParameter:
    """A channel-wise parameter that takes Newton steps.

    Attributes:
        name: Its full name in the model.
        label: Its name for display, such as ``conv.weight g`` for a weight-norm length.
        kind: ``"bn scale"``, ``"gn shift"``, ``"bias"``, ``"weight-norm length"`` …
        tensor: The parameter.
        index: Its index among the Newton parameters.
    """

    name: str
    label: str
    kind: str
    tensor: Tensor
    index: int

    @property
    def size(self) -> int:
        """The number of its entries, which is the number of rows of its block."""
        return self.tensor.numel()


def newton_parameters(model: nn.Module) -> list[NewtonParameter]:
    """List a model's Newton parameters, in registration order.

    They do not depend on the run's optimizer: they are those of SGD-PH with
    ``param_groups(model)``.
    """
    named = [
        (name, p)
        for group in param_groups(model)
        if group["channelwise"]
        for name, p in zip(group["param_names"], group["params"], strict=True)
    ]
    return [
        NewtonParameter(name, label_of(name), kind_of(model, name), p, index)
        for index, (name, p) in enumerate(named)
    ]


def label_of(name: str) -> str:
    """Return a name for display: a weight-norm length gets its weight's name and ``g``."""
    layer, found, rest = name.partition(_PARAMETRIZED)
    if found:
        return f"{layer}.{rest.rpartition('.')[0]} g"
    return f"{name.removesuffix('_g')} g" if name.endswith("_g") else name


def kind_of(model: nn.Module, name: str) -> str:
    """Return the kind of a Newton parameter."""
    path, _, local = name.rpartition(".")
    owner = model.get_submodule(path)
    if isinstance(owner, parametrize.ParametrizationList) or local.endswith("_g"):
        return "weight-norm length"
    role = "shift" if local == "bias" else "scale"
    for norm, short in _NORMS:
        if isinstance(owner, norm):
            return f"{short} {role}"
    return f"norm {role}" if "Norm" in type(owner).__name__ else "bias"
