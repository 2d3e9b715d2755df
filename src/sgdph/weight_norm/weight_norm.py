"""Applying and removing weight normalisation.

An output channel's weight is written as a length times a direction, ``w = g v / ‖v‖`` (Salimans &
Kingma, "Weight Normalization", NeurIPS 2016; Eq. 8 of Sun, Yong & Zhang, arXiv:2403.02681). The
lengths ``g`` hold one number per channel, so a network without norm layers has channel-wise
parameters too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.weight_norm import WeightNorm

from sgdph.weight_norm.layers import Layers, choose_layers, output_dim

ModelT = TypeVar("ModelT", bound=nn.Module)

_WEIGHT = "weight"
# The seed for random directions of channels that have none, the same in every process.
_SEED = 2016


def apply_weight_norm(model: ModelT, layers: Layers | None = None) -> ModelT:
    """Weight-normalise a model's convolutions and linear layers, in place.

    It uses :func:`torch.nn.utils.parametrizations.weight_norm`, with one length per output channel
    (Salimans & Kingma, 2016). The network computes the same as before: ``g`` starts as the length
    of the weight, and ``v`` as the weight. A channel whose weights are all zero has no direction.
    It gets ``g = 0`` and a random ``v``, the same at every call, so it computes zero and can learn.

    Build the optimizer afterwards, from :func:`sgdph.param_groups`. The lengths and all biases
    except the output layer's then take Newton steps. Do not use ``model.parameters()``, where only
    shapes decide. The last channel-wise parameter, which stays first-order, would be the last
    layer's ``g`` instead of its bias. And the ``g`` of a transposed convolution, of shape
    ``(1, C, 1, 1)``, would not be channel-wise.

    Args:
        model: The network. Layers are ``Conv1d`` to ``Conv3d``, ``ConvTranspose1d`` to
            ``ConvTranspose3d``, ``Linear``, and their subclasses. A layer that is used in several
            places is normalised once.
        layers: The layers to normalise: qualified names, patterns of names (``"features.*"``, as in
            :mod:`fnmatch`) and module types. Matches of other kinds are ignored. ``None`` means
            all layers.

    Returns:
        The model itself. Its ``requires_grad``, dtypes, devices and training mode are kept. The
        parameter ``weight`` of a layer has become ``parametrizations.weight.original0``, ``g``, and
        ``original1``, ``v``.

    Raises:
        TypeError: ``model`` is not a module, ``layers`` is not an iterable, or an entry of
            ``layers`` is neither a name nor a type.
        ValueError: There is nothing to normalise; an entry of ``layers`` matches no layer that can
            be normalised; ``model`` is or contains a ``DistributedDataParallel``; or a layer cannot
            be normalised. Its weight may be computed from others already (weight norm, spectral
            norm, pruning …), shared, complex, empty or not initialised yet. Or it is a transposed
            convolution with groups, whose weight has no single dimension of output channels.
            Nothing has been changed then.

    Example:
        >>> model = sgdph.apply_weight_norm(model, layers=["features.*", nn.Linear])
        >>> optimizer = sgdph.SGDPH(sgdph.param_groups(model, weight_decay=1e-3), lr=0.01)
    """
    _check_model(model, "apply_weight_norm")
    chosen = choose_layers(model, layers)
    generator = torch.Generator().manual_seed(_SEED)
    for layer in chosen:
        _normalise(layer, generator)
    return model


def fold_weight_norm(model: ModelT) -> ModelT:
    """Turn a model's weight normalisation back into plain weights, in place.

    It works for both of torch's kinds: the parametrisation, and the older hook of
    :func:`torch.nn.utils.weight_norm`. Each weight becomes a new parameter with the values that
    the network last computed with, bit for bit. Use it before export, before pickling, and to load
    plain weights. Other networks, and copies of this one, do not change.

    Args:
        model: The network.

    Returns:
        The model itself. A weight gets its former place among its layer's parameters (the first
        place, if it was not normalised by :func:`apply_weight_norm`). It is trainable if its ``g``
        or ``v`` was.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: No weight is normalised; one also has another parametrisation, or is shared with
            another layer; or ``model`` is or contains a ``DistributedDataParallel``. Nothing has
            been changed then.

    Example:
        >>> deployed = sgdph.fold_weight_norm(copy.deepcopy(model))
        >>> plain_model.load_state_dict(deployed.state_dict())
    """
    _check_model(model, "fold_weight_norm")
    folds = [_parametrised(*found) for found in _weight_norms(model)]
    folds += [_hooked(*found) for found in _weight_norm_hooks(model)]
    _check_unshared(folds)
    if not folds:
        raise ValueError(
            f"{type(model).__name__} has no weight-normalised weight to fold; "
            "sgdph.apply_weight_norm(model) makes some"
        )
    for fold in folds:
        fold.commit()
    return model


def _check_unshared(folds: Sequence[_Fold]) -> None:
    owners: dict[int, str] = {}
    for fold in folds:
        for part in fold.parts:
            other = owners.setdefault(id(part), fold.path)
            if other != fold.path:
                raise ValueError(
                    f"{other or 'the model'} and {fold.path} share a weight-normalised weight, "
                    "and folding would give each its own. Give one of them its own parameters "
                    "first"
                )


def _check_model(model: object, caller: str) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller} expects a torch.nn.Module, got {type(model).__name__}")
    if any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        raise ValueError(
            f"{caller} makes new parameters, which an existing DistributedDataParallel would not "
            "synchronise. Call it on the network before wrapping it"
        )


def _normalise(layer: nn.Module, generator: torch.Generator) -> None:
    dim = output_dim(layer)
    place = list(layer._parameters).index(_WEIGHT)
    if parametrize.is_parametrized(layer):
        layer.__class__ = _own_class(layer)
    parametrizations.weight_norm(layer, _WEIGHT, dim)
    originals = _originals(layer, _WEIGHT)
    originals[0].place_of_weight = place  # type: ignore[assignment]
    g, v = originals.parameters(recurse=False)
    _point_somewhere(g, v, dim, generator)


def _point_somewhere(g: Tensor, v: Tensor, dim: int, generator: torch.Generator) -> None:
    """Give channels of ``v`` without a direction a random one of length 1."""
    none = g.detach() == 0
    if v.is_meta or not none.any():
        return
    drawn = torch.randn(v.shape, generator=generator, device="cpu")
    drawn /= torch.norm_except_dim(drawn, 2, dim)
    # Not in place, because v still shares its memory with the old weight.
    directions = v.detach().clone()
    directions.copy_(torch.where(none, drawn.to(v), directions))
    v.data = directions


@dataclass(frozen=True)
class _Fold:
    """A plain weight, ready to replace the parameters that it is computed from."""

    path: str
    module: nn.Module
    name: str
    weight: nn.Parameter
    parts: Sequence[nn.Parameter]
    place: int
    hook: int | None = None
    """The number of an old-style hook among the module's; ``None`` for a parametrisation."""

    def commit(self) -> None:
        """Remove the parametrisation or hook, and register the plain weight."""
        if self.hook is None:
            _remove_parametrisation(self.module, self.name)
        else:
            del self.module._forward_pre_hooks[self.hook]
            del self.module._parameters[f"{self.name}_g"]
            del self.module._parameters[f"{self.name}_v"]
        # Recurrent layers keep a list of their weights, which this assignment updates.
        setattr(self.module, self.name, self.weight)
        own = self.module._parameters
        for name in [name for name in own if name != self.name][self.place :]:
            own[name] = own.pop(name)


