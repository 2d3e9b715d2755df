"""Counts compiled graphs and their runs."""

from __future__ import annotations

from typing import Any

import pytest


class Compilations:
    """Counts what the backend ``aot_eager`` compiles, and how often that then runs.

    It has torch's graphs of a forward and a backward without a compiler of C++, which takes longer.

    Args:
        monkeypatch: Puts the backend back.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from torch._dynamo.backends import registry

        self.graphs = self.runs = 0
        self._compile: Any = registry.lookup_backend("aot_eager")
        monkeypatch.setitem(registry._COMPILER_FNS, "aot_eager", self._counted)

    def _counted(self, *arguments: Any, **named: Any) -> Any:
        self.graphs += 1
        graph = self._compile(*arguments, **named)

        def run(*inputs: Any) -> Any:
            self.runs += 1
            return graph(*inputs)

        return run
