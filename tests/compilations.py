"""Count compiled graphs and their runs."""

from __future__ import annotations

from typing import Any

import pytest


class Compilations:
    """Counts the graphs that the backend ``aot_eager`` compiles, and how often they run.

    It builds torch's forward and backward graphs without a C++ compiler, which would take longer.

    Args:
        monkeypatch: Restores the backend after the test.
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