def _weight_norms(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield the weights under torch's parametrisation: layer's name, layer, weight's name."""
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for name, steps in cast(nn.ModuleDict, module.parametrizations).items():
                # Its class is private, so it is recognised by its name.
                kinds = [type(step).__name__ for step in cast(nn.ModuleList, steps)]
                if "_WeightNorm" in kinds:
                    yield path, module, name


def _weight_norm_hooks(model: nn.Module) -> Iterator[tuple[str, nn.Module, int, WeightNorm]]:
    """Yield the older weight norms: layer's name, layer, the hook's number, the hook."""
    for path, module in model.named_modules():
        for number, hook in module._forward_pre_hooks.items():
            if isinstance(hook, WeightNorm):
                yield path, module, number, hook


def _parametrised(path: str, module: nn.Module, name: str) -> _Fold:
    originals = _originals(module, name)
    if len(originals) > 1 or not originals._parameters.keys() >= {"original0", "original1"}:
        raise _stacked(path, name)
    parts = [*originals.parameters(recurse=False)]
    place = getattr(originals[0], "place_of_weight", 0)
    return _Fold(path, module, name, _plain(originals(), parts), parts, place)


def _hooked(path: str, module: nn.Module, number: int, hook: WeightNorm) -> _Fold:
    found = [module._parameters.get(f"{hook.name}_{part}") for part in "gv"]
    if None in found:
        raise _stacked(path, hook.name)
    parts = cast(list[nn.Parameter], found)
    weight = _plain(hook.compute_weight(module), parts)
    return _Fold(path, module, hook.name, weight, parts, 0, number)


def _plain(weight: Tensor, parts: list[nn.Parameter]) -> nn.Parameter:
    trainable = any(part.requires_grad for part in parts)
    # Take the memory format, such as channels-last, from v; the product of g and v loses it.
    plain = torch.empty_like(parts[-1]).copy_(weight.detach())
    return nn.Parameter(plain.detach(), requires_grad=trainable)


def _stacked(path: str, name: str) -> ValueError:
    full = f"{path}.{name}" if path else name
    return ValueError(
        f"{full} has another parametrisation besides its weight norm, so the weight norm cannot "
        "be folded alone. Remove the other first, or remove all with "
        "torch.nn.utils.parametrize.remove_parametrizations"
    )


def _originals(module: nn.Module, name: str) -> parametrize.ParametrizationList:
    return cast(parametrize.ParametrizationList, cast(nn.ModuleDict, module.parametrizations)[name])


def _remove_parametrisation(module: nn.Module, name: str) -> None:
    """Do the same as torch's ``remove_parametrizations``, but without changing the module's copies.

    A deep copy shares its class with the original, and torch deletes the property from that class.
    """
    del cast(nn.ModuleDict, module.parametrizations)[name]
    if parametrize.is_parametrized(module):
        module.__class__ = _own_class(module, without=name)
    else:
        del module._modules["parametrizations"]
        module.__class__ = type(module).__bases__[0]
    for number, wrapped in [*module._load_state_dict_pre_hooks.items()]:
        if _is_compatibility_hook(getattr(wrapped, "hook", wrapped), name):
            del module._load_state_dict_pre_hooks[number]


def _is_compatibility_hook(hook: Callable[..., object], name: str) -> bool:
    """Return whether it is torch's hook that converts old states, and that cannot be pickled."""
    kind = "weight_norm.<locals>._weight_norm_compat_hook"
    if getattr(hook, "__qualname__", None) != kind:
        return False
    return bool(inspect.getclosurevars(hook).nonlocals.get("name") == name)


def _own_class(module: nn.Module, without: str | None = None) -> type[nn.Module]:
    """Copy the class that torch made for a parametrised module, without one property."""
    made = type(module)
    members = {
        name: member
        for name, member in vars(made).items()
        if name not in (without, "__dict__", "__weakref__")
    }
    return type(made.__name__, made.__bases__, members)
