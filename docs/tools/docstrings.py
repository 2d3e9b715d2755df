"""Turns the cross-references and examples of docstrings into those of the site.

``:class:`sgdph.SGDPH``` becomes a link to that name where the site documents it, and plain code
where it does not; ``docs/cost.md`` leads to that page. A section ``Example`` gets the name under
which it is shown as code.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

PAGE = re.compile(r"``docs/([\w-]+)\.md``")
EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
ROLE = re.compile(r":(?:class|func|meth|attr|mod):`~?([\w.]+)`")


class Docstrings(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **arguments: Any) -> None:
        """Rewrite the docstring of ``obj``, if it has one."""
        if obj.docstring is not None:
            text = ROLE.sub(lambda role: _reference(obj, role[1]), obj.docstring.value)
            text = PAGE.sub(r'<a href="\1.html">\1</a>', text)
            obj.docstring.value = EXAMPLE.sub("Examples:", text)


def _reference(obj: griffe.Object, name: str) -> str:
    """Make a link that may lead nowhere; a bare name is a neighbour of ``obj``."""
    parent = obj if obj.is_class or obj.is_module else obj.parent
    full = name if "." in name or parent is None else f"{parent.path}.{name}"
    return f'<autoref identifier="{full}" optional>`{name}`</autoref>'
