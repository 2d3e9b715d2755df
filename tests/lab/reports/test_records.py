import json
import shutil
from pathlib import Path

import pytest

from lab.conftest import tiny_config
from lab.made_runs import lay_down, write_run
from sgdph.lab.errors import LabError
from sgdph.lab.run.records import group_runs, read_runs


def test_each_run_is_found_once_at_any_depth(tmp_path: Path) -> None:
    lay_down(tmp_path / "a" / "b", "sgdm", 0, 0.8)
    lay_down(tmp_path / "c", "sgdm", 1, 0.9)
    lay_down(tmp_path / ".hidden", "sgdm", 2, 0.9)
    stranger = tmp_path / "other"
    stranger.mkdir()
    (stranger / "config.yaml").write_text("mine: true\n")
    runs = read_runs([tmp_path, tmp_path / "a", tmp_path / "c" / "sgdm-seed1"])
    assert [run.config.seed for run in runs.records] == [0, 1]
    assert not runs.unreadable
    assert not runs.duplicates


def test_links_are_followed_and_each_directory_is_read_once(tmp_path: Path) -> None:
    lay_down(tmp_path / "disk", "sgdm", 0, 0.8)
    lay_down(tmp_path / "runs" / "z", "sgdm", 1, 0.9)
    links = {
        "linked": tmp_path / "disk" / "sgdm-seed0",
        "again": tmp_path / "disk",
        "a": tmp_path / "runs" / "z",
        "loop": tmp_path / "runs",
        "broken": tmp_path / "absent",
    }
    for name, target in links.items():
        (tmp_path / "runs" / name).symlink_to(target)
    (tmp_path / "disk" / "back").symlink_to(tmp_path / "runs")
    runs = read_runs([tmp_path / "runs"])
    assert [run.config.seed for run in runs.records] == [0, 1]
    # The path without a link is preferred.
    assert runs.records[1].path == tmp_path / "runs" / "z" / "sgdm-seed1"
    assert not runs.duplicates
    assert len(read_runs([tmp_path, tmp_path / "runs" / "again"]).records) == 2


def test_a_broken_run_is_listed_with_its_reason_and_others_are_read(tmp_path: Path) -> None:
    lay_down(tmp_path, "sgdm", 0, 0.8)
    line = '{"epoch": 1, "train_loss": 1, "test_accuracy": 0.5}\n'
    broken = {
        1: ("config.yaml", "format: sgdph-run-1\nlr: [", "not valid YAML"),
        2: ("config.yaml", "format: sgdph-run-9\n", "expected 'format: sgdph-run-1'"),
        3: ("config.yaml", "\0\0\0", "config.yaml"),
        4: ("summary.json", '{"status": "fini', "is damaged"),
        5: ("summary.json", '{"status": "finished"}', "no number for final_test_accuracy"),
        6: (
            "metrics.jsonl",
            '{"epoch": 1, "tr\n{"epoch": 2}\n',
            "metrics.jsonl is damaged at line 1",
        ),
        7: ("metrics.jsonl", '{"epoch": 1}\n{"epoch": 2}\n', "lacks epoch, train_loss"),
        8: ("summary.json", "[]", "is damaged"),
        9: ("env.json", "{", "is damaged"),
        10: ("config.yaml", None, "config.yaml is missing; restore it"),
        11: ("metrics.jsonl", None, "must have 2 lines, but 0 can be read"),
        12: ("metrics.jsonl", line, "must have 2 lines, but 1 can be read"),
        13: ("metrics.jsonl", line + line, "accuracy 0.8, so the last line of metrics.jsonl must"),
    }
    for seed, (file, text, _) in broken.items():
        path = lay_down(tmp_path, "sgdm", seed, 0.8) / file
        path.write_text(text) if text is not None else path.unlink()
    runs = read_runs([tmp_path])
    assert [run.config.seed for run in runs.records] == [0]
    reasons = {each.path.name: each.reason for each in runs.unreadable}
    assert set(reasons) == {f"sgdm-seed{seed}" for seed in broken}
    for seed, (_, _, reason) in broken.items():
        assert reason in reasons[f"sgdm-seed{seed}"]


@pytest.mark.parametrize("end", ["", "\n"])
def test_an_incomplete_last_line_is_ignored(tmp_path: Path, end: str) -> None:
    run = lay_down(tmp_path, "sgdm", 0, 0.8, status="running")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "train_lo' + end)
    (record,) = read_runs([tmp_path]).records
    assert record.accuracies == (0.5, 0.8)
    assert record.status == "running"


def test_a_run_with_only_a_configuration_is_running(tmp_path: Path) -> None:
    run = lay_down(tmp_path, "sgdm", 0, 0.8)
    for name in ("summary.json", "metrics.jsonl", "env.json"):
        (run / name).unlink()
    (record,) = read_runs([tmp_path]).records
    assert (record.status, record.accuracies, record.figure("final")) == ("running", (), None)


def test_of_duplicate_runs_the_first_finished_one_is_kept(tmp_path: Path) -> None:
    lay_down(tmp_path / "a", "sgdm", 0, None, status="interrupted")
    lay_down(tmp_path / "b", "sgdm", 0, 0.7)
    lay_down(tmp_path / "c", "sgdm", 0, 0.9, device="cuda", threads=4)
    runs = read_runs([tmp_path])
    assert [run.path.parent.name for run in runs.records] == ["b"]
    assert [(out.path.parent.name, kept.path.parent.name) for out, kept in runs.duplicates] == [
        ("c", "b"),
        ("a", "b"),
    ]


def test_runs_on_different_machines_are_in_one_group(tmp_path: Path) -> None:
    lay_down(tmp_path, "sgdm", 0, 0.5, threads=1)
    lay_down(tmp_path, "sgdm", 1, 0.9, threads=2, device="cuda")
    lay_down(tmp_path, "sgdm", 2, 0.9, lr=0.3)
    groups = group_runs(read_runs([tmp_path]).records)
    assert [len(group.finished) for group in groups] == [2, 1]


def test_seconds_add_up_and_are_empty_if_an_epoch_has_none(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", tiny_config(), [0.1, 0.2, 0.3], seconds=[2, 3, 0.5])
    assert read_runs([tmp_path]).records[0].seconds == (2, 5, 5.5)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    del lines[1]["seconds"]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_runs([tmp_path]).records[0].seconds == ()


def test_reading_no_runs_raises_an_error(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"holds no run; give the --out"):
        read_runs([tmp_path])
    with pytest.raises(LabError, match="is not a directory"):
        read_runs([tmp_path / "absent"])
    run = lay_down(tmp_path, "sgdm", 0, 0.5)
    (run / "config.yaml").write_text("format: sgdph-run-1\n")
    with pytest.raises(LabError, match=r"holds no run that can be read:\n .*missing keys"):
        read_runs([tmp_path])
    shutil.rmtree(run)
