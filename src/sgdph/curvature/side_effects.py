"""What a forward pass changes besides its output, undone: buffers and random numbers."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

# Who runs code uncompiled, in the order in which they began.
_HELD: list[Any] = []
_HOLDING = threading.Lock()


@contextlib.contextmanager
def random_numbers_kept(params: Sequence[Tensor]) -> Iterator[None]:
    """Give the random generators back as they were: torch's, numpy's and Python's global ones.

    So every pass draws the same numbers, those that the next forward draws too. A generator of the
    user's own cannot be found.

    Args:
        params: Where they are, CUDA's generators are kept as well.
    """
    devices = {p.device for p in params if p.device.type == "cuda"}
    # Not imported: who has not done so draws nothing from it.
    numpy = sys.modules.get("numpy")
    of_python = random.getstate()
    of_numpy = None if numpy is None else numpy.random.get_state(legacy=False)
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(of_python)
        if numpy is not None:
            numpy.random.set_state(of_numpy)


@contextlib.contextmanager
def buffers_kept() -> Iterator[None]:
    """Let all modules that are called inside work on copies of their buffers.

    Batch norm's statistics are changed in place at every forward. Bringing old values back would
    be one change more, and invalidate the graph of a loss computed before.
    """
    replaced: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
    copies: dict[int, Tensor] = {}
    seen: set[int] = set()

    def replace(module: nn.Module, arguments: object) -> None:
        for each in [] if id(module) in seen else module.modules():
            if id(each) in seen:
                continue
            seen.add(id(each))
            for name, buffer in each._buffers.items():
                if buffer is not None:
                    replaced.append((each._buffers, name, buffer))
                    copies.setdefault(id(buffer), buffer.detach().clone())
                    each._buffers[name] = copies[id(buffer)]

    handle = register_module_forward_pre_hook(replace)
    try:
        with uncompiled(), warnings.catch_warnings():
            # An OptimizedModule and the module inside it are both seen; the second changes nothing.
            warnings.filterwarnings("ignore", message=r".*when there are global hooks on modules")
            yield
    finally:
        handle.remove()
        for buffers, name, buffer in replaced:
            buffers[name] = buffer


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled code as it was written: it has no second derivative, and hooks traced in.

    The stance is one for all threads, and each of torch's contexts brings back the one it found.
    Whoever leaves before another that came later therefore passes on what it found.
    """
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with _HOLDING:
        stance: Any = torch.compiler.set_stance("force_eager")
        _HELD.append(stance)
    try:
        yield
    finally:
        with _HOLDING:
            place = _HELD.index(stance)
            del _HELD[place]
            if place == len(_HELD):
                stance.__exit__(None, None, None)
            else:
                _HELD[place].prev = stance.prev


@contextlib.contextmanager
def moved(params: Sequence[Tensor], steps: Sequence[Tensor]) -> Iterator[None]:
    """Move the weights, and bring the very same tensors back.

    Through ``.data``: a change in place would invalidate the graph of a loss computed before.
    """
    before = [p.data for p in params]
    for p, step in zip(params, steps, strict=True):
        p.data = p.data + step
    try:
        yield
    finally:
        for p, data in zip(params, before, strict=True):
            p.data = data
