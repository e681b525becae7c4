"""The actions that an action server offers: what the decorators collect."""

import inspect
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from sec_model.schemas import ActionSchemas, action_schemas
from sec_model.versions import OFFER_RULE, is_offer

from sec_client.kit.typed import AS_IT_IS, PARAMS, Signature, json_schema, output_schema

Handler = Callable[..., Any]
"""A plain function, called on a thread, or an async one, called on the event loop. It gets the `Call`, and then what its further parameters name."""
JsonSchema = Mapping[str, Any] | bool | str
"""A JSON Schema document, or its text."""
H = TypeVar("H", bound=Handler)


class Missing:
    """No undo was declared, neither a function nor None."""


MISSING = Missing()


@dataclass(frozen=True, slots=True)
class Given:
    """The schemas that a user gave; None and what is not in `inputs` is derived."""

    params: JsonSchema | None = None
    inputs: Mapping[str, JsonSchema] | None = None
    optional_inputs: Collection[str] = ()
    output: JsonSchema | None = None


class Action:
    """An action with its undo. Made by `ActionServer.action`; callable like the function it was made of."""

    def __init__(self, name: str, summary: str, do: Handler, undo: Handler | Missing | None, given: Given) -> None:
        self.name = name
        self.summary = summary
        self.do = do
        self._undo = undo
        self._given = given

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.do(*args, **kwargs)

    def undo(self, handler: H) -> H:
        """Decorates the undo action. It gets the same call, with what the action answered as `output`, where that is known.

        It runs after an action of which it is not known how far it came, so it must cope with one that did nothing. Its value is not used.
        """
        if not isinstance(self._undo, Missing):
            raise ValueError(f'The action "{self.name}" has an undo already.')
        self._undo = handler
        return handler

    @property
    def undo_declared(self) -> bool:
        return not isinstance(self._undo, Missing)

    @property
    def undo_handler(self) -> Handler | None:
        """None: nothing needs to be undone."""
        undo = None if isinstance(self._undo, Missing) else self._undo
        return undo.do if isinstance(undo, Action) else undo

    @cached_property
    def do_signature(self) -> Signature:
        """What the handler takes beyond the call. Raises `ValueError`."""
        return self._signature(self.do, "action", undo=False)

    @cached_property
    def undo_signature(self) -> Signature:
        """The same of the undo. Raises `ValueError`."""
        return self._signature(self.undo_handler or (lambda call: None), "undo", undo=True)

    @cached_property
    def schemas(self) -> tuple[ActionSchemas]:
        """What it takes and answers, as far as that is known; as the client's view of an action has it. Raises `ValueError`."""
        given, parameters = self._given, self.do_signature.parameters
        inputs = {p.name: _schema_of(p.type) for p in parameters.values() if p.name != PARAMS}
        optional = {p.name for p in parameters.values() if p.name in inputs and p.optional}
        inputs |= {name: _text(schema) for name, schema in (given.inputs or {}).items()}
        params = parameters.get(PARAMS)
        derived = "" if params is None or params.optional else _schema_of(params.type)
        try:
            described = action_schemas(
                derived if given.params is None else _text(given.params),
                inputs,
                optional | {*given.optional_inputs},
                output_schema(self.do) if given.output is None else _text(given.output),
            )
        except ValueError as error:
            raise ValueError(f'The action "{self.name}" cannot be described. {error}') from error
        return (described,)

    def _signature(self, handler: Handler, half: str, *, undo: bool) -> Signature:
        try:
            return Signature(handler, undo=undo)
        except ValueError as error:
            raise ValueError(f'The {half} of "{self.name}" cannot be called as it is declared. {error}') from error


class Actions:
    """Actions by name, and one by one when iterated. `action` is the decorator that an `ActionServer` has too."""

    def __init__(self) -> None:
        self._by_name: dict[str, Action] = {}

    def action(
        self,
        name: str | None = None,
        *,
        summary: str = "",
        undo: Handler | Missing | None = MISSING,
        params_schema: JsonSchema | None = None,
        input_schemas: Mapping[str, JsonSchema] | None = None,
        optional_inputs: Collection[str] = (),
        output_schema: JsonSchema | None = None,
    ) -> Callable[[Handler], Action]:
        """Decorates a function `(call: Call, …) -> value` as an action.

        `name` is the function's by default, and may have a version (`"charge@2.1"`; several versions are several actions); `summary` is the first line
        of its docstring. The undo is decorated with `.undo` of the result or given as
        `undo`; `undo=None` says that nothing needs to be undone. The value is JSON, bytes, a `Payload`, or what `msgspec` or pydantic make JSON
        of: dataclasses, TypedDicts, enums, dates, models.

        A further parameter gets the input of its name as its annotation says; one with a default is an optional input; `params` gets the
        params, and in an undo `output` what the action answered, or None. (One with a default and no annotation is the function's own.) A value
        that is not as annotated is a failure with the code "bad_input". Annotations also describe the action to the cluster; what is given as
        `…_schema` describes it instead of them, and is not checked when it is called.

        Raises `ValueError` for a name that is not valid or is taken.
        """

        def decorate(handler: Handler) -> Action:
            chosen = name or str(getattr(handler, "__name__", ""))
            if not is_offer(chosen):
                raise ValueError(f'"{chosen}" cannot name an action: use {OFFER_RULE}.')
            if chosen in self._by_name:
                raise ValueError(f'The action "{chosen}" is declared twice.')
            line = summary or (inspect.getdoc(handler) or "").partition("\n")[0]
            given = Given(params_schema, input_schemas, optional_inputs, output_schema)
            made = self._by_name[chosen] = Action(chosen, line, handler, undo, given)
            return made

        return decorate

    def check(self) -> None:
        """Raises `ValueError` when there are no actions, some of which it was not said how they are undone, or some that cannot be called as they
        are declared."""
        if not self._by_name:
            raise ValueError("The action server has no actions: decorate functions with @server.action().")
        missing = [a.name for a in self._by_name.values() if not a.undo_declared]
        if missing:
            listed = ", ".join(f'"{name}"' for name in missing)
            raise ValueError(
                f"It is not declared how these actions are undone: {listed}. Decorate a function with .undo, "
                "or declare undo=None where nothing needs to be undone."
            )
        for action in self:
            _ = action.schemas, action.undo_signature

    def __iter__(self) -> Iterator[Action]:
        return iter(self._by_name.values())

    @property
    def by_name(self) -> Mapping[str, Action]:
        return self._by_name


def _schema_of(kind: Any) -> str:
    return "true" if kind in AS_IT_IS else json_schema(kind, "validation")


def _text(schema: JsonSchema) -> str:
    return schema if isinstance(schema, str) else json.dumps(schema, allow_nan=False)
