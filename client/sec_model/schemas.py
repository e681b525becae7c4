"""What an action takes and answers, as JSON Schema. How a saga is checked against it stands in `sec_model.fitting`."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import unquote

MAX_SCHEMA_BYTES = 64 * 1024
"""Of all schemas of one action: SEC nodes keep them in memory, and registrations in etcd."""
MAX_SCHEMA_DEPTH = 64
"""Of arrays and objects within a schema: whoever walks through it does so by recursion."""

DRAFT = "https://json-schema.org/draft/2020-12/schema"
_VALUES = ("const", "default", "enum", "examples")
"""Keywords that hold values, in which nothing is a schema."""
_NAMED = ("$defs", "definitions", "dependentSchemas", "patternProperties", "properties")
"""Keywords that hold schemas by names."""


class SchemaError(ValueError):
    """A schema that cannot be used. The message is a whole sentence."""


class TooMuch(Exception):
    """The budget of a check is spent."""


class Budget:
    """Steps that a check may take: keywords applied, parts compared, items and properties looked through. Each takes some microseconds."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    def spend(self, steps: int = 1) -> None:
        """Raises `TooMuch`, from then on always, when so many are not left."""
        self._left -= steps
        if self._left < 0:
            raise TooMuch


class Schema:
    """A JSON Schema document that was checked. Equal ones have the same text."""

    def __init__(self, text: str) -> None:
        """Raises `SchemaError` for a text that is no JSON Schema of draft 2020-12 within the bounds, or refers to other documents."""
        from sec_model.validation import schema_fault  # the library takes long to import, and most programs have no schemas

        if len(text.encode()) > MAX_SCHEMA_BYTES:
            raise SchemaError(f"It has {len(text.encode())} bytes; at most {MAX_SCHEMA_BYTES} are allowed.")
        try:
            self.document: Any = json.loads(text)
        except RecursionError:
            raise SchemaError(f"It is nested more than {MAX_SCHEMA_DEPTH} deep.") from None
        except ValueError as error:
            raise SchemaError(f"It is not JSON: {error}.") from None
        self.text = text
        for problem in _form_problems(self.document, self.document):
            raise SchemaError(problem)
        if fault := schema_fault(self.document):
            raise SchemaError(f"It is no JSON Schema of draft 2020-12, at {fault}.")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schema) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Schema({self.text[:80]!r})"

    def violations(self, value: Any, budget: Budget) -> list[str]:
        """What is certainly wrong with a JSON value, each as "$.path: what"; see `sec_model.validation` for what is not looked at."""
        from sec_model.validation import violations

        return violations(self.document, value, budget)

    def resolve(self, pointer: str) -> Any:
        """The part that a reference within the document means. Raises `KeyError`."""
        return _resolve(self.document, pointer)


@dataclass(frozen=True, slots=True)
class ActionSchemas:
    """What an action takes (the params of its (sub)saga, and inputs by name) and answers. None says nothing.

    An input that is listed and not in `optional_inputs` must be read by each node that calls the action.
    """

    params: Schema | None = None
    inputs: Mapping[str, Schema] = field(default_factory=dict)
    optional_inputs: frozenset[str] = frozenset()
    output: Schema | None = None

    def __bool__(self) -> bool:
        """Says anything at all."""
        return bool(self.params or self.inputs or self.output)


class DescribedAction(Protocol):
    """An action of which it is known what it takes and answers, in one version or several."""

    @property
    def name(self) -> str: ...

    @property
    def schemas(self) -> Sequence[ActionSchemas]: ...


def action_schemas(
    params: str = "", inputs: Mapping[str, str] | None = None, optional_inputs: Collection[str] = (), output: str = ""
) -> ActionSchemas:
    """Schemas out of their texts; an empty one says nothing. Raises `SchemaError` that names the part that is wrong."""
    inputs = inputs or {}
    size = sum(len(text.encode()) for text in (params, output, *inputs, *inputs.values()))
    if size > MAX_SCHEMA_BYTES:
        raise SchemaError(f"The schemas have {size} bytes together; at most {MAX_SCHEMA_BYTES} are allowed.")
    if unknown := sorted(set(optional_inputs) - inputs.keys()):
        raise SchemaError(f'The optional input "{unknown[0][:100]}" is not among the inputs.')
    return ActionSchemas(
        _part("schema of the params", params) if params else None,
        {name: _part(f'schema of the input "{name[:100]}"', text or "true") for name, text in inputs.items()},
        frozenset(optional_inputs),
        _part("schema of the output", output) if output else None,
    )


def _part(what: str, text: str) -> Schema:
    try:
        return Schema(text)
    except SchemaError as error:
        raise SchemaError(f"The {what} is not valid. {error}") from None


def _form_problems(part: Any, root: Any, depth: int = 0, *, names: bool = False) -> Iterator[str]:
    """What the draft allows and we do not. `names`: the keys of this mapping are names and not keywords."""
    if depth > MAX_SCHEMA_DEPTH:
        yield f"It is nested more than {MAX_SCHEMA_DEPTH} deep."
        return
    if isinstance(part, list):
        for item in part:
            yield from _form_problems(item, root, depth + 1)
    if not isinstance(part, dict):
        return
    for key, value in part.items():
        if not names and key in _VALUES:
            continue
        if not names and isinstance(value, str):
            if key == "$ref" and not _resolves(root, value):
                yield f'Its reference "{value[:200]}" leads nowhere: write it as a JSON pointer into the same document ("#/$defs/Name").'
            elif key in ("$id", "$schema") and part is not root:
                yield f'It has a part with a "{key}" of its own: that may only stand at the top.'
            elif key == "$schema" and value.rstrip("#") != DRAFT:
                yield f'It says that it is of "{value[:200]}": it must be of {DRAFT}.'
        yield from _form_problems(value, root, depth + 1, names=not names and key in _NAMED)


def _resolves(root: Any, reference: str) -> bool:
    try:
        _resolve(root, reference)
    except KeyError:
        return False
    return True


def _resolve(root: Any, reference: str) -> Any:
    if reference == "#":
        return root
    if not reference.startswith("#/"):
        raise KeyError(reference)
    part = root
    for step in unquote(reference[2:]).split("/"):
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(part, dict) and step in part:
            part = part[step]
        elif isinstance(part, list) and step.isdecimal() and len(step) < 9 and int(step) < len(part):
            part = part[int(step)]
        else:
            raise KeyError(reference)
    return part
