"""Which of a sweep's cells ``--only`` chooses: ``cifar10,cifar100,resnet18,SGDM``.

A word names a value of one of the fields that tell cells apart: data set, network, system, and what
else the table's rows and columns are. Words of one field are alternatives, and words of several
fields must all hold: (CIFAR-10 or CIFAR-100) and ResNet18 and SGDM.
"""

from __future__ import annotations

from collections.abc import Iterable

from sgdph.lab.config.run_config import RunConfig
from sgdph.lab.errors import LabError
from sgdph.lab.reports.layout import SYSTEM, value_of
from sgdph.lab.reports.names import field_title, shown_value
from sgdph.lab.sweep.plan import Plan, PlannedRun

# What a word is compared with where it is no field's value.
NAME = "name"


def chosen(plan: Plan, only: str | None) -> list[PlannedRun]:
    """Return the plan's runs whose cells are chosen.

    What is written like a value means that value alone: ``SGDM`` is not ``SGDM+WN``. Another word
    means all values that hold it (``vgg``), or else all cells whose names do
    (``resnet8-sgdm``). Small and capital letters are the same.

    Args:
        plan: The plan.
        only: Words, separated by commas; ``None`` chooses all.

    Raises:
        LabError: If a word fits no cell, no cell fits all words, or it cannot be told which of
            several numbers is which field's.
    """
    if only is None:
        return plan.runs()
    words = [word.strip() for word in only.split(",") if word.strip()]
    if not words:
        raise LabError(f"--only names nothing; {_listed(plan)}")
    # The cells of the words of each field: words that mean the same fields are alternatives.
    groups: dict[frozenset[str], set[str]] = {}
    for word in words:
        fields, cells = _meaning(plan, word)
        if fields in groups and len(fields) > 1 and _number(word):
            # As alternatives, they would choose far more than a pair of settings.
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
    # A run is called after its cell and its seed.
    return [run for run in plan.runs() if run.name.rpartition("-seed")[0] in kept]


def _meaning(plan: Plan, word: str) -> tuple[frozenset[str], set[str]]:
    """Return which fields a word speaks of, and the cells that it chooses."""
    # "adam-" has always meant a name's end, and so not adamw.
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
    """Name the fields that tell cells apart."""
    return dict.fromkeys(["dataset", "model", SYSTEM, *plan.layout.columns, *plan.layout.rows])


def _is_meant(config: RunConfig, field: str, word: str, part: bool) -> bool:
    """Tell whether a word is a cell's value of a field, or a part of it.

    A value may be written as in the recipe and as in tables.
    """
    value = value_of(config, field)
    forms = {str(value), shown_value(field, value)}
    if field == "model":
        # torchvision:resnet18 is a resnet18.
        forms.add(str(value).rpartition(":")[2])
    if not part:
        return word in map(str.casefold, forms) or _number(word) == _number(str(value)) != ""
    if field == SYSTEM:
        # A labelled system's optimizer.
        forms.add(config.optimizer)
    return any(word in form.casefold() for form in forms)


def _number(text: str) -> str:
    """Write a number in one way, for 1e-3 is 0.001; empty where it is none."""
    try:
        return repr(float(text))
    except ValueError:
        return ""


def _listed(plan: Plan) -> str:
    """List each field's values, as ``--only`` takes them."""
    parts = []
    for field in _fields(plan):
        values = dict.fromkeys(str(value_of(config, field)) for config in plan.cells.values())
        parts.append(f"{field_title(field)} {', '.join(values)}")
    return f"the values are: {'; '.join(parts)}"
