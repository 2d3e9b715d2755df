"""SGD with Partial Hessian (SGD-PH) for PyTorch.

The public names are imported when they are first used (PEP 562). So the command line can start,
and ``sgdph.__version__`` can be read, without importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgdph.algorithm import MultiplierStatistics
    from sgdph.compilation import compiled
    from sgdph.diagnostics.block import hessian_block
    from sgdph.diagnostics.curvature_check import check_curvature
    from sgdph.diagnostics.diagnostics import diagonality
    from sgdph.diagnostics.figures import Diagonality, EstimateError
    from sgdph.metrics import log_multipliers
    from sgdph.optimizer import SGDPH
    from sgdph.partial_hessian import PartialHessian
    from sgdph.roles import param_groups
    from sgdph.weight_norm.weight_norm import apply_weight_norm, fold_weight_norm
    from sgdph.with_muon import muon

__version__ = "0.2.0"

__all__ = [
    "SGDPH",
    "Diagonality",
    "EstimateError",
    "MultiplierStatistics",
    "PartialHessian",
    "apply_weight_norm",
    "check_curvature",
    "compiled",
    "diagonality",
    "fold_weight_norm",
    "hessian_block",
    "log_multipliers",
    "muon",
    "param_groups",
]

_MODULES = {
    "SGDPH": "optimizer",
    "Diagonality": "diagnostics.figures",
    "EstimateError": "diagnostics.figures",
    "MultiplierStatistics": "algorithm",
    "PartialHessian": "partial_hessian",
    "apply_weight_norm": "weight_norm.weight_norm",
    "check_curvature": "diagnostics.curvature_check",
    "compiled": "compilation",
    "diagonality": "diagnostics.diagnostics",
    "fold_weight_norm": "weight_norm.weight_norm",
    "hessian_block": "diagnostics.block",
    "log_multipliers": "metrics",
    "muon": "with_muon",
    "param_groups": "roles",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    # From now on Python finds the name without calling this function.
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
