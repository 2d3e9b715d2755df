"""What all tests share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # The nets are tiny: more threads cost time, and reorder sums from run to run.
    torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    # Meant for users; the third way in asks for it, and SGDPH lets go of the cycle.
    config.addinivalue_line(
        "filterwarnings", "ignore:Using backward.. with create_graph=True:UserWarning"
    )
