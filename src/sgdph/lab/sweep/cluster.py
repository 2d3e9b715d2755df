"""Several machines: the same tasks on Ray, which places them and tries them again.

Each task takes its cores and GPUs. Where its worker or its machine is lost, Ray gives it to another
one, which goes on from the checkpoint in the shared folder. Ray ends the workers of a program that
is gone, however it went.
"""

from __future__ import annotations

import os
import socket
import sys
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from sgdph.lab.errors import LabError
from sgdph.lab.sweep.worker import ATTEMPTS, Task, Train, process_worker

LOCAL = "local"
# More than any cluster computes at once: Ray holds back what it has no room for.
ALL = 100_000
# How long interrupted tasks may take to stop, in seconds.
GRACE = 20.0
# How long an address may take to answer, in seconds.
REACH = 10.0


class Cluster:
    """An executor of Ray's workers; a context manager, which lets go of them at its end.

    Args:
        address: ``"local"`` starts a Ray of this machine; else where one runs, as ``ray.init``
            takes it: ``"auto"``, ``"host:6379"``, ``"ray://host:10001"``.
        slots: How many tasks run at once; ``None`` for as many as there is room for.
        cores: How many cores a local Ray has.

    Raises:
        LabError: If Ray is not installed, or cannot be reached.
    """

    def __init__(self, address: str, slots: int | None, cores: int) -> None:
        self.slots = slots or ALL
        self._ray = ray = _import_ray()
        # Ray would ask on the terminal, or report home.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if address == LOCAL:
            options |= {"num_cpus": cores, "include_dashboard": False}
        else:
            _check_reachable(address)
            options |= {"address": address}
        try:
            ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise LabError(
                f"--ray {address}: cannot connect to a Ray cluster there ({error}); start one "
                "with ray start --head, or use --ray local"
            ) from error
        resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        self._most_cores = max(each.get("CPU", 0) for each in resources)
        self._has_gpus = any(each.get("GPU", 0) for each in resources)
        self._references: list[Any] = []

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Have what is computed stop after the step it is at, and leave Ray."""
        if kind is not None:
            for reference in self._references:
                self._ray.cancel(reference)
            self._ray.wait(self._references, num_returns=len(self._references), timeout=GRACE)
        self._ray.shutdown()

    def submit(self, task: Task) -> Future[bool]:
        """Give a task to Ray.

        Raises:
            LabError: If no machine has the cores for it.
        """
        if task.cores > self._most_cores:
            raise LabError(
                f"{task.name} takes {task.cores} cores, but no machine of this Ray cluster has "
                f"more than {self._most_cores:g}; set a smaller --threads"
            )
        remote = self._ray.remote(_train).options(
            name=task.name,
            num_cpus=task.cores,
            num_gpus=task.gpus if self._has_gpus else 0,
            max_retries=ATTEMPTS - 1,
        )
        reference = remote.remote(task.train, sys.argv)
        self._references.append(reference)
        future: Future[bool] = reference.future()
        return future


def _check_reachable(address: str) -> None:
    """Raise LabError where nobody listens at an address: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=REACH).close()
    except OSError as error:
        raise LabError(
            f"--ray {address}: no Ray cluster answers there ({error}); start one with ray start "
            "--head, or use --ray local"
        ) from error


def _import_ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise LabError(
            "--ray needs Ray, which is not installed; install it with: pip install 'ray>=2.40'"
        ) from error
    return ray


def _train(train: Train, argv: list[str]) -> bool:
    # What runs record as the command that made them.
    sys.argv = argv
    return train(process_worker())
