"""Probes for Hutchinson's estimator over successive visits of a parameter, for ``probes.py``.

Every scheme gives probes of entries -1 or +1, of shape ``(seeds, visits, n)``, each of them
Rademacher by itself; they differ in how the visits of one seed go together. All but ``iid`` take a
column of a Sylvester Hadamard matrix at each visit, times random signs, one a channel:
``z_i(v) = s_i (-1)^popcount(row_i & column(v))``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

Scheme = Callable[[int, int, int], Tensor]
"""``scheme(n, visits, seeds)``: probes ``(seeds, visits, n)``, float64."""


def signs(*shape: int) -> Tensor:
    """Draw -1 and +1, equally likely, from the global generator."""
    return torch.randint(0, 2, shape).double() * 2 - 1


def walsh(rows: Tensor, columns: Tensor) -> Tensor:
    """Return ``(-1)^popcount(rows & columns)``, entries of a Sylvester Hadamard matrix."""
    bits = rows & columns
    for shift in (16, 8, 4, 2, 1):
        bits = bits ^ (bits >> shift)
    return (1 - 2 * (bits & 1)).double()


def power_of_two(n: int) -> int:
    """Return the least power of two that is at least ``n``."""
    return 1 << (n - 1).bit_length()


def iid(n: int, visits: int, seeds: int) -> Tensor:
    """Draw each visit's probe anew."""
    return signs(seeds, visits, n)


def hadamard(
    n: int,
    visits: int,
    seeds: int,
    *,
    length: int | None = None,
    redraw: bool,
    shuffled: bool = True,
) -> Tensor:
    """Walk the columns of a Hadamard matrix, ``length`` visits a round.

    Args:
        n: Entries of a probe.
        visits: How many probes.
        seeds: How many independent walks.
        length: The matrix's size, a power of two; ``None`` is the least one that keeps all channels
            apart. In a smaller one, channels share rows, as evenly as can be and by chance.
        redraw: Whether signs, rows and columns are drawn anew for each round, or stay.
        shuffled: Whether the columns come in random order, or in their own (then the channels are
            given their rows by chance).
    """
    size = power_of_two(n) if length is None else length
    rounds = -(-visits // size) if redraw else 1
    s = signs(seeds, rounds, 1, n)
    rows = torch.arange(n)
    if length is not None or not shuffled:
        rows = torch.rand(seeds, rounds, 1, max(n, size)).argsort(-1)[..., :n] % size
    columns = torch.arange(size).expand(seeds, rounds, size)
    if shuffled:
        columns = torch.rand(seeds, rounds, size).argsort(-1)
    z = (s * walsh(rows, columns.unsqueeze(-1))).view(seeds, -1, n)
    return z[:, torch.arange(visits) % z.shape[1]]


OWN: dict[str, Scheme] = {
    "iid": iid,
    **{f"blocks of {k}": partial(hadamard, length=k, redraw=True) for k in (2, 4, 8, 16)},
    "redrawn, own order": partial(hadamard, redraw=True, shuffled=False),
    "redrawn": partial(hadamard, redraw=True),
    "periodic": partial(hadamard, redraw=False),
}
"""For one parameter by itself; the iid scheme is first."""


def apart(sizes: list[int], scheme: Scheme) -> Scheme:
    """Let each parameter of a joint draw have its own scheme, times one random sign a visit.

    The sign leaves products of two entries of one parameter as they are, and makes those of two
    parameters independent from visit to visit.
    """

    def joint(n: int, visits: int, seeds: int) -> Tensor:
        parts = [scheme(k, visits, seeds) * signs(seeds, visits, 1) for k in sizes]
        return torch.cat(parts, dim=-1)

    return joint


def joint_schemes(sizes: list[int]) -> dict[str, Scheme]:
    """Return the schemes for a joint draw over parameters of these sizes."""
    return {
        "iid": iid,
        **{f"blocks of {k}": partial(hadamard, length=k, redraw=True) for k in (4, 16)},
        "periodic, over all": partial(hadamard, redraw=False),
        "periodic, each its own": apart(sizes, partial(hadamard, redraw=False)),
    }
