"""The training step of the paper authors' code, reimplemented for this comparison only.

It differs from :class:`sgdph.SGDPH` in how the partial Hessian is computed, not in how it is used:

1. ``loss.backward(create_graph=True)`` computes the gradient of every parameter, with a graph.
2. A second pass differentiates the sum of the current parameter's gradient, with respect to that
   parameter *and every parameter registered after it*. Only the first result is used.
3. All parameters are updated by Algorithm 1. Then the gradients' graphs are released.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import sgdph


def newton_names(model: nn.Module) -> list[str]:
    """Name the Newton parameters of a model, in the order of the cycle."""
    return list(sgdph.SGDPH(sgdph.param_groups(model)).multipliers())


class AuthorsSGDPH(torch.optim.Optimizer):
    """SGD with Partial Hessian (Sun, Yong & Zhang, 2024): a cyclic row sum at every step.

    Args:
        model: The network. The registration order of its parameters decides which come "after".
        lr: Learning rate.
        weight_decay: λ.
        momentum: β₁.
        second_order_lr: τ.
        hessian_momentum: β₂.
        eps: ε.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        weight_decay: float,
        *,
        momentum: float = 0.9,
        second_order_lr: float = 1e-3,
        hessian_momentum: float = 0.9,
        eps: float = 1e-4,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "second_order_lr": second_order_lr,
            "hessian_momentum": hessian_momentum,
            "eps": eps,
            "cursor": 0,
        }
        named = dict(model.named_parameters())
        super().__init__(named.values(), defaults)
        self.newton: Sequence[Tensor] = [named[name] for name in newton_names(model)]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all parameters; the gradients must have graphs, which are released."""
        (group,) = self.param_groups
        current = self.newton[group["cursor"]]
        self._average(current, self._row_sum(current), group["hessian_momentum"])
        newton = {id(p) for p in self.newton}
        first_order = [p for p in group["params"] if p.grad is not None and id(p) not in newton]
        decayed = torch._foreach_add(
            _gradients(first_order), first_order, alpha=group["weight_decay"]
        )
        momenta = self._momenta(first_order, decayed)
        torch._foreach_add_(first_order, momenta, alpha=-group["lr"])
        channelwise = [p for p in self.newton if p.grad is not None]
        momenta = self._momenta(channelwise, _gradients(channelwise))
        for p, momentum in zip(channelwise, momenta, strict=True):
            direction = momentum * self._multiplier(p) + group["weight_decay"] * p
            p.add_(direction, alpha=-group["lr"])
        for p in group["params"]:
            p.grad = None if p.grad is None else p.grad.detach()
        group["cursor"] = (group["cursor"] + 1) % len(self.newton)

    def _row_sum(self, current: Tensor) -> Tensor:
        params = self.param_groups[0]["params"]
        start = next(i for i, p in enumerate(params) if p is current)
        with torch.enable_grad():
            total = _gradients([current])[0].sum()
            products: tuple[Tensor, ...] = torch.autograd.grad(
                total, params[start:], allow_unused=True
            )
        return products[0]

    def _average(self, p: Tensor, h: Tensor, beta2: float) -> None:
        state = self.state[p]
        average = state.setdefault("hessian_average", torch.zeros_like(h))
        average.mul_(beta2).add_(h.abs(), alpha=1 - beta2)
        state["refreshes"] = state.get("refreshes", 0) + 1

    def _multiplier(self, p: Tensor) -> Tensor | float:
        state, (group,) = self.state[p], self.param_groups
        if "refreshes" not in state:
            return 1.0
        corrected = state["hessian_average"] / (1 - group["hessian_momentum"] ** state["refreshes"])
        multiplier: Tensor = group["second_order_lr"] / (corrected + group["eps"])
        return multiplier

    def _momenta(self, params: list[Tensor], gradients: tuple[Tensor, ...]) -> list[Tensor]:
        """Update the momenta with gradients, and return the momenta."""
        fresh = [p for p in params if "momentum_buffer" not in self.state[p]]
        for p in fresh:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_mul_(momenta, self.param_groups[0]["momentum"])
        torch._foreach_add_(momenta, gradients)
        return momenta


def _gradients(params: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(p.grad for p in params if p.grad is not None)
