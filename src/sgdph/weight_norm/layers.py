"""Choosing the layers to weight-normalise, and checking that they can be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TypeAlias, cast

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

Layers: TypeAlias = Iterable[str | type[nn.Module]]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_KINDS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED, nn.Linear)
# An error names at most this many layers; a deep network has hundreds.
_LISTED = 20


def output_dim(layer: nn.Module) -> int:
    """Return the dimension of a layer's weight that indexes its output channels."""
    return 1 if isinstance(layer, _TRANSPOSED) else 0


def choose_layers(model: nn.Module, layers: Layers | None) -> list[nn.Module]:
    """Return the layers to normalise, each once, and check that all of them can be.

    Args:
        model: The network.
        layers: See :func:`sgdph.apply_weight_norm`.

    Raises:
        TypeError: See :func:`sgdph.apply_weight_norm`.
        ValueError: See :func:`sgdph.apply_weight_norm`.
    """
    chosen = _matched(model, layers)
    if not chosen:
        there = _listing(_candidates(model))
        raise ValueError(f"no layer to weight-normalise was chosen; {type(model).__name__} {there}")
    owners = _owners(model)
    obstacles: dict[str, list[str]] = {}
    for name, layer in chosen.items():
        reason = _obstacle(layer, owners)
        if reason is not None:
            obstacles.setdefault(reason, []).append(_shown(name))
    if obstacles:
        reasons = "; ".join(f"{_shortened(names)}: {why}" for why, names in obstacles.items())
        raise ValueError(
            f"nothing was weight-normalised, because some layers cannot be. {reasons}. To leave "
            "layers out, name the others in layers="
        )
    return list(chosen.values())


def _candidates(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of the right kinds under all their names."""
    modules = model.named_modules(remove_duplicate=False)
    return {name: module for name, module in modules if isinstance(module, _KINDS)}


def _matched(model: nn.Module, layers: Layers | None) -> dict[str, nn.Module]:
    """Return the chosen layers, each under the first of its names, in the model's order."""
    candidates = _candidates(model)
    if layers is None:
        wanted = set(candidates)
    elif isinstance(layers, str | type) or not isinstance(layers, Iterable):
        raise TypeError(
            "layers expects an iterable of names and module types, like ['features.*', "
            f"torch.nn.Linear]; got {layers!r}; did you mean a list with one entry?"
        )
    else:
        wanted = {name for entry in layers for name in _names(entry, model, candidates)}
    first: dict[int, str] = {}
    for name, layer in candidates.items():
        first.setdefault(id(layer), name)
    chosen = {id(candidates[name]) for name in wanted}
    return {name: candidates[name] for key, name in first.items() if key in chosen}


def _names(entry: object, model: nn.Module, candidates: Mapping[str, nn.Module]) -> list[str]:
    """Return the names of the candidates that an entry of ``layers`` matches."""
    if isinstance(entry, type) and issubclass(entry, nn.Module):
        found = [name for name, layer in candidates.items() if isinstance(layer, entry)]
        shown = f"the type {entry.__name__}"
    elif isinstance(entry, str):
        modules = dict(model.named_modules(remove_duplicate=False))
        if entry in modules and entry not in candidates:
            kind = type(modules[entry]).__name__
            inside = any(name.startswith(f"{entry}.") for name in candidates)
            raise ValueError(
                f"layers names {entry!r}, a {kind}, which cannot be weight-normalised; "
                + (f"for the layers inside it write {entry + '.*'!r}; " if inside else "")
                + f"the model {_listing(candidates)}"
            )
        found = [name for name in candidates if name == entry or fnmatchcase(name, entry)]
        shown = repr(entry)
    else:
        raise TypeError(
            "layers expects names and module types, like 'features.*' or torch.nn.Linear; got "
            + (f"a {type(entry).__name__} itself" if isinstance(entry, nn.Module) else repr(entry))
        )
    if not found:
        raise ValueError(
            f"layers has {shown}, which matches no layer that can be weight-normalised; the model "
            f"{_listing(candidates)}"
        )
    return found


def _owners(model: nn.Module) -> dict[int, list[str]]:
    """Return the names of the modules that hold each parameter, by the parameter's ``id``."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for p in module._parameters.values():
            if p is not None:
                owners.setdefault(id(p), []).append(_shown(name))
    return owners


def _obstacle(layer: nn.Module, owners: Mapping[int, list[str]]) -> str | None:
    """Return why a layer's weight cannot be normalised, and what to do; ``None`` if it can."""
    weight = layer._parameters.get("weight")
    if weight is None:
        return _computed(layer)
    if is_lazy(weight):
        return "not initialised yet; run a batch through the model first"
    if not weight.is_floating_point():
        return f"weights of {weight.dtype}, where real floating-point ones are expected"
    if weight.numel() == 0:
        return f"an empty weight, of shape {tuple(weight.shape)}"
    if len(owners[id(weight)]) > 1:
        return (
            f"one weight shared by {' and '.join(owners[id(weight)])}, which would no longer be "
            "shared after weight normalisation; leave it out, or give each layer its own weight"
        )
    if isinstance(layer, _TRANSPOSED) and layer.groups > 1:
        return (
            "a transposed convolution with groups, whose weight has no single dimension of output "
            "channels; leave it out"
        )
    return None


def _computed(layer: nn.Module) -> str:
    if parametrize.is_parametrized(layer, "weight"):
        steps = cast(nn.ModuleDict, layer.parametrizations)["weight"].children()
        kinds = [type(step).__name__.lstrip("_") for step in steps]
    else:
        # Hooks of the older weight norm and spectral norm have a name; pruning has a _tensor_name.
        kinds = [
            type(hook).__name__
            for hook in layer._forward_pre_hooks.values()
            if "weight" in (getattr(hook, "name", None), getattr(hook, "_tensor_name", None))
        ]
    if kinds == ["WeightNorm"]:
        return "weight-normalised already; sgdph.fold_weight_norm(model) first, or leave it out"
    by = f", by {', '.join(kinds)}" if kinds else ""
    return f"a weight that is computed already{by}; remove that first, or leave it out"


def _shown(name: str) -> str:
    return repr(name) if name else "the model itself"


def _shortened(names: list[str]) -> str:
    rest = [f"{len(names) - _LISTED} more"] if len(names) > _LISTED else []
    return ", ".join(names[:_LISTED] + rest)


def _listing(candidates: Mapping[str, nn.Module]) -> str:
    """Return the part of an error message that lists a model's layers of the right kinds."""
    if not candidates:
        return "has no layer that can be: Conv1d to 3d, ConvTranspose1d to 3d, Linear"
    shown = [f"{_shown(name)} ({type(layer).__name__})" for name, layer in candidates.items()]
    return f"has {_shortened(shown)}"
