"""Run directories written by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.config.yaml import to_yaml

from .conftest import tiny_config


def write_run(
    path: Path,
    config: RunConfig,
    accuracies: Sequence[float],
    *,
    status: str = "finished",
    seconds: Sequence[float] | None = None,
    losses: Sequence[float] | None = None,
    best: float | None = None,
) -> Path:
    """Write the files of a run. Values that are not given follow from the accuracies."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(to_yaml(config))
    split = config.evaluated
    finished = status == "finished"
    seconds = seconds or [1.0] * len(accuracies)
    losses = losses or [1 - accuracy for accuracy in accuracies]
    highest = max(accuracies, default=None)
    summary = {
        "status": status,
        "epochs": len(accuracies),
        "seconds": sum(seconds),
        "evaluated": split,
        f"final_{split}_accuracy": accuracies[-1] if finished else None,
        f"best_{split}_accuracy": highest if best is None else best,
        "best_epoch": 1,
        "final_train_loss": losses[-1] if finished else None,
        "train_images": 100,
        f"{split}_images": 500,
    }
    (path / "summary.json").write_text(json.dumps(summary))
    (path / "env.json").write_text(json.dumps({"cpu": "a cpu", "command": "sgdph compare"}))
    lines = [
        {"epoch": i, "train_loss": loss, f"{split}_accuracy": accuracy, "seconds": duration}
        for i, (accuracy, loss, duration) in enumerate(
            zip(accuracies, losses, seconds, strict=True), 1
        )
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def lay_down(
    directory: Path,
    optimizer: str,
    seed: int,
    final: float | None,
    *,
    status: str = "finished",
    name: str = "",
    **options: Any,
) -> Path:
    """Write a run of two epochs and 3 + seed seconds. Its best accuracy is 0.01 above its last."""
    path = directory / f"{optimizer}{name}-seed{seed}"
    config = tiny_config(optimizer=optimizer, seed=seed, **options)
    best = None if final is None else final + 0.01
    seconds = [1.0, 2.0 + seed]
    return write_run(path, config, [0.5, final or 0.1], status=status, seconds=seconds, best=best)
