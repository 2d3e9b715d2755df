"""What all tests share."""

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
    # The nets are tiny: more threads cost time, and reorder sums from run to run.
    torch.set_num_threads(1)


@pytest.fixture
def children_hear_ctrl_c() -> Iterator[None]:
    """A program started in the background of a script ignores Ctrl-C, and so do its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compilations]:
    """Counts what the backend ``aot_eager`` compiles, and how often that then runs."""
    import torch._dynamo

    torch._dynamo.reset()
    yield Compilations(monkeypatch)
    torch._dynamo.reset()


def pytest_configure(config: pytest.Config) -> None:
    # Meant for users; the third way in asks for it, and SGDPH lets go of the cycle.
    config.addinivalue_line(
        "filterwarnings", "ignore:Using backward.. with create_graph=True:UserWarning"
    )
