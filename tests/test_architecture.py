"""Rules of the package: which module may import which, and the core needs only torch."""

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
FRAMEWORKS = {
    "accelerate": {"accelerate"},
    "lightning": {"lightning", "pytorch_lightning"},
    "timm": {"timm"},
    "transformers": {"transformers"},
}

# Each room and the only rooms that its files may import, all of them above it in this list. A room
# is a folder, or a file outside these folders. "sgdph" stands for the public names.
ROOMS: dict[str, set[str]] = {
    "names": set(),
    "user_warning": set(),
    "validation": {"names", "user_warning"},
    "roles": {"validation"},
    "algorithm": set(),
    "autograd": {"user_warning"},
    "distributed": {"roles", "algorithm", "autograd"},
    "curvature": {
        "names", "user_warning", "validation", "roles", "algorithm", "autograd", "distributed",
    },
    "state_matching": {"user_warning", "roles", "curvature"},
    "state_dict": {"roles", "algorithm", "distributed", "curvature", "state_matching"},
    "join": {"roles", "curvature"},
    "step": {
        "validation", "roles", "algorithm", "distributed", "curvature", "state_dict", "join",
    },
    "wrappers": {"step"},
    "metrics": {"wrappers"},
    "compilation": {"user_warning", "curvature", "step", "wrappers"},
    "optimizer": {
        "names", "validation", "roles", "distributed", "curvature", "state_dict", "step",
    },
    "compound": {"user_warning", "roles", "state_matching", "state_dict", "step", "optimizer"},
    "partial_hessian": {"names", "user_warning", "roles", "optimizer", "compound"},
    "with_muon": {"roles", "partial_hessian"},
    "diagnostics": {
        "validation", "roles", "algorithm", "autograd", "distributed", "curvature", "step",
    },
    "weight_norm": set(),
    "sgdph": {
        "roles", "algorithm", "metrics", "compilation", "optimizer", "partial_hessian",
        "with_muon", "diagnostics", "weight_norm",
    },
    "integrations": {
        "roles", "autograd", "distributed", "step", "wrappers", "metrics", "compilation",
        "optimizer", "partial_hessian",
    },
    "lab.errors": set(),
    "lab.output": {"lab.errors"},
    "lab.progress": {"lab.output"},
    "lab.files": {"lab.errors", "lab.output"},
    "lab.networks": {"sgdph", "lab.errors"},
    "lab.optimizers": {"sgdph", "step", "lab.errors"},
    "lab.data": {"lab.errors", "lab.networks"},
    "lab.config": {
        "names", "lab.errors", "lab.files", "lab.networks", "lab.optimizers", "lab.data",
    },
    "lab.options": {
        "lab.errors", "lab.files", "lab.networks", "lab.optimizers", "lab.data",
        "lab.config",
    },
    "lab.run": {
        "sgdph",
        "lab.errors", "lab.output", "lab.progress", "lab.files", "lab.networks", "lab.config",
        "lab.optimizers", "lab.options", "lab.data",
    },
    "lab.reports": {
        "lab.errors", "lab.progress", "lab.files", "lab.networks", "lab.optimizers", "lab.data",
        "lab.config", "lab.options", "lab.run",
    },
    "lab.cost": {
        "sgdph", "names", "validation", "curvature", "lab.errors", "lab.progress", "lab.files",
        "lab.networks", "lab.config", "lab.optimizers", "lab.data", "lab.run", "lab.reports",
    },
    "lab.inspect": {
        "sgdph", "algorithm", "curvature", "lab.errors", "lab.progress", "lab.files", "lab.config",
        "lab.optimizers", "lab.options", "lab.data", "lab.run", "lab.reports",
    },
    "lab.recipes": set(),
    "lab.sweep": {
        "lab.errors", "lab.output", "lab.progress", "lab.files", "lab.networks", "lab.config",
        "lab.optimizers", "lab.options", "lab.data", "lab.run", "lab.reports", "lab.cost",
    },
    "lab.tune": {
        "lab.errors", "lab.output", "lab.progress", "lab.files", "lab.config", "lab.optimizers",
        "lab.options", "lab.data", "lab.run", "lab.reports", "lab.sweep",
    },
    "lab.commands": {
        "lab.errors", "lab.progress", "lab.config", "lab.options", "lab.run",
        "lab.sweep",
    },
    "lab.data_command": {"lab.errors", "lab.progress", "lab.data", "lab.options"},
    "lab.cli": {"sgdph", "lab.errors", "lab.output", "lab.run"},
    "lab.__main__": {"lab.run", "lab.cli"},
    "lab": set(),
}  # fmt: skip


def module_of(path: Path) -> str:
    """Name a file's module below ``sgdph``, such as ``lab.run.training``; a package by its name."""
    name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    return name.removesuffix("__init__").removesuffix(".") or "sgdph"


MODULES = {module_of(path): path for path in sorted(SOURCE.rglob("*.py"))}


def room_of(module: str) -> str:
    """Return the room of a module."""
    return ".".join(module.split(".")[: 2 if module.startswith("lab.") else 1])


