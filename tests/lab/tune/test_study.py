"""One process at a time takes a trial. Trials never exceed the budget and are never lost."""

import math
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from lab.apart import started_apart
from lab.conftest import Command
from sgdph.lab.run.claims import LOCK
from sgdph.lab.run.directory import RunDirectory
from sgdph.lab.tune.record import TuneDirectory, Tuning
from sgdph.lab.tune.space import default_space
from sgdph.lab.tune.study import STARTUP, Studies, TrialInHand

from .conftest import TINY, facts, searches

GIVEN = {"dataset": "digits", "validation_size": 20, "seed": 0, "epochs": 3}


def begin(path: Path, **options: object) -> TuneDirectory:
    """Record a tuning of one optimizer with two trials; the options override this."""
    values = {"trials": 2, "sampler": "tpe", "pruner": "none", "storage": "sqlite", **options}
    tuning = Tuning("x", {"sgdm": default_space("sgdm")}, given=GIVEN, **values)
    directory = TuneDirectory(path)
    directory.write(tuning)
    return directory


@pytest.mark.parametrize("storage", ["sqlite", "journal"])
def test_processes_share_the_budget(tmp_path: Path, storage: str) -> None:
    directory = begin(tmp_path, storage=storage)
    first, second = Studies(directory), Studies(directory)
    with first.take() as mine, second.take() as other:
        assert mine is not None
        assert other is not None
        assert (mine.trial.number, other.trial.number) == (0, 1)
        assert mine.settings != other.settings
        with first.take() as third:
            assert third is None
        assert first.running() == 2
        mine.finish("finished", 0.5)
    with first.take() as left:
        # The second process released its trial unfinished; the first one finished its trial.
        assert left is not None
        assert left.trial.number == 1
        assert left.settings == other.settings
        left.finish("finished", 0.6)
    with first.take() as nothing:
        assert nothing is None
    assert first.running() == 0


def test_a_budget_that_is_raised_during_the_search_is_used(tmp_path: Path) -> None:
    directory = begin(tmp_path, trials=1)
    studies = Studies(directory)
    with studies.take() as hand:
        assert hand is not None
        hand.finish("finished", 0.5)
    with studies.take() as hand:
        assert hand is None
    begin(tmp_path, trials=2)
    with studies.take() as hand:
        assert hand is not None


def test_suggestions_do_not_depend_on_interruptions(tmp_path: Path) -> None:
    """Either one process takes all trials, or a separate process takes each trial."""

    def walk(path: Path, fresh: bool) -> list[dict[str, float]]:
        directory = begin(path, trials=STARTUP + 5, storage="journal")
        studies, settings = Studies(directory), []
        for _ in range(STARTUP + 5):
            if fresh:
                studies = Studies(directory)
                with studies.take():
                    pass  # Taken and released, as after a kill.
                studies = Studies(directory)
            with studies.take() as hand:
                assert hand is not None
                settings.append(hand.settings)
                hand.finish("finished", 1 - distance(hand.settings) / 4)
        return settings

    once, often = walk(tmp_path / "once", False), walk(tmp_path / "often", True)
    assert once == often
    # The sampler's model is in use: its suggestions lie nearer to the best than random ones.
    chance, model = once[:STARTUP], once[STARTUP:]
    assert statistics.median(map(distance, model)) < statistics.median(map(distance, chance))


def distance(settings: dict[str, float]) -> float:
    """How many decades lr lies from 0.1."""
    return abs(math.log10(settings["lr"]) + 1)


def test_a_diverged_trial_has_the_worst_value(tmp_path: Path) -> None:
    directory = begin(tmp_path, trials=1)
    studies = Studies(directory)
    with studies.take() as hand:
        assert hand is not None
        hand.finish("diverged", None)
        (trial,) = hand.trial.study.trials
    assert (trial.value, trial.user_attrs["status"]) == (0.0, "diverged")


def test_a_journal_with_an_incomplete_line_can_still_be_used(tmp_path: Path) -> None:
    directory = begin(tmp_path, storage="journal")
    with Studies(directory).take() as hand:
        assert hand is not None
        hand.finish("finished", 0.5)
    with (tmp_path / "study.log").open("a") as file:
        file.write('{"op_code": 4, "wor')
    with Studies(directory).take() as hand:
        assert hand is not None
        assert hand.trial.number == 1
        hand.finish("finished", 0.7)
    with Studies(directory).take() as hand:
        assert hand is None


