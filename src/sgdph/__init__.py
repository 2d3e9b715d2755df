"""SGD with Partial Hessian (SGD-PH) for PyTorch."""

from sgdph.algorithm import MultiplierStatistics
from sgdph.diagnostics.block import hessian_block
from sgdph.diagnostics.curvature_check import check_curvature
from sgdph.diagnostics.diagnostics import diagonality
from sgdph.diagnostics.figures import Diagonality, EstimateError
from sgdph.optimizer import SGDPH
from sgdph.roles import param_groups
from sgdph.weight_norm.weight_norm import apply_weight_norm, fold_weight_norm

__version__ = "0.1.0"

__all__ = [
    "SGDPH",
    "Diagonality",
    "EstimateError",
    "MultiplierStatistics",
    "apply_weight_norm",
    "check_curvature",
    "diagonality",
    "fold_weight_norm",
    "hessian_block",
    "param_groups",
]
