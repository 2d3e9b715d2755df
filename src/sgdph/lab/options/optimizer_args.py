"""``--optimizer-args``, which sets any argument of an optimizer's constructor."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sgdph.lab.config.yaml import as_pairs
from sgdph.lab.errors import LabError
from sgdph.lab.optimizers.baseline import Setting
from sgdph.lab.optimizers.registry import arguments

FLAG = "--optimizer-args"
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "none": None}


def parse_value(text: str) -> Setting:
    """Read a value: ``true``, ``false``, ``none``, a number, numbers like ``0.9,0.99``, or text."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    parts = text.strip("()[]").split(",")
    try:
        numbers = tuple(_number(part) for part in parts if part.strip())
    except ValueError:
        return text
    return numbers if len(parts) > 1 else numbers[0] if numbers else text


def _number(text: str) -> int | float:
    return int(text) if re.fullmatch(r"\s*[+-]?\d+\s*", text) else float(text)


def parse_arguments(words: Iterable[str]) -> dict[str, Setting]:
    """Parse words like ``["update_each=2", "betas=0.9,0.99"]``.

    Args:
        words: The words.

    Returns:
        Argument name to value.

    Raises:
        LabError: If a word has another form, or an argument is given twice.
    """
    found: dict[str, Setting] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name.isidentifier():
            raise LabError(f"{FLAG} must be like update_each=2 betas=0.9,0.99; got {word!r}")
        if name in found:
            raise LabError(f"{FLAG} gives {name} twice; give it once")
        found[name] = parse_value(text)
    return found


def share_arguments(
    words: Sequence[str], optimizers: Sequence[str]
) -> dict[str, tuple[tuple[str, Setting], ...]]:
    """Assign the arguments in the words to several optimizers.

    Args:
        words: Words like ``"adahessian.update_each=2"`` for one optimizer, or ``"foreach=false"``
            for all that have the argument. The former take precedence.
        optimizers: The optimizers to compare.

    Returns:
        Optimizer to its arguments, as in a run's configuration.

    Raises:
        LabError: If a word has another form, names an optimizer that is not compared, or sets for
            all optimizers an argument that none of them has.
    """
    own: dict[str, list[str]] = {name: [] for name in optimizers}
    common = []
    for word in words:
        owner, dot, _ = word.partition("=")[0].partition(".")
        if not dot:
            common.append(word)
        elif owner in own:
            own[owner].append(word[len(owner) + 1 :])
        else:
            raise LabError(
                f"{FLAG} names {owner}, which is not compared; the optimizers are "
                f"{', '.join(optimizers)}; got {word!r}"
            )
    shared = parse_arguments(common)
    taken = {name: arguments(name) for name in optimizers} if shared else {}
    for name in shared:
        if not any(name in of_one for of_one in taken.values()):
            having = "; ".join(f"{key} has {', '.join(of_one)}" for key, of_one in taken.items())
            raise LabError(f"{FLAG}: none of the optimizers has an argument {name!r}; {having}")
    return {
        name: as_pairs(
            {
                **{key: value for key, value in shared.items() if key in taken[name]},
                **parse_arguments(own[name]),
            }
        )
        for name in optimizers
    }


def overlaid(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with others on top of them, argument by argument.

    A setting can be an option or be one of the ``optimizer_args``. Each form replaces the other.

    Args:
        lower: Field of a run's configuration to value; ``optimizer_args`` as a mapping or as pairs.
        upper: The same; it takes precedence.
    """
    below, above = (dict(each.get("optimizer_args") or ()) for each in (lower, upper))
    arguments = {**{name: each for name, each in below.items() if name not in upper}, **above}
    kept = {name: each for name, each in lower.items() if name not in above}
    return {**kept, **upper, "optimizer_args": arguments or None}
