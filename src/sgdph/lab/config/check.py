"""Checks of values against their types, with errors that say what was expected and what was given.

pydantic does the checks. It is imported at the first check, because the command line's help needs
none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from sgdph.lab.errors import LabError, unknown_name

if TYPE_CHECKING:
    from pydantic import BaseModel, TypeAdapter, ValidationError
    from pydantic_core import ErrorDetails

# pydantic's error type to what was expected. Other types keep pydantic's own wording.
_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "string_type": "a text",
    "bool_type": "true or false",
    "tuple_type": "a list of values",
    "missing": "given in full",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
}


def check_fields(fields: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Check values against the types of a class's fields.

    Args:
        fields: Field to type.
        values: Field to value; one for each field.

    Returns:
        The values. Whole numbers are converted to floats if the field is a float.

    Raises:
        LabError: If a value has the wrong type, or is out of its bounds.
    """
    from pydantic import ValidationError

    try:
        return dict(_model(tuple(fields.items())).model_validate(dict(values)))
    except ValidationError as error:
        raise LabError("; ".join(_explained(error))) from error


def parse_value(hint: Any, words: str | list[str], name: str) -> Any:
    """Convert words of the command line to a value.

    Args:
        hint: The required type.
        words: The words.
        name: The value's name in an error message.

    Raises:
        LabError: If the words cannot be read as that type, or the value is out of its bounds.
    """
    from pydantic import ValidationError

    try:
        return _adapter(hint).validate_python(words)
    except ValidationError as error:
        raise LabError(_explain(error.errors()[0], name, words)) from error


@cache
def _model(fields: tuple[tuple[str, Any], ...]) -> type[BaseModel]:
    from pydantic import ConfigDict, create_model

    # Strict: True is not accepted as 1, nor "3" as 3. Without protected namespaces, pydantic does
    # not warn about field names that start with "model_".
    config = ConfigDict(strict=True, protected_namespaces=())
    definitions: dict[str, Any] = {name: (hint, ...) for name, hint in fields}
    return create_model("Fields", __config__=config, **definitions)


@cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(hint)


def _explained(error: ValidationError) -> list[str]:
    """Return one message for each field that is wrong."""
    problems = {str(each["loc"][0]): each for each in reversed(error.errors())}
    return [_explain(problem, name) for name, problem in reversed(problems.items())]


def _explain(problem: ErrorDetails, name: str, given: object = None) -> str:
    """Return a message that says what a value must be, and what it was."""
    value = problem["input"] if given is None else given
    if problem["type"] == "literal_error":
        # If ``None`` is allowed too, pydantic still lists the choices only.
        choices = problem["ctx"]["expected"].replace(" or ", ", ").replace("'", "").split(", ")
        return unknown_name(name, value, choices)
    own = problem["msg"].removeprefix("Input should be ")
    bounds = problem.get("ctx", {})
    finite = bounds.get("lt") == math.inf
    expected = "finite" if finite else _EXPECTED.get(problem["type"], own).format(**bounds)
    return f"{name} must be {expected}; got {value!r}"
