"""An archive: many runs in two files, to keep a comparison without its run directories.

| file | content |
|---|---|
| ``runs.csv`` | a line per run and epoch: the run's identity, and all figures of the epoch |
| ``runs.jsonl`` | the layout, then a line per run: configuration, outcome, environment |

The archive is lossless: ``sgdph report`` gives the same result as from the run directories. It
holds no checkpoints, so runs cannot be resumed from it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.config.yaml import from_marked, to_yaml
from sgdph.lab.errors import LabError
from sgdph.lab.files import write_text
from sgdph.lab.output import printable

EPOCHS, RUNS = "runs.csv", "runs.jsonl"
FORMAT = "sgdph-runs-1"
# These columns make runs.csv readable on its own. The figures of the epoch follow them.
_IDENTITY = ("run", "system", "optimizer", "dataset", "model", "seed", "status")


@dataclass(frozen=True)
class ArchivedRun:
    """One run of an archive.

    Attributes:
        name: The path of its directory, relative to the archive's.
        config: Its configuration.
        summary: Its outcome.
        metrics: The figures of each epoch.
        env: The environment of its first session and of later ones.
    """

    name: str
    config: RunConfig
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]
    env: dict[str, Any]


def write_archive(
    directory: Path, runs: Sequence[ArchivedRun], layout: Mapping[str, Any] | None = None
) -> None:
    """Write runs into the two files of a directory, replacing existing ones.

    Args:
        directory: Must exist.
        runs: The runs, with unique names.
        layout: The rows and columns of the report's tables.
    """
    first = _to_json({"format": FORMAT, "layout": layout})
    lines = [first, *(_to_line(run) for run in runs)]
    write_text(directory / EPOCHS, _to_csv(runs))
    write_text(directory / RUNS, "".join(f"{line}\n" for line in lines))


def _to_line(run: ArchivedRun) -> str:
    config = yaml.safe_load(to_yaml(run.config))
    # The name is escaped as in the table, which has no way back to the bytes of a path.
    name = printable(run.name)
    return _to_json({"run": name, "config": config, "summary": run.summary, "env": run.env})


def _to_json(value: Mapping[str, Any]) -> str:
    """Write JSON in which only what UTF-8 lacks is escaped: invalid bytes in a path."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode()


def _to_csv(runs: Sequence[ArchivedRun]) -> str:
    rows = [{**_identity(run), **_encoded(line)} for run in runs for line in run.metrics]
    names = dict.fromkeys([*_IDENTITY, *(name for row in rows for name in row)])
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _identity(run: ArchivedRun) -> dict[str, str]:
    config = run.config
    values = (
        *(run.name, config.label or config.optimizer, config.optimizer, config.dataset),
        *(config.model, config.seed, run.summary.get("status", "running")),
    )
    return dict(zip(_IDENTITY, map(str, values), strict=True))


def _encoded(line: Mapping[str, Any]) -> dict[str, str]:
    """Encode an epoch's figures as JSON at full precision, nested ones as ``group.name``."""
    return {name: json.dumps(value) for name, value in flat(line, ".").items()}


def flat(line: Mapping[str, Any], separator: str) -> dict[str, Any]:
    """Return an epoch's figures by name, nested ones as outer name, separator, inner name."""
    figures: dict[str, Any] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            figures |= {f"{name}{separator}{inner}": each for inner, each in value.items()}
        else:
            figures[name] = value
    return figures


def read_archive(directory: Path) -> list[ArchivedRun]:
    """Read the runs of an archive.

    Raises:
        LabError: If one of its files is missing, damaged, or not written by sgdph.
    """
    metrics = _read_metrics(directory / EPOCHS)
    _, *lines = _read_lines(directory / RUNS)
    runs = []
    for number, line in enumerate(lines, 2):
        place = f"line {number} of {directory / RUNS}"
        try:
            config = from_marked(line["config"], place)
            name = str(line["run"])
            run = ArchivedRun(name, config, line["summary"], metrics.pop(name, []), line["env"])
        except (KeyError, TypeError) as error:
            raise LabError(f"{place} lacks {error}; expected run, config, summary, env") from error
        runs.append(run)
    if metrics:
        raise LabError(f"{directory / RUNS} lacks the runs {', '.join(metrics)} of {EPOCHS}")
    return runs


def read_layout(directory: Path) -> Mapping[str, Any] | None:
    """Read the layout of an archive's tables; ``None`` if it has none.

    Raises:
        LabError: If the file is damaged, or not written by sgdph.
    """
    layout = _read_lines(directory / RUNS)[0].get("layout")
    return layout if isinstance(layout, Mapping) else None


def _read_lines(file: Path) -> list[dict[str, Any]]:
    try:
        # Not splitlines(): it also splits at characters that a label may have, such as U+2028.
        texts = file.read_text(encoding="utf-8").split("\n")
        lines = [dict(json.loads(line)) for line in (texts if texts[-1] else texts[:-1])]
    except (OSError, ValueError, TypeError) as error:
        raise LabError(
            f"{file} cannot be read: {error}; restore the file, or write it again from the run "
            "directories with sgdph report --archive"
        ) from error
    if not lines or lines[0].get("format") != FORMAT:
        raise LabError(f"{file} is not an archive of runs: expected the format {FORMAT} in it")
    return lines


def _read_metrics(file: Path) -> dict[str, list[dict[str, Any]]]:
    """Read each run's epochs."""
    found: dict[str, list[dict[str, Any]]] = {}
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream, strict=True):
                figures = {name: text for name, text in row.items() if name not in _IDENTITY}
                found.setdefault(row["run"], []).append(_nested(figures))
    except (OSError, csv.Error, ValueError, TypeError, KeyError, AttributeError) as error:
        raise LabError(f"{file} cannot be read: {error}") from error
    return found


def _nested(figures: Mapping[str, str]) -> dict[str, Any]:
    """Parse what :func:`_encoded` wrote; an empty field means that there was no such figure."""
    line: dict[str, Any] = {}
    for name, text in figures.items():
        if text != "":
            outer, _, inner = name.partition(".")
            if inner:
                line.setdefault(outer, {})[inner] = json.loads(text)
            else:
                line[outer] = json.loads(text)
    return line
