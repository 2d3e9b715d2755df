"""Context managers that undo the side effects of a forward pass: buffers and random numbers."""

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
from torch.nn.utils import parametrize

# The active uncompiled contexts, in the order in which they were entered.
_HELD: list[Any] = []
_HOLDING = threading.Lock()


@contextlib.contextmanager
def random_numbers_kept(params: Sequence[Tensor]) -> Iterator[None]:
    """Restore the global random generators of torch, numpy and Python on exit.

    So every pass draws the same numbers, which the next forward draws too. Generators that the user
    creates are not restored.

    Args:
        params: The generators of these parameters' CUDA devices are restored as well.
    """
    devices = {p.device for p in params if p.device.type == "cuda"}
    # numpy is not imported here: if nobody has imported it, nobody draws from it.
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

    Every forward changes batch norm's statistics in place. Restoring the old values in place would
    be another change, and would invalidate the graph of an earlier loss.
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
            # The hook runs for an OptimizedModule and for the module inside; the second time does
            # nothing.
            warnings.filterwarnings("ignore", message=r".*when there are global hooks on modules")
            yield
    finally:
        handle.remove()
        for buffers, name, buffer in replaced:
            buffers[name] = buffer


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled code uncompiled: it has no second derivative, and hooks are traced into it.

    All threads share the stance, and each of torch's contexts restores the stance that it found. So
    a context that exits before a later one passes the stance that it found on to the later one.
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
    """Move the weights inside the context, and restore the very same tensors on exit.

    It assigns ``.data``, because a change in place would invalidate the graph of an earlier loss.
    Autocast keeps its casts of weights, and ``parametrize.cached()`` what it computed from them.
    Neither notices such a change, so both begin anew.
    """
    before = [p.data for p in params]
    cached = dict(parametrize._cache)
    for p, step in zip(params, steps, strict=True):
        p.data = p.data + step
    torch.clear_autocast_cache()
    parametrize._cache.clear()
    try:
        yield
    finally:
        for p, data in zip(params, before, strict=True):
            p.data = data
        torch.clear_autocast_cache()
        parametrize._cache.clear()
        parametrize._cache.update(cached)
