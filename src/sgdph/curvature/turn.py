"""How long a Newton parameter has waited for its refresh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sgdph.roles import listed
from sgdph.user_warning import warn_user

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


def warn_of_unrefreshed(names: Sequence[str]) -> None:
    """Warn about Newton parameters that no loss has reached for too long."""
    warn_user(
        f"no partial Hessian has reached parameter {listed(names)} during {MOST_SWEEPS} "
        "sweeps over all Newton parameters, because the losses at due steps do not depend on it. "
        "Its multiplier does not change. If the parameter is not used, freeze it or give its "
        "group channelwise=False",
    )
