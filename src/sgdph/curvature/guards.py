"""Checks before a step: whether parameters were replaced, exchanged, sharded or converted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from sgdph.algorithm import curvature_dtype
from sgdph.autograd.differentiability import refuse_compiled_autograd
from sgdph.autograd.graph import Region
from sgdph.autograd.layer_norm import LAYER_NORM
from sgdph.curvature.cycle import Cycle
from sgdph.curvature.replaced_parameters import ReplacedParameters
from sgdph.curvature.sharded_model import ShardedModel
from sgdph.distributed.dtensor import is_dtensor
from sgdph.distributed.sharding import refuse_sharded
from sgdph.names import Estimator
from sgdph.roles import Groups, is_newton, parameter_name, parameter_names
from sgdph.user_warning import warn_user
from sgdph.validation import check_loss_scale, refuse_graph_capture, refuse_sparse_gradients


def check_call(loss_scale: float | Tensor | None) -> None:
    """Check what every call needs: no CUDA graph is being captured, and the scale is valid.

    Raises:
        RuntimeError: A CUDA graph is being captured.
        TypeError, ValueError: See :func:`sgdph.validation.check_loss_scale`.
    """
    refuse_graph_capture()
    check_loss_scale(loss_scale)


def none_came(newton: Iterable[Tensor]) -> RuntimeError:
    """Return the error for a step that needs a partial Hessian when none was taken.

    Args:
        newton: The Newton parameters.
    """
    if any(map(is_dtensor, newton)):
        return RuntimeError(
            "this step needs a partial Hessian and has none. In place of loss.backward() call "
            "sgdph.integrations.fsdp.backward(model, optimizer, loss), with the outermost module"
        )
    return RuntimeError(
        "this step needs a partial Hessian and has none. Take it in one of three ways: "
        "optimizer.backward(loss) in place of loss.backward(); or optimizer.update_hessian(loss) "
        "before loss.backward(); or loss.backward(create_graph=True). In reentrant checkpoints it "
        "finds nothing: pass use_reentrant=False. If a framework runs the backward, take "
        "from sgdph.integrations: lightning.PartialHessianCallback, accelerate.backward, "
        "transformers.PartialHessianTrainer or timm.PartialHessianScaler; for an optimizer inside "
        "a wrapper, wrapped.wrapped_sgdph(optimizer).backward(loss); for a model sharded by "
        "fully_shard, fsdp.backward(model, optimizer, loss)"
    )


class Guards:
    """Checks that raise an error if a step, or taking curvature for it, is not possible.

    Args:
        cycle: The Newton parameters.
        groups: The parameter groups, as at construction.
        sharded: The model around them, if ``fully_shard`` has sharded it.
    """

    def __init__(
        self, cycle: Cycle, groups: Sequence[dict[str, Any]], sharded: ShardedModel
    ) -> None:
        self._cycle = cycle
        self._sharded = sharded
        self._membership = _Membership(cycle, groups)
        self._replaced = ReplacedParameters()
        # Newton parameters that are known to lie before no layer norm, by id.
        self._examined: set[int] = set()
        self._is_warned = False

    def check_groups(self, groups: Groups) -> None:
        """Check that the groups still hold the parameters that take Newton steps.

        Raises:
            RuntimeError: Newton parameters were replaced inside the groups.
            ValueError: Newton parameters in the groups are sharded by anything but ``fully_shard``.
        """
        self._membership.check(groups)

    def check_take(self, loss_scale: float | Tensor | None, groups: Groups) -> None:
        """Check whether curvature may be taken.

        Raises:
            RuntimeError, TypeError, ValueError: As :func:`check_call`, :meth:`check_groups` and
                :meth:`ShardedModel.check_take`; or compiled autograd is on.
        """
        check_call(loss_scale)
        refuse_compiled_autograd()
        self.check_groups(groups)
        self._sharded.check_take(self._cycle.newton, groups.every)

    def check_step(self, groups: Groups, state: Mapping[Tensor, Mapping[str, Any]]) -> None:
        """Check whether a step can be made with the present gradients.

        Raises:
            RuntimeError: As :meth:`check_groups`; or a parameter was moved or converted since its
                state was made; or a Newton parameter has a sparse gradient.
            ValueError: As :meth:`check_groups`.
        """
        self.check_groups(groups)
        name = partial(parameter_name, groups.every)
        for group in groups.newton:
            for p in group["params"]:
                if p.grad is None:
                    continue
                _check_still_fits(p, state.get(p, {}), name)
                if p in self._cycle:
                    refuse_sparse_gradients([p], [p.grad], name)

    def warn_of_row_sums(
        self, region: Region, reached: Iterable[Tensor], estimator: Estimator
    ) -> None:
        """Warn once if parameters whose row sums are taken lie before a layer norm.

        Args:
            region: The nodes between the loss and the parameters.
            reached: The parameters. Each is examined at its first refresh.
            estimator: The estimator.
        """
        if estimator != "row_sum" or self._is_warned:
            return
        ids = set(map(id, reached))
        if ids <= self._examined:
            return
        self._examined |= ids
        norms = (node for node in region.nodes if type(node).__name__ == LAYER_NORM)
        if any(region.leads_on(node, 0) for node in norms):
            self._is_warned = True
            warn_user(
                "estimator='row_sum' fails before layer norm, where row sums of a bias's Hessian "
                "block are close to zero and its multiplier goes to the cap. Pass "
                "estimator='hutchinson' (docs/how-it-works.md)"
            )

    def check_reached(
        self, roots: Iterable[Tensor], missed: Sequence[Tensor], groups: Sequence[dict[str, Any]]
    ) -> None:
        """Check that parameters missing from the graph of ``roots`` have not been replaced.

        Args:
            roots: Tensors whose graphs lead to everything that the loss depends on.
            missed: Parameters to refresh that the graphs do not reach.
            groups: The parameter groups.

        Raises:
            RuntimeError: See :meth:`ReplacedParameters.check`.
        """
        # The leaves of a sharded model are unknown to the optimizer.
        if not self._sharded.is_gathered:
            self._replaced.check(roots, missed, groups)


class _Membership:
    """A check that the Newton parameters in the groups are still those of the cycle.

    In ``torch.optim`` users may change the groups' lists (``params[i] = other`` after net surgery;
    Accelerate does so under FSDP2). Here, a new parameter in a Newton parameter's place would not
    be in the cycle, and would silently train first-order. First-order ones may be exchanged.

    Args:
        cycle: The Newton parameters.
        groups: The parameter groups, as at construction.
    """

    def __init__(self, cycle: Cycle, groups: Sequence[dict[str, Any]]) -> None:
        self._cycle = cycle
        # First-order although their shape is channel-wise: a classifier's bias.
        self._excepted = self._without_turn(groups)
        self._checked: list[int] = []
        # Saved now, because a parameter that has left the groups has no name there.
        self._names = parameter_names(groups)

    def check(self, groups: Groups) -> None:
        """Compare the groups with the cycle, if the groups have changed since the last call.

        Raises:
            RuntimeError: A Newton parameter is no longer in any group, or a new parameter in a
                group should take Newton steps.
            ValueError: See :func:`~sgdph.distributed.sharding.refuse_sharded`.
        """
        present = [id(p) for group in groups.newton for p in group["params"]]
        if present == self._checked:
            return
        for group in groups.newton:
            refuse_sharded(group)
        here, excepted = set(present), {id(p) for p in self._excepted}
        gone = [p for p in self._cycle.newton if id(p) not in here]
        unknown = [p for p in self._without_turn(groups.newton) if id(p) not in excepted]
        if gone or unknown:
            raise RuntimeError(
                f"param_groups were changed by hand: {self._findings(gone, unknown)}. Build a new "
                "optimizer from the present model, or leave the groups as they were and pass new "
                "parameters to add_param_group"
            )
        self._checked = present
        self._names = parameter_names(groups.every)

    def _without_turn(self, groups: Sequence[dict[str, Any]]) -> list[Tensor]:
        return [
            p
            for group in groups
            for p in group["params"]
            if p not in self._cycle and is_newton(p, group)
        ]

    def _findings(self, gone: Sequence[Tensor], unknown: Sequence[Tensor]) -> str:
        findings = []
        if gone:
            name = self._names.get(id(gone[0]), f"of shape {tuple(gone[0].shape)}")
            rest = f" (and {len(gone) - 1} more)" if len(gone) > 1 else ""
            findings.append(f"parameter {name}{rest}, which takes Newton steps, is in none of them")
        if unknown:
            shapes = ", ".join(str(tuple(p.shape)) for p in unknown[:3])
            findings.append(
                f"{len(unknown)} channel-wise parameter(s) in them, of shape {shapes}, are unknown "
                "and would get no Newton step"
            )
        return "; ".join(findings)


def _check_still_fits(p: Tensor, state: Mapping[str, Any], name: Callable[[Tensor], str]) -> None:
    """Check that a parameter still fits its state.

    Raises:
        RuntimeError: Its shape, dtype or device has changed since.
    """
    buffer = state.get("momentum_buffer")
    average = state.get("hessian")
    gradients = {p.dtype, p.dtype if p.grad is None else p.grad.dtype}  # Torch lets them differ.
    for kept, dtypes in ((buffer, gradients), (average, {curvature_dtype(p)})):
        if kept is None or (
            kept.shape == p.shape and kept.dtype in dtypes and kept.device == p.device
        ):
            continue
        raise RuntimeError(
            f"parameter {name(p)} is now {tuple(p.shape)}, {p.dtype} on {p.device}, but the "
            f"optimizer's state for it is {tuple(kept.shape)}, {kept.dtype} on {kept.device}: it "
            "was moved or converted after training began. Call model.to(...) before the optimizer "
            "is built, or carry the state over: "
            "optimizer.load_state_dict(optimizer.state_dict())"
        )
