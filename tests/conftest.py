"""What all tests share."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator

import pytest
import torch

# Importing takes longer than what most processes of tests do. Those of the start method
# "forkserver" are forks of one that has imported these, and has done nothing else.
multiprocessing.set_forkserver_preload(
    [
        "torch._dynamo",
        "torch.distributed.fsdp",
        "torch.nn.parallel",
        "sgdph",
        # The laboratory's; what is not installed is left out.
        "sgdph.lab.data.embedded",
        "sgdph.lab.sweep.pool",
        "sgdph.lab.tune.trials",
    ]
)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # The nets are tiny: more threads cost time, and reorder sums from run to run.
    torch.set_num_threads(1)


@pytest.fixture
def children_hear_ctrl_c() -> Iterator[None]:
    """A program started in the background of a script ignores Ctrl-C, and so do its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def pytest_configure(config: pytest.Config) -> None:
    # Meant for users; the third way in asks for it, and SGDPH lets go of the cycle.
    config.addinivalue_line(
        "filterwarnings", "ignore:Using backward.. with create_graph=True:UserWarning"
    )
