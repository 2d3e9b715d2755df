"""The derivative of attention's gradients, computed a few heads or rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sgdph.autograd.graph import exact_dtype, piece_size

# How many scores are held at a time on the CPU, in about six tensors. Fewer would need more calls;
# more would not fit in the cache.
SCORES = 2**16


class AttentionSettings(NamedTuple):
    """The settings of an attention.

    Attributes:
        is_causal: Whether the query at position i sees no key after position i.
        scale: The factor of the scores; ``None`` for one over the root of the head's width.
        dropout: The probability of dropout.
    """

    is_causal: bool
    scale: float | None
    dropout: float


class _Vectors(NamedTuple):
    """Some keys, their values, and the vectors ``B``, ``C`` along the gradients of both."""

    key: Tensor
    value: Tensor
    b: Tensor | None
    c: Tensor | None


class AttentionDerivative:
    r"""The derivative of attention's gradients along given vectors.

    For one head, let :math:`G` be the output's gradient, :math:`s` the scale, :math:`M` the mask or
    bias, :math:`P = \operatorname{softmax}(s Q K^\top + M)` and :math:`O = P V`. Row sums are over
    keys. The gradients are

    .. math::
        R = G V^\top - \operatorname{rowsum}(G \circ O), \quad
        S = P \circ R, \quad
        g_Q = s\, S K, \quad g_K = s\, S^\top Q, \quad g_V = P^\top G, \quad g_M = S.

    For :math:`\varphi = \langle A, g_Q \rangle + \langle B, g_K \rangle + \langle C, g_V \rangle +
    \langle E, g_M \rangle`:

    .. math::
        X &= s (A K^\top + Q B^\top) + E, &
        \dot P &= P \circ (X - \operatorname{rowsum}(P \circ X)), \\
        W &= \dot P \circ R + P \circ (G C^\top), &
        S' &= W - P \circ \operatorname{rowsum}(W), \\
        \partial\varphi/\partial G &= \dot P V + P C, &
        \partial\varphi/\partial V &= \dot P^\top G, &
        \partial\varphi/\partial M &= S', \\
        \partial\varphi/\partial Q &= s (S' K + S B), &
        \partial\varphi/\partial K &= s (S'^\top Q + S^\top A).

    These are twelve matrix products; the first derivative has five. The queries of all heads that
    share a key are rows of one matrix. Half precision is computed in float32.

    Args:
        inputs: ``G`` of shape ``(B, H, T, d_v)``, ``Q`` ``(B, H, T, d)``, ``K`` ``(B, H_k, S, d)``
            and ``V`` ``(B, H_k, S, d_v)``, where ``H_k`` divides ``H``.
        bias: Broadcast to ``(B, H, T, S)``, or ``None``.
        output: ``(B, H, T, d_v)``.
        settings: The attention's settings.
        vectors: ``A, B, C``, and ``E`` if the bias has a gradient; each may be ``None``.
        needs: Which of the derivatives with respect to ``G, Q, K, V, M`` are needed.
    """

    def __init__(
        self,
        inputs: Sequence[Tensor],
        bias: Tensor | None,
        output: Tensor,
        settings: AttentionSettings,
        vectors: Sequence[Tensor | None],
        needs: Sequence[bool],
    ) -> None:
        g, query, key, value = inputs
        a, b, c, e = (*vectors, None)[:4]
        self._batch, self._heads, self._keys, width = key.shape
        self._group, self._places = query.shape[1] // self._heads, query.shape[2]
        self._causal = settings.is_causal
        self._scale = width**-0.5 if settings.scale is None else settings.scale
        self._dtype = exact_dtype(query.dtype)
        self._at_a_time = piece_size(SCORES, query.device)
        self._g, self._query = self._grouped(g), self._grouped(query)
        dots = torch.linalg.vecdot(g.to(self._dtype), output.to(self._dtype))
        self._dots = self._grouped(dots.unsqueeze(3))
        self._a = None if a is None else self._grouped(a)
        self._vectors = _Vectors(key, value, b, c)
        scores = (self._batch, query.shape[1], self._places, self._keys)
        self._bias_shape = None if bias is None else bias.shape
        self._bias, self._e = (
            None if t is None else self._grouped(t.expand(scores)) for t in (bias, e)
        )
        self._to_g, self._to_query = (
            torch.empty_like(t) if needed else None
            for t, needed in zip((g, query), needs, strict=False)
        )
        # In the precision of the blocks, because the blocks are added up in them.
        self._to_key, self._to_value = (
            t.new_zeros(t.shape, dtype=self._dtype) if needed else None
            for t, needed in zip((key, value), needs[2:], strict=False)
        )
        self._to_bias = query.new_zeros(scores) if bias is not None and needs[4] else None

    def compute(self) -> list[Tensor | None]:
        """Return the derivatives with respect to ``G, Q, K, V, M``; ``None`` if not needed."""
        for heads in self._blocks_of_heads():
            self._compute_heads(heads)
        to_bias = self._to_bias
        if to_bias is not None and self._bias_shape is not None:
            to_bias = to_bias.sum_to_size(self._bias_shape)
        key, value, *_ = self._vectors
        to_key = None if self._to_key is None else self._to_key.to(key.dtype)
        to_value = None if self._to_value is None else self._to_value.to(value.dtype)
        return [self._to_g, self._to_query, to_key, to_value, to_bias]

    def _grouped(self, t: Tensor) -> Tensor:
        """Split the heads of the queries into groups that share keys."""
        return t.view(t.shape[0], self._heads, self._group, *t.shape[2:])

    def _blocks_of_heads(self) -> Iterator[tuple[slice, slice]]:
        """Yield blocks of the batch and heads that have few enough scores, or single heads."""
        count = max(self._at_a_time // (self._group * self._places * self._keys), 1)
        heads, batch = min(count, self._heads), max(count // self._heads, 1)
        for b in range(0, self._batch, batch):
            for h in range(0, self._heads, heads):
                yield slice(b, b + batch), slice(h, h + heads)

    def _compute_heads(self, heads: tuple[slice, slice]) -> None:
        key, value, b, c = (None if t is None else self._by_key(t[heads]) for t in self._vectors)
        assert key is not None
        assert value is not None
        # Blocks span all heads or one sample, so these are views.
        to_key = None if self._to_key is None else self._to_key[heads].flatten(0, 1)
        to_value = None if self._to_value is None else self._to_value[heads].flatten(0, 1)
        step = max(self._at_a_time // (self._group * self._keys), 1)
        for start in range(0, self._places, step):
            # No query of the block sees a later key.
            seen = slice(min(start + step, self._keys) if self._causal else self._keys)
            parts = (None if t is None else t[:, seen] for t in (b, c, to_key, to_value))
            b_seen, c_seen, to_key_seen, to_value_seen = parts
            self._compute_block(
                (*heads, slice(None), slice(start, start + step)),
                seen,
                _Vectors(key[:, seen], value[:, seen], b_seen, c_seen),
                to_key_seen,
                to_value_seen,
            )

    def _compute_block(
        self,
        where: tuple[slice, ...],
        seen: slice,
        vectors: _Vectors,
        to_key: Tensor | None,
        to_value: Tensor | None,
    ) -> None:
        """Add the contribution of the queries at some positions."""
        key, value, b, c = vectors
        g, query = self._by_query(self._g[where]), self._by_query(self._query[where])
        dots = self._by_query(self._dots[where])
        a = None if self._a is None else self._by_query(self._a[where])
        bias, e = (
            None if t is None else self._by_query(t[where][..., seen])
            for t in (self._bias, self._e)
        )
        p = self._probabilities(query, key, bias, where[3].start)
        r = torch.baddbmm(dots, g, value.mT, beta=-1)
        p_dot = _sum_of_products([(a, key.mT), (query, _transposed(b))], self._scale)
        if e is not None:
            p_dot = e.clone() if p_dot is None else p_dot.add_(e)
        if p_dot is not None:
            p_dot.mul_(p)
            p_dot.addcmul_(p, p_dot.sum(2, keepdim=True), value=-1)
            if to_value is not None:
                to_value.baddbmm_(p_dot.mT, g)
        if self._to_g is not None:
            self._store(self._to_g, where, _sum_of_products([(p_dot, value), (p, c)]))
        if self._to_query is None and to_key is None and self._to_bias is None:
            return
        w = torch.zeros_like(p) if p_dot is None else p_dot.mul_(r)
        if c is not None:
            w.addcmul_(p, torch.bmm(g, c.mT))
        w.addcmul_(p, w.sum(2, keepdim=True), value=-1)
        s = r.mul_(p)
        if self._to_query is not None:
            self._store(self._to_query, where, _sum_of_products([(w, key), (s, b)], self._scale))
        if to_key is not None:
            to_key.baddbmm_(w.mT, query, alpha=self._scale)
            if a is not None:
                to_key.baddbmm_(s.mT, a, alpha=self._scale)
        if self._to_bias is not None:
            found = self._grouped(self._to_bias)[where][..., seen]
            found.copy_(w.view_as(found))

    def _by_key(self, t: Tensor) -> Tensor:
        return t.flatten(0, 1).to(self._dtype)

    def _by_query(self, t: Tensor) -> Tensor:
        return t.flatten(0, 1).flatten(1, 2).to(self._dtype)

    def _probabilities(self, query: Tensor, key: Tensor, bias: Tensor | None, start: int) -> Tensor:
        if self._causal:
            places, keys = query.shape[1] // self._group, key.shape[1]
            hidden = query.new_full((places, keys), -torch.inf).triu_(start + 1)
            hidden = hidden.repeat(self._group, 1)
            bias = hidden if bias is None else bias + hidden
        scores = query.new_empty(()) if bias is None else bias
        scores = torch.baddbmm(
            scores, query, key.mT, beta=0 if bias is None else 1, alpha=self._scale
        )
        # If a mask hides every key from a query, torch sets its probabilities to 0.
        return scores.softmax(2) if self._bias is None else torch._safe_softmax(scores, 2)

    def _store(self, whole: Tensor, where: tuple[slice, ...], block: Tensor | None) -> None:
        part = self._grouped(whole)[where]
        if block is None:
            part.zero_()
        else:
            part.copy_(block.view_as(part))


def _transposed(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.mT


def _sum_of_products(
    pairs: Sequence[tuple[Tensor | None, Tensor | None]], scale: float = 1.0
) -> Tensor | None:
    """Sum ``scale * left @ right`` over the pairs without ``None``; ``None`` if there are none."""
    total: Tensor | None = None
    for left, right in pairs:
        if left is not None and right is not None:
            if total is None:
                total = left.new_empty((left.shape[0], left.shape[1], right.shape[2]))
                total.baddbmm_(left, right, beta=0, alpha=scale)
            else:
                total.baddbmm_(left, right, alpha=scale)
    return total
