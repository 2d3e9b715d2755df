"""Compare a refresh of all Newton parameters at once with plain torch's double backward.

    python benchmarks/zoo.py                        # all: 25 minutes on one core
    python benchmarks/zoo.py --only 'timm/*vit*'    # some of them
    python benchmarks/zoo.py --only 'timm/*vit*' --again

The networks are torchvision's classifiers, detectors and segmentation networks, the smallest of
each family in timm, and tiny ones of Hugging Face's families. They have random weights, small
images and default attention. Each runs in its own process. ``results/zoo/networks.csv`` has one
line for each. If a call is interrupted, the same call resumes it. ``make tables`` then writes the
tables.
"""

from __future__ import annotations

import argparse
import csv
import fnmatch
import importlib
import importlib.metadata
import io
import multiprocessing
import resource
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from multiprocessing.connection import Connection
from pathlib import Path

from network_zoo.network import Network
from network_zoo.row import PACKAGES, Row

ROOT = Path(__file__).resolve().parents[1]
# Modules that every process needs. The fork server imports them once.
PRELOADED = ["torch", "torchvision", "timm", "transformers", "sgdph", "torch._dynamo"]


def networks(packages: Sequence[str] = PACKAGES) -> list[Network]:
    """List all networks of the zoo."""
    modules = [importlib.import_module(f"network_zoo.{name}_networks") for name in packages]
    return [network for module in modules for network in module.networks()]


def run_one(network: Network, connection: Connection, memory: int) -> None:
    """Compare one network, in its own process, and send its row."""
    import torch
    from network_zoo.comparison import compare

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    warnings.simplefilter("ignore")
    connection.send(compare(network))


def row_of(network: Network, timeout: float, memory: int) -> Row:
    """Compare one network in a new process; the row also records a timeout or a crash."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run_one, args=(network, sender, memory))
    process.start()
    sender.close()
    row = Row(network.package, network.family)
    try:
        if receiver.poll(timeout):
            row = receiver.recv()
        else:
            row.reason = f"not done after {timeout:.0f} seconds"
    except EOFError:
        process.join()
        row.reason = f"its process ended with exit code {process.exitcode}"
    finally:
        process.kill()
        process.join()
    return replace(row, **versions(network.package))


def versions(package: str) -> dict[str, str]:
    """Return the versions that a row was made with."""
    names = {"version": package, "torch": "torch"}
    told = {key: importlib.metadata.version(name) for key, name in names.items()}
    changed = git("status", "--porcelain", "--", "src", "benchmarks")
    return {**told, "commit": git("rev-parse", "--short=7", "HEAD") + "-dirty" * bool(changed)}


def git(*arguments: str) -> str:
    """Return the output of a git command in this repository; empty if there is no repository."""
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def read(path: Path) -> dict[str, Row]:
    """Read the existing rows by key; of rows with the same key, the last is kept."""
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = [Row.of(line) for line in csv.DictReader(file)]
    return {row.key: row for row in rows}


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write rows, sorted by package and family."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [each.name for each in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        asdict(row)
        for row in sorted(rows, key=lambda row: (PACKAGES.index(row.package), row.family))
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(stream.getvalue(), encoding="utf-8")


def summary(rows: Sequence[Row]) -> list[str]:
    """Describe for each package how many networks are right, and the largest error."""
    lines = []
    for package in PACKAGES:
        own = [row for row in rows if row.package == package]
        right = [row for row in own if row.result == "ok"]
        if own:
            errors = [
                row.error for row in right if row.dtype == "float64" and row.error is not None
            ]
            lines.append(
                f"{package}: {len(right)} of {len(own)} ok, "
                f"largest error in float64 {max(errors, default=0.0):.1e}"
            )
    return lines


def main() -> int:
    """Compare the networks that have no row yet.

    Returns:
        The exit code: 1 if a product or first gradient is wrong or a network failed, otherwise 0.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", metavar="PATTERN", help="as timm/vision* or */mobilenet*")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "zoo")
    parser.add_argument("--again", action="store_true", help="compare also those that are there")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for each network")
    parser.add_argument("--memory", type=float, default=20.0, help="GiB of address space for each")
    given = parser.parse_args()
    path = given.out / "networks.csv"
    done = read(path)
    chosen = [x for x in networks() if fnmatch.fnmatch(x.key, given.only or "*")]
    if not chosen:
        parser.error(f"no network is called {given.only}")
    wanted = [x for x in chosen if given.again or x.key not in done]
    for i, network in enumerate(wanted, 1):
        row = row_of(network, given.timeout, int(given.memory * 2**30))
        done[network.key] = row
        # Written each time, so that an interruption loses only the current network.
        write(path, list(done.values()))
        print(f"[{i}/{len(wanted)}] {network.key}: {row.told()}", flush=True)
    rows = [done[x.key] for x in chosen]
    print(*summary(rows), sep="\n")
    return int(any(row.result in ("wrong", "failed") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
