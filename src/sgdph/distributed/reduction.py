"""The mean of the partial curvature over the ranks of a process group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from sgdph.algorithm import curvature_dtype
from sgdph.distributed.ddp import Wrappers
from sgdph.distributed.dtensor import is_dtensor


class Collected(NamedTuple):
    """Curvature that was collected for a parameter.

    Attributes:
        p: The parameter.
        h: Its signed curvature, shaped like it; ``None`` if there is none.
        valid: A boolean of shape ``()`` on the device; ``None`` means true.
    """

    p: Tensor
    h: Tensor | None
    valid: Tensor | None = None


class Ranks:
    """The ranks over which curvature is averaged.

    Attributes:
        over_active: Whether the mean is only over the ranks that still have batches, as a join
            context may request.

    Args:
        process_group: ``None`` for the default group.
    """

    def __init__(self, process_group: dist.ProcessGroup | None) -> None:
        self.process_group = process_group
        self.over_active = False
        self._wrappers = Wrappers()
        self._join_is_new = False

    def count(self) -> int:
        """Return the number of ranks: 1 without ``torch.distributed``, -1 outside the group."""
        if not (dist.is_available() and dist.is_initialized()):
            return 1
        return dist.get_world_size(self.process_group)

    def join_begins(self) -> None:
        """Note that a join context that includes the optimizer has begun."""
        self._join_is_new = True

    def accept_join(self, newton: Sequence[Tensor]) -> None:
        """Accept the join context that has begun, if any. The next context must be noted again.

        Args:
            newton: The Newton parameters. The context has set its configuration in their wrappers.
        """
        # Not already in join_begins: the context may configure the model after the optimizer.
        if self._join_is_new:
            self._join_is_new = False
            self._wrappers.accept_joins(newton)

    def check(self, newton: Sequence[Tensor], group: Mapping[str, Any], *, active: bool) -> None:
        """Check the join context around the model, and that the ranks train one model.

        Args:
            newton: The Newton parameters.
            group: Their first group.
            active: Whether this rank still has batches.

        Raises:
            RuntimeError: The context does not include the optimizer, or the ranks' Newton
                parameters differ.
        """
        self.accept_join(newton)
        self._wrappers.refuse_join_without_optimizer(newton)
        # Not once only: models of their own may begin with equal scales and shifts. The count is in
        # the group, so that a rank that was restored takes part in the same checks.
        refresh, rest = divmod(group["step"], group["hessian_interval"])
        if rest == 0 and refresh & (refresh - 1) == 0:
            self._check_alike(newton, active)

    def _check_alike(self, newton: Sequence[Tensor], active: bool) -> None:
        # Sharded parameters are not compared, nor are those of a rank without batches: it may have
        # old weights.
        whole = [p.detach() for p in newton if not is_dtensor(p)]
        # Sums of bytes, because they are exact.
        bytes_of = [int(p.reshape(-1).view(torch.uint8).sum(dtype=torch.int64)) for p in whole]
        sizes = sum(place * p.numel() for place, p in enumerate(whole, 1))
        values = sum(place * n for place, n in enumerate(bytes_of, 1))
        own = torch.tensor([int(active), sizes, values], device=newton[0].device)
        found = [torch.empty_like(own) for _ in range(self.count())]
        dist.all_gather(found, own, group=self.process_group)
        if len({(size, value) for here, size, value in torch.stack(found).tolist() if here}) > 1:
            raise RuntimeError(
                "the Newton parameters differ between ranks, but their curvature is averaged over "
                "the ranks as for one model. If the ranks train one model, begin with the same "
                "weights on all, and average the gradients (DistributedDataParallel does both). If "
                "each rank trains a model of its own, pass process_group=torch.distributed."
                "new_group([rank], use_local_synchronization=True) to the optimizer"
            )

    def mean(self, collected: Sequence[Collected], *, active: bool = True) -> list[Collected]:
        """Average signed curvature, in one collective.

        The mean is unweighted, like DDP's mean of gradients. A rank without curvature counts as
        zero.

        Args:
            collected: This rank's curvature, for the same parameters in the same order on every
                rank.
            active: Whether this rank still has batches.

        Returns:
            The means. Each is valid if any rank had curvature for the parameter.
        """
        params = [a.p for a in collected]
        dtype = reduce(torch.promote_types, (curvature_dtype(p) for p in params))
        device = params[0].device
        parts = [
            torch.zeros(p.numel(), dtype=dtype, device=device)
            if h is None
            else h.reshape(-1).to(device, dtype)
            for p, h, _ in collected
        ]
        flags = [a.valid for a in collected]
        counted = [h is not None for _, h, _ in collected] + [active] * self.over_active
        counts = torch.tensor(counted, dtype=dtype).to(device, non_blocking=True)
        if any(flag is not None for flag in flags):
            # Curvature whose gradient was cleared does not count.
            left = [
                count if flag is None else count * flag.to(device, dtype)
                for count, flag in zip(counts, flags, strict=False)
            ]
            counts = torch.stack([*left, *counts[len(flags) :]])
        vector = torch.cat([*parts, counts])
        dist.all_reduce(vector, group=self.process_group)

        sizes = [*(p.numel() for p in params), len(params), len(counted) - len(params)]
        *sums, present, actives = torch.split(vector, sizes)
        ranks = actives if self.over_active else self.count()
        return [
            Collected(
                p,
                (total / ranks).view(p.shape).to(p.device, curvature_dtype(p)),
                count.gt(0).to(p.device),
            )
            for p, total, count in zip(params, sums, present, strict=True)
        ]
