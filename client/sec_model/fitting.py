"""Whether what one schema describes can be what another one wants.

Tells only what cannot work: types that have nothing in common, and fields that are read and not there. What is not understood fits. A source has the
`properties` that it lists and no others, unless it says that there are more; and what it lists is taken to be there, as are items of its arrays.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sec_model.schemas import Budget, Schema, TooMuch

MAX_DEPTH = 40
_MAX_REFERENCES = 50
"""On the way to one part: a chain of references may lead in a circle."""
_MAX_POSITIONS = 32

_ANNOTATIONS = frozenset(
    ("$comment", "$defs", "$id", "$schema", "default", "definitions", "deprecated", "description", "discriminator", "examples", "format",
     "readOnly", "title", "writeOnly")
)  # fmt: skip
"""Keywords that let every value be right."""
_MORE_PROPERTIES = frozenset(
    ("$dynamicRef", "$ref", "additionalProperties", "allOf", "anyOf", "dependentSchemas", "else", "if", "oneOf", "patternProperties", "then",
     "unevaluatedProperties")
)  # fmt: skip
"""Keywords by which an object can have properties that `properties` does not list."""
_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")


@dataclass(frozen=True, slots=True)
class Conflict:
    """`what` completes "the output …": 'has no field "a" at $.b'."""

    path: str
    what: str


def conflicts(source: Schema, wanted: Schema, budget: Budget) -> list[Conflict]:
    """What `wanted` asks for and `source` cannot give; empty when nothing is certain within the budget."""
    try:
        return _Fitting(source, wanted, budget).compare(source.document, wanted.document, "$", 0)
    except TooMuch:
        return []


class _Fitting:
    def __init__(self, source: Schema, wanted: Schema, budget: Budget) -> None:
        self._source = source
        self._wanted = wanted
        self._budget = budget
        self._split: dict[int, list[Any]] = {}
        self._compared: set[tuple[int, int]] = set()

    def compare(self, source: Any, wanted: Any, path: str, depth: int) -> list[Conflict]:
        self._budget.spend()
        pair = id(source), id(wanted)
        if pair in self._compared:  # told already, or under comparison: a part of itself fits when the rest of it does
            return []
        self._compared.add(pair)
        if depth > MAX_DEPTH:
            raise TooMuch
        sources, wants = self._alternatives(self._source, source), self._alternatives(self._wanted, wanted)
        # That both can be null does not make them fit, when both are meant to be something.
        if any(not _is_null(s) for s in sources) and any(not _is_null(w) for w in wants):
            sources = [s for s in sources if not _is_null(s)]
        self._budget.spend(
            len(sources) * len(wants) + sum(len(part.get("enum", ())) for part in sources + wants if isinstance(part, dict))
        )
        related = [(s, w) for s in sources for w in wants if _common(_types(s), _types(w))]
        if not related:
            is_, wanted_ = _listed(t for s in sources for t in _types(s)), _listed(t for w in wants for t in _types(w))
            return [Conflict(path, f"is {is_ or 'nothing'}{_at(path)}, where {wanted_ or 'nothing'} is wanted")]
        closest: list[Conflict] = []
        for s, w in related:
            found = self._plain(s, w, path, depth)
            if not found:
                return []
            if not closest or max(len(c.path) for c in found) > max(len(c.path) for c in closest):
                closest = found
        return closest

    def _alternatives(self, schema: Schema, part: Any) -> list[Any]:
        """What a part stands for, one by one, with references followed and each of a single type; itself when it is none of these."""
        if id(part) not in self._split:  # kept also because parts are told apart by their ids
            self._split[id(part)] = [*self._branches(schema, part, 0)]
        return self._split[id(part)]

    def _branches(self, schema: Schema, part: Any, followed: int) -> Iterator[Any]:
        self._budget.spend()
        if followed > _MAX_REFERENCES:
            raise TooMuch
        further: list[Any] | None = None
        if isinstance(part, dict):
            match sorted(part.keys() - _ANNOTATIONS):
                case ["$ref"]:
                    further = [schema.resolve(part["$ref"])]
                case ["allOf"] if len(part["allOf"]) == 1:
                    further = part["allOf"]
                case [("anyOf" | "oneOf") as keyword]:
                    further = part[keyword]
                case _ if isinstance(part.get("type"), list):
                    yield from ({**part, "type": each} for each in part["type"])
                    return
        if further is None:
            yield part
            return
        for each in further:
            yield from self._branches(schema, each, followed + 1)

    def _plain(self, source: Any, wanted: Any, path: str, depth: int) -> list[Conflict]:
        """Of two parts that are no alternatives and have a type in common."""
        if not isinstance(source, dict) or not isinstance(wanted, dict):
            return []  # true and false, of which `_types` has told everything
        given, asked = _finite(source), _finite(wanted)
        if given is not None and asked is not None and not given.keys() & asked.keys():
            return [Conflict(path, f"can only be {_listed(given)}{_at(path)}, where {_listed(asked)} is wanted")]
        match _common(_types(source), _types(wanted)):
            case ["object"]:
                return self._objects(source, wanted, path, depth)
            case ["array"]:
                return self._arrays(source, wanted, path, depth)
        return []

    def _objects(self, source: dict[str, Any], wanted: dict[str, Any], path: str, depth: int) -> list[Conflict]:
        found: list[Conflict] = []
        has, wants = source.get("properties", {}), wanted.get("properties", {})
        always, required = source.get("required", ()), wanted.get("required", ())
        others, other_wants = source.get("additionalProperties"), wanted.get("additionalProperties")
        closed = bool(has) and others in (None, False) and not source.keys() & (_MORE_PROPERTIES - {"additionalProperties"})
        for name in required:
            if closed and name not in has and name not in always:
                found.append(Conflict(_field(path, name), f'has no field "{name[:100]}"{_at(path)}'))
            elif name not in has and name in wants and isinstance(others, dict):
                found += self.compare(others, wants[name], _field(path, name), depth + 1)
        for name, part in has.items():
            if name in wants:
                found += self.compare(part, wants[name], _field(path, name), depth + 1)
            elif isinstance(other_wants, dict) and "patternProperties" not in wanted:
                found += self.compare(part, other_wants, _field(path, name), depth + 1)
        if isinstance(others, dict) and isinstance(other_wants, dict):
            found += self.compare(others, other_wants, f"{path}.*", depth + 1)
        if other_wants is False and "patternProperties" not in wanted:
            for name in always:
                if name not in wants:
                    found.append(Conflict(_field(path, name), f'has a field "{name[:100]}"{_at(path)}, which is not wanted'))
        return found

    def _arrays(self, source: dict[str, Any], wanted: dict[str, Any], path: str, depth: int) -> list[Conflict]:
        if source.get("maxItems", float("inf")) < wanted.get("minItems", 0):
            return [
                Conflict(path, f"has at most {source['maxItems']} items{_at(path)}, where at least {wanted['minItems']} are wanted")
            ]
        if source.get("minItems", 0) > wanted.get("maxItems", float("inf")):
            return [
                Conflict(path, f"has at least {source['minItems']} items{_at(path)}, where at most {wanted['maxItems']} are wanted")
            ]
        found: list[Conflict] = []
        has, wants = source.get("prefixItems", []), wanted.get("prefixItems", [])
        for position in range(min(max(len(has), len(wants)), _MAX_POSITIONS)):
            found += self._items(_item(source, position), _item(wanted, position), f"{path}[{position}]", depth)
        return found + self._items(source.get("items"), wanted.get("items"), f"{path}[]", depth)

    def _items(self, source: Any, wanted: Any, path: str, depth: int) -> list[Conflict]:
        if source is None or wanted is None or source is False or wanted is False:  # says nothing, or there is no such item
            return []
        return self.compare(source, wanted, path, depth + 1)


def _item(schema: dict[str, Any], position: int) -> Any:
    prefix = schema.get("prefixItems", [])
    return prefix[position] if position < len(prefix) else schema.get("items")


def _types(part: Any) -> list[str]:
    """The types that a value can have, by the names that the schema gives them."""
    if part is False:
        return []
    if not isinstance(part, dict):
        return [*_TYPES]
    if isinstance(part.get("type"), str):
        return [part["type"]]
    values = _finite(part)
    return [*_TYPES] if values is None else [*dict.fromkeys(_type_of(v) for v in values.values())]


def _common(some: Iterable[str], others: Iterable[str]) -> list[str]:
    """The types that both have. An integer is a number, and a number may be an integer."""

    def numbers(types: Iterable[str]) -> set[str]:
        return {"number" if t == "integer" else t for t in types}

    return sorted(numbers(some) & numbers(others))


def _finite(part: dict[str, Any]) -> dict[str, Any] | None:
    """The values, by their JSON texts, when there are only some."""
    values = [part["const"]] if "const" in part else part.get("enum")
    return None if values is None else {json.dumps(value, sort_keys=True)[:200]: value for value in values}


def _type_of(value: Any) -> str:
    match value:
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case dict():
            return "object"
        case _:
            return "null"


def _is_null(part: Any) -> bool:
    return _types(part) == ["null"]


def _listed(words: Iterable[str]) -> str:
    """Up to five of them."""
    each = [*dict.fromkeys(words)]
    if set(each) >= set(_TYPES):
        return "anything"
    return " or ".join([*each[:5], *(["…"] if len(each) > 5 else [])])


def _field(path: str, name: str) -> str:
    return f"{path}.{name[:100]}"


def _at(path: str) -> str:
    return "" if path == "$" else f" at {path[:200]}"
