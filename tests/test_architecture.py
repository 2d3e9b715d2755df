"""The two storeys: the core needs torch alone and never knows the laboratory."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sgdph

CORE = sorted(Path(sgdph.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_core_imports_torch_and_itself_alone(path: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module or "")
    assert not any(name.startswith("sgdph.lab") for name in imported)
    allowed = {"torch", "sgdph", *sys.stdlib_module_names}
    assert {name.partition(".")[0] for name in imported} <= allowed


def test_importing_sgdph_brings_no_part_of_the_laboratory() -> None:
    code = (
        "import sys, sgdph\n"
        "heavy = ('torchvision', 'matplotlib', 'mlxtend', 'sklearn', 'rich', 'tyro', 'yaml')\n"
        "print([m for m in sys.modules if m.split('.')[0] in heavy or m.startswith('sgdph.lab')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_public_names_exist() -> None:
    for name in sgdph.__all__:
        assert getattr(sgdph, name).__doc__


def test_the_command_without_the_laboratory_says_what_it_needs() -> None:
    code = (
        "import sys; sys.modules['tyro'] = None\n"
        "from sgdph.lab.__main__ import main\n"
        "sys.exit(main())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 2
    assert "pip install 'sgdph[lab]'" in run.stderr
    assert "Traceback" not in run.stderr
