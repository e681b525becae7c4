"""JSON Schema by the library `jsonschema`, within bounds: schemas come from other programs, and SEC nodes validate on their event loop.

Only keywords that make a value valid by what it has are applied, so that leaving some of them out, or stopping early, can let a wrong value pass
and never refuses a right one. What is left out is what can take long for its size (`pattern`, `uniqueItems`) and what turns around in its sense when
a part of it is left out (`not`, `if`, `contains`; `oneOf`, which is taken as `anyOf`). Nothing is ever fetched.
"""

from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from itertools import islice
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

from sec_model.schemas import Budget, TooMuch

MAX_TOLD = 5
"""Violations that are told of one value."""
MAX_MESSAGE = 200

_LEFT_OUT = (
    "$dynamicRef",
    "contains",
    "format",
    "if",
    "not",
    "pattern",
    "patternProperties",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
)
_LOOK_THROUGH = (
    "additionalProperties",
    "dependentSchemas",
    "enum",
    "items",
    "prefixItems",
    "properties",
    "propertyNames",
    "required",
)
_budget: ContextVar[Budget] = ContextVar("budget")

Rule = Callable[[Any, Any, Any, Any], Iterator[ValidationError] | None]


def schema_fault(document: Any) -> str:
    """What makes a document no JSON Schema, as a message of `jsonschema`; empty when it is one."""
    try:
        Draft202012Validator.check_schema(document, format_checker=None)  # type: ignore[arg-type] # None is what checks no formats
    except SchemaError as error:
        return f"{error.json_path}: {short(error.message)}"
    return ""


def violations(document: Any, value: Any, budget: Budget) -> list[str]:
    """What is wrong with a JSON value, each as "$.a[0]: 5 is not of type 'string'"; empty when nothing was found within the budget."""
    _budget.set(budget)
    found: list[str] = []
    try:
        for error in islice(_Bounded(document, registry=Registry()).iter_errors(value), MAX_TOLD):
            found.append(f"{error.json_path}: {short(error.message)}")  # noqa: PERF401 # what was found before the bound counts
    except (TooMuch, RecursionError, ArithmeticError, Unresolvable):
        pass  # nothing more is known
    return found


def short(message: str) -> str:
    """A message with its end, which says what is wrong; the value that it begins with may be long."""
    return message if len(message) <= MAX_MESSAGE else f"{message[: MAX_MESSAGE // 2]} … {message[-MAX_MESSAGE // 2 :]}"


def _counted(keyword: str, rule: Rule) -> Rule:
    def apply(validator: Any, wanted: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
        _budget.get().spend(1 + (_size(wanted) + _size(value) if keyword in _LOOK_THROUGH else 0))
        yield from rule(validator, wanted, value, schema) or ()

    return apply


def _size(value: Any) -> int:
    return len(value) if isinstance(value, list | dict) else 0


def _additional_properties(validator: Any, wanted: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
    if isinstance(schema, Mapping) and "patternProperties" not in schema:
        yield from Draft202012Validator.VALIDATORS["additionalProperties"](validator, wanted, value, schema) or ()


def _rules() -> dict[str, Rule]:
    rules: dict[str, Rule] = dict(Draft202012Validator.VALIDATORS)
    rules["oneOf"] = rules["anyOf"]
    rules["additionalProperties"] = _additional_properties
    nothing: Rule = lambda *_: None  # noqa: E731 # a rule like those beside it
    return {keyword: nothing if keyword in _LEFT_OUT else _counted(keyword, rule) for keyword, rule in rules.items()}


_Bounded = extend(Draft202012Validator, _rules())  # type: ignore[no-untyped-call] # as its stubs have it
