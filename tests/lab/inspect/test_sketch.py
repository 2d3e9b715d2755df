"""Results for known blocks against a slow reference in numpy, entry by entry."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sgdph.curvature.probes import rademacher_probe
from sgdph.lab.inspect.sketch import BlockSketch, flat, off_diagonal_share
from sgdph.lab.run.start import derive_seed

B, N, PROBES, SEED, PLACE, BETA2 = 3, 5, 4, 7, 2, 0.8


def symmetric_blocks() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    blocks = [torch.randn(N, N, generator=generator, dtype=torch.float64) for _ in range(2 * B)]
    return [block + block.T for block in blocks]


def sketch_of(blocks: list[Tensor]) -> BlockSketch:
    sketch = BlockSketch(len(blocks), PROBES, SEED, PLACE)
    for block in blocks:
        sketch.add(block)
    return sketch


def relative_error(h: np.ndarray, d: np.ndarray) -> float:
    distance = math.sqrt(sum((abs(a) - abs(b)) ** 2 for a, b in zip(h, d, strict=True)))
    return distance / math.sqrt(sum(b * b for b in d))


def cosine(h: np.ndarray, d: np.ndarray) -> float:
    norms = math.sqrt(sum(a * a for a in h)) * math.sqrt(sum(b * b for b in d))
    return float(sum(abs(a * b) for a, b in zip(h, d, strict=True)) / norms)


def average(visits: list[np.ndarray]) -> np.ndarray:
    """Compute a bias-corrected running average from its explicit weights."""
    weights = [BETA2 ** (len(visits) - 1 - t) for t in range(len(visits))]
    return sum(w * h for w, h in zip(weights, visits, strict=True)) / sum(weights)


def hutchinson(block: np.ndarray, visit: int, sequence: int) -> np.ndarray:
    seed = derive_seed(SEED, f"probes {sequence}")
    z = rademacher_probe(seed, visit, PLACE, torch.zeros(N, dtype=torch.float64)).numpy()
    return np.array([z[i] * sum(block[i, j] * z[j] for j in range(N)) for i in range(N)])


@pytest.mark.parametrize("measure", [relative_error, cosine], ids=lambda f: f.__name__)
def test_errors_match_the_slow_reference(measure: object) -> None:
    assert callable(measure)
    blocks = symmetric_blocks()
    arrays = [block.numpy() for block in blocks]
    d = np.array([sum(a[i, i] for a in arrays[B:]) / B for i in range(N)])
    rows = [np.array([sum(a[i, j] for j in range(N)) for i in range(N)]) for a in arrays[:B]]
    diagonals = [np.array([a[i, i] for i in range(N)]) for a in arrays[:B]]
    probes = [[hutchinson(a, b, s) for b, a in enumerate(arrays[:B])] for s in range(PROBES)]
    held = np.arange(1.0, N + 1)

    def mean(estimates: list[np.ndarray]) -> float:
        return float(np.mean([measure(h, d) for h in estimates]))

    expected = {
        "row_sum_one": mean(rows),
        "hutchinson_one": mean([h for sequence in probes for h in sequence]),
        "exact_one": mean(diagonals),
        "row_sum_average": mean([average([abs(h) for h in rows])]),
        "hutchinson_average": mean([average(sequence) for sequence in probes]),
        "exact_average": mean([average([abs(h) for h in diagonals])]),
        "held": mean([held]),
        "constant": mean([np.full(N, np.mean(abs(d)))]),
    }
    found = flat(sketch_of(blocks).errors(BETA2, torch.from_numpy(held).view(N, 1, 1)))
    for name, value in expected.items():
        assert found[f"{name}_{measure.__name__}"] == pytest.approx(value, rel=1e-12), name


def test_an_estimate_that_does_not_exist_has_no_error() -> None:
    found = flat(sketch_of(symmetric_blocks()).errors(BETA2, None))
    assert found["held_cosine"] is None
    assert found["held_relative_error"] is None


def test_the_row_sum_average_does_not_use_the_reference_batches() -> None:
    blocks = symmetric_blocks()
    changed = [*blocks[:B], *(3 * block for block in blocks[B:])]
    first, second = sketch_of(blocks), sketch_of(changed)
    assert torch.equal(first.row_sum_average(BETA2), second.row_sum_average(BETA2))
    assert torch.allclose(second.reference, 3 * first.reference)


def test_shares_and_mean_are_of_all_blocks() -> None:
    blocks = symmetric_blocks()
    sketch = sketch_of(blocks)

    def share(block: Tensor) -> float:
        squares = [[float(block[i, j]) ** 2 for j in range(N)] for i in range(N)]
        off = sum(squares[i][j] for i in range(N) for j in range(N) if i != j)
        return math.sqrt(off / sum(map(sum, squares)))

    assert sketch.shares == pytest.approx([share(block) for block in blocks])
    assert torch.allclose(sketch.mean, sum(blocks, torch.zeros(N, N)) / len(blocks))
    negatives = [sum(float(block[i, i]) < 0 for i in range(N)) / N for block in blocks]
    assert sketch.negatives == pytest.approx(negatives)


def test_the_off_diagonal_share_of_extreme_blocks() -> None:
    assert off_diagonal_share(torch.diag(torch.tensor([1.0, -2.0]))) == 0.0
    assert off_diagonal_share(torch.tensor([[0.0, 3.0], [3.0, 0.0]])) == 1.0
    assert math.isnan(off_diagonal_share(torch.zeros(2, 2)))


def test_a_diagonal_block_makes_row_sum_and_hutchinson_exact() -> None:
    block = torch.diag(torch.tensor([1.0, -2.0, 3.0, 0.5, 4.0]))
    found = flat(sketch_of([block] * (2 * B)).errors(BETA2, None))
    for name in ("row_sum_one", "hutchinson_one", "row_sum_average", "hutchinson_average"):
        assert found[f"{name}_relative_error"] == pytest.approx(0.0, abs=1e-12)
    assert (found["constant_relative_error"] or 0.0) > 0.1
