"""Which parameters are channel-wise, and the groups made of them.

A channel-wise parameter holds one number per output channel: the scale and shift of a norm layer,
a bias, the length of a weight-normalised weight. These get a Newton step; all others get SGD's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm

from sgdph.validation import ONE_FOR_ALL_GROUPS


class Groups(NamedTuple):
    """An optimizer's parameter groups.

    Attributes:
        newton: The groups with the settings of Newton steps and the place in the cycle.
        every: All groups. Parameters get their names from these.
    """

    newton: Sequence[dict[str, Any]]
    every: Sequence[dict[str, Any]]


_NORM_LAYERS: tuple[type[nn.Module], ...] = (
    _BatchNorm,
    _InstanceNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def is_channelwise(p: Tensor) -> bool:
    """Guess from a tensor's shape alone whether it is channel-wise.

    True if ``p`` is real and ``p.ndim >= 1 and p.numel() == p.shape[0]``. The condition is not
    ``p.ndim == 1``, because torch's weight norm stores its lengths with shape ``(C, 1, 1, 1)``.

    It is only a guess: it also accepts a ``Linear(1, C)`` weight or a learned temperature of shape
    ``(1,)``, and misses a ``LayerNorm((C, H, W))``. :func:`param_groups` uses the role instead.

    Args:
        p: A parameter of any shape.
    """
    return p.ndim >= 1 and p.numel() == p.shape[0] and not p.is_complex()


def is_newton(p: Tensor, group: Mapping[str, Any]) -> bool:
    """Return whether ``p`` takes Newton steps, by its group's flag or, without one, its shape."""
    flag = group.get("channelwise")
    return is_channelwise(p) if flag is None else bool(flag)


def newton_parameters(groups: Iterable[Mapping[str, Any]]) -> list[Tensor]:
    """List the Newton parameters of a new optimizer's groups, in registration order.

    In groups without ``channelwise=True`` or ``False``, the last trainable channel-wise parameter
    stays first-order, because it is usually a classifier's bias.
    """
    groups = list(groups)
    newton = [p for group in groups for p in group["params"] if is_newton(p, group)]
    guessed = [
        p
        for group in groups
        if group.get("channelwise") is None
        for p in group["params"]
        if is_newton(p, group) and p.requires_grad
    ]
    last = guessed[-1] if guessed else None
    return list({id(p): p for p in newton if p is not last}.values())


def param_groups(
    model: nn.Module,
    weight_decay: float | None = None,
    *,
    channelwise_weight_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Group a model's parameters by their role in their modules, for :class:`sgdph.SGDPH`.

    These parameters are channel-wise: the scales and shifts of norm layers (batch, instance, layer,
    group, RMS, and other layers whose class is named ``…Norm…``), the biases of all layers (also
    recurrent and attention layers), and the lengths ``g`` of torch's weight norm, old and new. The
    bias of the output layer stays first-order: in front of a softmax its row sum is zero, so its
    multiplier would always be the largest. The output layer is the last module in registration
    order that owns parameters.

    Every group has ``channelwise=True`` or ``False``, so shapes do not matter. A tied parameter
    appears once, in the role of its first owner; the output layer's bias stays first-order even if
    another module owns it, too. Frozen parameters are included, and
    :class:`sgdph.SGDPH` trains them once they are unfrozen. :class:`sgdph.PartialHessian` does so
    for Newton parameters, and for first-order ones that its first-order optimizer holds.

    Args:
        model: The network. Its parameters are not touched.
        weight_decay: λ of every group. ``None`` leaves it to the optimizer's own argument.
        channelwise_weight_decay: λ of the channel-wise parameters and of the output layer's bias,
            if it should differ; ``0.0`` switches weight decay off for them.

    Returns:
        One to three groups. Each is a dict with ``params`` (tensors, in registration order),
        ``param_names``, ``channelwise``, and ``weight_decay`` if one was given. ``positions`` are
        the places in ``model.parameters()``; with them a state of ``torch.optim.SGD`` can be
        loaded.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``model`` has no parameters.

    Example:
        >>> optimizer = SGDPH(param_groups(model, weight_decay=5e-3), lr=0.01)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"param_groups expects a torch.nn.Module, got {type(model).__name__}; pass bare "
            "tensors directly to SGDPH"
        )
    newton: list[tuple[str, Tensor]] = []
    output_bias: list[tuple[str, Tensor]] = []
    weights: list[tuple[str, Tensor]] = []
    output = output_layer(model)
    # By identity: BERT's head registers this bias a second time, in the parent, which comes first.
    of_output = {
        id(p)
        for name, p in (() if output is None else output.named_parameters(recurse=False))
        if _is_bias_name(name)
    }
    for name, p, _, role in parameters_with_roles(model):
        if not role:
            weights.append((name, p))
        elif id(p) in of_output:
            output_bias.append((name, p))
        else:
            newton.append((name, p))
    if not newton and not output_bias and not weights:
        raise ValueError(f"{type(model).__name__} has no parameters to optimize")

    if channelwise_weight_decay is None:
        channelwise_weight_decay = weight_decay
    if channelwise_weight_decay == weight_decay:
        weights, output_bias = weights + output_bias, []
    groups = (
        (newton, True, channelwise_weight_decay),
        (weights, False, weight_decay),
        (output_bias, False, channelwise_weight_decay),
    )
    positions = {id(p): i for i, p in enumerate(model.parameters())}
    return [_group(named, positions, flag, decay) for named, flag, decay in groups if named]


