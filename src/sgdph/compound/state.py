"""The state of several optimizers as one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from itertools import chain
from typing import Any

from torch.optim.optimizer import Optimizer

from sgdph.compound.first_order import parameters_of


class JoinedState(MutableMapping[Any, Any]):
    """The states of several optimizers as one. Like ``Optimizer.state``, it makes missing entries.

    Args:
        owners: The optimizers. Keys that none of them holds go to the last one.
    """

    def __init__(self, owners: Sequence[Optimizer]) -> None:
        self._owners = owners

    def _home(self, key: Any) -> MutableMapping[Any, Any]:
        for owner in self._owners:
            if key in owner.state:
                return owner.state
        for owner in self._owners:
            if any(p is key for p in parameters_of(owner)):
                return owner.state
        return self._owners[-1].state

    def replace(self, state: Mapping[Any, Any]) -> None:
        """Replace this state by another one, and give each part to its owner."""
        stores: dict[int, defaultdict[Any, Any]] = {
            id(owner.state): defaultdict(dict) for owner in self._owners
        }
        for key, kept in state.items():
            stores[id(self._home(key))][key] = kept
        for owner in self._owners:
            owner.state = stores[id(owner.state)]

    def __getitem__(self, key: Any) -> Any:
        return self._home(key)[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._home(key)[key] = value

    def __delitem__(self, key: Any) -> None:
        del self._home(key)[key]

    def __contains__(self, key: object) -> bool:
        return any(key in owner.state for owner in self._owners)

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the entry of ``key``, or ``default``, without making an entry."""
        return self._home(key).get(key, default)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """Return the entry of ``key``; if it is missing, set it to ``default`` first."""
        if key not in self:
            self[key] = default
        return self[key]

    def pop(self, key: Any, *default: Any) -> Any:
        """Remove and return the entry of ``key``, without making one."""
        return self._home(key).pop(key, *default)

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(owner.state for owner in self._owners)

    def __len__(self) -> int:
        return sum(len(owner.state) for owner in self._owners)

    def __repr__(self) -> str:
        return repr(dict(self))
