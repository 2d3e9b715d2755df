"""Warnings that point to the user's own line."""

from __future__ import annotations

import sys
import warnings


def warn_user(message: str) -> None:
    """Warn at the innermost line outside this package and torch.

    How many calls lie between the two depends on hooks, wrappers and the version of torch, so
    a fixed ``stacklevel`` would point anywhere.

    Args:
        message: What was found, and what to do.
    """
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _is_internal(str(frame.f_globals.get("__name__"))):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def _is_internal(module: str) -> bool:
    return module.partition(".")[0] in {"sgdph", "torch"} and not module.startswith("sgdph.lab")
