"""Settings and fixtures that all tests share."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator

import pytest
import torch
from compilations import Compilations
from preloaded import PRELOADED

multiprocessing.set_forkserver_preload(PRELOADED)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # The networks are tiny. More threads are slower, and sum in another order in each run.
    torch.set_num_threads(1)


@pytest.fixture
def children_hear_ctrl_c() -> Iterator[None]:
    """Let child processes react to Ctrl-C.

    A program that a script starts in the background ignores it, and so do its children.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compilations]:
    """Count the graphs that the backend ``aot_eager`` compiles, and how often they run."""
    import torch._dynamo

    torch._dynamo.reset()
    yield Compilations(monkeypatch)
    torch._dynamo.reset()


def pytest_configure(config: pytest.Config) -> None:
    # Several tests compare row sums before layer norm with an oracle.
    config.addinivalue_line(
        "filterwarnings", "ignore:estimator='row_sum' fails before layer norm:UserWarning"
    )
    # This warning of a reference cycle is meant for users. One of the three ways to pass the
    # curvature needs create_graph=True, and SGDPH breaks the cycle.
    config.addinivalue_line(
        "filterwarnings", "ignore:Using backward.. with create_graph=True:UserWarning"
    )
