"""Mini-ImageNet and ImageNet on disk: tiny generated folders, and broken ones."""

from pathlib import Path

import pytest
import torch

from sgdph.lab.data import mini_imagenet
from sgdph.lab.data.image_files import ImageFiles
from sgdph.lab.data.imagenet import read_imagenet
from sgdph.lab.data.mini_imagenet import read_mini_imagenet
from sgdph.lab.errors import LabError

from . import made

EXPECTED_TEST = ["02", "04", "00", "10", "06", "09", "08", "09"]


def names(files: ImageFiles) -> list[str]:
    return [Path(files.path(i)).name for i in range(len(files))]


def test_the_lists_are_pooled_and_every_class_is_split(tmp_path: Path) -> None:
    found = read_mini_imagenet(made.lists(tmp_path))
    assert found.classes == 4
    assert found.train.labels.bincount().tolist() == [10] * 4
    assert found.test.labels.bincount().tolist() == [2] * 4
    listed = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert sorted(names(found.train) + names(found.test)) == listed
    for files in (found.train, found.test):
        assert all(
            int(name[1:9]) == label
            for name, label in zip(names(files), files.labels.tolist(), strict=True)
        )


def test_the_split_does_not_depend_on_the_order_of_the_lists(tmp_path: Path) -> None:
    root = made.lists(tmp_path)
    before = names(read_mini_imagenet(root).test)
    header, *rows = (root / "train.csv").read_text().split()
    (root / "train.csv").write_text("\n".join([header, *sorted(rows)]))
    assert names(read_mini_imagenet(root).test) == before
    # The split must never change: results depend on it.
    assert [name[-6:-4] for name in before] == EXPECTED_TEST


def test_the_official_lists_give_500_and_100_images_of_each_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"n{i // 600:08}{i % 600:08}.jpg,n{i // 600:08}" for i in range(60_000)]
    for name, first, last in (("train", 0, 64), ("val", 64, 80), ("test", 80, 100)):
        part = rows[600 * first : 600 * last]
        (tmp_path / f"{name}.csv").write_text("\n".join(["filename,label", *part]))
    monkeypatch.setattr(mini_imagenet, "check_images", lambda root, classes: None)
    found = read_mini_imagenet(tmp_path)
    assert found.train.labels.bincount().tolist() == [500] * 100
    assert found.test.labels.bincount().tolist() == [100] * 100
    assert not set(names(found.train)) & set(names(found.test))
    assert mini_imagenet.shortfall(found) is None


def test_a_folder_with_the_name_of_the_data_set_is_searched(tmp_path: Path) -> None:
    made.class_folders(tmp_path / "mini-imagenet")
    made.class_folders(tmp_path / "imagenet", classes=2)
    assert read_mini_imagenet(tmp_path).classes == 3
    assert read_imagenet(tmp_path).classes == 2


def test_class_folders_may_hold_any_number_of_classes(tmp_path: Path) -> None:
    made.class_folders(tmp_path)
    found = read_mini_imagenet(tmp_path)
    assert found.train.labels.bincount().tolist() == [8] * 3
    assert found.test.labels.bincount().tolist() == [3] * 3
    assert "not" not in found.layout
    assert str(mini_imagenet.shortfall(found)).startswith("3 classes and 33 images")
    # If both exist, test/ is the test set.
    (tmp_path / "val" / "n00000000" / "val0.png").unlink()
    (tmp_path / "val").rename(tmp_path / "test")
    made.class_folders(tmp_path / "other")
    (tmp_path / "other" / "val").rename(tmp_path / "val")
    assert len(read_mini_imagenet(tmp_path).test) == 8


def cut_list(root: Path) -> None:
    text = (root / "train.csv").read_text()
    (root / "train.csv").write_text("\n".join(text.splitlines()[:-3]))


