"""AdaHessian from ``timm``, extended so that a resumed run is bitwise identical.

AdaHessian is Adam whose second moment is not that of the gradients, but of Hutchinson's estimates
of the Hessian diagonal. The estimates are averaged over the pixels of each convolution kernel (Yao,
Gholami, Shen, Mustafa, Keutzer & Mahoney, "ADAHESSIAN", AAAI 2021).
"""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import Adahessian as TimmAdahessian


class Adahessian(TimmAdahessian):  # type: ignore[misc]
    """``timm.optim.Adahessian`` whose state holds everything that its next steps depend on.

    The library's ``state_dict`` lacks the generator of the probes. It also lacks the last
    estimates, which are needed if they are not recomputed at every step (``update_each``).
    """

    @property
    def create_graph_due(self) -> bool:
        """Whether the next step differentiates the gradients."""
        return any(
            self.state[p]["hessian step"] % self.update_each == 0 or isinstance(p.hess, float)
            for p in self.get_params()
        )

    def seed_probes(self, seed: int) -> None:
        """Seed the next probes with the library's own seed plus this one."""
        self.seed += seed
        self.generator.manual_seed(self.seed)

    def zero_hessian(self) -> None:
        """Drop the estimates that are recomputed at this step.

        The library overwrites them in place instead. Their memory layout, and so the order of the
        sum over a kernel, would then depend on the old estimates, which a resumed run lacks.
        """
        for p in self.get_params():
            if self.state[p]["hessian step"] % self.update_each == 0:
                p.hess = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the library's state, the generator's state, and the estimates still in use."""
        kept = [p.hess for p in self.get_params()] if self.update_each > 1 else []
        own = {"generator": self.generator.get_state(), "hessians": kept}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned.

        On another kind of device, the generator starts again from its seed, because the states of
        the two kinds of generators are incompatible.
        """
        super().load_state_dict(state_dict)
        params = list(self.get_params())
        self.generator = torch.Generator(params[0].device).manual_seed(self.seed)
        saved = state_dict["generator"]
        if saved.numel() == self.generator.get_state().numel():
            self.generator.set_state(saved)
        for p, hessian in zip(params, state_dict["hessians"], strict=False):
            p.hess = hessian if isinstance(hessian, float) else hessian.to(p.device)
