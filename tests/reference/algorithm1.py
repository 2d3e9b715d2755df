"""Algorithm 1 of SGD-PH, written slowly: dense Hessian blocks, float64, plain Python lists.

Nothing here is shared with the package. Every Hessian block is formed whole, row by row, and the
estimators are then written as the formulas say: ``B @ 1``, ``diag(B)``, ``z * (B @ z)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Loss = Callable[[], Tensor]
Probe = Callable[[int, int, torch.Size], Tensor]

DEFAULTS: dict[str, Any] = {
    "lr": 1e-2,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "second_order_lr": 1e-3,
    "hessian_momentum": 0.9,
    "eps": 1e-4,
    "eps_warmup": False,
    "maximize": False,
    "channelwise": None,
}


@dataclass(eq=False)
class Weight:
    """One parameter and its state in Algorithm 1."""

    tensor: Tensor
    group: dict[str, Any]
    newton: bool
    m: Tensor | None = None  # momentum
    D: Tensor | float = 0.0  # Hessian average, not bias-corrected
    v: int = 0  # refreshes so far
    last: int = -1  # number of the latest refresh that brought it curvature
    probes: int = 0  # probes used so far
    searched: int = -1  # number of the refresh after which a search for it began


def has_one_number_per_channel(tensor: Tensor) -> bool:
    """The shape rule for parameters whose group has no flag."""
    return tensor.ndim >= 1 and tensor.numel() == tensor.shape[0]


def dense_hessian(gradients: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """The Hessian over several tensors, flattened and joined, one row per autograd call.

    Args:
        gradients: The loss's gradients by ``weights``, with their graph.
        weights: The tensors to differentiate by.

    Returns:
        The matrix of shape ``(n, n)``, ``n`` being the number of entries of all ``weights``.
    """
    rows = []
    for gradient in gradients:
        for entry in gradient.flatten():
            row: Sequence[Tensor | None] = [None] * len(weights)
            if entry.requires_grad:  # a loss linear in the weights has a constant gradient
                row = torch.autograd.grad(entry, weights, retain_graph=True, allow_unused=True)
            rows.append(
                torch.cat(
                    [
                        torch.zeros_like(w).flatten() if r is None else r.flatten()
                        for r, w in zip(row, weights, strict=True)
                    ]
                )
            )
    return torch.stack(rows)


class ReferenceSGDPH:
    """Algorithm 1 over tensors that it changes in place.

    Args:
        params: Tensors, or group dicts with ``"params"`` and overrides of the hyperparameters.
        estimator: ``"row_sum"``, ``"exact"`` or ``"hutchinson"``.
        refresh: ``"cyclic"`` or ``"all"``.
        hessian_interval: Steps from one refresh to the next.
        probe: ``probe(visit, newton_index, shape)``, Hutchinson's ``z``.
        **defaults: Hyperparameters of every group that does not override them.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        *,
        estimator: str = "row_sum",
        refresh: str = "cyclic",
        hessian_interval: int = 1,
        probe: Probe | None = None,
        **defaults: Any,
    ) -> None:
        assert estimator in ("row_sum", "exact", "hutchinson")
        assert refresh in ("cyclic", "all")
        assert not defaults.keys() - DEFAULTS.keys()
        self.estimator = estimator
        self.refresh = refresh
        self.hessian_interval = hessian_interval
        self.probe = probe
        self.defaults = DEFAULTS | defaults
        self.groups: list[dict[str, Any]] = []
        self.weights: list[Weight] = []
        self.t = 0  # completed steps
        self.sought: Weight | None = None
        self.refresh_number = 0  # completed refreshes, also those without curvature

        entries = list(params)
        for entry in entries if isinstance(entries[0], dict) else [{"params": entries}]:
            self.add_group(entry)

        # The last channel-wise parameter is the classifier's bias, whose row sum is always 0.
        guessed = [
            w
            for w in self.weights
            if w.group["channelwise"] is None and w.newton and w.tensor.requires_grad
        ]
        if guessed:
            guessed[-1].newton = False

    def add_group(self, group: dict[str, Any]) -> None:
        """Add a group; its parameters are Newton if their flag or shape says so."""
        group = self.defaults | group
        group["params"] = list(group["params"])
        self.groups.append(group)
        for tensor in group["params"]:
            newton = group["channelwise"]
            if newton is None:
                newton = has_one_number_per_channel(tensor)
            # A parameter that is added later is refreshed after those registered before it.
            last = self.newton[-1].last if self.newton else -1
            self.weights.append(Weight(tensor, group, newton, last=last))

    @property
    def newton(self) -> list[Weight]:
        """k_0 … k_{M-1}, in the order in which they were registered."""
        return [w for w in self.weights if w.newton]

    @property
    def regular(self) -> bool:
        return self.t % self.hessian_interval == 0

    @property
    def due(self) -> bool:
        return bool(self.newton) and (self.regular or self.sought is not None)

    def turn(self, reached: Iterable[Weight]) -> list[Weight]:
        """The parameters to refresh, among those that the step's first loss depends on."""
        candidates = [w for w in self.newton if w in reached]
        if not self.regular:
            assert self.sought is not None
            if self.refresh == "cyclic":
                return [self.sought] if self.sought in candidates else []
            return [w for w in self.newton if w.last < self.sought.searched]
        if self.refresh == "all":
            return self.newton
        return sorted(candidates, key=lambda w: w.last)[:1]

    def pass_on(self, refreshed: Iterable[Weight]) -> None:
        """After a due step: record what was refreshed, and which parameters to search for."""
        waiting = sorted(self.newton, key=lambda w: w.last)
        for w in refreshed:
            w.last = self.refresh_number
            w.probes += 1
        if not self.regular:
            if self.sought in refreshed:
                self.sought = None
            self.refresh_number += bool(refreshed)
            return
        self.sought = None
        pause = 10 * (len(waiting) if self.refresh == "cyclic" else 1)
        for w in waiting if self.hessian_interval > 1 else []:
            if w in refreshed:
                if self.refresh == "cyclic":
                    break
                continue
            in_vain = w.searched > w.last and self.refresh_number - w.searched < pause
            if w.tensor.requires_grad and not in_vain:
                w.searched = self.refresh_number
                self.sought = self.sought or w
                if self.refresh == "cyclic":
                    break
        self.refresh_number += 1

    def step(
        self,
        losses: Sequence[Loss],
        edit_gradients: Callable[[list[Tensor]], None] | None = None,
    ) -> None:
        """One step of Algorithm 1.

        Args:
            losses: One closure per micro-batch. Gradients and signed curvatures are summed.
            edit_gradients: What a user does to ``.grad`` before the step, such as clipping.
        """
        due = self.due
        turn: list[Weight] | None = None
        g: dict[Weight, Tensor] = {}
        h: dict[Weight, Tensor] = {}
        for make_loss in losses:
            gradients = self.gradients(make_loss())
            if due and not turn:
                turn = self.turn(gradients)
            present = [w for w in turn or [] if w in gradients]
            for w, curvature in self.curvatures(gradients, present).items():
                h[w] = h[w] + curvature if w in h else curvature
            for w, gradient in gradients.items():
                g[w] = g[w] + gradient.detach() if w in g else gradient.detach()
        if not g:
            return  # no gradients: neither t nor the cycle advances
        if edit_gradients is not None:
            edit_gradients(list(g.values()))

        # 1, 2: rectify and average.
        for w, curvature in h.items():
            if torch.isfinite(curvature).all():
                beta2 = w.group["hessian_momentum"]
                signed = self.estimator == "hutchinson"  # noise must cancel before |.|
                w.D = beta2 * w.D + (1 - beta2) * (curvature if signed else curvature.abs())
                w.v += 1

        # 3, 4, 5: momentum, direction, step.
        for w, gradient in g.items():
            self.move(w, -gradient if w.group["maximize"] else gradient)

        if due:
            self.pass_on(list(h))
        self.t += 1

    def gradients(self, loss: Tensor) -> dict[Weight, Tensor]:
        """The gradients that this loss has, with their graph."""
        trainable = [w for w in self.weights if w.tensor.requires_grad]
        found = torch.autograd.grad(
            loss, [w.tensor for w in trainable], create_graph=True, allow_unused=True
        )
        return {w: g for w, g in zip(trainable, found, strict=True) if g is not None}

    def curvatures(
        self, gradients: dict[Weight, Tensor], weights: list[Weight]
    ) -> dict[Weight, Tensor]:
        """The signed partial Hessian of each of ``weights``, from dense blocks."""
        if self.estimator == "hutchinson" and self.refresh == "all" and weights:
            block = dense_hessian([gradients[w] for w in weights], [w.tensor for w in weights])
            z = torch.cat([self.z(w).flatten() for w in weights])
            pieces = (z * (block @ z)).split([w.tensor.numel() for w in weights])
            return {w: s.reshape(w.tensor.shape) for w, s in zip(weights, pieces, strict=True)}
        return {w: self.curvature(gradients[w], w) for w in weights}

    def curvature(self, gradient: Tensor, w: Weight) -> Tensor:
        """The signed partial Hessian of one parameter, from its own dense block."""
        block = dense_hessian([gradient], [w.tensor])
        if self.estimator == "row_sum":
            h = block @ torch.ones_like(block[0])
        elif self.estimator == "exact":
            h = block.diagonal()
        else:
            z = self.z(w).flatten()
            h = z * (block @ z)
        return h.reshape(w.tensor.shape)

    def z(self, w: Weight) -> Tensor:
        assert self.probe is not None, "hutchinson needs a probe"
        return self.probe(w.probes, self.newton.index(w), w.tensor.shape)

    def move(self, w: Weight, g: Tensor) -> None:
        """Momentum, direction and step of one parameter; ``g`` is the gradient to descend on."""
        group = w.group
        decay = group["weight_decay"] * w.tensor.detach()
        if not w.newton:
            g = g + decay
        if group["momentum"] == 0:
            m = g  # torch.optim.SGD keeps no buffer then
        else:
            w.m = m = g if w.m is None else group["momentum"] * w.m + g

        if not w.newton:
            d = m
        elif w.v == 0:
            d = m + decay
        else:
            correction = 1 - group["hessian_momentum"] ** w.v
            tau, eps = group["second_order_lr"], group["eps"]
            if group["eps_warmup"]:
                d = tau * correction * m / (abs(w.D) + eps) + decay
            else:
                d = tau * m / (abs(w.D) / correction + eps) + decay
        with torch.no_grad():
            w.tensor.copy_(w.tensor - group["lr"] * d)
