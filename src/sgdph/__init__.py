"""SGD with Partial Hessian (SGD-PH) for PyTorch."""

__version__ = "0.1.0"
