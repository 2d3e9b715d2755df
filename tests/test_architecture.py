"""The two storeys: the core needs torch alone, never knows the laboratory or the integrations."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sgdph

SOURCE = Path(sgdph.__file__).parent
CORE = sorted(SOURCE.glob("*.py"))
FRAMEWORKS = {
    "accelerate": {"accelerate"},
    "lightning": {"lightning", "pytorch_lightning"},
    "timm": {"timm"},
    "transformers": {"transformers"},
}


def imports_of(path: Path) -> set[str]:
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module or "")
    return imported


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_core_imports_torch_and_itself_alone(path: Path) -> None:
    imported = imports_of(path)
    assert not any(name.startswith(("sgdph.lab", "sgdph.integrations")) for name in imported)
    allowed = {"torch", "sgdph", *sys.stdlib_module_names}
    assert {name.partition(".")[0] for name in imported} <= allowed


def test_the_core_s_imports_run_one_way() -> None:
    # Those that are for types alone as well.
    downwards = {
        path.stem: {name.removeprefix("sgdph.") for name in imports_of(path) if "sgdph." in name}
        for path in CORE
    }
    assert downwards["optimizer"]
    graphlib.TopologicalSorter(downwards).prepare()


def test_the_laboratory_s_imports_run_one_way() -> None:
    # Those inside functions as well: an import that must wait for its turn is an arrow upwards.
    names = {
        path: ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
        for path in SOURCE.glob("lab/**/*.py")
    }
    files = {name.removesuffix(".__init__"): path for path, name in names.items()}
    downwards = {name: imports_of(path) & files.keys() for name, path in files.items()}
    assert downwards["sgdph.lab.run.training"]
    graphlib.TopologicalSorter(downwards).prepare()


def test_the_house_s_table_names_every_file_of_the_core() -> None:
    _, _, house = (SOURCE.parent.parent / "CONTRIBUTING.md").read_text().partition("## The house")
    rows = re.findall(r"^\| (`.*?`) \|", house, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`(\w+\.py)`", row)]
    assert sorted(named) == [path.name for path in CORE if path.name != "__init__.py"]


@pytest.mark.parametrize("path", sorted(SOURCE.glob("lab/**/*.py")), ids=lambda path: path.name)
def test_the_laboratory_needs_no_integration(path: Path) -> None:
    assert not any(name.startswith("sgdph.integrations") for name in imports_of(path))


@pytest.mark.parametrize(
    "path", sorted(SOURCE.glob("integrations/*.py")), ids=lambda path: path.name
)
def test_an_integration_imports_its_framework_alone(path: Path) -> None:
    imported = imports_of(path)
    assert not any(name.startswith("sgdph.lab") for name in imported)
    allowed = {"torch", "sgdph", *sys.stdlib_module_names} | FRAMEWORKS.get(path.stem, set())
    assert {name.partition(".")[0] for name in imported} <= allowed


def test_importing_sgdph_brings_no_laboratory_and_no_framework() -> None:
    code = (
        "import sys, sgdph\n"
        "heavy = ('torchvision', 'matplotlib', 'mlxtend', 'sklearn', 'rich', 'tyro', 'yaml',\n"
        "         'lightning', 'accelerate', 'transformers', 'timm')\n"
        "ours = ('sgdph.lab', 'sgdph.integrations')\n"
        "print([m for m in sys.modules if m.split('.')[0] in heavy or m.startswith(ours)])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_public_names_exist() -> None:
    for name in sgdph.__all__:
        assert getattr(sgdph, name).__doc__


def command_without_the_laboratory(*words: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; sys.modules['tyro'] = None\n"
        "from sgdph.lab.__main__ import main\n"
        "sys.exit(main())"
    )
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)


def test_the_command_without_the_laboratory_tells_its_version() -> None:
    run = command_without_the_laboratory("--version")
    assert (run.returncode, run.stdout) == (0, f"sgdph {sgdph.__version__}\n")


def test_the_command_without_the_laboratory_says_what_it_needs() -> None:
    run = command_without_the_laboratory("train")
    assert run.returncode == 2
    assert "pip install 'sgdph[lab]'" in run.stderr
    assert "Traceback" not in run.stderr
