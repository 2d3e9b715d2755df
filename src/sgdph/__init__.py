"""SGD with Partial Hessian (SGD-PH) for PyTorch."""

from sgdph.channelwise import param_groups
from sgdph.optimizer import SGDPH
from sgdph.statistics import MultiplierStatistics

__version__ = "0.1.0"

__all__ = ["SGDPH", "MultiplierStatistics", "param_groups"]
