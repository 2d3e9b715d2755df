"""Two processes with gloo, started as ``torchrun`` would."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp
from preloaded import PRELOADED

RANKS = 2
FRAMEWORKS = ["lightning.pytorch", "accelerate", "transformers.trainer"]


def on_two_ranks(function: Callable[..., None], *arguments: Any) -> None:
    """Call ``function(rank, *arguments)`` in two processes; raise what one of them raises."""
    # The frameworks take seconds to import: do it once, in the server, not in each process.
    mp.get_context("forkserver").set_forkserver_preload([*PRELOADED, *FRAMEWORKS])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(_run, (function, port, arguments), nprocs=RANKS, start_method="forkserver")


def _run(
    rank: int, function: Callable[..., None], port: int, arguments: tuple[object, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(RANKS),
        "LOCAL_WORLD_SIZE": str(RANKS),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "ACCELERATE_USE_CPU": "true",
    }
    try:
        function(rank, *arguments)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    # A gloo thread that releases the last message while Python exits aborts the process.
    os._exit(0)