def imports_of(path: Path) -> set[str]:
    """List the full names of a file's imports, also those inside functions and only for types.

    An import that stands inside a function only to avoid a cycle is an import in the wrong
    direction, too.
    """
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
    return imported


def own_imports(path: Path) -> set[str]:
    """List the modules of ``sgdph`` that a file imports, as ``module_of`` names them."""
    found = set()
    for name in imports_of(path):
        if name.partition(".")[0] != "sgdph":
            continue
        module = name.removeprefix("sgdph").removeprefix(".")
        while module and module not in MODULES:
            module = module.rpartition(".")[0]
        found.add(module or "sgdph")
    return found


def roots_of(path: Path) -> set[str]:
    """List the packages that a file imports."""
    return {name.partition(".")[0] for name in imports_of(path)}


CORE = [path for module, path in MODULES.items() if room_of(module).partition(".")[0] != "lab"]


@pytest.mark.parametrize("module", MODULES)
def test_modules_import_only_the_rooms_allowed_for_their_room(module: str) -> None:
    room = room_of(module)
    assert room in ROOMS, f"{module} stands in no room of this test's list"
    others = {room_of(each) for each in own_imports(MODULES[module])} - {room}
    assert others <= ROOMS[room], f"{module} must not import {sorted(others - ROOMS[room])}"


def test_the_list_of_rooms_is_complete_and_ordered() -> None:
    above: set[str] = set()
    for room, allowed in ROOMS.items():
        assert allowed <= above, f"{room} may import only what stands before it"
        above.add(room)
    assert {room_of(module) for module in MODULES} == set(ROOMS)


def test_every_allowed_import_is_used() -> None:
    used: dict[str, set[str]] = {room: set() for room in ROOMS}
    for module, path in MODULES.items():
        used[room_of(module)] |= {room_of(each) for each in own_imports(path)} - {room_of(module)}
    assert {
        room: allowed - used[room] for room, allowed in ROOMS.items() if allowed - used[room]
    } == {}


def test_imports_between_modules_have_no_cycle() -> None:
    downwards = {module: own_imports(path) for module, path in MODULES.items()}
    assert downwards["optimizer"]
    graphlib.TopologicalSorter(downwards).prepare()


@pytest.mark.parametrize("path", CORE, ids=lambda path: module_of(path))
def test_the_core_imports_only_torch(path: Path) -> None:
    allowed = {"torch", "sgdph", *sys.stdlib_module_names}
    if path.parent.name == "integrations":
        allowed |= FRAMEWORKS.get(path.stem, set())
    assert roots_of(path) <= allowed


def test_the_core_warns_at_the_users_line() -> None:
    warning = {module_of(path) for path in CORE if "warnings.warn(" in path.read_text()}
    assert warning == {"user_warning"}


def test_files_are_short() -> None:
    lengths = {module: len(path.read_text().splitlines()) for module, path in MODULES.items()}
    limits = {"optimizer": 350}
    assert {m: n for m, n in lengths.items() if n > limits.get(m, 300)} == {}


def test_no_module_has_the_name_of_a_public_function() -> None:
    # "sgdph.NAME" would be the module or the function, whichever was imported last.
    assert {module for module in MODULES if "." not in module}.isdisjoint(sgdph.__all__)


def test_the_module_table_in_contributing_lists_every_room() -> None:
    _, _, modules = (SOURCE.parents[1] / "CONTRIBUTING.md").read_text().partition("## Modules")
    rows = re.findall(r"^\| (`.*?`) \|", modules, re.MULTILINE)
    named = [name for row in rows for name in re.findall(r"`([\w/]+?)(?:\.py|/)`", row)]
    named = [name.replace("/", ".") for name in named]
    assert sorted(named) == sorted({*ROOMS} - {"sgdph", "lab", "lab.__main__"})


def test_importing_sgdph_imports_no_laboratory_and_no_framework() -> None:
    code = (
        "import sys, sgdph\n"
        "heavy = ('torchvision', 'matplotlib', 'mlxtend', 'sklearn', 'rich', 'pydantic', 'yaml',\n"
        "         'lightning', 'accelerate', 'transformers', 'timm')\n"
        "ours = ('sgdph.lab', 'sgdph.integrations')\n"
        "print([m for m in sys.modules if m.split('.')[0] in heavy or m.startswith(ours)])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_public_names_exist_and_have_docstrings() -> None:
    for name in sgdph.__all__:
        assert getattr(sgdph, name).__doc__


def command_without_the_laboratory(*words: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; sys.modules['rich'] = None\n"
        "from sgdph.lab.__main__ import main\n"
        "sys.exit(main())"
    )
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)


def test_without_the_laboratory_the_command_prints_its_version() -> None:
    run = command_without_the_laboratory("--version")
    assert (run.returncode, run.stdout) == (0, f"sgdph {sgdph.__version__}\n")


def test_without_the_laboratory_the_error_says_how_to_install_it() -> None:
    run = command_without_the_laboratory("train", "--epochs", "1")
    assert run.returncode == 2
    assert "pip install '.[lab]' in a checkout of sgdph" in run.stderr
    assert "Traceback" not in run.stderr
