"""The names of the estimators and of the refresh orders. This module imports nothing heavy."""

from __future__ import annotations

from typing import Literal, get_args

Estimator = Literal["row_sum", "hutchinson", "exact"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)
Refresh = Literal["cyclic", "all"]
REFRESHES: tuple[Refresh, ...] = get_args(Refresh)
