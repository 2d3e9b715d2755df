"""A gradient as it was last seen, and whether another one was made from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sgdph.algorithm import curvature_dtype


@dataclass
class GradientStamp:
    """A ``.grad`` as it was last seen: its storage, kept alive so it is not reused, and version."""

    alias: Tensor
    version: int
    size: Tensor
    """The largest magnitude of an entry, of shape ``()`` on the device."""

    @classmethod
    def of(cls, gradient: Tensor) -> GradientStamp:
        """Return the stamp of a gradient."""
        # A detached alias shares memory and version counter, but keeps no graph alive.
        alias = gradient.detach()
        # A sparse gradient is refused at the step.
        entries = alias if alias.layout is torch.strided else alias.coalesce().values()
        size = entries.abs().max() if entries.numel() else entries.new_zeros(())
        return cls(alias, alias._version, size)

    def is_replaced(self, gradient: Tensor | None) -> bool:
        """Return whether another tensor, or ``None``, has replaced the gradient."""
        return gradient is None or gradient.data_ptr() != self.alias.data_ptr()

    def is_changed(self) -> bool:
        """Return whether the gradient was written to, except through ``.data``."""
        return self.alias._version != self.version

    def fits(self, gradient: Tensor | None) -> bool:
        """Return whether the gradient is as it was last seen."""
        return not (self.is_replaced(gradient) or self.is_changed())

    def is_kept(self, gradient: Tensor) -> Tensor:
        """Return whether a gradient was not cleared since: zeros may stay zeros.

        Returns:
            A boolean of shape ``()`` on the device.
        """
        return gradient.any() | self.size.eq(0)


def follows(gradient: Tensor, latest: Tensor | None) -> Tensor:
    """Return whether a gradient is another one, scaled or clipped by value.

    Up to rounding. With three different entries or more, it may be both, in any order. A gradient
    of one entry always is.

    Args:
        gradient: The present gradient.
        latest: What the latest backward left; ``None`` if it is unknown.

    Returns:
        A boolean of shape ``()`` on the device.
    """
    if latest is None or latest.shape != gradient.shape:
        return torch.zeros((), dtype=torch.bool, device=gradient.device)
    dtype = curvature_dtype(gradient)
    tiny = torch.finfo(dtype).tiny
    a, b = (g.detach().to(dtype).flatten() for g in (gradient, latest))
    # To their largest entries first, because the norm of a scaled gradient may overflow.
    a, b = (g / g.norm(torch.inf).clamp(min=tiny) for g in (a, b))
    # The tolerance covers the rounding of a product in the gradient's own precision.
    precise = gradient.dtype in (torch.float32, torch.float64)
    tolerance = (64 if precise else 8) * torch.finfo(gradient.dtype).eps
    direction = b / b.norm().clamp(min=tiny)
    rest: Tensor = (a - (a * direction).sum() * direction).norm()
    limit = gradient.detach().abs().max()
    clipped = gradient.detach().eq(latest.clamp(-limit, limit)).all()
    if torch.unique(torch.stack((a, b)), dim=1).any(0).sum() > 2:
        # Clipping makes the ratio of an entry smaller. The largest ratio is that of the rest. Tiny
        # entries are rounded too much to show it.
        ratio = torch.where(b.abs() * torch.finfo(dtype).eps <= tiny, 0, a / b).abs().max()
        clipped |= (a - (b * ratio).clamp(-1, 1)).abs().max() <= tolerance
    found: Tensor = clipped | rest.le(tolerance * a.norm())
    return found
