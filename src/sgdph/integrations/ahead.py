"""Running code around a framework's method that has no hook."""

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
        owner: The object. Only this object changes, not its class, and only inside the context.
        method: The method's name.
        context: Returns the context manager in which the call runs.
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
        action: The function to call first.
    """

    @contextlib.contextmanager
    def context(first: Any) -> Iterator[None]:
        action(first)
        yield

    return around(owner, method, context)
