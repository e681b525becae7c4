"""Whether the parts of a saga fit: what each node that calls an action reads, against what the action wants."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sec_model.definition import JSON, Payload
from sec_model.fitting import conflicts
from sec_model.graph import Graph, GraphNode
from sec_model.schemas import ActionSchemas, Budget, DescribedAction, Schema
from sec_model.versions import newest

MAX_TOLD = 20
"""Problems that are told of one saga."""
_MAX_TOLD_OF_EDGE = 3
_OPAQUE = object()
PATIENT_STEPS = 1_000_000
"""Of a check in a program of the user's: seconds at most."""

Offered = Mapping[str, Sequence[ActionSchemas]]
"""By the names of actions, as they are offered or (`as_asked`) asked for: every way in which servers describe them. One that says nothing is a way too."""


@dataclass(frozen=True, slots=True)
class ParamsReader:
    """A node that gets the params of the whole saga, and whose action says what they must be. One for each action."""

    path: str
    action: str


@dataclass(frozen=True, slots=True)
class EdgeCheck:
    """What can be told of a saga before its params are known; the params are then of interest to `readers`."""

    problems: tuple[str, ...]
    readers: tuple[ParamsReader, ...]


def offered(actions: Iterable[DescribedAction]) -> dict[str, tuple[ActionSchemas, ...]]:
    """What is known of actions, those without schemas left out. Servers that offer the same action add up."""
    found: dict[str, list[ActionSchemas]] = {}
    for action in actions:
        found.setdefault(action.name, []).extend(action.schemas or (ActionSchemas(),))
    return {name: tuple(ways) for name, ways in found.items() if any(ways)}


def as_asked(graph: Graph, known: Offered, offers: frozenset[str]) -> dict[str, Sequence[ActionSchemas]]:
    """What is known of the actions of a saga, by what it asks for: that of the versions that it would be pinned to now."""
    chosen = ((asked, newest(asked, offers)) for asked in graph.action_names())
    return {asked: known[offer] for asked, offer in chosen if offer is not None and offer in known}


def edge_problems(graph: Graph, actions: Iterable[DescribedAction], params: Payload | None = None) -> list[str]:
    """All that does not fit, as whole sentences. `params` None: they are not known yet."""
    actions = list(actions)
    known, budget = as_asked(graph, offered(actions), frozenset(a.name for a in actions)), Budget(PATIENT_STEPS)
    check = check_edges(graph, known, budget)
    return [*check.problems, *([] if params is None else params_problems(check.readers, known, params, budget))][:MAX_TOLD]


def check_edges(graph: Graph, known: Offered, budget: Budget) -> EdgeCheck:
    """Checks everything but the params of the whole saga. What the budget does not reach is taken to fit."""
    checker = _Checker(graph, known, budget)
    problems: list[str] = []
    for problem in checker.problems():
        problems.append(problem)
        if len(problems) >= MAX_TOLD:
            break
    readers = {n.action.action: n.path for n in reversed(graph.nodes) if n.action is not None and n.params_of is None}
    wanting = (ParamsReader(path, action) for action, path in readers.items() if any(w.params for w in known.get(action, ())))
    return EdgeCheck(tuple(problems), tuple(wanting))


def params_problems(readers: Iterable[ParamsReader], known: Offered, params: Payload, budget: Budget) -> list[str]:
    """What is wrong with the params of a saga, as whole sentences. What the budget does not reach is taken to fit."""
    problems: list[str] = []
    for reader in readers:
        wants = [way.params for way in known.get(reader.action, ())]
        if not wants or not all(wants):
            continue
        ways = [_violations(params, schema, budget) for schema in wants if schema is not None]
        if all(ways):
            head = f'The params of the saga are not what action "{reader.action}" of node "{reader.path}" wants: '
            problems += [f"{head}wrong at {what}" for what in ways[0]] if params.data else [f"{head}there are none."]
    return problems[:MAX_TOLD]


class _Checker:
    def __init__(self, graph: Graph, known: Offered, budget: Budget) -> None:
        self._graph = graph
        self._known = known
        self._budget = budget
        self._fits: dict[tuple[int, int], list[str]] = {}

    def problems(self) -> Iterator[str]:
        for node in self._graph.nodes:
            ways = self._known.get(node.action.action, ()) if node.action is not None else ()
            if not ways or node.action is None:
                continue
            action = node.action.action
            inputs = dict(node.inputs)
            for name in dict.fromkeys(name for way in ways for name in way.inputs):
                if name not in inputs:
                    if all(name in way.inputs and name not in way.optional_inputs for way in ways):
                        yield f'Node "{node.path}" calls "{action}", which wants an input "{name[:100]}" that the node does not read.'
                    continue
                head = f'Input "{name[:100]}" of node "{node.path}" is not what action "{action}" wants: '
                yield from (head + what for what in self._edge(inputs[name], [way.inputs.get(name) for way in ways]))
            if node.params_of is not None:
                head = f'The params of node "{node.path}" are not what action "{action}" wants: '
                yield from (head + what for what in self._edge(node.params_of, [way.params for way in ways]))

    def _edge(self, number: int, wanted: Sequence[Schema | None]) -> list[str]:
        """What is wrong for every way in which the action is described, told of the first."""
        if not all(wanted):
            return []
        source = self._source(number)
        ways = [self._unfit(source, schema) for schema in wanted if schema is not None]
        return ways[0][:_MAX_TOLD_OF_EDGE] if all(ways) else []

    def _source(self, number: int) -> GraphNode:
        """The node whose output it is: that of a subsaga is its final node's."""
        node = self._graph.nodes[number]
        while node.output_of is not None:
            node = self._graph.nodes[node.output_of]
        return node

    def _unfit(self, source: GraphNode, wanted: Schema) -> list[str]:
        if source.constant is not None:
            return [
                f'the constant "{source.path}" is wrong at {what}' for what in _violations(source.constant, wanted, self._budget)
            ]
        if source.action is None:
            return []
        outputs = [way.output for way in self._known.get(source.action.action, ())]
        if not outputs or not all(outputs):
            return []
        ways = [self._conflicts(output, wanted) for output in outputs if output is not None]
        head = f'the output of node "{source.path}" (action "{source.action.action}") '
        return [f"{head}{what}." for what in ways[0]] if all(ways) else []

    def _conflicts(self, source: Schema, wanted: Schema) -> list[str]:
        pair = id(source), id(wanted)  # both are kept by the descriptions
        if pair not in self._fits:
            self._fits[pair] = [conflict.what for conflict in conflicts(source, wanted, self._budget)]
        return self._fits[pair]


def _violations(payload: Payload, wanted: Schema, budget: Budget) -> list[str]:
    try:
        value = _value(payload)
    except ValueError:
        return ["$: it is not JSON."]
    return [] if value is _OPAQUE else [f"{what}." for what in wanted.violations(value, budget)]


def _value(payload: Payload) -> Any:
    """The JSON value; `_OPAQUE` for payloads of other types, of which a schema says nothing. Raises `ValueError`."""
    if payload.content_type not in ("", JSON):
        return _OPAQUE
    try:
        return payload.value()
    except RecursionError:
        raise ValueError("nested too deep") from None
