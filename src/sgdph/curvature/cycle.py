"""The order in which Newton parameters are refreshed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sgdph.curvature.probes import rademacher_probe
from sgdph.curvature.turn import MOST_SWEEPS, Turn
from sgdph.validation import is_stochastic

Groups = Sequence[dict[str, Any]]
Reaches = Callable[[Tensor], bool]

# The place of a new optimizer.
START = {"step": 0, "cursor": 0, "refreshes": 0, "sought": -1}
# The key of a parameter's state under which its three integers are saved.
TURN = "turn"


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
    cycle there. The first three integers of each parameter's :class:`Turn` are saved as one
    tensor per parameter, ``turn``.

    Args:
        newton: The Newton parameters.
    """

    def __init__(self, newton: Iterable[Tensor]) -> None:
        self.newton = list(newton)
        self._places = {id(p): i for i, p in enumerate(self.newton)}
        count = len(self.newton)
        # As if a whole cycle had been completed before, so that all numbers differ.
        self._turns = [Turn(i - count) for i in range(count)]
        # Those that joined within the present step, by id: whether only their gradient shows that.
        self._late: dict[int, bool] = {}
        self._cursor = 0

    def __contains__(self, p: Tensor) -> bool:
        """Return whether ``p`` is a Newton parameter."""
        return id(p) in self._places

    def append(self, p: Tensor, *, has_begun: bool) -> None:
        """Add one more parameter at the end of the cycle.

        It is not chosen before the next step if ``has_begun`` (curvature was taken since the last
        one) or if it has a gradient: the curvature of what came before it joined was not taken.
        """
        if has_begun or p.grad is not None:
            self._late[id(p)] = not has_begun
        # If two numbers are equal, the parameter registered first goes first.
        last = self._turns[-1].last_refresh if self.newton else -1
        self._places[id(p)] = len(self.newton)
        self.newton.append(p)
        self._turns.append(Turn(last))

    @staticmethod
    def start(groups: Iterable[dict[str, Any]]) -> None:
        """Put the groups of a new optimizer at the beginning."""
        for group in groups:
            group.update(START)

    @staticmethod
    def join(group: dict[str, Any], groups: Groups) -> None:
        """Set a later group's place in the cycle to that of the other groups."""
        group.update(Cycle.place(groups[0]))

    @staticmethod
    def place(group: Mapping[str, Any]) -> dict[str, Any]:
        """Return the place in the cycle that a group holds."""
        return {name: group[name] for name in START}

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
            reach them. If it reaches none, the one at the cursor is chosen. None is chosen if all
            have joined within this step.
        """
        self._follow(groups)
        late = self._late_ones(alone=reaches is not None)
        early = [p for p in self.newton if id(p) not in late]
        if not early:
            return [], []
        cursor = self.newton[groups[0]["cursor"] % len(self.newton)]
        cyclic = groups[0]["refresh"] == "cyclic"
        if reaches is None:
            return ([cursor] if cyclic else early), []
        if not self.is_regular(groups):
            sought = self._sought(groups)
            assert sought is not None, "no step is due but for one that is sought"
            if cyclic:
                return [self.newton[sought]], []
            began = self._turns[sought].last_search
            return [p for p in early if self._turns[self._places[id(p)]].last_refresh < began], []
        if not cyclic:
            return early, []
        passed_over: list[Tensor] = []
        for place in self._by_waiting():
            p = self.newton[place]
            if p.requires_grad and id(p) not in late:
                if reaches(p):
                    return [p], passed_over
                passed_over.append(p)
        return [cursor], passed_over

    def _late_ones(self, *, alone: bool) -> set[int]:
        # Ranks may differ in their gradients, but have to agree.
        live = {id(p) for p in self.newton if alone and p.grad is not None} if self._late else ()
        return {key for key, by_gradient in self._late.items() if not by_gradient or key in live}

    def gradients_cleared(self) -> None:
        """Note that all gradients are being cleared."""
        self._late = {key: shown for key, shown in self._late.items() if not shown}

    def _by_waiting(self) -> list[int]:
        """Return the indices of the parameters, those refreshed longest ago first."""
        latest = [turn.last_refresh for turn in self._turns]
        return sorted(range(len(latest)), key=latest.__getitem__)

    def _follow(self, groups: Groups) -> None:
        """Begin a new cycle at the cursor if it was written by hand."""
        if groups[0]["cursor"] != self._cursor:
            self._cursor = groups[0]["cursor"]
            for turn, number in zip(self._turns, self._as_in_a_cycle(groups[0]), strict=True):
                turn.last_refresh = number

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
        return [rademacher_probe(seed, self._turns[i].probes, i, p) for p, i in places]

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
        self._late.clear()
        refreshed = list(refreshed)
        place["step"] += 1
        unrefreshed: list[Tensor] = []
        if due:
            cyclic = groups[0]["refresh"] == "cyclic"
            order = self._by_waiting() if alone and (regular or refreshed) else []
            for p in refreshed:
                turn = self._turns[self._places[id(p)]]
                turn.last_refresh = number
                turn.probes += 1
            if regular:
                place["sought"] = -1
                if alone and groups[0]["hessian_interval"] > 1:
                    place["sought"] = self._to_seek(order, refreshed, number, cyclic)
            elif self._turns[place["sought"]].last_refresh == number:
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
            turn = self._turns[i]
            if self.newton[i].requires_grad and not turn.was_sought_in_vain(number, pause):
                turn.last_search = number
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
        for p, turn in zip(self.newton, self._turns, strict=True):
            if not p.requires_grad:
                turn.trainable_since = None
            elif turn.waits_too_long(number, sweep):
                unrefreshed.append(p)
        return unrefreshed

    def turns(self, groups: Groups) -> list[Tensor]:
        """Return each parameter's three integers as a tensor, as :meth:`load` takes them."""
        self._follow(groups)
        numbers = [(turn.last_refresh, turn.probes, turn.last_search) for turn in self._turns]
        return [torch.tensor(each, dtype=torch.int64, device="cpu") for each in numbers]

    def load(self, groups: Groups, turns: Sequence[Tensor | None]) -> None:
        """Load a place in the cycle.

        Args:
            groups: The parameter groups, which hold the place.
            turns: The turns of the Newton parameters. All are ``None`` in an older state, which
                holds only the place.
        """
        count, place = len(self.newton), groups[0]
        self._cursor = place["cursor"]
        if all(turn is None for turn in turns):
            latest = self._as_in_a_cycle(place)
            self._turns = [Turn(latest[i], self._probes_in_a_cycle(i, place)) for i in range(count)]
            return
        self._turns = [
            Turn(i - count) if turn is None else Turn(*turn.tolist())
            for i, turn in enumerate(turns)
        ]

    def _probes_in_a_cycle(self, i: int, place: Mapping[str, Any]) -> int:
        if place["refresh"] == "all":
            return int(place["refreshes"])
        count = len(self.newton)
        return int(place["refreshes"] + (i - place["cursor"]) % count) // count
