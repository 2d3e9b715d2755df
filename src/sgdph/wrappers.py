"""The optimizer inside a framework's wrapper around it."""

from __future__ import annotations

from sgdph.step import SecondOrderOptimizer

# Accelerate's, Lightning's and pytorch_optimizer's wrappers; timm's Lookahead.
_INNER = ("optimizer", "_base_optimizer")


def wrapped_sgdph(optimizer: object) -> SecondOrderOptimizer:
    """Find the :class:`sgdph.SGDPH` or :class:`sgdph.PartialHessian` in wrappers around it.

    Wrappers pass on ``step``, ``zero_grad`` and states, but not ``backward`` or ``multipliers``.

    Args:
        optimizer: An optimizer, or one or more wrappers around it: Accelerate's, Lightning's,
            ``Lookahead`` of ``pytorch_optimizer`` and of timm.

    Returns:
        The optimizer inside, of either class.

    Raises:
        TypeError: ``optimizer`` contains neither.

    Example:
        >>> optimizer = Lookahead(SGDPH(param_groups(model)))
        >>> wrapped_sgdph(optimizer).backward(loss)
        >>> optimizer.step()
    """
    inner: object = optimizer
    # Lightning's wrapper passes isinstance checks for what it wraps, so take the innermost.
    while (held := _held(inner)) is not None:
        inner = held
    if not isinstance(inner, SecondOrderOptimizer):
        raise TypeError(
            "expected an sgdph.SGDPH or an sgdph.PartialHessian, or a wrapper around one, got "
            + type(optimizer).__name__
            + ("" if inner is optimizer else f" around {type(inner).__name__}")
            + ": only these two take a partial Hessian"
        )
    return inner


def _held(optimizer: object) -> object | None:
    held = (getattr(optimizer, name, None) for name in _INNER)
    return next((each for each in held if each is not None), None)
