"""Builds definitions in Python: stages one after the other as in steno, free edges where they are wanted.

trip = Saga("trip")
trip.append(action("hotel", "book_hotel"))
trip.append_parallel(action("car", "rent_car"), action("flight", "book_flight"))
trip.append(action("confirm", "confirm_trip", reads=["hotel", "car", "flight"]))
definition = trip.build()
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sec_model.definition import (
    DEFAULT_RETRY,
    DEFAULT_UNDO_RETRY,
    ActionNode,
    ConstantNode,
    Deadline,
    Definition,
    DefinitionError,
    Input,
    Kind,
    Node,
    Payload,
    RetryPolicy,
    SignalNode,
    SubsagaNode,
    TimerNode,
    UndoPolicy,
)
from sec_model.edges import edge_problems
from sec_model.graph import compile_graph
from sec_model.schemas import DescribedAction

Reads = Sequence[str] | Mapping[str, str]
"""Names of nodes, or a mapping from the name that the action sees to the name of the node."""


Seconds = float | timedelta
"""How long, as seconds or as a time."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """A node that is not in a saga yet. Made by `action`, `constant`, `signal`, `timer` and `subsaga`. `after` None means: after the last stage."""

    name: str
    kind: Kind
    reads: tuple[Input, ...]
    after: tuple[str, ...] | None
    label: str
    problems: tuple[str, ...] = ()
    """What its saga will be told by `build`."""


def action(
    name: str,
    action: str,
    *,
    reads: Reads = (),
    after: Sequence[str] | None = None,
    label: str = "",
    retry: RetryPolicy = DEFAULT_RETRY,
    undo_retry: RetryPolicy = DEFAULT_UNDO_RETRY,
    undo: UndoPolicy = UndoPolicy.ACTION,
    deadline: Seconds | Deadline | None = None,
) -> NodeSpec:
    """A node that calls an action, which sees the outputs named in `reads` and the params of the saga, nothing else.

    With `after` it starts when those nodes have succeeded (none: at once), wherever it is appended. `undo` says what takes its effect
    back, where that is not its undo action. When the `deadline` (from the start of the node) has passed the node is given up, or, if the
    `Deadline` says so, the saga is paused.
    """
    return NodeSpec(name, ActionNode(action, retry, undo_retry, undo, deadline_of(deadline)), _inputs(reads), _after(after), label)


def signal(
    name: str, *, deadline: Seconds | Deadline | None = None, after: Sequence[str] | None = None, label: str = ""
) -> NodeSpec:
    """A node that waits for an event from outside. Whoever knows of it sends the signal to the node's full path; what is sent is its output."""
    return NodeSpec(name, SignalNode(deadline_of(deadline)), (), _after(after), label)


def timer(name: str, wait: Seconds | datetime, *, after: Sequence[str] | None = None, label: str = "") -> NodeSpec:
    """A node that waits for so long from its start, or until an instant. Raises `ValueError` for an instant without a time zone."""
    if not isinstance(wait, datetime):
        return NodeSpec(name, TimerNode(after_s=_seconds(wait)), (), _after(after), label)
    if wait.tzinfo is None:
        raise ValueError(f'The timer "{name}" waits until {wait}, which has no time zone: give one, such as datetime.UTC.')
    return NodeSpec(name, TimerNode(until_us=(wait - _EPOCH) // timedelta(microseconds=1)), (), _after(after), label)


def constant(name: str, value: Any, *, after: Sequence[str] | None = None, label: str = "") -> NodeSpec:
    """A node whose output is known now: a JSON value or a `Payload`."""
    payload = value if isinstance(value, Payload) else Payload.json(value)
    return NodeSpec(name, ConstantNode(payload), (), _after(after), label)


def subsaga(
    name: str, saga: "Saga | Definition", *, params_from: str = "", after: Sequence[str] | None = None, label: str = ""
) -> NodeSpec:
    """A saga inlined as one node. It sees its params (the output of `params_from`, or those of the saga around it) and its own nodes only."""
    inner = saga.unchecked() if isinstance(saga, Saga) else saga
    problems = saga.problems if isinstance(saga, Saga) else ()
    return NodeSpec(name, SubsagaNode(inner, params_from), (), _after(after), label, problems)


class Saga:
    """A definition in the making. Mistakes are collected and told all at once by `build`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._nodes: list[Node] = []
        self._last_stage: tuple[str, ...] = ()
        self._problems: list[str] = []

    def append(self, node: NodeSpec) -> "Saga":
        """Adds a node behind the last stage; it is the last stage from here on."""
        return self._stage((node,))

    def append_parallel(self, *nodes: NodeSpec) -> "Saga":
        """Adds nodes that run beside each other behind the last stage; together they are the last stage from here on."""
        if not nodes:
            self._problems.append(f'A parallel stage of saga "{self.name}" is empty.')
        return self._stage(nodes)

    @property
    def problems(self) -> tuple[str, ...]:
        """The mistakes that only the builder can see, so far."""
        return tuple(self._problems)

    def unchecked(self) -> Definition:
        """What was appended so far."""
        return Definition(self.name, tuple(self._nodes))

    def build(self, *, actions: Iterable[DescribedAction] | None = None, params: Any = None) -> Definition:
        """The checked definition. Raises `DefinitionError` with every problem.

        With `actions`, what each node reads is also checked against what its action wants, as far as that is described: give
        `client.actions()`, or the `actions` of an `ActionServer` (of several: `[*hotels.actions, *cars.actions]`). `params` (a JSON value or a
        `Payload`) are checked with them; None: they are not known yet.
        """
        if self._problems:
            raise DefinitionError(self.problems)
        return check_definition(self.unchecked(), actions=actions, params=params)

    def _stage(self, specs: tuple[NodeSpec, ...]) -> "Saga":
        for spec in specs:
            self._problems.extend(spec.problems)
            after = self._last_stage if spec.after is None else spec.after
            self._nodes.append(Node(spec.name, spec.kind, after, spec.reads, spec.label))
        if specs:
            self._last_stage = tuple(spec.name for spec in specs)
        return self


def check_definition(definition: Definition, *, actions: Iterable[DescribedAction] | None = None, params: Any = None) -> Definition:
    """The definition, checked as `Saga.build` does it. Raises `DefinitionError`."""
    graph = compile_graph(definition)
    given = params if params is None or isinstance(params, Payload) else Payload.json(params)
    if actions is not None and (problems := edge_problems(graph, actions, given)):
        raise DefinitionError(tuple(problems))
    return definition


def _inputs(reads: Reads) -> tuple[Input, ...]:
    if isinstance(reads, str):
        raise TypeError(f"reads={reads!r} is a single string; give a list of names")
    if isinstance(reads, Mapping):
        return tuple(Input(name, node) for name, node in reads.items())
    return tuple(Input(node, node) for node in reads)


def deadline_of(deadline: Seconds | Deadline | None) -> Deadline | None:
    """What is given as a deadline: with no more than a time it fails what it is for."""
    if deadline is None or isinstance(deadline, Deadline):
        return deadline
    return Deadline(_seconds(deadline))


def _seconds(time: Seconds) -> float:
    return time.total_seconds() if isinstance(time, timedelta) else float(time)


def _after(after: Sequence[str] | None) -> tuple[str, ...] | None:
    if isinstance(after, str):
        raise TypeError(f"after={after!r} is a single string; give a list of names")
    return None if after is None else tuple(after)
