"""Tests for an NVIDIA GPU: ``make test-cuda``. They need torch and pytest, and nothing else.

Where it makes sense, ``make test`` also runs a test on the CPU or on the device ``meta``. Its code
is then tested without a GPU.

The folder is not a package. A package ``cuda`` would shadow NVIDIA's own of that name.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") is not None and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU: run make test-cuda there")


@pytest.fixture(autouse=True)
def _exact_kernels() -> Iterator[None]:
    """No TF32, and kernels that add in the same order each time."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    with torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    ):
        yield
    torch.set_float32_matmul_precision(before)
