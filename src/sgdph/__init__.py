"""SGD with Partial Hessian (SGD-PH) for PyTorch."""

from sgdph.block import hessian_block
from sgdph.block_statistics import Diagonality, EstimateError
from sgdph.channelwise import param_groups
from sgdph.curvature_check import check_curvature
from sgdph.diagnostics import diagonality
from sgdph.optimizer import SGDPH
from sgdph.statistics import MultiplierStatistics
from sgdph.weight_norm import apply_weight_norm, fold_weight_norm

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
