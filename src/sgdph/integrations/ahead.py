"""Acting just before a method that a framework calls and offers no hook for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def ahead_of(owner: Any, method: str, action: Callable[[Any], None]) -> Iterator[None]:
    """Call ``action`` with the first argument of ``owner.method(…)`` before each call of it.

    Args:
        owner: The object; only it changes, and only inside the context, not its class.
        method: The method's name.
        action: What to do first.
    """
    plain, own = getattr(owner, method), vars(owner).get(method)

    def called(first: Any, *arguments: Any, **named: Any) -> Any:
        action(first)
        return plain(first, *arguments, **named)

    setattr(owner, method, called)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, method)
        else:
            setattr(owner, method, own)
