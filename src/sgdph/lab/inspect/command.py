"""The command ``sgdph inspect``: it follows the options and prints the result."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from rich.console import Console

from sgdph.lab.config.run_config import PLACE_FIELDS, RunConfig
from sgdph.lab.data.dataset import Dataset
from sgdph.lab.errors import OK, LabError
from sgdph.lab.inspect.checkpoints import check_present, find_checkpoints, reached
from sgdph.lab.inspect.choice import estimate_costs, make_plan, matching
from sgdph.lab.inspect.directory import FIGURES, PICTURES, InspectDirectory
from sgdph.lab.inspect.figures import Inspection, InspectSettings
from sgdph.lab.inspect.measure import at_checkpoint, measure_checkpoint
from sgdph.lab.inspect.options import InspectOptions, quarters
from sgdph.lab.inspect.parameters import newton_parameters
from sgdph.lab.inspect.report import describe_checkpoint, notes, write_report
from sgdph.lab.inspect.tables import blocks_table, left_out_table, summary_table
from sgdph.lab.options.resolution import resolve
from sgdph.lab.progress import StepReporter, reporter_for, say, say_files, step_reporter_for
from sgdph.lab.reports.folder import PAGE, TABLE, TEXT
from sgdph.lab.run.checkpoint import save_checkpoint
from sgdph.lab.run.directory import CONFIG, ENDED, RunDirectory, kept_checkpoint
from sgdph.lab.run.out import (
    check_target,
    default_out,
    disagreement,
    placed,
    report_interruption,
    setting_differences,
)
from sgdph.lab.run.start import PreparedRun, load_data, prepare
from sgdph.lab.run.training import train_run

_WORKAROUND = "leave these options out, or name another --out for a new inspection"


def inspect(options: InspectOptions, console: Console) -> int:
    """Inspect a run, checkpoint by checkpoint, and write a report.

    Returns:
        The exit code: 0 if all checkpoints were measured (now or before), 130 if interrupted.

    Raises:
        LabError: If the options are invalid, or the run cannot be inspected.
    """
    directory = InspectDirectory(options.out or default_inspect_out(options))
    check_target(directory, options)
    inspection = resumed(directory, options) if options.resume else requested(options)
    own = inspection.run is None
    run = directory.own_run if own else RunDirectory(Path(str(inspection.run)))
    if options.overwrite and not own and run.path.resolve() == directory.own_run.path.resolve():
        raise LabError(
            f"--overwrite would delete {run.path}, the run that is to be inspected, with the "
            f"inspection in {directory.path}; name another --out"
        )
    if own and inspection.settings.checkpoints[-1] > inspection.config.epochs:
        raise LabError(
            f"--checkpoints must lie between 0 and the {inspection.config.epochs} epochs; got "
            f"{inspection.settings.checkpoints[-1]}"
        )
    try:
        data = load_data(inspection.config, download=options.download)
        prepared = prepare(inspection.config, data)
        check_layers(prepared, inspection.settings)
        if options.overwrite:
            directory.clear()
        directory.write(inspection)
        if own:
            train(prepared, inspection.settings, run, console)
        measure_all(directory, inspection, run, data, console)
    except KeyboardInterrupt:
        if directory.found():
            write_report(directory)
        return report_interruption(console, "inspect", directory.path, directory.exists())
    write_report(directory)
    show(directory, inspection, console)
    return OK


def requested(options: InspectOptions) -> Inspection:
    """Make a new inspection from the options.

    Raises:
        LabError: If an option is invalid, or ``--run`` holds no run. Also if that run differs from
            the options or lacks a checkpoint.
    """
    given, measurement = options.given(), options.measurement()
    if options.run is None:
        config = resolve(given)
        checkpoints = measurement.pop("checkpoints", quarters(config.epochs))
        settings = InspectSettings(checkpoints=checkpoints, **measurement)
        if checkpoints[-1] <= config.epochs:
            config = dataclasses.replace(config, keep_checkpoints=checkpoints)
        return Inspection(config, None, settings)
    run = RunDirectory(options.run)
    if not (run.path / CONFIG).is_file():
        raise LabError(
            f"--run {run.path} holds no run (no {CONFIG}); name the directory that sgdph train "
            "--out named, or leave --run out to train one"
        )
    config = placed(run.read_config(), given, f"the run in {run.path}", _WORKAROUND)
    found = find_checkpoints(run)
    checkpoints = measurement.pop("checkpoints", tuple(found))
    check_present(run, list(found), checkpoints)
    settings = InspectSettings(checkpoints=checkpoints, **measurement)
    return Inspection(config, str(run.path.resolve()), settings)


def resumed(directory: InspectDirectory, options: InspectOptions) -> Inspection:
    """Return the inspection in a directory, to resume it.

    Until its blocks are chosen, the settings of the measurement may still be changed, except the
    checkpoints.

    Raises:
        LabError: If there is no inspection, it differs from the options, or its run has changed.
    """
    inspection = directory.read()
    what = f"the inspection in {directory.path}"
    if inspection.run is not None:
        check_same_run(inspection.config, RunDirectory(Path(inspection.run)), what)
    inspection.config = placed(inspection.config, options.given(), what, _WORKAROUND)
    problems = []
    if options.run is not None and str(options.run.resolve()) != inspection.run:
        problems.append(f"run: it has {inspection.run!r}, given {str(options.run.resolve())!r}")
    measurement = options.measurement()
    fixed = {"checkpoints"} if inspection.plan is None else set(measurement)
    problems += setting_differences(
        {name: value for name, value in measurement.items() if name in fixed}, inspection.settings
    )
    if problems:
        raise LabError(disagreement(what, problems, _WORKAROUND))
    inspection.settings = dataclasses.replace(inspection.settings, **measurement)
    return inspection


def check_same_run(begun: RunConfig, run: RunDirectory, what: str) -> None:
    """Raise LabError if an inspection's run is missing, or another run is in its place."""
    anew = "inspect it again with --overwrite, or name another --out"
    if not (run.path / CONFIG).is_file():
        raise LabError(
            f"{what} belongs to a run that is no longer in {run.path} (no {CONFIG}); {anew}"
        )
    now = vars(run.read_config())
    problems = [
        f"{name}: {value!r} in the inspection, {now[name]!r} in the run"
        for name, value in vars(begun).items()
        if name not in PLACE_FIELDS and now[name] != value
    ]
    if problems:
        raise LabError(
            f"{what} belongs to another run than the one in {run.path}:\n  "
            + "\n  ".join(problems)
            + f"\n{anew}"
        )


