"""Check that the built packages contain the right files and no others; run by ``make dist``.

python tests/release/contents.py DIRECTORY
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def tracked() -> set[str]:
    """List the files of the checkout that git tracks."""
    # Without -z, git quotes names with a τ and writes it as bytes.
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    )
    return set(listed.stdout.split("\0")) - {""}


def expect(name: str, found: set[str], expected: set[str]) -> None:
    """Exit with a message unless an archive contains exactly the expected files."""
    missing, strange = sorted(expected - found), sorted(found - expected)
    if missing or strange:
        sys.exit(f"{name}: missing {missing or 'nothing'}, not expected {strange or 'nothing'}")
    print(f"{name}: {len(found)} files, as expected")


def main() -> None:
    """Compare both archives with the checkout."""
    files = tracked()
    (wheel,) = Path(sys.argv[1]).glob("*.whl")
    (sdist,) = Path(sys.argv[1]).glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    package = {name.removeprefix("src/") for name in files if name.startswith("src/")}
    information = next(name for name in names if name.endswith(".dist-info/METADATA"))
    folder = information.removesuffix("METADATA")
    own = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}
    expect(wheel.name, names, package | {folder + name for name in own})

    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    expect(sdist.name, names, {*filter(is_distributed, files), "PKG-INFO"})


def is_distributed(name: str) -> bool:
    """Return whether a file of the checkout belongs in the source distribution."""
    return not name.startswith((".ci/", ".github/", ".pre-commit"))


if __name__ == "__main__":
    main()
