#!/bin/sh
# Installs the wheel in dist/ under each Python that is named and tries it there; under the last one with
# the laboratory as well. Called by `make dist`. The environments are kept, for torch is large.
set -eu
wheel=$(ls "$PWD"/dist/*.whl)
version=$(basename "$wheel" | cut -d- -f2)
[ $# -gt 0 ] || { echo "name at least one Python: make dist PYTHONS='python3.10 python3.13'" >&2; exit 2; }
for python in "$@"; do
    number=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') ||
        { echo "$python does not run; name others: make dist PYTHONS='...'" >&2; exit 2; }
    last=.venv-dist-$number
    [ -x "$last/bin/python" ] || "$python" -m venv "$last"
    # Of an earlier build of the same version, pip would keep what it has.
    "$last/bin/python" -m pip uninstall --quiet --yes sgdph
    "$last/bin/python" -m pip install --quiet --disable-pip-version-check "$wheel"
    "$last/bin/python" tests/release/core.py "$version"
done

"$last/bin/python" -m pip install --quiet --disable-pip-version-check "$wheel[lab]"
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
bin=$PWD/$last/bin
cd "$place"
"$bin/sgdph" data
"$bin/sgdph" train --dataset digits --epochs 1 --out run
"$bin/sgdph" reproduce table1 --scale cpu --dry-run > plan.txt
"$bin/sgdph" report run --out report
[ -s report/report.html ] && [ -s plan.txt ]
echo "sgdph $version: the laboratory trains and reports under $number"
