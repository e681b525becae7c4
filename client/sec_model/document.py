"""Definitions as documents: what a YAML or JSON file says of a saga.

    name: trip
    nodes:
      - {name: hotel, action: book_hotel}
      - parallel:
          - {name: car, action: rent_car, retry: {max_attempts: 3}}
          - {name: flight, action: book_flight}
      - {name: confirm, action: confirm_trip, reads: [hotel, car, flight]}

A node has one of `action`, `constant`, `subsaga`; `reads` is a list of nodes or a mapping from the name seen by the action to
the node; `after` gives its edges where they are not simply "after the last stage". Unknown keys are errors.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from sec_model.builder import NodeSpec, Saga, action, constant, subsaga
from sec_model.definition import DEFAULT_RETRY, DEFAULT_UNDO_RETRY, Definition, DefinitionError, RetryPolicy

_COMMON = {"name", "label", "after"}
_KINDS: dict[str, set[str]] = {
    "action": {"action", "reads", "retry", "undo_retry"},
    "constant": {"constant"},
    "subsaga": {"subsaga", "params_from"},
}
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
        problems.append(f"{_upper(where)} must be a mapping with a name and one of action, constant, subsaga.")
        return None
    name = item.get("name")
    if not isinstance(name, str):
        problems.append(f"{_upper(where)} needs a name (a string).")
        return None
    where = f'node "{name}"'
    kinds = [kind for kind in _KINDS if kind in item]
    if len(kinds) != 1:
        problems.append(f"{_upper(where)} must have one of action, constant, subsaga; it has {' and '.join(kinds) or 'none'}.")
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
    )


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
        if isinstance(number, bool) or not isinstance(number, int if key == "max_attempts" else int | float):
            problems.append(f"{_upper(where)}: {key} must be a {'whole ' if key == 'max_attempts' else ''}number.")
            return default
    return replace(default, **given)


def _unknown_keys(item: Mapping[Any, Any], known: set[str], where: str, problems: list[str]) -> None:
    listed = ", ".join(sorted(known))
    problems.extend(f'{_upper(where)} has an unknown key "{key}"; known are {listed}.' for key in item if key not in known)


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
