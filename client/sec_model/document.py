"""Definitions as documents: what a YAML or JSON file says of a saga.

    name: trip
    nodes:
      - {name: hotel, action: book_hotel}
      - parallel:
          - {name: car, action: rent_car, retry: {max_attempts: 3}}
          - {name: flight, action: book_flight}
      - {name: confirm, action: confirm_trip, reads: [hotel, car, flight]}

A node has one of `action`, `constant`, `subsaga`, `signal`, `timer`; `reads` is a list of nodes or a mapping from the name seen by the action to
the node; `after` gives its edges where they are not simply "after the last stage". Unknown keys are errors.

      - {name: approval, signal: {deadline: 86400}}             waits for "secctl saga signal"
      - {name: cool_off, timer: 30}                             seconds, or an instant such as 2030-01-01T09:00:00Z
      - {name: pay, action: pay, undo: point_of_no_return}      or action, none_needed, confirm, manual
      - {name: ship, action: ship, deadline: {after_s: 60, then: pause}}
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, replace
from datetime import datetime
from enum import Enum
from typing import Any, TypeVar

from sec_model.builder import NodeSpec, Saga, action, constant, signal, subsaga, timer
from sec_model.definition import (
    DEFAULT_RETRY,
    DEFAULT_UNDO_RETRY,
    Deadline,
    Definition,
    DefinitionError,
    OnDeadline,
    RetryPolicy,
    UndoPolicy,
)

E = TypeVar("E", bound=Enum)

_COMMON = {"name", "label", "after"}
_KINDS: dict[str, set[str]] = {
    "action": {"action", "reads", "retry", "undo_retry", "undo", "deadline"},
    "constant": {"constant"},
    "signal": {"signal"},
    "timer": {"timer"},
    "subsaga": {"subsaga", "params_from"},
}
_ONE_OF = ", ".join(_KINDS)
_POLICY = {f.name for f in fields(RetryPolicy)}


def definition_from_document(document: Any) -> Definition:
    """The checked definition that a document describes. Raises `DefinitionError` with every problem of its form, or, when that is
    sound, of its graph."""
    problems: list[str] = []
    saga = _saga(document, "the document", problems)
    if problems or saga is None:
        raise DefinitionError(tuple(problems))
    return saga.build()


def _saga(document: Any, where: str, problems: list[str], default_name: str = "") -> Saga | None:
    if not isinstance(document, Mapping):
        problems.append(f"{_upper(where)} must be a mapping with the keys name and nodes.")
        return None
    _unknown_keys(document, {"name", "nodes"}, where, problems)
    name = document.get("name", default_name)
    if not isinstance(name, str) or not name:
        problems.append(f"{_upper(where)} needs a name.")
        name = "unnamed"
    nodes = document.get("nodes")
    if not isinstance(nodes, list) or not nodes:
        problems.append(f'{_upper(where)} needs a list "nodes" with at least one node.')
        return None
    saga = Saga(name)
    for position, item in enumerate(nodes, 1):
        _stage(saga, item, f"item {position} of {where}", problems)
    return saga


def _stage(saga: Saga, item: Any, where: str, problems: list[str]) -> None:
    if isinstance(item, Mapping) and "parallel" in item:
        _unknown_keys(item, {"parallel"}, where, problems)
        stage = item["parallel"]
        if not isinstance(stage, list) or not stage:
            problems.append(f'{_upper(where)} has an empty parallel stage: "parallel" must be a list of nodes.')
            return
        specs = [_node(node, f"node {n} of {where}", problems) for n, node in enumerate(stage, 1)]
        sound = [s for s in specs if s is not None]
        if sound:  # a stage emptied by its problems is not an empty stage
            saga.append_parallel(*sound)
        return
    spec = _node(item, where, problems)
    if spec is not None:
        saga.append(spec)


def _node(item: Any, where: str, problems: list[str]) -> NodeSpec | None:
    if not isinstance(item, Mapping):
        problems.append(f"{_upper(where)} must be a mapping with a name and one of {_ONE_OF}.")
        return None
    name = item.get("name")
    if not isinstance(name, str):
        problems.append(f"{_upper(where)} needs a name (a string).")
        return None
    where = f'node "{name}"'
    kinds = [kind for kind in _KINDS if kind in item]
    if len(kinds) != 1:
        problems.append(f"{_upper(where)} must have one of {_ONE_OF}; it has {' and '.join(kinds) or 'none'}.")
        return None
    kind = kinds[0]
    _unknown_keys(item, _COMMON | _KINDS[kind], where, problems)
    after, label = _names(item.get("after"), "after", where, problems), _text(item, "label", where, problems)
    if kind == "constant":
        try:
            return constant(name, item["constant"], after=after, label=label)
        except (TypeError, ValueError) as error:  # YAML knows dates and sets
            problems.append(f"{_upper(where)}: the constant cannot be written as JSON ({error}).")
            return None
    if kind == "signal":
        waits = item["signal"] if item["signal"] is not None else {}
        if not isinstance(waits, Mapping):
            problems.append(f'{_upper(where)}: "signal" must be a mapping, which may have a deadline: {{}}.')
            return None
        _unknown_keys(waits, {"deadline"}, f"the signal of {where}", problems)
        return signal(name, deadline=_deadline(waits.get("deadline"), where, problems), after=after, label=label)
    if kind == "timer":
        return _timer(name, item["timer"], after, label, problems)
    if kind == "subsaga":
        inner = _saga(item["subsaga"], f'the subsaga "{name}"', problems, default_name=name)
        params_from = _text(item, "params_from", where, problems)
        return None if inner is None else subsaga(name, inner, params_from=params_from, after=after, label=label)
    reads = item.get("reads", [])
    if not isinstance(reads, Mapping):
        reads = _names(reads, "reads", where, problems) or []
    return action(
        name,
        _text(item, "action", where, problems),
        reads={str(k): str(v) for k, v in reads.items()} if isinstance(reads, Mapping) else reads,
        after=after,
        label=label,
        retry=_policy(item.get("retry"), DEFAULT_RETRY, where, problems),
        undo_retry=_policy(item.get("undo_retry"), DEFAULT_UNDO_RETRY, where, problems),
        undo=_one_of(UndoPolicy, item.get("undo"), UndoPolicy.ACTION, "undo", where, problems),
        deadline=_deadline(item.get("deadline"), where, problems),
    )


def _timer(name: str, wait: Any, after: list[str] | None, label: str, problems: list[str]) -> NodeSpec | None:
    if isinstance(wait, str):  # JSON has no instants
        with suppress(ValueError):
            wait = datetime.fromisoformat(wait)
    if isinstance(wait, datetime) and wait.tzinfo is not None:
        return timer(name, wait, after=after, label=label)
    if _is_number(wait):
        return timer(name, _seconds(wait), after=after, label=label)
    problems.append(
        f'Node "{name}": "timer" must be a number of seconds, or an instant with its time zone such as 2030-01-01T09:00:00Z.'
    )
    return None


def _deadline(value: Any, where: str, problems: list[str]) -> Deadline | None:
    if value is None:
        return None
    given = {"after_s": value} if _is_number(value) else value
    if not isinstance(given, Mapping) or not _is_number(given.get("after_s")):
        problems.append(f'{_upper(where)}: "deadline" must be a number of seconds, or a mapping with after_s and then.')
        return None
    _unknown_keys(given, {"after_s", "then"}, f"the deadline of {where}", problems)
    return Deadline(_seconds(given["after_s"]), _one_of(OnDeadline, given.get("then"), OnDeadline.FAIL, "then", where, problems))


def _one_of(kind: type[E], value: Any, default: E, key: str, where: str, problems: list[str]) -> E:
    if value is None:
        return default
    for member in kind:
        if member.value == value:
            return member
    listed = ", ".join(member.value for member in kind)
    problems.append(f'{_upper(where)}: "{key}" must be one of {listed}, not "{value}".')
    return default


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _seconds(number: float) -> float:
    try:
        return float(number)
    except OverflowError:  # a whole number has no bound; this is out of every range
        return float("inf")


def _text(item: Mapping[Any, Any], key: str, where: str, problems: list[str]) -> str:
    value = item.get(key, "")
    if isinstance(value, str):
        return value
    problems.append(f'{_upper(where)}: "{key}" must be a string.')
    return ""


def _names(value: Any, key: str, where: str, problems: list[str]) -> list[str] | None:
    if value is None or (isinstance(value, list) and all(isinstance(v, str) for v in value)):
        return value
    problems.append(f'{_upper(where)}: "{key}" must be a list of names.')
    return None


def _policy(value: Any, default: RetryPolicy, where: str, problems: list[str]) -> RetryPolicy:
    if value is None:
        return default
    if not isinstance(value, Mapping):
        problems.append(f"{_upper(where)}: a retry policy must be a mapping.")
        return default
    _unknown_keys(value, _POLICY, f"the retry policy of {where}", problems)
    given = {k: v for k, v in value.items() if k in _POLICY}
    for key, number in given.items():
        if not (_is_number(number) and (key != "max_attempts" or isinstance(number, int))):
            problems.append(f"{_upper(where)}: {key} must be a {'whole ' if key == 'max_attempts' else ''}number.")
            return default
    return replace(default, **given)


def _unknown_keys(item: Mapping[Any, Any], known: set[str], where: str, problems: list[str]) -> None:
    listed = ", ".join(sorted(known))
    problems.extend(f'{_upper(where)} has an unknown key "{key}"; known are {listed}.' for key in item if key not in known)


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
