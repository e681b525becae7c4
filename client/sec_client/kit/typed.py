"""Typed handlers: what the annotations of a handler say, as JSON Schema, and the values of a call as they ask for.

Dataclasses, TypedDicts, enums, unions and the built-in types are those of `msgspec`; pydantic models speak for themselves.
"""

import functools
import inspect
import json
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

import msgspec
from sec_model import Payload
from sec_model.definition import JSON

from sec_client.kit.call import Call

PARAMS = "params"
"""The parameter that gets the params of the saga."""
OUTPUT = "output"
"""In an undo: the parameter that gets what the action answered, or None."""
AS_IT_IS = (Any, bytes, Payload)
"""Types of which no schema is derived."""
_MODULE = re.compile(r"""(?<!['"\w.])(?:\w+\.)+(?=[A-Za-z_])""")


class BadInput(Exception):
    """What a call brought is not what the handler's annotations say. The message is a sentence."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a handler beyond the call."""

    name: str
    type: Any
    optional: bool
    decoder: "msgspec.json.Decoder[Any] | None"

    def decode(self, payload: Payload) -> Any:
        """Raises `BadInput`."""
        try:
            if self.type is Payload:
                return payload
            if self.type is Any:
                return payload.value()
            if (payload.content_type not in ("", JSON)) != (self.type is bytes):
                raise ValueError(f"it is {payload.content_type or JSON}")
            return payload.data if self.decoder is None else self.decoder.decode(payload.data or b"null")
        except (ValueError, RecursionError) as error:
            raise BadInput(f'What came as "{self.name}" is not {type_name(self.type)}: {error}.') from error


class Signature:
    """What a handler takes beyond the call: inputs by their names, `params`, and in an undo `output`."""

    def __init__(self, handler: Callable[..., Any], *, undo: bool) -> None:
        """Raises `ValueError` for a parameter that cannot be given, or whose type cannot be decoded."""
        self.parameters: dict[str, Parameter] = {}
        self.is_async = inspect.iscoroutinefunction(handler)
        """It is called on the event loop, and not on a thread."""
        self._undo = undo
        given = _further(handler)
        hints = _hints(handler) if given else {}
        for parameter in given:
            name = parameter.name
            if parameter.kind is parameter.POSITIONAL_ONLY:
                raise ValueError(f'The parameter "{name}" is positional-only, and would be given by its name.')
            kind = hints.get(name, Any)
            made = Parameter(name, kind, parameter.default is not parameter.empty, _decoder(name, kind))
            if undo and name == OUTPUT and kind is not Any:
                _check_takes_none(made)
            self.parameters[name] = made

    def arguments(self, call: Call) -> dict[str, Any]:
        """What to give to the handler beside the call, by name. Raises `BadInput`."""
        found: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            if self._undo and name == OUTPUT:
                found[name] = None if call.output_payload is None else parameter.decode(call.output_payload)
            elif name == PARAMS:
                if call.params_payload.data or not parameter.optional:
                    found[name] = parameter.decode(call.params_payload)
            elif name in call.inputs:
                found[name] = parameter.decode(call.inputs.payload(name))
            elif not parameter.optional:
                raise BadInput(f'The node reads no input "{name}".')
        return found


def output_schema(handler: Callable[..., Any]) -> str:
    """JSON Schema of what a handler says that it returns; empty when it does not say, or in a way that no schema describes."""
    try:
        hints = _hints(handler)
    except ValueError:
        return ""
    kind = hints.get("return", Any)
    try:
        return "" if kind in AS_IT_IS else json_schema(kind, "serialization")
    except TypeError:
        return ""


def json_schema(kind: Any, mode: str) -> str:
    """JSON Schema of a type, as `mode` "validation" (what is taken) or "serialization" (what is answered). Raises `TypeError` for a type that has none."""
    definitions: dict[str, Any] = {}

    def describe(custom: Any) -> dict[str, Any]:
        if not _is_model(custom):
            raise NotImplementedError
        schema: dict[str, Any] = custom.model_json_schema(ref_template="#/$defs/{model}", mode=mode)
        definitions.update(schema.pop("$defs", {}))
        return schema

    schema = msgspec.json.schema(kind, schema_hook=describe)
    if definitions:
        both = schema.get("$defs", {}).keys() & definitions.keys()
        if both:
            raise TypeError(f'two types are called "{min(both)}"')
        schema["$defs"] = {**schema.get("$defs", {}), **definitions}
    return json.dumps(schema, separators=(",", ":"))


def plain(value: Any) -> Any:
    """A value of these types out of what JSON has. Raises `TypeError`."""
    return msgspec.to_builtins(value, str_keys=True, enc_hook=_to_json)


def type_name(kind: Any) -> str:
    """As it is written in code, without modules."""
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else _MODULE.sub("", str(kind))


def _further(handler: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters behind the first, which gets the call."""
    try:
        parameters = [*inspect.signature(handler).parameters.values()]
    except (TypeError, ValueError):  # some callables written in C do not say
        return []
    named = [p for p in parameters[1:] if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return [p for p in named if p.annotation is not p.empty or p.default is p.empty]


def _hints(handler: Callable[..., Any]) -> Mapping[str, Any]:
    target: Any = inspect.unwrap(handler)
    while isinstance(target, functools.partial):
        target = inspect.unwrap(target.func)
    if not isinstance(target, types.FunctionType | types.MethodType):
        target = type(target).__call__
    try:
        return get_type_hints(target, include_extras=True)
    except (NameError, TypeError, AttributeError) as error:
        raise ValueError(f"Its annotations cannot be resolved: {error}.") from error


def _decoder(name: str, kind: Any) -> "msgspec.json.Decoder[Any] | None":
    if kind in AS_IT_IS:
        return None
    try:
        json_schema(kind, "validation")
        return msgspec.json.Decoder(kind, dec_hook=_from_json)
    except TypeError as error:
        lines = str(error).splitlines()
        raise ValueError(f'The type of the parameter "{name}" cannot be read from JSON: {lines[-1].rstrip(".")}.') from error


def _check_takes_none(output: Parameter) -> None:
    try:
        output.decode(Payload.json(None))
    except BadInput:
        text = f'The parameter "{OUTPUT}" must allow None, as nobody may know what the action answered: write {type_name(output.type)} | None.'
        raise ValueError(text) from None


def _is_model(kind: Any) -> bool:
    """A pydantic model, whether pydantic is there or not."""
    return isinstance(kind, type) and hasattr(kind, "model_json_schema") and hasattr(kind, "model_validate")


def _from_json(kind: Any, value: Any) -> Any:
    if not _is_model(kind):
        raise NotImplementedError
    try:
        return kind.model_validate(value)
    except ValueError as error:
        errors: list[Any] = error.errors() if hasattr(error, "errors") else []  # pydantic's text has many lines
        raise ValueError("; ".join(f"{'.'.join(map(str, e['loc'])) or '$'}: {e['msg']}" for e in errors) or str(error)) from error


def _to_json(value: Any) -> Any:
    if _is_model(type(value)):
        return value.model_dump(mode="json", by_alias=True)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
