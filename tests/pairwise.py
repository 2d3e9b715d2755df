"""Pairwise testing: any two values of different parameters occur together, in few cases."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest

Pair = tuple[tuple[int, int], tuple[int, int]]


def pairs_of(places: tuple[int, ...]) -> set[Pair]:
    """All pairs of parameters of a case, each with the index of its value."""
    return set(itertools.combinations(enumerate(places), 2))


def pairwise(**values: Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrize a test with few cases, chosen by a greedy search; always the same ones."""
    listed = [list(each) for each in values.values()]
    product = list(itertools.product(*(range(len(each)) for each in listed)))
    missing = set().union(*map(pairs_of, product))
    cases = []
    while missing:
        places = max(product, key=lambda each: len(pairs_of(each) & missing))
        missing -= pairs_of(places)
        cases.append([each[place] for each, place in zip(listed, places, strict=True)])
    return pytest.mark.parametrize(list(values), cases, ids=_named)


def _named(value: Any) -> str:
    return getattr(value, "__name__", None) or str(value)
