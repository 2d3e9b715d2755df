r"""Hutchinson's probes: Rademacher each, and orthogonal over the visits of a parameter.

The estimate :math:`z \odot Hz` is the diagonal plus :math:`\sum_{j \ne i} H_{ij} z_i z_j` in entry
:math:`i`. Of probes that are drawn anew, this noise fades by averaging alone. Columns of a Hadamard
matrix of size :math:`N`, one a visit, have :math:`\sum_v z_i(v) z_j(v) = 0` over any :math:`N`
successive visits: of a constant :math:`H` the noise then cancels exactly. Bekas, Kokiopoulou & Saad
(2007) take such columns for the diagonal of one matrix. Each probe by itself stays Rademacher,
because random signs multiply the matrix's rows, so the mean stays the diagonal.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def rademacher_probe(seed: int, visit: int, index: int, like: Tensor) -> Tensor:
    """Make the probe ``z`` of one parameter at one visit: entries -1 or +1, equally likely.

    The three integers alone decide the probe, so micro-batches, ranks and a resumed run see the
    same one, and the global random number generator is left alone. Over any N successive visits,
    N being the least power of two that is at least ``like.numel()``, each two entries of the probe
    agree as often as they differ. (When a parameter group joins, the count of visits goes on from
    another place.) Two parameters' probes are independent at each visit.

    Args:
        seed: The optimizer's seed.
        visit: How many visits of the parameter have gone before this one.
        index: The parameter's place among the Newton parameters.
        like: Gives the shape, dtype and device of the result.
    """
    count = like.numel()
    size = 1 << max(count - 1, 0).bit_length()
    # Drawn on the CPU, so that a run moved to another device keeps its probes.
    generator = torch.Generator().manual_seed(_key(seed, index))
    bits = torch.randint(0, 2, (count,), generator=generator, dtype=torch.int8, device="cpu")
    # In its own order, the matrix would part some channels only after half of its columns.
    columns = torch.randperm(size, generator=generator, device="cpu")
    # A sign for the whole probe parts this walk from other parameters', which repeat as well.
    sign = -1 if _key(seed, visit, index) & 1 else 1
    place = visit % size
    # A list, because int() of a tensor is an operation, like those that wait for a device.
    (number,) = columns[place : place + 1].tolist()
    column = _hadamard_column(size, number, sign)
    z = bits.mul_(2).sub_(1).mul_(column[:count])
    return z.view(like.shape).to(like.device, like.dtype, non_blocking=True)


# Of int8 entries -1 and +1, as bytes.
_NEGATION = bytes.maketrans(b"\x01\xff", b"\xff\x01")


def _hadamard_column(size: int, number: int, sign: int) -> Tensor:
    """Make one column, times a sign, of the Sylvester Hadamard matrix: ``size`` is a power of two.

    In bytes, not tensors, whose overhead would be most of a probe's time.
    """
    column = bytearray(b"\x01" if sign == 1 else b"\xff")
    for bit in range(size.bit_length() - 1):
        column = column + (column.translate(_NEGATION) if number >> bit & 1 else column)
    return torch.frombuffer(column, dtype=torch.int8)


def _key(*numbers: int) -> int:
    """Mix integers into 63 bits: a digest, not a sum, lest neighbours share what is drawn."""
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
