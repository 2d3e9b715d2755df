"""Checks of parameter groups and arguments, with the errors and warnings they raise."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any, NoReturn

import torch
from torch import Tensor

from sgdph.names import ESTIMATORS, REFRESHES, Estimator
from sgdph.user_warning import warn_user

# The cycle runs over all groups at once, so these cannot differ between them.
ONE_FOR_ALL_GROUPS = ("estimator", "refresh", "hessian_interval", "seed")


def unknown_estimator(estimator: NoReturn) -> ValueError:
    """Return the error for a name that is not in ``ESTIMATORS``.

    It ends every chain of ``if`` over the estimators. Its argument's type makes the type checker
    report a chain that leaves one out (``typing.assert_never`` is newer than Python 3.10).
    """
    return ValueError(f"estimator must be one of {', '.join(ESTIMATORS)}, got {estimator!r}")


def is_stochastic(estimator: Estimator) -> bool:
    """Return whether the estimator needs probes, whose signed noise has to average out.

    Raises:
        ValueError: The estimator is unknown.
    """
    if estimator == "hutchinson":
        return True
    if estimator == "row_sum" or estimator == "exact":
        return False
    raise unknown_estimator(estimator)


class SettingTypeError(ValueError, TypeError):
    """Error for a hyperparameter of a wrong type.

    It is a ``ValueError``, as for every wrong hyperparameter. It is also a ``TypeError``, for code
    that catches the error that Python raises when it compares such a value.
    """


def check_group(group: dict[str, Any]) -> None:
    """Check one parameter group's hyperparameters and tensors.

    Raises:
        ValueError: A value is out of its range or of a wrong type, or a tensor cannot be trained as
            the group says.
    """
    for name in ("lr", "momentum", "weight_decay", "second_order_lr"):
        if not 0 <= _number(name, group[name]) < math.inf:
            raise ValueError(f"{name} must be at least 0 and finite, got {group[name]}")
    if not 0 <= _number("hessian_momentum", group["hessian_momentum"]) < 1:
        raise ValueError(f"hessian_momentum must lie in [0, 1), got {group['hessian_momentum']}")
    if not 0 < _number("eps", group["eps"]) < math.inf:
        raise ValueError(
            f"eps must be above 0 and finite, got {group['eps']}: it caps the Newton multiplier "
            "at second_order_lr / eps"
        )
    if not -math.inf < _number("dampening", group["dampening"]) < math.inf:
        raise ValueError(f"dampening must be finite, got {group['dampening']}")
    _check_switch("nesterov", group["nesterov"])
    if group["nesterov"] and not (group["momentum"] > 0 and group["dampening"] == 0):
        raise ValueError(
            "nesterov needs a momentum above 0 and a dampening of 0, as in torch.optim.SGD; got "
            f"momentum={group['momentum']} and dampening={group['dampening']}"
        )
    if group["estimator"] not in ESTIMATORS:
        raise unknown_estimator(group["estimator"])
    _check_choice("refresh", group["refresh"], REFRESHES)
    interval = group["hessian_interval"]
    if not isinstance(interval, int) or isinstance(interval, bool) or interval < 1:
        raise ValueError(f"hessian_interval must be a whole number from 1 up, got {interval!r}")
    if not isinstance(group["seed"], int):
        raise ValueError(f"seed must be a whole number, got {group['seed']!r}")
    _check_switch("channelwise", group["channelwise"], "shapes decide")
    _check_switch("foreach", group["foreach"], "where it is faster")
    _check_switch("maximize", group["maximize"])
    _check_switch("eps_warmup", group["eps_warmup"])
    for p in group["params"]:
        _check_parameter(p, group["channelwise"])


def check_groups_agree(groups: Sequence[dict[str, Any]]) -> None:
    """Check that the settings of the whole cycle are the same in every group.

    Raises:
        ValueError: ``estimator``, ``refresh``, ``hessian_interval`` or ``seed`` differ.
    """
    for name in ONE_FOR_ALL_GROUPS:
        # A group that was added by hand may lack the setting.
        values = [group.get(name) for group in groups]
        if any(value != values[0] for value in values):
            raise ValueError(
                f"{name} must be the same in all groups, because one cycle runs over all of them; "
                f"got {values}"
            )


def _number(name: str, value: object) -> Any:
    """Check that a hyperparameter is a number, or a tensor that holds one, and return it."""
    if isinstance(value, Tensor):
        if value.numel() == 1:
            return value
        raise ValueError(
            f"{name} as a tensor must have one element, got shape {tuple(value.shape)}"
        )
    if isinstance(value, Real):
        return value
    raise SettingTypeError(f"{name} must be a number, got {value!r} ({type(value).__name__})")


def _check_switch(name: str, value: object, none: str = "") -> None:
    if value is None and none:
        return
    # Not by identity, so that numpy's booleans and the 1 and 0 of configuration files pass.
    if getattr(value, "ndim", 0) == 0 and value in (True, False):
        return
    expected = f"True, False, or None ({none})" if none else "True or False"
    raise SettingTypeError(f"{name} must be {expected}, got {value!r}")


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_parameter(p: Tensor, channelwise: bool | None) -> None:
    if p.is_sparse or p.is_sparse_csr:
        raise ValueError(
            f"a parameter of shape {tuple(p.shape)} has layout {p.layout}; SGDPH trains dense "
            "parameters only (first-order parameters may have sparse gradients)"
        )
    if channelwise and p.is_complex():
        raise ValueError(
            f"a parameter of shape {tuple(p.shape)} is complex ({p.dtype}) and has no real "
            "Hessian; give its group channelwise=False"
        )


def check_loss_scale(loss_scale: float | Tensor | None) -> None:
    """Check a loss scale. A tensor is not checked, because that would wait for the device.

    Raises:
        TypeError: It is neither a number nor a tensor.
        ValueError: It is not above 0, or not finite.
    """
    if loss_scale is None or isinstance(loss_scale, Tensor):
        return
    if not isinstance(loss_scale, Real) or isinstance(loss_scale, bool):
        raise TypeError(
            f"loss_scale must be a number or a tensor, got {type(loss_scale).__name__}; with a "
            "GradScaler pass scaler.get_scale()"
        )
    if not 0 < loss_scale < math.inf:
        raise ValueError(f"loss_scale must be above 0 and finite, got {loss_scale}")


def refuse_sparse_gradients(
    params: Iterable[Tensor],
    gradients: Iterable[Tensor | None],
    name: Callable[[Tensor], str],
) -> None:
    """Raise an error if a gradient is sparse: partial Hessians and Newton steps need dense ones.

    Args:
        params: Newton parameters.
        gradients: Their gradients.
        name: Returns the name of a parameter.

    Raises:
        RuntimeError: A gradient is sparse.
    """
    for p, gradient in zip(params, gradients, strict=True):
        if gradient is not None and gradient.is_sparse:
            raise RuntimeError(
                f"parameter {name(p)} is channel-wise and has a sparse gradient, which is not "
                "supported; use a layer with sparse=False, or give its group channelwise=False"
            )


def refuse_graph_capture() -> None:
    """Raise an error if a CUDA graph is being captured.

    Raises:
        RuntimeError: The current stream is being captured.
    """
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():  # type: ignore[no-untyped-call]
        raise RuntimeError(
            "SGDPH cannot be captured in a CUDA graph, because each step refreshes another "
            "parameter. Capture forward and backward only, and call update_hessian and step "
            "outside"
        )


def warn_of_joint_noise(groups: Sequence[dict[str, Any]]) -> None:
    """Warn if joint Hutchinson probes are averaged over too few refreshes."""
    joint = is_stochastic(groups[0]["estimator"]) and groups[0]["refresh"] == "all"
    lowest = min(group["hessian_momentum"] for group in groups)
    if joint and lowest < 0.98:
        warn_user(
            "estimator='hutchinson' with refresh='all' draws one probe for all parameters, so "
            f"each estimate contains the noise of every layer. hessian_momentum={lowest} averages "
            "too little of that noise away; use 0.99 or more",
        )