def test_a_killed_process_loses_no_trial(sgdph: Command, tmp_path: Path) -> None:
    words = ["tune", *TINY[:-1], "--epochs=2", "--optimizers=sgdm", "--trials=3"]
    with started_apart(*words, f"--out={tmp_path}/killed") as command:
        for line in command.output:
            if line.startswith("sgdm trial-001"):
                break
        assert command.output.readline().startswith("epoch 1/2")
    killed = RunDirectory(tmp_path / "killed" / "sgdm" / "trial-001")
    assert killed.status() == "running"
    assert sgdph(*words, f"--out={tmp_path}/killed")[0] == 0
    assert sgdph(*words, f"--out={tmp_path}/whole")[0] == 0
    found = facts(tmp_path / "killed")
    assert [trial[1] for trial in found["sgdm"]] == ["finished"] * 3
    assert found == facts(tmp_path / "whole")
    # The trial was resumed, not restarted.
    assert len(killed.read_env()["resumed"]) == 1


@pytest.mark.usefixtures("forked_workers")
def test_two_processes_of_one_machine_share_the_trials(sgdph: Command, tmp_path: Path) -> None:
    out = tmp_path / "a"
    code, said, _ = sgdph(
        "tune", *TINY, "--optimizers=sgdm,adamw", "--trials=2", "--jobs=2", f"--out={out}"
    )
    assert code == 0
    found = searches(out)
    for optimizer in ("sgdm", "adamw"):
        assert [trial.number for trial in found[optimizer].trials] == [0, 1]
        assert found[optimizer].count("finished") == 2
        for number in range(2):
            assert said.count(f"{optimizer} trial-{number:03d}: final validation accuracy") == 1
            run = RunDirectory(out / optimizer / f"trial-{number:03d}")
            assert "resumed" not in run.read_env()
    logs = [(out / "logs" / f"worker-{number}.log").read_text() for number in (1, 2)]
    assert sum(log.count("1 epoch of 4 steps") for log in logs) == 4


def test_a_trial_that_ended_unreported_does_not_replace_another(
    sgdph: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    words = ["tune", *TINY, "--optimizers=sgdm", "--trials=3", "--jobs=1", f"--out={tmp_path}"]
    with monkeypatch.context() as patch:
        patch.setattr(TrialInHand, "finish", die)
        assert sgdph(*words)[0] == 130
    assert RunDirectory(tmp_path / "sgdm" / "trial-000").status() == "finished"
    assert sgdph(*words)[0] == 0
    assert [trial[1] for trial in facts(tmp_path)["sgdm"]] == ["finished"] * 3


def test_a_deleted_trial_raises_an_error(sgdph: Command, tuned: Path, tmp_path: Path) -> None:
    out = shutil.copytree(tuned, tmp_path / "out")
    shutil.rmtree(out / "adamw" / "trial-001")
    words = ["tune", *TINY, "--optimizers=sgdm,adamw", "--trials=3", f"--out={out}"]
    code, _, errors = sgdph(*words)
    assert code == 2
    assert "lacks the directories of adamw/trial-001, whose results" in errors


@pytest.mark.usefixtures("forked_workers")
def test_workers_end_with_the_process_that_started_them(sgdph: Command, tmp_path: Path) -> None:
    words = ["tune", *TINY[:-1], "--epochs=8", "--optimizers=sgdm", "--trials=4", "--jobs=2"]
    with started_apart(*words, f"--out={tmp_path}") as command:
        assert any(line.startswith("sgdm trial-") for line in command.output)
    trials = [RunDirectory(path.parent) for path in tmp_path.glob("sgdm/*/config.yaml")]
    for trial in trials:
        # A worker without its parent stops, and so releases its trial.
        with FileLock(trial.path / LOCK, timeout=60):
            pass
    assert {trial.status() for trial in trials} != {"finished"}
    assert sgdph(*words, f"--out={tmp_path}")[0] == 0
    assert [trial[1] for trial in facts(tmp_path)["sgdm"]] == ["finished"] * 4


@pytest.mark.usefixtures("forked_workers")
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failed_trial_is_named_and_no_more_trials_are_taken(
    sgdph: Command, tmp_path: Path, jobs: int
) -> None:
    words = ["tune", *TINY, "--optimizers=sgdm", "--trials=4", f"--out={tmp_path}/a"]
    assert sgdph(*words[:-2], "--trials=1", words[-1])[0] == 0
    # The directories of the next trials already contain another run.
    trials = tmp_path / "a" / "sgdm"
    for number in range(1, 4):
        (trials / f"trial-{number:03d}").mkdir()
        shutil.copy(trials / "trial-000" / "config.yaml", trials / f"trial-{number:03d}")
    code, _, errors = sgdph(*words, f"--jobs={jobs}")
    assert code == 2
    assert "contains another run" in errors or "do not belong together" in errors
    assert "sgdm-trial-001.error.txt" in errors
    assert len(list((tmp_path / "a" / "logs").glob("*.error.txt"))) <= jobs
    for number in range(1, 4):
        shutil.rmtree(trials / f"trial-{number:03d}")
    assert sgdph(*words)[0] == 0
    assert searches(tmp_path / "a")["sgdm"].count("finished") == 4
    assert not list((tmp_path / "a" / "logs").glob("*.error.txt"))
