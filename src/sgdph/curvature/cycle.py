"""The order in which Newton parameters are refreshed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sgdph.curvature.probes import rademacher_probe
from sgdph.validation import is_stochastic

Groups = Sequence[dict[str, Any]]
Reaches = Callable[[Tensor], bool]

_START = {"step": 0, "cursor": 0, "refreshes": 0, "sought": -1}
# The key of a parameter's state under which its three integers are saved.
TURN = "turn"

# A warning names parameters that have waited for this many sweeps: passes over all parameters.
MOST_SWEEPS = 10


class Cycle:
    """The Newton parameters in registration order, and the place in the cycle over them.

    The next parameter is the one refreshed longest ago, among those that the loss reaches. If
    every loss reaches all of them, they are refreshed in registration order. A parameter that was
    next but was not reached is *sought*: the steps until the next regular refresh are due for it
    alone (if all are refreshed at once, for all that were not reached).

    The place is four integers: ``step``, completed steps; ``refreshes``, how many of them were due
    for a regular refresh or refreshed a sought parameter; ``cursor``, the parameter that is next;
    ``sought``, the parameter that is sought, or -1. They are stored in every parameter group, with
    equal values, so code that saves groups includes them. Writing ``cursor`` by hand starts a new
    cycle there. Three more integers per parameter are kept here. A saved state has them as one
    tensor per parameter, ``turn``: the number of its latest refresh; how many probes it has used;
    the number of the refresh after which it was sought, or -1.

    Args:
        newton: The Newton parameters.
    """

    def __init__(self, newton: Iterable[Tensor]) -> None:
        self.newton = list(newton)
        self._places = {id(p): i for i, p in enumerate(self.newton)}
        count = len(self.newton)
        # As if a whole cycle had been completed before, so that all numbers differ.
        self._last_refresh = [i - count for i in range(count)]
        self._probe_count = [0] * count
        self._last_search = [-1] * count
        # When each was first seen trainable: a frozen parameter does not wait.
        self._trainable_since: dict[int, int] = {}
        self._cursor = 0

    def __contains__(self, p: Tensor) -> bool:
        """Return whether ``p`` is a Newton parameter."""
        return id(p) in self._places

    def append(self, p: Tensor) -> None:
        """Add one more parameter at the end of the cycle."""
        # If two numbers are equal, the parameter registered first goes first.
        last = self._last_refresh[-1] if self.newton else -1
        self._places[id(p)] = len(self.newton)
        self.newton.append(p)
        self._last_refresh.append(last)
        self._probe_count.append(0)
        self._last_search.append(-1)

    @staticmethod
    def start(groups: Iterable[dict[str, Any]]) -> None:
        """Put the groups of a new optimizer at the beginning."""
        for group in groups:
            group.update(_START)

    @staticmethod
    def join(group: dict[str, Any], groups: Groups) -> None:
        """Set a later group's place in the cycle to that of the other groups."""
        group.update(Cycle.place(groups[0]))

    @staticmethod
    def place(group: Mapping[str, Any]) -> dict[str, Any]:
        """Return the place in the cycle that a group holds."""
        return {name: group[name] for name in _START}

    def is_due(self, groups: Groups, *, alone: bool) -> bool:
        """Return whether the coming step needs a partial Hessian.

        Args:
            groups: The parameter groups.
            alone: Whether this is the only rank. With several ranks no parameter is sought,
                because each rank would have to know what the others' losses reach.
        """
        return self.is_regular(groups) or (alone and self._sought(groups) is not None)

    def is_regular(self, groups: Groups) -> bool:
        """Return whether a regular refresh is due, and not one for a sought parameter only."""
        step, interval = groups[0]["step"], groups[0]["hessian_interval"]
        return bool(self.newton) and step % interval == 0

    def _sought(self, groups: Groups) -> int | None:
        place = groups[0].get("sought", -1)
        if 0 <= place < len(self.newton) and self.newton[place].requires_grad:
            return int(place)
        return None

    def choose(self, groups: Groups, reaches: Reaches | None) -> tuple[list[Tensor], list[Tensor]]:
        """Choose the parameters to refresh.

        Args:
            groups: The parameter groups.
            reaches: Returns whether the loss reaches a parameter. ``None`` if several ranks have to
                agree without communication; the parameter at the cursor is then next.

        Returns:
            The parameters to refresh, and those that were passed over because the loss does not
            reach them. If it reaches none, the one at the cursor is chosen.
        """
        self._follow(groups)
        cursor = self.newton[groups[0]["cursor"] % len(self.newton)]
        cyclic = groups[0]["refresh"] == "cyclic"
        if reaches is None:
            return ([cursor] if cyclic else self.newton), []
        if not self.is_regular(groups):
            sought = self._sought(groups)
            assert sought is not None, "no step is due but for one that is sought"
            if cyclic:
                return [self.newton[sought]], []
            began = self._last_search[sought]
            pairs = zip(self.newton, self._last_refresh, strict=True)
            return [p for p, last in pairs if last < began], []
        if not cyclic:
            return self.newton, []
        passed_over: list[Tensor] = []
        for place in self._by_waiting():
            p = self.newton[place]
            if p.requires_grad:
                if reaches(p):
                    return [p], passed_over
                passed_over.append(p)
        return [cursor], passed_over

    def _by_waiting(self) -> list[int]:
        """Return the indices of the parameters, those refreshed longest ago first."""
        return sorted(range(len(self.newton)), key=self._last_refresh.__getitem__)

    def _follow(self, groups: Groups) -> None:
        """Begin a new cycle at the cursor if it was written by hand."""
        if groups[0]["cursor"] != self._cursor:
            self._cursor = groups[0]["cursor"]
            self._last_refresh = self._as_in_a_cycle(groups[0])

    def _as_in_a_cycle(self, place: Mapping[str, Any]) -> list[int]:
        count = len(self.newton)
        return [place["refreshes"] - count + (i - place["cursor"]) % count for i in range(count)]

    def probes(self, groups: Groups, params: Iterable[Tensor]) -> list[Tensor] | None:
        """Draw this refresh's probes for ``params``; ``None`` if the estimator needs none."""
        if not is_stochastic(groups[0]["estimator"]):
            return None
        seed = groups[0]["seed"]
        # Counted here, because a parameter's own refresh count is stored on its device.
        places = [(p, self._places[id(p)]) for p in params]
        return [rademacher_probe(seed, self._probe_count[i], i, p) for p, i in places]

    def advance(
        self, groups: Groups, refreshed: Iterable[Tensor], *, due: bool, alone: bool
    ) -> list[Tensor]:
        """Complete a step.

        Args:
            groups: The parameter groups.
            refreshed: The parameters with a new partial Hessian.
            due: Whether a partial Hessian was due.
            alone: See :meth:`is_due`.

        Returns:
            Parameters that have waited for too long. Each is returned once per wait.
        """
        place = self.place(groups[0])
        regular, number = self.is_regular(groups), place["refreshes"]
        refreshed = list(refreshed)
        place["step"] += 1
        unrefreshed: list[Tensor] = []
        if due:
            cyclic = groups[0]["refresh"] == "cyclic"
            order = self._by_waiting() if alone and (regular or refreshed) else []
            for p in refreshed:
                i = self._places[id(p)]
                self._last_refresh[i] = number
                self._probe_count[i] += 1
            if regular:
                place["sought"] = -1
                if alone and groups[0]["hessian_interval"] > 1:
                    place["sought"] = self._to_seek(order, refreshed, number, cyclic)
            elif self._last_refresh[place["sought"]] == number:
                place["sought"] = -1
            if regular or refreshed:
                place["refreshes"] += 1
                if cyclic:
                    place["cursor"] = self._next(place["cursor"], alone and bool(refreshed))
                    self._cursor = place["cursor"]
                if alone:
                    unrefreshed = self._unrefreshed(place["refreshes"], cyclic)
        for group in groups:
            group.update(place)
        return unrefreshed

    def _next(self, cursor: int, by_waiting: bool) -> int:
        if by_waiting:
            trainable = [i for i in self._by_waiting() if self.newton[i].requires_grad]
            if trainable:
                return trainable[0]
        return (cursor + 1) % len(self.newton)

    def _to_seek(
        self, order: Sequence[int], refreshed: Sequence[Tensor], number: int, cyclic: bool
    ) -> int:
        """Return the index of the parameter to seek, or -1: of the longest waiting, if not reached.

        A parameter that was sought without success is not sought again for some sweeps. Otherwise,
        if a part of the model is never used, every step would be due for it.
        """
        found = {id(p) for p in refreshed}
        pause = MOST_SWEEPS * (len(self.newton) if cyclic else 1)
        sought = -1
        for i in order:
            if id(self.newton[i]) in found:
                if cyclic:
                    break
                continue
            searched = self._last_search[i]
            in_vain = max(self._last_refresh[i], -1) < searched and number - searched < pause
            if self.newton[i].requires_grad and not in_vain:
                self._last_search[i] = number
                if cyclic:
                    return i
                # One search serves all parameters that were missed.
                sought = i if sought < 0 else sought
        return sought

    def _unrefreshed(self, number: int, cyclic: bool) -> list[Tensor]:
        sweep = len(self.newton) if cyclic else 1
        if number % sweep:
            return []
        unrefreshed = []
        for i, p in enumerate(self.newton):
            if not p.requires_grad:
                self._trainable_since.pop(i, None)
                continue
            since = max(self._trainable_since.setdefault(i, number - sweep), self._last_refresh[i])
            waited = number - since
            if MOST_SWEEPS * sweep <= waited < (MOST_SWEEPS + 1) * sweep:
                unrefreshed.append(p)
        return unrefreshed

    def turns(self, groups: Groups) -> list[Tensor]:
        """Return each parameter's three integers as a tensor, as :meth:`load` takes them."""
        self._follow(groups)
        lists = (self._last_refresh, self._probe_count, self._last_search)
        return [
            torch.tensor(numbers, dtype=torch.int64, device="cpu")
            for numbers in zip(*lists, strict=True)
        ]

    def load(self, groups: Groups, turns: Sequence[Tensor | None]) -> None:
        """Load a place in the cycle.

        Args:
            groups: The parameter groups, which hold the place.
            turns: The turns of the Newton parameters. All are ``None`` in an older state, which
                holds only the place.
        """
        count, place = len(self.newton), groups[0]
        self._cursor = place["cursor"]
        self._trainable_since.clear()
        if all(turn is None for turn in turns):
            self._last_refresh = self._as_in_a_cycle(place)
            self._probe_count = [self._probes_in_a_cycle(i, place) for i in range(count)]
            self._last_search = [-1] * count
            return
        numbers = [
            (i - count, 0, -1) if turn is None else turn.tolist() for i, turn in enumerate(turns)
        ]
        self._last_refresh = [each[0] for each in numbers]
        self._probe_count = [each[1] for each in numbers]
        self._last_search = [each[2] for each in numbers]

    def _probes_in_a_cycle(self, i: int, place: Mapping[str, Any]) -> int:
        if place["refresh"] == "all":
            return int(place["refreshes"])
        count = len(self.newton)
        return int(place["refreshes"] + (i - place["cursor"]) % count) // count


def starting_group(defaults: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that complete an old saved group, which may lack some of today's."""
    return {**defaults, **_START}
