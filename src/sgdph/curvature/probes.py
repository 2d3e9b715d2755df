r"""Hutchinson's probes: each is Rademacher, and a parameter's successive probes are orthogonal.

The estimate :math:`z \odot Hz` is the diagonal plus :math:`\sum_{j \ne i} H_{ij} z_i z_j` in entry
:math:`i`. With independent probes, this noise only averages out. Columns of a Hadamard matrix of
size :math:`N`, one per visit, have :math:`\sum_v z_i(v) z_j(v) = 0` over any :math:`N` successive
visits. So for a constant :math:`H` the noise cancels exactly. Bekas, Kokiopoulou & Saad (2007) use
such columns for the diagonal of one matrix. Each single probe is still Rademacher, because random
signs multiply the matrix's rows. So the mean is still the diagonal.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def rademacher_probe(seed: int, visit: int, index: int, like: Tensor) -> Tensor:
    """Make the probe ``z`` of one parameter at one visit: entries -1 or +1, equally likely.

    Only the three integers and the shape determine its entries. So micro-batches, ranks and a
    resumed run use the same probe. The global random number generator is not used. Let N be the
    least power of two that is at least ``like.numel()``. Over any N successive visits, any two
    entries of the probe agree as often as they differ. Two parameters' probes are independent at
    each visit.

    Args:
        seed: The optimizer's seed.
        visit: The number of earlier visits of the parameter.
        index: The parameter's position among the Newton parameters.
        like: Gives the shape, dtype and device of the result.
    """
    count = like.numel()
    size = 1 << max(count - 1, 0).bit_length()
    # Drawn on the CPU, so that a run moved to another device keeps its probes.
    generator = torch.Generator().manual_seed(_key(seed, index))
    bits = torch.randint(0, 2, (count,), generator=generator, dtype=torch.int8, device="cpu")
    # In the matrix's own order, some channels would first differ after half of its columns.
    columns = torch.randperm(size, generator=generator, device="cpu")
    # The columns repeat for every parameter. A random sign per probe keeps parameters independent.
    sign = -1 if _key(seed, visit, index) & 1 else 1
    place = visit % size
    # tolist(), because int() of a tensor is an operation like those that wait for a device.
    (number,) = columns[place : place + 1].tolist()
    column = _hadamard_column(size, number, sign)
    z = bits.mul_(2).sub_(1).mul_(column[:count])
    return z.view(like.shape).to(like.device, like.dtype, non_blocking=True)


# Swaps the int8 entries -1 and +1, as bytes.
_NEGATION = bytes.maketrans(b"\x01\xff", b"\xff\x01")


def _hadamard_column(size: int, number: int, sign: int) -> Tensor:
    """Return one column, times a sign, of the Sylvester Hadamard matrix; ``size`` is a power of 2.

    It uses bytes, because the overhead of tensors would dominate a probe's time.
    """
    column = bytearray(b"\x01" if sign == 1 else b"\xff")
    for bit in range(size.bit_length() - 1):
        column = column + (column.translate(_NEGATION) if number >> bit & 1 else column)
    return torch.frombuffer(column, dtype=torch.int8)


def _key(*numbers: int) -> int:
    """Mix integers into 63 bits by a digest, so that nearby keys draw unrelated numbers."""
    text = ",".join(map(str, numbers)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
