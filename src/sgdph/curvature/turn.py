"""How long a Newton parameter has waited for its refresh."""

from __future__ import annotations

from dataclasses import dataclass

# A warning names parameters that have waited for this many sweeps: passes over all parameters.
MOST_SWEEPS = 10


@dataclass(slots=True)
class Turn:
    """When a Newton parameter was refreshed. Refreshes of the whole cycle are numbered from 0."""

    last_refresh: int
    """The number of its latest refresh; below 0 if it had none."""
    probes: int = 0
    """How many probes it has used."""
    last_search: int = -1
    """The number of the refresh after which it was sought, or -1."""
    trainable_since: int | None = None
    """The refresh at which it was first seen trainable: a frozen parameter does not wait."""

    def was_sought_in_vain(self, number: int, pause: int) -> bool:
        """Return whether it was sought within the last ``pause`` refreshes, and not refreshed."""
        return max(self.last_refresh, -1) < self.last_search and number - self.last_search < pause

    def waits_too_long(self, number: int, sweep: int) -> bool:
        """Return whether a trainable one has waited for ``MOST_SWEEPS`` sweeps, but no more."""
        if self.trainable_since is None:
            self.trainable_since = number - sweep
        waited = number - max(self.trainable_since, self.last_refresh)
        return MOST_SWEEPS * sweep <= waited < (MOST_SWEEPS + 1) * sweep
