"""AdaHessian as ``timm`` has it, made to resume to the bit.

AdaHessian steps by an average of Hutchinson's estimates of the Hessian's diagonal, averaged over
the pixels of a convolution's kernel (Yao, Gholami, Shen, Mustafa, Keutzer & Mahoney, "ADAHESSIAN",
AAAI 2021).
"""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import Adahessian as TimmAdahessian


class Adahessian(TimmAdahessian):  # type: ignore[misc]
    """``timm.optim.Adahessian`` whose state holds all that its coming steps depend on.

    The library's ``state_dict`` lacks the generator of its probes and, where they are not taken
    anew at each step (``update_each``), the last estimates.
    """

    @property
    def create_graph_due(self) -> bool:
        """Whether the coming step differentiates the gradients."""
        return any(
            self.state[p]["hessian step"] % self.update_each == 0 or isinstance(p.hess, float)
            for p in self.get_params()
        )

    def seed_probes(self, seed: int) -> None:
        """Draw the coming probes from a seed: the library's own, moved by this one."""
        self.seed += seed
        self.generator.manual_seed(self.seed)

    def zero_hessian(self) -> None:
        """Let the estimates go that are taken anew now.

        The library writes over them instead. Their layout in memory, and with it the order of the
        sum over a kernel, then depends on what was there before, which a resumed run does not have.
        """
        for p in self.get_params():
            if self.state[p]["hessian step"] % self.update_each == 0:
                p.hess = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the library's state, the generator's, and the estimates still to be used."""
        kept = [p.hess for p in self.get_params()] if self.update_each > 1 else []
        own = {"generator": self.generator.get_state(), "hessians": kept}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned.

        On a device of another kind the probes begin anew, as their generators have nothing in
        common.
        """
        super().load_state_dict(state_dict)
        params = list(self.get_params())
        self.generator = torch.Generator(params[0].device).manual_seed(self.seed)
        saved = state_dict["generator"]
        if saved.numel() == self.generator.get_state().numel():
            self.generator.set_state(saved)
        for p, hessian in zip(params, state_dict["hessians"], strict=False):
            p.hess = hessian if isinstance(hessian, float) else hessian.to(p.device)