def cut_line(root: Path) -> None:
    text = (root / "val.csv").read_text()
    (root / "val.csv").write_text(text.rstrip()[:-10])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            lambda root: (root / "val.csv").unlink(),
            r"val.csv is missing.*put the three split",
        ),
        (
            lambda root: (root / "images" / "n0000000100000003.jpg").unlink(),
            r"images lacks 1 of the 48 images.*n0000000100000003.jpg; unpack",
        ),
        (cut_list, r"list 9 images of class n00000001 and 12 .*expected equally many.*fetch it"),
        (
            cut_line,
            r"val.csv has no filename and label in line 13; it is incomplete.*Fetch it again",
        ),
        (
            lambda root: (root / "test.csv").write_text("image;class\n"),
            r"test.csv begins with image;class, expected the columns filename,label; put",
        ),
        (lambda root: (root / "test.csv").write_text(""), r"test.csv begins with nothing"),
    ],
)
def test_broken_lists_raise_an_error_that_says_what_is_wrong(
    tmp_path: Path, harm: object, message: str
) -> None:
    harm(made.lists(tmp_path))  # type: ignore[operator]
    with pytest.raises(LabError, match=message):
        read_mini_imagenet(tmp_path)


def test_without_files_the_error_says_what_is_expected(tmp_path: Path) -> None:
    for read, name in ((read_mini_imagenet, "mini-imagenet"), (read_imagenet, "imagenet")):
        with pytest.raises(LabError, match=rf"{name} needs --data-dir DIR.*train/<class>/"):
            read(None)
        with pytest.raises(LabError, match=rf"{name}: .*train.*(expected|--data)"):
            read(tmp_path)


def test_a_few_shot_split_raises_an_error(tmp_path: Path) -> None:
    made.class_folders(tmp_path)
    (tmp_path / "val" / "n00000000").rename(tmp_path / "val" / "n00000009")
    for read in (read_mini_imagenet, read_imagenet):
        with pytest.raises(LabError, match=r"same classes, but 2 of their 4 .*like n00000000. Put"):
            read(tmp_path)


def test_the_error_names_a_class_without_images(tmp_path: Path) -> None:
    made.class_folders(tmp_path)
    (tmp_path / "train" / "n00000007").mkdir()
    with pytest.raises(LabError, match=r"train must hold a folder of images per class.*n00000007"):
        read_imagenet(tmp_path)


def with_meta(root: Path, classes: int = 3, test: int = 9) -> Path:
    """A small ImageNet, with the file that torchvision makes from the development kit."""
    made.class_folders(root)
    wnids = {f"n{label:08}": (f"name {label}",) for label in range(classes)}
    torch.save((wnids, [f"n{i % classes:08}" for i in range(test)]), root / "meta.bin")
    return root


def test_imagenet_with_its_development_kit_is_read_by_torchvision(tmp_path: Path) -> None:
    found = read_imagenet(with_meta(tmp_path))
    assert found.layout == "torchvision.datasets.ImageNet"
    assert (found.classes, len(found.train), len(found.test)) == (3, 24, 9)


@pytest.mark.parametrize(
    ("classes", "test", "message"),
    [
        (
            4,
            9,
            r"lacks 1 of the 4 classes that meta.bin lists, like n00000003: unpack.*remove meta",
        ),
        (3, 12, r"has 9 images in val/, and meta.bin lists 12: unpack"),
    ],
)
def test_half_unpacked_imagenet_raises_an_error(
    tmp_path: Path, classes: int, test: int, message: str
) -> None:
    with pytest.raises(LabError, match=message):
        read_imagenet(with_meta(tmp_path, classes, test))


def test_a_damaged_development_kit_raises_an_error(tmp_path: Path) -> None:
    (with_meta(tmp_path) / "meta.bin").write_bytes(b"nothing of the kind")
    with pytest.raises(LabError, match=r"torchvision cannot read .*meta.bin is damaged.*unpack"):
        read_imagenet(tmp_path)
