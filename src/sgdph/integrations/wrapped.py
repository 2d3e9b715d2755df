"""The optimizer inside a framework's wrapper."""

from __future__ import annotations

from sgdph.optimizer import SGDPH


def wrapped_sgdph(optimizer: object) -> SGDPH:
    """Find the :class:`sgdph.SGDPH` in an optimizer or in wrappers around one.

    Args:
        optimizer: An optimizer, or a wrapper that holds one as its attribute ``optimizer``, as
            Accelerate's and Lightning's do.

    Raises:
        TypeError: There is none.
    """
    inner: object = optimizer
    # Lightning's wrapper passes for an instance of what it wraps, so the innermost is taken.
    while getattr(inner, "optimizer", None) is not None:
        inner = inner.optimizer  # type: ignore[attr-defined]
    if not isinstance(inner, SGDPH):
        raise TypeError(
            f"expected an sgdph.SGDPH or a wrapper around one, got {type(optimizer).__name__}"
            + ("" if inner is optimizer else f" around {type(inner).__name__}")
            + ": only SGDPH takes a partial Hessian"
        )
    return inner
