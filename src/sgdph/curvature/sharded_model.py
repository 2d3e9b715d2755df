"""The model around the Newton parameters, if ``fully_shard`` (FSDP2) has sharded it.

``fully_shard`` also shards the Newton parameters, or ignores them (``ignored_params``). In both
cases a product can be taken only while the weights stay gathered. For parameters that it ignores,
it does not average the gradients over the ranks.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sgdph.autograd.graph import Graph
from sgdph.curvature.pending import PendingCurvature
from sgdph.distributed.dtensor import GradientVersions, is_dtensor, part_of
from sgdph.distributed.fully_sharded import (
    fsdp_modules,
    mean_gradients,
    same_on_all_ranks,
    shards,
    weights_gathered,
)
from sgdph.distributed.reduction import Ranks

_Group = Mapping[str, Any]
# Pairs and not a dict: two models in one optimizer may have the same names.
_Named = Sequence[tuple[str, Tensor]]

_USE_BACKWARD = (
    "Call sgdph.integrations.fsdp.backward(model, optimizer, loss) in place of loss.backward(), at "
    "every step"
)


class ShardedModel:
    """The use of ``fully_shard`` around an optimizer's parameters.

    Attributes:
        is_gathered: Whether a product can be taken now.
    """

    def __init__(self) -> None:
        self.is_gathered = False
        self._leaves: dict[int, Tensor] = {}
        self._modules: Sequence[Any] = ()
        self._is_around: bool | None = None
        # By id of a parameter that is not sharded: whether all ranks hold the same values.
        self._shared: dict[int, bool] = {}
        self._stamps: dict[int, GradientVersions] = {}

    def leaf_of(self, p: Tensor) -> Tensor | None:
        """Return the tensor that losses are computed from: ``p`` itself, unless it is sharded.

        Returns:
            ``None`` for a sharded one outside of :meth:`gathered`.
        """
        return self._leaves.get(id(p)) if is_dtensor(p) else p

    def leaves_of(self, params: Iterable[Tensor]) -> list[Tensor]:
        """Return the leaf of each parameter, or the parameter itself if there is no leaf."""
        return [p if (leaf := self.leaf_of(p)) is None else leaf for p in params]

    def leaves_in(self, graph: Graph, params: Sequence[Tensor], ranks: Ranks) -> list[Tensor]:
        """Return the leaves for which a product of a loss's graph is taken.

        If the ranks' losses reach different leaves, their passes would gather different layers and
        deadlock, so all layers are gathered first. Sharded parameters are reached on all ranks.
        """
        leaves = self.leaves_of(params)
        if self.is_gathered and ranks.count() > 1 and not all(map(is_dtensor, params)):
            reached = torch.tensor([graph.reaches(leaf) for leaf in leaves], dtype=torch.float32)
            if not all(same_on_all_ranks([reached.to(params[0].device)], ranks.process_group)):
                for module in self._modules:
                    module.unshard()
        return leaves

    def reached_in(self, graph: Graph) -> Callable[[Tensor], bool]:
        """Return a function that tells whether a loss depends on a parameter."""
        return lambda p: graph.reaches(*self.leaves_of([p]))

    @contextlib.contextmanager
    def gathered(self, modules: Sequence[Any]) -> Iterator[None]:
        """Allow products inside the context: gathered weights of these modules are not freed."""
        self._leaves = {id(p): leaf for p, leaf in shards(modules) if leaf is not None}
        self._modules = modules
        self.is_gathered = True
        try:
            with weights_gathered(modules):
                yield
        finally:
            self.is_gathered = False
            self._leaves = {}
            self._modules = ()

    def is_around(self, newton: Sequence[Tensor], groups: Iterable[_Group] = ()) -> bool:
        """Return whether ``fully_shard`` was called for a model, or parts, of these parameters.

        Args:
            newton: The Newton parameters.
            groups: All groups of the optimizer. They are needed if only other parameters, such as
                those of linear layers, are sharded.
        """
        if any(map(is_dtensor, newton)):
            return True
        if self._is_around is None and dist.is_available() and dist.is_initialized():
            modules = fsdp_modules()
            found = {id(p) for module in modules for p in module.parameters()}
            found.update(id(p) for p, _ in shards(modules))
            parts = (newton, *(group["params"] for group in groups))
            self._is_around = any(id(p) in found for part in parts for p in part)
        return bool(self._is_around)

    def check_take(self, newton: Sequence[Tensor], groups: Iterable[_Group] = ()) -> None:
        """Check that the weights that a product needs are available.

        Args:
            newton: See :meth:`is_around`.
            groups: See :meth:`is_around`.

        Raises:
            RuntimeError: ``fully_shard`` would have freed them in between.
        """
        if not self.is_gathered and self.is_around(newton, groups):
            raise RuntimeError(
                "the model is sharded by fully_shard, which frees the weights that a second "
                f"derivative needs. {_USE_BACKWARD}. optimizer.backward and update_hessian cannot "
                "be used, also not with closure=. For Hessian blocks and check_curvature use a "
                "model that is not sharded"
            )

    def check_step(
        self,
        newton: Sequence[Tensor],
        groups: Iterable[_Group],
        pending: PendingCurvature,
        alone: bool,
    ) -> None:
        """Check that the ranks have the same gradients, and that no product is still to be taken.

        Raises:
            RuntimeError: Gradients were not averaged; or ``backward(create_graph=True)`` was used.
        """
        if not self.is_around(newton, groups):
            return
        if any(pending.has_graph(p) for p in newton):
            raise RuntimeError(
                "loss.backward(create_graph=True) needs weights that fully_shard has freed. "
                f"{_USE_BACKWARD}"
            )
        apart = [p for p in newton if not (alone or is_dtensor(p) or pending.is_averaged(p))]
        if apart:
            raise RuntimeError(
                f"the gradients of {len(apart)} channel-wise parameter(s) that fully_shard "
                "ignores were not averaged, so the ranks would drift apart. " + _USE_BACKWARD
            )

    def check_model(
        self, model: nn.Module, newton: Iterable[Tensor], params: _Named, ranks: Ranks
    ) -> list[Any]:
        """Check that an optimizer belongs to a sharded model.

        Args:
            model: The sharded model.
            newton: The Newton parameters.
            params: All parameters of the optimizer, with their names.
            ranks: The ranks to average over.

        Returns:
            The modules that ``fully_shard`` was called for.

        Raises:
            TypeError: ``model`` is not a module.
            ValueError: It is not sharded; parameters are not in it, or are gathered copies; or it
                is sharded over other ranks or also by tensor parallelism.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"expected the sharded model, got {type(model).__name__}")
        modules = fsdp_modules(model)
        if not modules:
            raise ValueError(
                f"{type(model).__name__} contains no module sharded by fully_shard. Call "
                "fully_shard(model) first, or use optimizer.backward(loss)"
            )
        pairs = list(shards(modules))
        copies = {id(leaf) for _, leaf in pairs}
        if any(id(p) in copies for _, p in params):
            raise ValueError(
                "the optimizer holds gathered copies of sharded parameters and would train the "
                "copies. Build it after fully_shard and before a forward, or after model.reshard()"
            )
        held = {id(p) for p, _ in pairs} | {id(p) for p in model.parameters()}
        present = {name for name, _ in model.named_parameters()}
        ours = {id(p) for p in newton}
        known = {id(p) for _, p in params}
        shapes = {p.shape for p, _ in pairs if id(p) not in known}
        for name, p in params:
            # First-order parameters may belong to another model, unless they have a name of this
            # model; or have no name, and the shape of a weight here that is not in the optimizer.
            is_stale = name.replace(".", "").isdecimal() and p.shape in shapes
            if id(p) not in held and (id(p) in ours or name in present or is_stale):
                raise ValueError(
                    f"parameter {name} of the optimizer is not in {type(model).__name__}. Build "
                    "the optimizer after fully_shard, from the parameters of the model that you "
                    "pass here"
                )
        self._check_mesh([pair for pair in pairs if id(pair[0]) in ours] or pairs[:1], ranks)
        return modules

    @staticmethod
    def _check_mesh(pairs: Sequence[tuple[Any, Tensor | None]], ranks: Ranks) -> None:
        for p, leaf in pairs:
            if is_dtensor(leaf):
                raise ValueError(
                    f"a channel-wise parameter of shape {tuple(p.shape)} is sharded by tensor "
                    "parallelism as well as by fully_shard. Leave it out of the tensor-parallel "
                    "plan, or give its group channelwise=False"
                )
            if p.device_mesh.size() != ranks.count():
                raise ValueError(
                    f"the model is sharded over {p.device_mesh.size()} ranks, but the curvature "
                    f"is averaged over {ranks.count()}. Give the optimizer the process group of "
                    "the mesh: process_group=..."
                )

    def average(
        self,
        model: nn.Module,
        newton: Iterable[Tensor],
        params: _Named,
        pending: PendingCurvature,
        ranks: Ranks,
    ) -> None:
        """Average the gradients that ``fully_shard`` ignores, all in one collective.

        Args:
            model: See :meth:`check_model`.
            newton: See :meth:`check_model`.
            params: See :meth:`check_model`.
            pending: Curvature that belongs to gradients.
            ranks: See :meth:`check_model`.

        Raises:
            ValueError: The ranks hold different values of a Newton parameter.
        """
        here = {id(p) for p in model.parameters()}
        plain = [p for _, p in params if p.requires_grad and not is_dtensor(p)]
        alone = [p for p in plain if id(p) in here]
        if not alone or ranks.count() <= 1:
            return
        unknown = [p for p in alone if id(p) not in self._shared]
        if unknown:
            shared = same_on_all_ranks(unknown, ranks.process_group)
            self._shared.update(zip(map(id, unknown), shared, strict=True))
        apart = {id(p) for p in newton if not self._shared.get(id(p), True)}
        for name, p in params:
            if id(p) in apart:
                raise ValueError(
                    f"parameter {name}, which fully_shard ignores, differs between the ranks. "
                    "Broadcast it from one rank before training, or give all ranks the same seed"
                )
        # Parameters that differ between ranks belong to each rank alone.
        alone = [p for p in alone if self._shared[id(p)]]
        if alone:
            mean_gradients(alone, ranks)
            pending.gradients_averaged(alone)

    def drop_cleared(
        self, newton: Iterable[Tensor], pending: PendingCurvature, ranks: Ranks
    ) -> None:
        """Drop curvature of sharded parameters whose gradients have been cleared since.

        All ranks decide the same, although a rank's own part may be zero or empty.
        """
        changed = []
        for p in newton:
            stamp = self._stamps.pop(id(p), None)
            if stamp is None:
                continue
            if p.grad is not stamp.gradient:
                pending.drop_settled(p)
            elif GradientVersions.of(p.grad).versions != stamp.versions:
                changed.append((p, part_of(p.grad).ne(0).any()))
        if changed:
            kept = torch.stack([any_left for _, any_left in changed]).float()
            if ranks.count() > 1:
                dist.all_reduce(kept, op=dist.ReduceOp.MAX, group=ranks.process_group)
            for (p, _), is_kept in zip(changed, kept.tolist(), strict=True):
                if not is_kept:
                    pending.drop_settled(p)

    def note_gradients(self, newton: Iterable[Tensor]) -> None:
        """Note the gradients of sharded parameters as a backward left them."""
        for p in newton:
            if p.grad is not None and is_dtensor(p):
                self._stamps[id(p)] = GradientVersions.of(p.grad)
