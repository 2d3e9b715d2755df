"""The turns of the Newton parameters: which one is refreshed next."""

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

# A parameter that has waited for so many sweeps over all of them is named in a warning.
MOST_SWEEPS = 10


class Cycle:
    """The Newton parameters in registration order, and the place in the cycle over them.

    The turn is that of the parameter refreshed longest ago, among those that the loss reaches. If
    every loss reaches all of them, that is one after another in registration order. A parameter
    that should have had its turn and was not reached is *sought*: the steps up to the next refresh
    are due for it alone.

    The place is four integers: ``step``, completed steps; ``refreshes``, those among them at which
    a partial Hessian was due; ``cursor``, the parameter that is next; ``sought``, the one
    that is sought, or -1. They live in the parameter groups, the same in each, so that whatever
    saves and restores groups carries them along. A ``cursor`` that was written by hand begins a new
    cycle there. Three more integers per parameter are kept here. A saved state has them as one
    tensor of each parameter, ``turn``: the number of its latest refresh; how many probes it has
    used; the number of the refresh after which it was sought, or -1.

    Args:
        newton: The Newton parameters.
    """

    def __init__(self, newton: Iterable[Tensor]) -> None:
        self.newton = list(newton)
        self._places = {id(p): i for i, p in enumerate(self.newton)}
        count = len(self.newton)
        # As if a whole cycle had gone before, so that no two are the same.
        self._last_refresh = [i - count for i in range(count)]
        self._probe_count = [0] * count
        self._last_search = [-1] * count
        # When each was first seen trainable: one that was frozen has not been waiting.
        self._trainable_since: dict[int, int] = {}
        self._cursor = 0

    def __contains__(self, p: Tensor) -> bool:
        """Tell whether ``p`` is a Newton parameter."""
        return id(p) in self._places

    def append(self, p: Tensor) -> None:
        """Let one more parameter join the cycle, at its end."""
        # Of equal numbers, the one registered first goes first.
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
        """Put a group that came later where the others are."""
        group.update(Cycle.place(groups[0]))

    @staticmethod
    def place(group: Mapping[str, Any]) -> dict[str, Any]:
        """Return the place in the cycle that a group holds."""
        return {name: group[name] for name in _START}

    def is_due(self, groups: Groups, *, alone: bool) -> bool:
        """Tell whether the coming step wants a partial Hessian.

        Args:
            groups: The parameter groups.
            alone: Whether this is the only rank. Several ranks seek nothing: each would have to
                know what the others' losses reach.
        """
        return self.is_regular(groups) or (alone and self._sought(groups) is not None)

    def is_regular(self, groups: Groups) -> bool:
        """Tell whether a partial Hessian is due for what comes next, and not for a sought one."""
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
            reaches: Tells whether the loss reaches a parameter; ``None`` where several ranks have
                to agree without asking one another: the turn is then the cursor's.

        Returns:
            Those to refresh, and those that were passed over because the loss does not reach
            them. If it reaches none, the turn is the cursor's all the same.
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
        """List the places, the one refreshed longest ago first."""
        return sorted(range(len(self.newton)), key=self._last_refresh.__getitem__)

    def _follow(self, groups: Groups) -> None:
        """Begin a new cycle where somebody has written the cursor."""
        if groups[0]["cursor"] != self._cursor:
            self._cursor = groups[0]["cursor"]
            self._last_refresh = self._as_in_a_cycle(groups[0])

    def _as_in_a_cycle(self, place: Mapping[str, Any]) -> list[int]:
        count = len(self.newton)
        return [place["refreshes"] - count + (i - place["cursor"]) % count for i in range(count)]

    def probes(self, groups: Groups, params: Iterable[Tensor]) -> list[Tensor] | None:
        """Draw this refresh's probe for each of ``params``, where the estimator wants any."""
        if not is_stochastic(groups[0]["estimator"]):
            return None
        seed = groups[0]["seed"]
        # Counted here, because a parameter's own count of refreshes lies on its device.
        places = [(p, self._places[id(p)]) for p in params]
        return [rademacher_probe(seed, self._probe_count[i], i, p) for p, i in places]

    def advance(
        self, groups: Groups, refreshed: Iterable[Tensor], *, due: bool, alone: bool
    ) -> list[Tensor]:
        """Complete a step.

        Args:
            groups: The parameter groups.
            refreshed: Those for which a partial Hessian came.
            due: Whether one was due.
            alone: See :meth:`is_due`.

        Returns:
            Parameters that have waited for too long: each once.
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
        """Find the parameter to seek: the one that has waited longest, if it was not reached.

        One that was sought in vain is left alone for some sweeps: part of a model may be out of use
        for good, and every step would be due for it.
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
                # One search is for all that were missed.
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
        """Return what each parameter's turn depends on, as :meth:`load` takes it."""
        self._follow(groups)
        lists = (self._last_refresh, self._probe_count, self._last_search)
        return [
            torch.tensor(numbers, dtype=torch.int64, device="cpu")
            for numbers in zip(*lists, strict=True)
        ]

    def load(self, groups: Groups, turns: Sequence[Tensor | None]) -> None:
        """Take over a place in the cycle.

        Args:
            groups: The parameter groups, which hold the place.
            turns: Those of the Newton parameters. ``None`` for all where the state is older, and
                knows of a cycle alone.
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
    """Return what a group saved before any of today's settings existed stands for."""
    return {**defaults, **_START}
