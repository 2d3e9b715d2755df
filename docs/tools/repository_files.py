"""Brings into the site what pages link to outside ``docs/``: pictures, results, programs.

The pages are also read in the repository, so their links are those of the repository
(``../results/cost/README.md``). For the site each file so linked is copied under ``repository/``,
Markdown and programs as pages of their own, and the links are turned there. MkDocs calls the
functions whose names begin with ``on_``.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
# Pages of the repository that have a place in the navigation.
OWN_PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
PROGRAMS = {".py": "python", ".yml": "yaml", ".yaml": "yaml"}
LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=[#)])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files that pages link to, and those that these link to."""
    pages = {f"docs/{f.src_uri}": f.content_string for f in files if f.is_documentation_page()}
    for path in OWN_PAGES:
        pages[path] = _add(files, config, path)
    seen = set(pages)
    while pages:
        path, text = pages.popitem()
        for target in (_target(path, link) for link in LINK.findall(text)):
            if target is None or target in seen or target.startswith("docs/"):
                continue
            seen.add(target)
            added = _add(files, config, target)
            if target.endswith(".md"):
                pages[target] = added
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links into the repository to where the site has their files."""
    path = _in_repository(page.file.src_uri)
    if page.file.src_uri.startswith("repository/"):
        # Figures and programs come after the pages that explain them.
        page.meta["search"] = {"boost": 0.5}
    here = posixpath.dirname(page.file.src_uri)

    def turned(link: re.Match[str]) -> str:
        target = _target(path, link[0])
        return link[0] if target is None else posixpath.relpath(_in_site(target), here or ".")

    return LINK.sub(turned, markdown)


def _add(files: Files, config: MkDocsConfig, path: str) -> str:
    """Add a file of the repository, and return its text where it is a page."""
    source = ROOT / path
    if source.suffix in PROGRAMS:
        fence = f"```{PROGRAMS[source.suffix]}\n{source.read_text()}```\n"
        content: str | bytes = f"# {path}\n\n{fence}"
    elif source.suffix == ".md":
        content = source.read_text()
    else:
        content = source.read_bytes()
    files.append(File.generated(config, _in_site(path), content=content))
    return content if isinstance(content, str) else ""


def _target(path: str, link: str) -> str | None:
    """Return the file that a link in the page at ``path`` leads to, if the repository has it."""
    if "://" in link or link.startswith(("mailto:", "/")):
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    return target if (ROOT / target).is_file() else None


def _in_site(path: str) -> str:
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    program = ".md" if Path(path).suffix in PROGRAMS else ""
    return OWN_PAGES.get(path, f"repository/{path}{program}")


def _in_repository(src_uri: str) -> str:
    own = {uri: path for path, uri in OWN_PAGES.items()}
    if src_uri in own:
        return own[src_uri]
    if src_uri.startswith("repository/"):
        return src_uri.removeprefix("repository/")
    return f"docs/{src_uri}"