def _group(
    named: list[tuple[str, Tensor]], positions: Mapping[int, int], flag: bool, decay: float | None
) -> dict[str, Any]:
    group: dict[str, Any] = {
        "params": [p for _, p in named],
        "param_names": [name for name, _ in named],
        "positions": [positions[id(p)] for _, p in named],
        "channelwise": flag,
    }
    if decay is not None:
        group["weight_decay"] = decay
    return group


def parameters_with_roles(model: nn.Module) -> Iterator[tuple[str, Tensor, nn.Module, bool]]:
    """Yield every parameter once: full name, tensor, owning module, whether it is channel-wise."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        lengths = _weight_norm_lengths(module)
        for local, p in module.named_parameters(recurse=False):
            if id(p) in seen:
                continue
            seen.add(id(p))
            role = not p.is_complex() and (
                local in lengths
                or isinstance(module, _NORM_LAYERS)
                or (_is_channelwise_by_name(module, local) and is_channelwise(p))
            )
            yield (f"{prefix}.{local}" if prefix else local), p, module, role


def output_layer(model: nn.Module) -> nn.Module | None:
    """Find the last module, in registration order, that owns parameters itself.

    A parametrised layer keeps its original parameters, and those of its parametrisations, in child
    modules. The layer itself counts as their owner.
    """
    last = None
    within: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, parametrize.ParametrizationList):
            within |= set(module.modules())
        if module in within:
            continue
        if next(module.parameters(recurse=False), None) is not None or parametrize.is_parametrized(
            module
        ):
            last = module
    return last


def _is_channelwise_by_name(module: nn.Module, local: str) -> bool:
    # Many networks define their own norm layer (LlamaRMSNorm, T5LayerNorm), which does not inherit
    # from torch's.
    return "Norm" in type(module).__name__ or _is_bias_name(local)


def _is_bias_name(local: str) -> bool:
    # "bias_ih_l0" and "bias_hh_l0" of recurrent layers, "in_proj_bias" of attention.
    return local == "bias" or local.endswith("_bias") or local.startswith(("bias_ih", "bias_hh"))


def _weight_norm_lengths(module: nn.Module) -> set[str]:
    """Return the names of the parameters of ``module`` that are lengths ``g`` of weight norm."""
    if isinstance(module, parametrize.ParametrizationList):
        # parametrizations.weight_norm splits a weight into original0 = g and original1 = v. Its
        # class is private, so it is recognised by its name.
        first = next(iter(module), None)
        return {"original0"} if type(first).__name__ == "_WeightNorm" else set()
    hooks = module._forward_pre_hooks.values()
    return {f"{hook.name}_g" for hook in hooks if isinstance(hook, WeightNorm)}


def parameter_name(groups: Sequence[dict[str, Any]], p: Tensor) -> str:
    """Return the name of ``p`` from its group, or ``"group.place"`` if it has none there.

    Raises:
        KeyError: ``p`` is in none of the groups.
    """
    for i, group in enumerate(groups):
        for j, other in enumerate(group["params"]):
            if other is p:
                return _name_at(group, i, j)
    raise KeyError(f"a tensor of shape {tuple(p.shape)} is not a parameter of this optimizer")


def parameter_names(groups: Sequence[dict[str, Any]]) -> dict[int, str]:
    """Return the name of every parameter, as :func:`parameter_name` gives it, by its ``id``."""
    return {
        id(p): _name_at(group, i, j)
        for i, group in enumerate(groups)
        for j, p in enumerate(group["params"])
    }


def listed(names: Sequence[str]) -> str:
    """Join up to three names, and say how many more there are."""
    rest = f" (and {len(names) - 3} more)" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{rest}"


def _name_at(group: dict[str, Any], i: int, j: int) -> str:
    # There are fewer names than parameters if a user has changed the list.
    names = group.get("param_names") or []
    return str(names[j]) if j < len(names) else f"{i}.{j}"


def refuse_model(params: object) -> None:
    """Raise TypeError if a model was given in place of its parameters."""
    if isinstance(params, nn.Module) and not isinstance(params, nn.ParameterList):
        raise TypeError(
            f"expected parameters, got a model ({type(params).__name__}); pass "
            "sgdph.param_groups(model)"
        )


def like_the_others(groups: Sequence[dict[str, Any]], group: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a later group that fits the existing groups.

    Settings that must be the same in all groups are taken from the existing ones, because they may
    have changed since the optimizer's defaults were set. Parameters get names if those of the other
    groups have names, because torch requires names in all groups or in none. Anything that is not a
    valid group is left to torch, which raises the error.
    """
    if not isinstance(group, dict):
        return group
    return named_like({**{name: groups[0][name] for name in ONE_FOR_ALL_GROUPS}, **group}, groups)


def named_like(group: dict[str, Any], groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Give a group's parameters names if those of the other groups have names."""
    params = group.get("params")
    if "param_names" in group or not groups or "param_names" not in groups[0]:
        return group
    if params is None or isinstance(params, set):
        return group
    params = [params] if isinstance(params, Tensor) else list(params)
    if any(isinstance(p, tuple) for p in params):
        return {**group, "params": params}
    return {**group, "params": [(f"{len(groups)}.{i}", p) for i, p in enumerate(params)]}
