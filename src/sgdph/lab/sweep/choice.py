"""The cells of a sweep that ``--only`` chooses: ``cifar10,cifar100,resnet18,SGDM``.

A word names a value of one of the fields that distinguish cells: data set, network, system, and the
other fields of the table's rows and columns. Words for one field are alternatives. Words for
several fields must all match: (CIFAR-10 or CIFAR-100) and ResNet18 and SGDM.
"""

from __future__ import annotations

from collections.abc import Iterable

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.errors import LabError
from sgdph.lab.reports.layout import SYSTEM, value_of
from sgdph.lab.reports.names import field_title, shown_value
from sgdph.lab.sweep.plan import Plan, PlannedRun

# Stands for a cell's name, which is compared with words that are not a field's value.
NAME = "name"


def chosen(plan: Plan, only: str | None) -> list[PlannedRun]:
    """Return the plan's runs whose cells are chosen.

    A word that equals a value means only that value: ``SGDM`` does not match ``SGDM+WN``. Any other
    word means all values that contain it (``vgg``), or else all cells whose names contain it
    (``resnet8-sgdm``). Case is ignored. A cell's full name means that cell. A value that itself has
    commas is one word (``SGD-PH, eps_warmup``).

    Args:
        plan: The plan.
        only: Words, separated by commas; ``None`` chooses all.

    Raises:
        LabError: If a word matches no cell, no cell matches all words, or it is unclear which of
            several numbers belongs to which field.
    """
    if only is None:
        return plan.runs()
    words = _words(plan, only)
    if not words:
        raise LabError(f"--only names nothing; {_listed(plan)}")
    # Fields to the cells that match. Words that mean the same fields are alternatives.
    groups: dict[frozenset[str], set[str]] = {}
    for word in words:
        fields, cells = _meaning(plan, word)
        if fields in groups and len(fields) > 1 and _number(word):
            # As alternatives, these numbers would choose far more than a pair of settings.
            titles = " and ".join(field_title(field) for field in _fields(plan) if field in fields)
            raise LabError(
                f"--only {only} does not say which number is which: {titles} both have {word}; "
                f"write parts of cells' names instead; the cells are {', '.join(plan.cells)}"
            )
        groups.setdefault(fields, set()).update(cells)
    kept = set.intersection(*groups.values())
    if not kept:
        raise LabError(
            f"--only {only} fits no cell: words of one field are alternatives, words of several "
            f"fields must all fit; the cells are {', '.join(plan.cells)}"
        )
    # A run's name consists of its cell's name and its seed.
    return [run for run in plan.runs() if run.name.rpartition("-seed")[0] in kept]


def _words(plan: Plan, only: str) -> list[str]:
    """Split at commas, except at those of a value that itself has commas."""
    values = {str(value_of(each, at)) for each in plan.cells.values() for at in _fields(plan)}
    whole = [(_pieces(value.casefold()), value) for value in values if "," in value]
    pieces, words = _pieces(only), list[str]()
    while pieces:
        lower = [piece.casefold() for piece in pieces]
        fitting = [(parts, value) for parts, value in whole if lower[: len(parts)] == parts]
        # The longest, where a value begins with another one.
        parts, word = max(fitting, key=lambda item: len(item[0]), default=(pieces[:1], pieces[0]))
        words.append(word)
        pieces = pieces[len(parts) :]
    return words


def _pieces(text: str) -> list[str]:
    return [piece.strip() for piece in text.split(",") if piece.strip()]


def _meaning(plan: Plan, word: str) -> tuple[frozenset[str], set[str]]:
    """Return the fields that a word refers to, and the cells that it chooses."""
    # A trailing "-" marks the end of a name: where there is adam, "adam-" does not match adamw.
    lower = word.casefold()
    exact = lower.rstrip("-") or lower
    if exact in map(str.casefold, plan.cells):
        return frozenset({NAME}), {name for name in plan.cells if name.casefold() == exact}
    for part in (False, True):
        found = {
            name: {field for field in _fields(plan) if _is_meant(config, field, exact, part)}
            for name, config in plan.cells.items()
        }
        fields: frozenset[str] = frozenset().union(*found.values())
        if fields:
            return fields, {name for name, fitting in found.items() if fitting}
    cells = {name for name in plan.cells if lower in f"{name.casefold()}-"}
    if not cells:
        raise LabError(f"--only {word} fits no cell; {_listed(plan)}")
    return frozenset({NAME}), cells


def _fields(plan: Plan) -> Iterable[str]:
    """Return the names of the fields that distinguish cells."""
    return dict.fromkeys(["dataset", "model", SYSTEM, *plan.layout.columns, *plan.layout.rows])


def _is_meant(config: RunConfig, field: str, word: str, part: bool) -> bool:
    """Return whether a word is a cell's value of a field, or with ``part``, a part of that value.

    The value may be written as in the recipe or as in tables.
    """
    value = value_of(config, field)
    forms = {str(value), shown_value(field, value)}
    if field == "model":
        # The word resnet18 also matches torchvision:resnet18.
        forms.add(str(value).rpartition(":")[2])
    if not part:
        return word in map(str.casefold, forms) or _number(word) == _number(str(value)) != ""
    if field == SYSTEM:
        # A word may also name the optimizer of a system that has a label.
        forms.add(config.optimizer)
    return any(word in form.casefold() for form in forms)


def _number(text: str) -> str:
    """Return a number in one notation, because 1e-3 is 0.001; empty if it is not a number."""
    try:
        return repr(float(text))
    except ValueError:
        return ""


def _listed(plan: Plan) -> str:
    """List each field's values, as ``--only`` accepts them."""
    parts = []
    for field in _fields(plan):
        values = dict.fromkeys(str(value_of(config, field)) for config in plan.cells.values())
        parts.append(f"{field_title(field)} {', '.join(values)}")
    return f"the values are: {'; '.join(parts)}"
