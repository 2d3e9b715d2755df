"""The documentation site: all pages are in it, what they name exists, and it opens offline."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sgdph

pytest.importorskip("mkdocs", reason="needs the extra `docs`, which `test` brings")
yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
ENTRANCES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
# Pages of the repository that the hook adds to the navigation.
FROM_THE_ROOT = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def configuration() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    return loaded


def navigated(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        if isinstance(entry, str):
            yield entry
            continue
        for below in entry.values():
            yield from navigated([below] if isinstance(below, str) else below)


def test_every_page_is_in_the_navigation_once() -> None:
    entries = list(navigated(configuration()["nav"]))
    assert sorted(entries) == sorted([*(page.name for page in PAGES), *FROM_THE_ROOT])
    assert all((ROOT / path).exists() for path in FROM_THE_ROOT.values())


def prose(page: Path) -> str:
    """The page without its code blocks, in which a # is a comment."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts build them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    bare = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in bare}


@pytest.mark.parametrize("page", [*ENTRANCES, *PAGES], ids=lambda page: page.name)
def test_anchors_in_links_exist_in_the_repository(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert anchor in anchors(page.parent / target if target else page), (target, anchor)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_a_page_names_exist(page: Path) -> None:
    path = None
    for named, test in re.findall(r"`(tests/[\w/]+\.py)?::(\w+)`", page.read_text()):
        path = named or path
        # The compatibility page gives paths below tests/; test_documentation.py checks those.
        if path is not None:
            assert f"def {test}(" in (ROOT / path).read_text(), (path, test)


def test_settings_page_has_every_argument() -> None:
    page = (DOCS / "choosing-settings.md").read_text()
    headings = "".join(line for line in page.splitlines() if line.startswith("## "))
    missing = [
        name
        for name in inspect.signature(sgdph.SGDPH).parameters
        if name != "self" and f"`{name}`" not in headings
    ]
    assert not missing


def test_reference_has_every_public_name() -> None:
    shown = re.findall(r"^::: sgdph\.(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert sorted(shown) == sorted(sgdph.__all__)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a link or a name without a target ends the build."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", out]
    # Not --quiet: warnings that are not shown are not counted, and the build would pass.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.xdist_group("site")
def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    loading = re.compile(
        r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?https?:"""
        r"""|<link\b[^>]*\brel=["']?(?:stylesheet|preconnect|preload)[^>]*href=["']?https?:"""
        r"""|@import\s+["']https?:|url\(["']?https?:"""
    )
    files = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert len(files) > len(PAGES)
    found = {f.name: loading.findall(f.read_text()) for f in files}
    assert not any(found.values()), found


@pytest.mark.xdist_group("site")
def test_search_needs_no_server(site: Path) -> None:
    index = (site / "search" / "search_index.js").read_text()
    assert index.startswith("var __index = ")
    assert "update_hessian" in index
    page = (site / "index.html").read_text()
    # Without this replacement for workers, browsers cannot search on pages opened from a file.
    assert "assets/iframe-worker.js" in page
    assert (site / "assets" / "iframe-worker.js").exists()


@pytest.mark.xdist_group("site")
def test_pictures_and_files_of_the_repository_are_in_the_site(site: Path) -> None:
    missing = []
    for page in site.rglob("*.html"):
        for target in re.findall(r'(?:src|href)="([^":#?]+)[^":]*"', page.read_text()):
            # The page for addresses that do not exist is served from the site's root.
            base = site if page.name == "404.html" else page.parent
            if not (base / target.lstrip("/")).exists():
                missing.append((page.name, target))
    assert missing == []
    assert (site / "repository/results/cost/resnet18/cost.png").exists()
    assert "torchrun" in (site / "repository/examples/ddp.py.html").read_text()


@pytest.mark.xdist_group("site")
def test_reference_shows_signatures_and_resolves_its_references(site: Path) -> None:
    page = (site / "api.html").read_text()
    assert 'id="sgdph.SGDPH.update_hessian"' in page
    assert "second_order_lr" in page
    # No markup of another documentation system is left.
    assert not re.search(r":(?:class|func|meth|math):", page)
    assert "&gt;&gt;&gt;" in page
