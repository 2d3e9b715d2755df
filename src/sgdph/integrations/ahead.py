"""Acting around a method that a framework calls and offers no hook for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any


@contextlib.contextmanager
def around(
    owner: Any, method: str, context: Callable[[Any], AbstractContextManager[object]]
) -> Iterator[None]:
    """Run each call of ``owner.method(first, …)`` inside ``context(first)``.

    Args:
        owner: The object; only it changes, and only inside the context, not its class.
        method: The method's name.
        context: Makes what the call is to run inside.
    """
    plain, own = getattr(owner, method), vars(owner).get(method)

    def called(first: Any, *arguments: Any, **named: Any) -> Any:
        with context(first):
            return plain(first, *arguments, **named)

    setattr(owner, method, called)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, method)
        else:
            setattr(owner, method, own)


def ahead_of(
    owner: Any, method: str, action: Callable[[Any], None]
) -> AbstractContextManager[None]:
    """Call ``action(first)`` before each call of ``owner.method(first, …)``.

    Args:
        owner: See :func:`around`.
        method: See :func:`around`.
        action: What to do first.
    """

    @contextlib.contextmanager
    def context(first: Any) -> Iterator[None]:
        action(first)
        yield

    return around(owner, method, context)
