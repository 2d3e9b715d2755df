"""Training on image files: the same bits for any number of workers, and errors that name files."""

import contextlib
import dataclasses
import gc
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from lab.conftest import checkpoint_of, interrupt_at, same_bits, start
from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.data.dataset import Share, plan_epoch
from sgdph.lab.data.image_dataset import ImageFileDataset
from sgdph.lab.data.image_reader import pick_workers
from sgdph.lab.data.loading import load_dataset
from sgdph.lab.errors import LabError
from sgdph.lab.options.resolution import resolve

from . import made

SIZE = 16


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.class_folders(tmp_path_factory.mktemp("images"))


def loaded(
    root: Path, workers: int = 0, name: str = "mini-imagenet", **sizes: int
) -> ImageFileDataset:
    data = load_dataset(name, data_dir=root, image_size=SIZE, workers=workers, **sizes)
    assert isinstance(data, ImageFileDataset)
    return data


def epoch(
    data: ImageFileDataset, seed: int = 0, share: Share | None = None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    plan = plan_epoch(data, torch.Generator().manual_seed(seed))
    return list(data.training_batches(plan, 5, share or Share()))


def test_an_epoch_visits_every_image_once(root: Path) -> None:
    batches = epoch(loaded(root))
    assert [len(labels) for _, labels in batches] == [5, 5, 5, 5, 4]
    assert torch.cat([labels for _, labels in batches]).bincount().tolist() == [8] * 3
    images, labels = batches[0]
    assert images.shape == (5, 3, SIZE, SIZE)
    assert images.dtype == torch.float32
    # The colour identifies the class, so images and labels match.
    assert images.mean((2, 3)).argmax(1).tolist() == labels.tolist()


def test_batches_do_not_depend_on_workers_or_torchs_generator(root: Path) -> None:
    first = epoch(loaded(root))
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert same_bits(first, epoch(loaded(root, workers=2)))
    assert torch.equal(before, torch.get_rng_state())


def test_every_epoch_has_a_different_augmentation(root: Path) -> None:
    data = loaded(root)
    generator = torch.Generator().manual_seed(0)
    passes = []
    for _ in range(2):
        plan = plan_epoch(data, generator)
        images = torch.cat([x for x, _ in data.training_batches(plan, 5)])
        passes.append(images[plan.order.argsort()])
    # Image by image in the folder's order: the same image, cropped differently.
    assert not any(torch.equal(a, b) for a, b in zip(*passes, strict=True))


def test_the_shares_of_all_processes_make_up_the_batch(root: Path) -> None:
    data = loaded(root)
    shares = [epoch(data, share=Share(rank, 2)) for rank in range(2)]
    for (images, labels), *parts in zip(epoch(data), *shares, strict=True):
        for rank, (part, part_labels) in enumerate(parts):
            assert torch.equal(part, images[rank::2])
            assert torch.equal(part_labels, labels[rank::2])


@pytest.mark.parametrize("name", ["mini-imagenet", "imagenet"])
def test_evaluation_images_are_resized_and_normalised(root: Path, name: str) -> None:
    data = loaded(root, name=name)
    images, labels = (torch.cat(part) for part in zip(*data.evaluation_batches(4), strict=True))
    assert labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    picture = Image.open(root / "val" / "n00000001" / "val0.png")
    if name == "imagenet":
        # 20 high, 26 wide: resize the shorter side to 18 = 16 x 256 / 224, then crop the centre.
        left, top = (23 - 16 + 1) // 2, (18 - 16) // 2
        resized = picture.resize((23, 18), Image.Resampling.BILINEAR)
        expected = resized.crop((left, top, left + 16, top + 16))
    else:
        expected = picture.resize((16, 16), Image.Resampling.BILINEAR)
    pixels = v2.functional.pil_to_tensor(expected).double() / 255
    mean, std = (
        torch.tensor(values).double().view(3, 1, 1)
        for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    torch.testing.assert_close(images[3].double(), (pixels - mean) / std, atol=1e-5, rtol=1e-5)


def test_validation_images_are_training_images_without_augmentation(root: Path) -> None:
    data = loaded(root, train_size=18, validation_size=6)
    assert (data.train_count, data.test_count) == (12, 6)
    paths = [
        {files.path(i) for i in range(len(files))} for files in (data.train_files, data.test_files)
    ]
    assert not paths[0] & paths[1]
    assert all("train" in Path(path).parts for path in paths[1])
    assert data.test_files.labels.bincount().tolist() == [2, 2, 2]
    first, second = (torch.cat([x for x, _ in data.evaluation_batches(4)]) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_error_names_an_unreadable_image(tmp_path: Path, workers: int) -> None:
    made.class_folders(tmp_path)
    file = tmp_path / "train" / "n00000001" / "train3.png"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(LabError, match=r"n00000001/train3.png cannot be read as an image .*Fetch"):
        epoch(loaded(tmp_path, workers))


def test_a_pass_that_another_pass_has_ended_raises_an_error(root: Path) -> None:
    data = loaded(root, workers=1)
    plan = plan_epoch(data, torch.Generator().manual_seed(0))
    first = data.training_batches(plan, 5)
    whole = [next(first)]
    second = data.training_batches(plan, 5)
    # The rest of the first pass is lost, and the second pass starts from the beginning.
    assert same_bits(next(second), whole[0])
    with pytest.raises(RuntimeError, match="another pass over these images"):
        next(first)


def test_deleting_a_data_set_during_a_pass_ends_its_workers(root: Path) -> None:
    before = set(multiprocessing.active_children())
    data = loaded(root, workers=1)
    batches = data.training_batches(plan_epoch(data, torch.Generator().manual_seed(0)), 5)
    next(batches)
    evaluation = data.evaluation_batches(2)
    next(evaluation)
    workers = set(multiprocessing.active_children()) - before
    gone = weakref.ref(data)
    assert len(workers) == 2
    gc.disable()
    try:
        # Nothing holds them in a reference cycle: torch could not shut down such workers in order.
        del data, batches, evaluation
        assert gone() is None
    finally:
        gc.enable()
    assert [worker.exitcode for worker in workers] == [0, 0]


def config(root: Path, **options: object) -> RunConfig:
    return resolve(
        {
            "dataset": "mini-imagenet",
            "data_dir": str(root),
            "image_size": SIZE,
            "model": "resnet8",
            "epochs": 2,
            "batch_size": 6,
            "device": "cpu",
            "threads": 1,
            **options,
        }
    )


def test_resuming_with_another_number_of_workers_gives_the_same_bits(
    tmp_path: Path, root: Path
) -> None:
    summary = start(config(root), tmp_path / "whole", loaded(root))
    assert (summary["train_images"], summary["test_images"]) == (24, 9)
    with pytest.raises(KeyboardInterrupt):
        start(config(root), tmp_path / "cut", loaded(root, workers=2), interrupt_at(6))
    start(config(root), tmp_path / "cut", loaded(root, workers=1))
    assert same_bits(checkpoint_of(tmp_path / "whole"), checkpoint_of(tmp_path / "cut"))


def test_inspect_draws_the_same_batches_each_time(root: Path) -> None:
    from sgdph.lab.inspect.measure import draw_batches
    from sgdph.lab.run.start import prepare

    run = prepare(config(root, batch_size=10), loaded(root, workers=1))
    # Two of an epoch's three batches are drawn: the third is never requested.
    first, second = (list(draw_batches(run, 5)) for _ in range(2))
    assert same_bits(first, second)
    assert not torch.equal(first[0][0], first[2][0])


@pytest.mark.usefixtures("children_hear_ctrl_c")
def test_ctrl_c_ends_the_command_and_its_workers(tmp_path: Path, root: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "sgdph.lab", "train", "--dataset", "mini-imagenet"]
    command += ["--data-dir", str(root), "--image-size", "16", "--model", "resnet8"]
    command += ["--batch-size", "6", "--epochs", "100000", "--data-workers", "2", "--threads", "1"]
    with subprocess.Popen(
        [*command, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        begun = itertools.takewhile(lambda line: not line.startswith("epoch "), process.stdout)
        assert list(begun)
        # A terminal sends SIGINT to all processes.
        os.killpg(process.pid, signal.SIGINT)
        try:
            # The pipe closes when the last process that holds it has ended.
            rest = process.communicate(timeout=120)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert process.returncode == 130
    assert "continue with" in rest
    assert "Traceback" not in rest


def hang_up(*_: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_while_fetching_a_batch_causes_no_error_in_a_worker(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data = loaded(root, workers=1)
    epoch(data)  # starts the worker, which must not be patched itself
    # Interrupt between the worker's challenge and our answer, for which the worker waits.
    with monkeypatch.context() as patched:
        patched.setattr("multiprocessing.connection.answer_challenge", hang_up)
        # pytest.raises would keep the error's frames alive, and with them the connection.
        with contextlib.suppress(KeyboardInterrupt):
            epoch(data)
            pytest.fail("no batch was handed over through a connection")
    gc.collect()
    # The same worker serves the next pass, after it has reported on the first.
    assert len(epoch(data)) == 5
    assert "Traceback" not in capfd.readouterr().err


def test_the_default_number_of_workers_is_between_1_and_8() -> None:
    assert 1 <= pick_workers(None) <= 8
    assert pick_workers(0) == 0


def test_moving_a_data_set_to_its_own_device_returns_the_same_object(root: Path) -> None:
    data = loaded(root)
    assert data.to(torch.device("cpu")) is data
    moved = dataclasses.replace(data).to(torch.device("meta"))
    assert moved.device.type == "meta"
