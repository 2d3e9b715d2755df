"""Several optimizers as one ``torch.optim.Optimizer``: groups, state, saving and loading."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim.optimizer import Optimizer

from sgdph.compound import ownership
from sgdph.compound.first_order import by_role, copied, parameters_of, tensors_of
from sgdph.compound.state import JoinedState
from sgdph.compound.state_dict import NEWTON, bare_states, joined, taken_apart, without_taken
from sgdph.optimizer import SGDPH
from sgdph.roles import Groups, listed, named_like
from sgdph.state_dict import rehearse
from sgdph.step import SecondOrderOptimizer
from sgdph.user_warning import warn_user

# Settings that have the same name in both halves, but different meanings.
_UNCLEAR = ("eps", "momentum")


class CompoundOptimizer(SecondOrderOptimizer):
    """First-order optimizers, and an SGDPH that holds the state of the Newton parameters.

    The SGDPH itself is never stepped: it holds their roles and groups, and saves and loads them.

    Args:
        first_order: The first-order optimizers, without the Newton parameters.
        newton: The Newton half, without first-order parameters.
        before: Copies of each first-order optimizer's groups before parameters were removed.
        unheld: Frozen first-order parameters that no first-order optimizer holds, by name.
    """

    first_order: tuple[Optimizer, ...]

    def __init__(
        self,
        first_order: Sequence[Optimizer],
        newton: SGDPH,
        before: Sequence[list[dict[str, Any]]],
        unheld: Mapping[str, Tensor],
    ) -> None:
        owners = (*first_order, newton)
        self._adopt(owners)
        super().__init__([g for owner in owners for g in owner.param_groups], newton.defaults)
        self._before, self._unheld = before, dict(unheld)
        # For each group, the index of its optimizer.
        self._layout = [k for k, owner in enumerate(owners) for _ in owner.param_groups]

    def _adopt(self, owners: Sequence[Optimizer]) -> None:
        """Set the owners of the groups: the first-order optimizers, and the Newton half."""
        newton = owners[-1]
        assert isinstance(newton, SGDPH)
        self.first_order, self._newton = tuple(owners[:-1]), newton
        self._curvature = newton._curvature
        for optimizer in self.first_order:
            ownership.own(optimizer)

    @property
    def _owners(self) -> tuple[Optimizer, ...]:
        return (*self.first_order, self._newton)

    @property
    def _kinds(self) -> list[str]:
        return [type(optimizer).__name__ for optimizer in self.first_order]

    @property
    def _groups(self) -> Groups:
        theirs = [id(group) for owner in self._owners for group in owner.param_groups]
        if sorted(map(id, self.param_groups)) != sorted(theirs):
            raise RuntimeError(
                "param_groups no longer match the groups of the first-order optimizers. They were "
                "changed by hand, or by a first-order optimizer's add_param_group or "
                "load_state_dict; call those of PartialHessian instead"
            )
        return Groups(self._newton.param_groups, self.param_groups)

    def _linked(self) -> list[dict[str, Any]]:
        """Return the owners' groups in this optimizer's order."""
        groups_of = [iter(owner.param_groups) for owner in self._owners]
        found = (next(groups_of[k], None) for k in self._layout)
        return [group for group in found if group is not None]

    @property
    def _newton_state(self) -> MutableMapping[Tensor, dict[str, Any]]:
        return self._newton.state

    @property  # type: ignore[override]
    def state(self) -> JoinedState:
        """The state of every parameter, in the optimizer that owns it."""
        return JoinedState(self._owners)

    @state.setter
    def state(self, state: Mapping[Any, Any]) -> None:
        # Torch's constructor sets an empty state, before the owners can take it.
        if "_layout" in self.__dict__:
            self.state.replace(state)

    def _first_order_step(self) -> None:
        if any(p.grad is not None for p in self._unheld.values()):
            self._warn_of_unheld()
        for optimizer in self.first_order:
            ownership.step(optimizer)

    def _warn_of_unheld(self) -> None:
        held = {id(p) for optimizer in self.first_order for p in parameters_of(optimizer)}
        names = [n for n, p in self._unheld.items() if p.grad is not None and id(p) not in held]
        self._unheld = {}
        if names:
            warn_user(
                f"parameter {listed(names)} was frozen when PartialHessian was built, has a "
                "gradient, and is in no first-order optimizer. Call add_param_group, or freeze it",
            )

    def _rehearse(self) -> None:
        super()._rehearse()
        self._first_order_step()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group at the end. Its Newton parameters take Newton steps.

        First-order parameters in it go to the first-order optimizer, if there is only one. Each
        half gets the settings that it knows; both get the group's ``lr`` and ``weight_decay``.

        Raises:
            TypeError, ValueError: As :meth:`sgdph.SGDPH.add_param_group`; or there are several
                first-order optimizers and a first-order parameter; or a group for both halves has
                a setting with a different meaning in each. The optimizer is then unchanged.
        """
        # Absent in torch's constructor, and in Lightning's wrapper: this class without attributes.
        if not hasattr(self, "_layout"):
            self.param_groups.append(param_group)
            return
        first, newton = by_role(param_group)
        if first["params"] and len(self.first_order) > 1:
            raise ValueError(
                f"the group has {len(first['params'])} first-order parameters, and there are "
                f"{len(self.first_order)} first-order optimizers ({', '.join(self._kinds)}). Build "
                "PartialHessian anew with the parameters in one of them, or flag the group "
                "channelwise=True"
            )
        unclear = [n for n in _UNCLEAR if n in param_group and n in self.first_order[0].defaults]
        if first["params"] and newton["params"] and unclear:
            raise ValueError(
                f"{' and '.join(unclear)} of the group would apply to {self._kinds[0]} and to the "
                "Newton steps, where it has another meaning. Add one group for each"
            )
        known = {id(p) for group in self.param_groups for p in group["params"]}
        if any(id(p) in known for part in (first, newton) for p in tensors_of(part)):
            raise ValueError("some parameters appear in more than one parameter group")
        before = [list(owner.param_groups) for owner in self._owners]
        try:
            if first["params"]:
                self._add_to(0, first)
            if newton["params"] or not first["params"]:
                self._add_to(len(self.first_order), newton)
        except Exception:
            for owner, groups in zip(self._owners, before, strict=True):
                owner.param_groups[:] = groups
            del self._layout[len(self.param_groups) :]
            raise
        self.param_groups[:] = self._linked()
        for k, owner in enumerate(self.first_order):
            self._before[k] += map(copied, owner.param_groups[len(before[k]) :])

    def _add_to(self, k: int, part: dict[str, Any]) -> None:
        owner, others = self._owners[k], [o for i, o in enumerate(self._owners) if i != k]
        foreign = {name for other in others for name in other.defaults} - owner.defaults.keys()
        if owner is not self._newton:
            foreign |= {"channelwise", "positions"}
        part = {name: value for name, value in part.items() if name not in foreign}
        if owner.param_groups and "param_names" not in owner.param_groups[0]:
            part = {**part, "params": tensors_of(part)}
            part.pop("param_names", None)
        owner.add_param_group(named_like(part, owner.param_groups))
        self._layout.append(k)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "param_groups" and "_layout" in self.__dict__:
            self._give_to_owners(value)
            value = self._linked()
        super().__setattr__(name, value)

    def _give_to_owners(self, groups: Sequence[dict[str, Any]]) -> None:
        """Give each owner its groups. New groups go to the half that their settings belong to.

        Lightning's finetuning callbacks assign the groups of the run that they resume.
        """
        last = len(self.first_order)
        homes = {id(g): k for k, owner in enumerate(self._owners) for g in owner.param_groups}
        layout = [
            homes.get(id(group), last if NEWTON in group else self._first_order_home(i))
            for i, group in enumerate(groups)
        ]
        if last not in layout:
            raise ValueError("none of the groups assigned to param_groups holds Newton parameters")
        before = [owner.param_groups for owner in self._owners]
        try:
            for k, owner in enumerate(self._owners):
                owner.param_groups = [
                    g for g, home in zip(groups, layout, strict=True) if home == k
                ]
        except Exception:
            for owner, own in zip(self._owners, before, strict=True):
                owner.param_groups = own
            raise
        self._layout = layout

    def _first_order_home(self, i: int) -> int:
        """Return the index of the first-order optimizer for a new group assigned at place ``i``."""
        last = len(self.first_order)
        if i < len(self._layout) and self._layout[i] < last:
            return self._layout[i]
        if last > 1:
            raise ValueError(
                f"group {i} assigned to param_groups is new, and there are several first-order "
                f"optimizers ({', '.join(self._kinds)}): build PartialHessian anew"
            )
        return 0

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to resume bit for bit: one state dict, as of one optimizer."""
        groups = self._groups.newton
        if self.state and not self._newton.state:
            # After a warm start, so that the keys do not depend on when the state is saved.
            rehearse(groups, self._newton.state, self.newton_parameters)
        # Runs before the user's own hooks.
        handle = self.register_state_dict_post_hook(
            lambda *_: joined([o.state_dict() for o in self._owners], self._layout, self._kinds),
            prepend=True,
        )
        try:
            return super().state_dict()
        finally:
            handle.remove()

    def load_state_dict(self, state_dict: Any) -> None:
        """Load a state. Pending curvature is dropped.

        Each part is loaded by the ``load_state_dict`` of its optimizer. States of the first-order
        optimizers alone can be loaded too: one state dict for one optimizer, or a list of them for
        several. They may have been saved before or after the Newton parameters were removed. The
        Newton half is then not changed.

        Raises:
            TypeError: ``state_dict`` is neither a state dict nor a sequence of state dicts.
            ValueError: Groups, first-order optimizers or roles do not match; or as in
                :meth:`sgdph.SGDPH.load_state_dict`. The optimizer is then unchanged.
        """
        bare = bare_states(state_dict, self.first_order)
        if bare is not None:
            positions = {id(p): i for p, i in self._newton._positions}
            parts = [
                without_taken(saved, optimizer, before, positions)
                for saved, optimizer, before in zip(
                    bare, self.first_order, self._before, strict=True
                )
            ]
            whole = [*parts, self._newton.state_dict()]
            state_dict = joined(whole, self._layout, self._kinds)
        before = [(owner, owner.param_groups, owner.state) for owner in self._owners]
        # Registered last, so it sees the state after the user's own hooks.
        handle = self.register_load_state_dict_pre_hook(self._load_parts)
        try:
            super().load_state_dict(state_dict)
        except Exception:
            for owner, groups, state in before:
                owner.param_groups, owner.state = groups, state
            self.param_groups[:] = self._linked()
            raise
        finally:
            handle.remove()

    def _load_parts(self, _: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
        """Let each owner load its part, and return a state without entries for torch to load."""
        parts = taken_apart(saved, self._layout, self._owners)
        for owner, part in zip(self._owners, parts, strict=True):
            for group, current in zip(part["param_groups"], owner.param_groups, strict=True):
                # torch.distributed.checkpoint does not save groups without parameters.
                for name in current.keys() - group.keys() - {"params"}:
                    group[name] = current[name]
            owner.load_state_dict(part)
        self.param_groups[:] = self._linked()
        return {**saved, "state": {}}

    def __getstate__(self) -> dict[str, Any]:
        names = ("defaults", "_layout", "_before", "_unheld")
        return {"owners": self._owners, **{name: self.__dict__[name] for name in names}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "owners" not in state:
            # Called by torch's load_state_dict, after the owners have loaded their parts.
            return
        self._adopt(state.pop("owners"))
        super().__setstate__(state)
        self.__dict__["param_groups"] = self._linked()