def default_inspect_out(options: InspectOptions) -> Path:
    """Return the default directory for an inspection."""
    if options.run is not None:
        return options.run.with_name(options.run.name + "-inspect")
    return default_out(options.given(), "inspect-{optimizer}-seed{seed}")


def check_layers(prepared: PreparedRun, settings: InspectSettings) -> None:
    """Raise LabError before the training if a pattern matches no parameter."""
    if settings.layers is not None:
        names = [each.name for each in newton_parameters(prepared.state.model)]
        matching(names, settings.layers)


def train(
    prepared: PreparedRun, settings: InspectSettings, run: RunDirectory, console: Console
) -> None:
    """Train the rest of the inspection's own run; for epoch 0 alone, only save its start."""
    if run.status() in ENDED:
        return
    if not run.exists():
        run.create(prepared.config)
    if settings.checkpoints == (0,):
        save_checkpoint(run.path / kept_checkpoint(0), prepared.state)
        return
    with reporter_for(console) as reporter:
        train_run(prepared, run, reporter)


def measure_all(
    directory: InspectDirectory,
    inspection: Inspection,
    run: RunDirectory,
    data: Dataset,
    console: Console,
) -> None:
    """Choose the blocks, and measure every checkpoint that is not finished.

    Raises:
        LabError: If no block fits the budget, the run lacks a checkpoint, or it diverged before the
            first requested one.
    """
    found = find_checkpoints(run)
    asked = inspection.settings.checkpoints
    if run.status() == "diverged":
        # Drop the checkpoints that a diverged run did not reach.
        asked = reached(run, list(found), asked)
        inspection.settings = dataclasses.replace(inspection.settings, checkpoints=asked)
        say(console, f"The run diverged; inspected is epoch {', '.join(map(str, asked))}.")
    check_present(run, list(found), asked)
    settings = inspection.settings
    with step_reporter_for(console, len(asked), units="blocks") as reporter:
        if inspection.plan is None:
            plan(directory, inspection, found[asked[-1]], data)
        finished = {each.epoch: each for each in inspection.checkpoints}
        for epoch in asked:
            if epoch in finished:
                reporter.cell_finished(f"epoch {epoch}", "kept")
                continue
            measure(directory, inspection, found[epoch], data, reporter)
    assert len(inspection.checkpoints) == len(settings.checkpoints)


def plan(directory: InspectDirectory, inspection: Inspection, path: Path, data: Dataset) -> None:
    """Estimate the cost of every parameter's blocks, and record which blocks are chosen."""
    settings = inspection.settings
    run = at_checkpoint(inspection.config, data, path, settings.float64)
    candidates = estimate_costs(run, settings, len(settings.checkpoints))
    inspection.plan = make_plan(candidates, settings.budget, settings.layers)
    directory.write(inspection)


def measure(
    directory: InspectDirectory,
    inspection: Inspection,
    path: Path,
    data: Dataset,
    reporter: StepReporter,
) -> None:
    """Measure one checkpoint, and record the results."""
    assert inspection.plan is not None
    figures = measure_checkpoint(
        inspection.config, data, path, inspection.plan, inspection.settings, reporter
    )
    inspection.checkpoints.append(figures)
    directory.write(inspection)
    reporter.cell_finished(f"epoch {figures.epoch}", describe_checkpoint(figures))


def show(directory: InspectDirectory, inspection: Inspection, console: Console) -> None:
    """Print the tables, how to read them, and the paths of the files."""
    for figures in inspection.checkpoints:
        console.print(blocks_table(figures).rich())
    console.print(summary_table(inspection).rich())
    if inspection.plan is not None and inspection.plan.left_out:
        console.print(left_out_table(inspection.plan).rich())
    for line in notes(inspection):
        say(console, line)
    files = {"page": PAGE, "report": TEXT, "table": TABLE, "figures": FIGURES}
    files |= {name.removesuffix(".png"): name for name in PICTURES}
    say_files(console, directory.path, files)
