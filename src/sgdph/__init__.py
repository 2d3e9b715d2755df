"""SGD with Partial Hessian (SGD-PH) for PyTorch."""

from sgdph.channelwise import param_groups
from sgdph.optimizer import SGDPH
from sgdph.statistics import MultiplierStatistics
from sgdph.weight_norm import apply_weight_norm, fold_weight_norm

__version__ = "0.1.0"

__all__ = [
    "SGDPH",
    "MultiplierStatistics",
    "apply_weight_norm",
    "fold_weight_norm",
    "param_groups",
]
