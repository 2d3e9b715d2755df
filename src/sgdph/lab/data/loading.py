"""Loading of a data set by name, with the requested split."""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name

from sgdph.lab.data.dataset import Dataset
from sgdph.lab.data.image_reader import pick_workers
from sgdph.lab.data.registry import DATASETS, FILE_SETS, RESIZED_SETS
from sgdph.lab.data.source import Request, Source
from sgdph.lab.data.splits import SplitSizes
from sgdph.lab.errors import LabError, unknown_name


def source_of(name: str) -> Source:
    """Return a set's source.

    Raises:
        LabError: If there is no set with that name.
    """
    if name not in DATASETS:
        raise LabError(unknown_name("dataset", name, tuple(DATASETS)))
    source: Source = resolve_name(DATASETS[name].source)
    return source


def load_dataset(
    name: str,
    *,
    data_dir: Path | None = None,
    train_size: int | None = None,
    validation_size: int | None = None,
    download: bool = False,
    image_size: int | None = None,
    workers: int | None = None,
) -> Dataset:
    """Load a set onto the CPU.

    Args:
        name: One of :data:`sgdph.lab.data.registry.DATASETS`.
        data_dir: Directory of the files, for a set that does not come with a package.
        train_size: Use a stratified subset of this many training images (for text: windows spread
            over all of it). ``None`` uses all.
        validation_size: Hold out this many of them, stratified, and evaluate on them. The returned
            set then has no test images. ``None`` evaluates on the test images.
        download: Let torchvision download CIFAR or Fashion-MNIST into ``data_dir`` if it is
            missing.
        image_size: Height and width of the images. For image files, ``None`` means 224. For CIFAR,
            it must divide 32, and ``None`` means 32.
        workers: Number of processes that read image files; ``None`` for one per CPU core, at most
            8.

    Returns:
        The set. It is normalised with mean and standard deviation of the images trained on; image
        files are normalised with those of ImageNet.

    Raises:
        LabError: If files are missing or damaged, or an option does not fit the set.
    """
    source, of_files = source_of(name), name in FILE_SETS
    if image_size is not None and not DATASETS[name].can_resize:
        raise LabError(
            f"--image-size is for {', '.join(RESIZED_SETS)}; the size of {name} is fixed, so "
            "leave the option out"
        )
    request = Request(
        name=name,
        data_dir=data_dir,
        sizes=SplitSizes(train_size, validation_size),
        download=download,
        image_size=image_size,
        workers=pick_workers(workers) if of_files else 0,
    )
    return source.load(request)
