"""Several machines: run the same tasks on Ray, which schedules and retries them.

Each task reserves its cores and GPUs. If its worker or machine is lost, Ray gives the task to
another worker, which continues from the checkpoint in the shared folder. However the program ends,
Ray ends its workers.
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
# More tasks than any cluster runs at once. Ray queues those that it has no room for.
ALL = 100_000
# How long interrupted tasks may take to stop, in seconds.
GRACE = 20.0
# How long an address may take to answer, in seconds.
REACH = 10.0


class Cluster:
    """An executor that uses Ray's workers; a context manager that disconnects from Ray at its end.

    Args:
        address: ``"local"`` starts Ray on this machine. Otherwise, the address of a running
            cluster, as ``ray.init`` takes it: ``"auto"``, ``"host:6379"``, ``"ray://host:10001"``.
        slots: Number of tasks that run at once; ``None`` for as many as there is room for.
        cores: Number of cores of a local Ray.

    Raises:
        LabError: If Ray is not installed, or cannot be reached.
    """

    def __init__(self, address: str, slots: int | None, cores: int) -> None:
        self.slots = slots or ALL
        self._ray = ray = _import_ray()
        # Otherwise, Ray would ask on the terminal, or send usage statistics.
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
        """After an error, stop all tasks at the end of their current step; disconnect from Ray."""
        if kind is not None:
            for reference in self._references:
                self._ray.cancel(reference)
            self._ray.wait(self._references, num_returns=len(self._references), timeout=GRACE)
        self._ray.shutdown()

    def submit(self, task: Task) -> Future[bool]:
        """Give a task to Ray.

        Raises:
            LabError: If no machine has enough cores for it.
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
    """Raise LabError if nothing listens at an address; Ray itself would try for minutes."""
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
    # Runs record these arguments as the command that made them.
    sys.argv = argv
    return train(process_worker())
