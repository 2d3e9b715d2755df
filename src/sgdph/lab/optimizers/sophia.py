"""SophiaH from ``pytorch_optimizer``, extended to report when it needs the gradients' graph.

Sophia with Hutchinson's estimate of the Hessian's diagonal (Liu, Li, Hall, Liang & Ma, "Sophia",
ICLR 2024).
"""

from __future__ import annotations

from pytorch_optimizer import SophiaH as LibrarySophiaH


class SophiaH(LibrarySophiaH):  # type: ignore[misc]
    """``pytorch_optimizer.SophiaH``, whose probes come from torch's global generator."""

    @property
    def create_graph_due(self) -> bool:
        """Whether the next step differentiates the gradients: every ``update_period``-th step."""
        return bool(self.param_groups[0].get("step", 0) % self.update_period == 0)
