"""Recreate the reports and pictures in ``results`` from the runs and measurements kept with them.

    python benchmarks/keep_reports.py                  # all of them
    python benchmarks/keep_reports.py results/demo results/cost/depth

``results`` keeps only the text, the table and the pictures of a report. If the picture over seconds
was deleted, it is not written again, and the lines on cost are left out of the text. Absolute paths
in recorded commands are shortened to their last part, because the directories of the machine that
ran them are meaningless elsewhere.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from sgdph.lab.cost.directory import FIGURES, CostDirectory
from sgdph.lab.cost.report import write_report
from sgdph.lab.reports.folder import PAGE, TABLE, TEXT
from sgdph.lab.reports.layout import saved_layout
from sgdph.lab.reports.pictures import SECONDS
from sgdph.lab.reports.report import LATEX, TARGETS, report_on
from sgdph.lab.run.archive import EPOCHS, RUNS

RESULTS = Path("results")
NOT_KEPT = (PAGE, LATEX, TARGETS)


def kept_folders(root: Path) -> Iterator[Path]:
    """Yield the folders that contain the data of a report."""
    for name in (RUNS, FIGURES):
        yield from sorted(file.parent for file in root.rglob(name))


def write_again(folder: Path, made: Path) -> None:
    """Recreate a folder's report in another folder."""
    for name in (FIGURES, EPOCHS, RUNS):
        if (folder / name).is_file():
            shutil.copy(folder / name, made)
    if (folder / FIGURES).is_file():
        write_report(CostDirectory(made))
    else:
        first, *_ = (folder / TEXT).read_text(encoding="utf-8").splitlines()
        layout = replace(saved_layout(folder), title=first.removeprefix("# "))
        report_on([made], made, layout, ())


def cleaned(text: str, not_kept: Collection[str]) -> str:
    """Remove all references to files that are not kept, and the folders of absolute paths.

    If the picture over seconds is not kept, the lines on cost are removed too.
    """
    left_out = tuple(f"| {name} |" for name in not_kept)
    if SECONDS in not_kept:
        left_out += ("* Cost: ",)
    text = "\n".join(line for line in text.split("\n") if not line.startswith(left_out))
    for name in not_kept:
        text = re.sub(rf"!\[[^\]]*\]\({re.escape(name)}\)\n\n[^\n]*\n\n", "", text)
    text = text.replace("`__main__.py ", "`sgdph ")
    return re.sub(r"(?<=[ =])/(?:[\w.-]+/)*([\w.-]+)", r"\1", text)


def keep(folder: Path) -> None:
    """Replace the text, the table and the pictures of a folder."""
    with tempfile.TemporaryDirectory() as place:
        made = Path(place)
        write_again(folder, made)
        pictures = [file.name for file in made.glob("*.png")]
        # Pictures over meaningless seconds are deleted by hand, once. They must not come back.
        dropped = [SECONDS] if SECONDS in pictures and not (folder / SECONDS).exists() else []
        text = cleaned((made / TEXT).read_text(encoding="utf-8"), (*NOT_KEPT, *dropped))
        (folder / TEXT).write_text(text, encoding="utf-8")
        for name in (TABLE, *pictures):
            if name not in dropped:
                shutil.copy(made / name, folder)


def main() -> None:
    """Recreate the named reports, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", type=Path, nargs="*")
    for folder in parser.parse_args().folders or kept_folders(RESULTS):
        keep(folder)
        print(folder, flush=True)


if __name__ == "__main__":
    main()
