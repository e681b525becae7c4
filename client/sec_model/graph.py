"""Every rule that a definition must keep, and the flat graph that a run works on.

`compile_graph` inlines all subsagas: each becomes a *start* that waits for what the subsaga depends on, its own nodes, and an *end* that
carries its output. Starts, ends and constants are *instant*: they succeed by themselves when their parents have. Signals and timers *wait*.
Neither has an effect, so they are undone by themselves when their children are. Nodes are numbered; a parent may have a higher number than its child. All cost is linear in nodes and edges,
but for ancestor sets, which are bit sets.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from sec_model.commands import NodePath
from sec_model.definition import (
    ActionNode,
    ConstantNode,
    Deadline,
    Definition,
    DefinitionError,
    Input,
    Node,
    OnDeadline,
    Payload,
    SignalNode,
    SubsagaNode,
    TimerNode,
    UndoPolicy,
)
from sec_model.versions import ASKED_RULE, is_asked, only_offer

MAX_NODES = 10_000
"""Nodes of a saga, those of its subsagas included. Bounds what a start has to fold and a list has to show."""
MAX_DEPTH = 16
"""Subsagas within subsagas."""
MAX_PROBLEMS = 100
"""How many problems are told at once: an answer has to stay readable, and small."""
MAX_INPUT_NAME_LENGTH = 256
MAX_PATH_LENGTH = 256
"""Characters of a full path: idempotency keys carry it, and action servers store those."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NAME_RULE = 'letters, digits, ".", "_" and "-" (at most 128, the first a letter or a digit)'


class NodeKind(Enum):
    """`ACTION` nodes are dispatched, `SIGNAL` and `TIMER` nodes wait; all others are instant."""

    ACTION = "action"
    SIGNAL = "signal"
    TIMER = "timer"
    CONSTANT = "constant"
    SUBSAGA_START = "subsaga_start"
    SUBSAGA_END = "subsaga_end"


_WAITING = (NodeKind.SIGNAL, NodeKind.TIMER)
_WITH_RECORDS = (NodeKind.ACTION, *_WAITING)


@dataclass(frozen=True, slots=True)
class GraphNode:
    """A node of the flat graph. Parents and children are numbers of nodes.

    `path` is the full path; that of a subsaga's end is the subsaga's own, and that of its start ends in "/" and is never shown.
    `params_of` is the node whose output is the params (None: the saga's). `output_of` is the node whose output stands for a
    subsaga end's. `rank` is the longest way to the node within its (sub)saga. `forward_only` nodes stand behind a point of no return.
    """

    index: int
    path: NodePath
    label: str
    kind: NodeKind
    parents: tuple[int, ...]
    children: tuple[int, ...]
    rank: int
    action: ActionNode | None = None
    constant: Payload | None = None
    timer: TimerNode | None = None
    deadline: Deadline | None = None
    inputs: tuple[tuple[str, int], ...] = ()
    params_of: int | None = None
    output_of: int | None = None
    forward_only: bool = False

    # What follows from these, found out once: every record of every saga asks.

    instant: bool = field(init=False)
    """It is never dispatched and has no records of its own."""
    waits: bool = field(init=False)
    """It has records of its own and is never dispatched: it waits for a signal or an instant."""
    needs_no_undo: bool = field(init=False)
    """When the saga unwinds there is nothing to take back."""
    has_undo_action: bool = field(init=False)
    """When the saga unwinds there is an action to dispatch."""
    undone_by_hand: bool = field(init=False)
    """There is no undo action to dispatch: an operator takes the effect back."""
    needs_confirmation: bool = field(init=False)
    """The saga pauses before it."""
    point_of_no_return: bool = field(init=False)
    """Once it has succeeded the saga only goes forward."""
    never_given_up: bool = field(init=False)
    """An unknown outcome is not undone but tried again, for ever."""

    def __post_init__(self) -> None:
        undo = None if self.action is None else self.action.undo
        for name, follows in (
            ("instant", self.kind not in _WITH_RECORDS),
            ("waits", self.kind in _WAITING),
            ("needs_no_undo", undo is None or undo is UndoPolicy.NONE_NEEDED),
            ("has_undo_action", undo is UndoPolicy.ACTION),
            ("undone_by_hand", undo in (UndoPolicy.MANUAL, UndoPolicy.CONFIRM)),
            ("needs_confirmation", undo is UndoPolicy.CONFIRM),
            ("point_of_no_return", undo is UndoPolicy.POINT_OF_NO_RETURN),
            ("never_given_up", self.forward_only or undo is UndoPolicy.POINT_OF_NO_RETURN),
        ):
            object.__setattr__(self, name, follows)


@dataclass(frozen=True, slots=True)
class Graph:
    """A checked definition, flat. Shared by all sagas made from it, so never changed."""

    name: str
    nodes: tuple[GraphNode, ...]
    final: int
    by_path: dict[str, int]
    """Full path → number, for all that people may name: no subsaga starts."""
    points_of_no_return: tuple[int, ...] = ()
    parent_counts: tuple[int, ...] = field(init=False)
    """Of each node."""
    roots: tuple[int, ...] = field(init=False)
    """Nodes without parents."""
    confirmed: tuple[int, ...] = field(init=False)
    """Nodes before which the saga pauses."""
    to_pin: tuple[str, ...] = field(init=False)
    """Actions, as they are asked for, that several offers may fit."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "parent_counts", tuple(len(node.parents) for node in self.nodes))
        object.__setattr__(self, "roots", tuple(node.index for node in self.nodes if not node.parents))
        object.__setattr__(self, "confirmed", tuple(node.index for node in self.nodes if node.needs_confirmation))
        object.__setattr__(self, "to_pin", tuple(sorted(name for name in self.action_names() if only_offer(name) is None)))

    def index_of(self, path: str) -> int:
        """The number of the node with this full path. Raises `KeyError`."""
        return self.by_path[path]

    def action_names(self) -> frozenset[str]:
        """The actions that this saga calls, as it asks for them."""
        return frozenset(n.action.action for n in self.nodes if n.action is not None)


def compile_graph(definition: Definition) -> Graph:
    """Checks a definition and inlines its subsagas. Raises `DefinitionError` with everything that is wrong with it."""
    _raise_any(_Checker().check(definition))
    graph = _Compiler(definition).graph()
    _raise_any(_no_return_problems(graph))
    return graph


def _raise_any(problems: list[str]) -> None:
    if len(problems) > MAX_PROBLEMS:
        problems = [*problems[:MAX_PROBLEMS], f"There are {len(problems) - MAX_PROBLEMS} more problems."]
    if problems:
        raise DefinitionError(tuple(problems))


def is_name(text: str) -> bool:
    """Whether a text may name a saga, a definition or a node."""
    return _NAME.fullmatch(text) is not None


def name_rule() -> str:
    """What `is_name` asks for, in words."""
    return _NAME_RULE


class _Checker:
    """Collects the problems of a definition and of the subsagas within."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.nodes = 0

    def check(self, definition: Definition) -> list[str]:
        self._saga(definition, path="", depth=0)
        if self.nodes > MAX_NODES:
            self.problems.append(f'Saga "{definition.name}" has {self.nodes} nodes; at most {MAX_NODES} are allowed.')
        return self.problems

    def _saga(self, saga: Definition, path: str, depth: int) -> None:
        where = f'subsaga "{path[:-1]}"' if path else f'saga "{saga.name}"'
        if not is_name(saga.name):
            self.problems.append(f'The name "{saga.name}" of {where} is not valid: use {_NAME_RULE}.')
        if depth > MAX_DEPTH:
            self.problems.append(f"The {where} is nested more than {MAX_DEPTH} deep.")
            return
        if not saga.nodes:
            self.problems.append(f"The {where} has no nodes.")
            return
        self.nodes += len(saga.nodes)
        names: dict[str, Node] = {}
        for node in saga.nodes:
            full = path + node.name
            if not is_name(node.name):
                self.problems.append(f'The node name "{full}" is not valid: use {_NAME_RULE}.')
            elif len(full) > MAX_PATH_LENGTH:
                self.problems.append(f'The path of node "{full}" is longer than {MAX_PATH_LENGTH} characters.')
            if node.name in names:
                self.problems.append(f'The node name "{node.name}" is used twice in {where}.')
            names[node.name] = node
        edges_known = True
        for node in saga.nodes:
            for parent in node.depends_on:
                if parent not in names:
                    edges_known = False
                    self.problems.append(f'Node "{path}{node.name}" depends on "{parent}", which is not a node of {where}.')
        for node in saga.nodes:
            self._kind(node, path, depth)
        # Ancestor sets grow with the square of the nodes, so that a saga beyond the limit is told about that and not looked into.
        if edges_known and len(names) == len(saga.nodes) and self.nodes <= MAX_NODES:
            self._edges(saga, names, where, path)

    def _kind(self, node: Node, path: str, depth: int) -> None:
        full = path + node.name
        match node.kind:
            case ActionNode(action, retry, undo_retry, _, deadline):
                if not is_asked(action):
                    self.problems.append(f'Node "{full}" calls the action "{action}", which is not a valid name: use {ASKED_RULE}.')
                self.problems += [f'The retry policy of node "{full}" is not valid: {p}.' for p in retry.problems()]
                self.problems += [f'The undo retry policy of node "{full}" is not valid: {p}.' for p in undo_retry.problems()]
                self._deadline(full, deadline)
            case SignalNode(deadline):
                self._deadline(full, deadline)
            case TimerNode():
                if node.kind.problem():
                    self.problems.append(f'The timer "{full}" {node.kind.problem()}.')
            case SubsagaNode(saga, _):
                self._saga(saga, f"{full}/", depth + 1)
            case ConstantNode():
                pass

    def _deadline(self, full: str, deadline: Deadline | None) -> None:
        if deadline is not None and deadline.problem():
            self.problems.append(f'The deadline of node "{full}" is {deadline.problem()}.')

    def _edges(self, saga: Definition, names: dict[str, Node], where: str, path: str) -> None:
        order, left = topological_order({n.name: n.depends_on for n in saga.nodes})
        if left:
            # What is only behind a circle is not part of it: seen from the other end it comes first.
            behind: dict[str, list[str]] = {name: [] for name in left}
            for name in left:
                for parent in behind.keys() & names[name].depends_on:
                    behind[parent].append(name)
            circle = topological_order(behind)[1]
            listed = ", ".join(f'"{path}{name}"' for name in circle)
            alone = f"The node {listed} of {where} depends on itself."
            self.problems.append(alone if len(circle) == 1 else f"The nodes {listed} of {where} depend on each other in a circle.")
            return
        ancestors = _ancestor_sets(order, {n.name: n.depends_on for n in saga.nodes})
        bit = {name: 1 << i for i, name in enumerate(order)}
        for node in saga.nodes:
            full = path + node.name
            reads = [(i.node, f'reads the output of "{i.node}"') for i in node.inputs]
            if isinstance(node.kind, SubsagaNode) and node.kind.params_from:
                reads.append((node.kind.params_from, f'is a subsaga whose params come from "{node.kind.params_from}"'))
            for source, what in reads:
                if source not in names:
                    self.problems.append(f'Node "{full}" {what}, which is not a node of {where}.')
                elif not ancestors[node.name] & bit[source]:
                    self.problems.append(f'Node "{full}" {what}, which is not one of its ancestors: let it depend on "{source}".')
            seen = Counter(i.name for i in node.inputs)
            self.problems += [
                f'Node "{full}" gives an input the name "{name[:MAX_INPUT_NAME_LENGTH]}"; use 1 to {MAX_INPUT_NAME_LENGTH} characters.'
                for name in seen
                if not 1 <= len(name) <= MAX_INPUT_NAME_LENGTH
            ]
            self.problems += [f'Node "{full}" has two inputs named "{name}".' for name in sorted(n for n in seen if seen[n] > 1)]
            if node.inputs and not isinstance(node.kind, ActionNode):
                self.problems.append(f'Node "{full}" reads outputs, but only a node that calls an action can.')
        with_children = {parent for n in saga.nodes for parent in n.depends_on}
        finals = [n.name for n in saga.nodes if n.name not in with_children]
        if len(finals) != 1:
            listed = ", ".join(f'"{path}{name}"' for name in finals)
            self.problems.append(
                f"The {where} must end in one final node, but nothing depends on any of {listed}: add a node that depends on them."
            )


@dataclass(slots=True)
class _Row:
    """A node whose references are still full paths (that of a subsaga's start ends in "/")."""

    path: str
    label: str
    kind: NodeKind
    rank: int
    params_of: str | None
    parents: list[str]
    inputs: tuple[Input, ...] = ()
    action: ActionNode | None = None
    constant: Payload | None = None
    timer: TimerNode | None = None
    deadline: Deadline | None = None
    output_of: str | None = None


class _Compiler:
    """Inlines the subsagas of a definition that has no problems."""

    def __init__(self, definition: Definition) -> None:
        self.name = definition.name
        self.rows: list[_Row] = []
        self.final = self._inline(definition, prefix="", entry=None, params_of=None)

    def _inline(self, saga: Definition, prefix: str, entry: str | None, params_of: str | None) -> str:
        """Adds the nodes of a (sub)saga and returns the path of its final one. Its first nodes get `entry` as their parent."""
        ranks = _ranks(saga)
        for node in saga.nodes:
            path, rank = prefix + node.name, ranks[node.name]
            parents = [prefix + p for p in dict.fromkeys(node.depends_on)] or ([] if entry is None else [entry])
            match node.kind:
                case ActionNode(action, deadline=deadline):
                    inputs = tuple(Input(i.name, prefix + i.node) for i in node.inputs)
                    row = _Row(path, node.label or action, NodeKind.ACTION, rank, params_of, parents, inputs=inputs)
                    row.action, row.deadline = node.kind, deadline
                    self.rows.append(row)
                case SignalNode(deadline):
                    label = node.label or node.name
                    self.rows.append(_Row(path, label, NodeKind.SIGNAL, rank, params_of, parents, deadline=deadline))
                case TimerNode():
                    label = node.label or node.name
                    self.rows.append(_Row(path, label, NodeKind.TIMER, rank, params_of, parents, timer=node.kind))
                case ConstantNode(value):
                    self.rows.append(
                        _Row(path, node.label or node.name, NodeKind.CONSTANT, rank, params_of, parents, constant=value)
                    )
                case SubsagaNode(inner, params_from):
                    label, start = node.label or node.name, f"{path}/"
                    end = _Row(path, label, NodeKind.SUBSAGA_END, rank, params_of, [])
                    self.rows += [end, _Row(start, label, NodeKind.SUBSAGA_START, rank, params_of, parents)]
                    end.output_of = self._inline(inner, start, start, prefix + params_from if params_from else params_of)
                    end.parents.append(end.output_of)
        return prefix + _final(saga)

    def graph(self) -> Graph:
        number = {row.path: i for i, row in enumerate(self.rows)}
        children: list[list[int]] = [[] for _ in self.rows]
        for i, row in enumerate(self.rows):
            for parent in row.parents:
                children[number[parent]].append(i)
        points = tuple(i for i, row in enumerate(self.rows) if row.action and row.action.undo is UndoPolicy.POINT_OF_NO_RETURN)
        behind = _reached(points, children)
        nodes = tuple(
            GraphNode(
                index=i,
                path=NodePath(row.path),
                label=row.label,
                kind=row.kind,
                parents=tuple(number[p] for p in row.parents),
                children=tuple(children[i]),
                rank=row.rank,
                action=row.action,
                constant=row.constant,
                timer=row.timer,
                deadline=row.deadline,
                inputs=tuple((i.name, number[i.node]) for i in row.inputs),
                params_of=None if row.params_of is None else number[row.params_of],
                output_of=None if row.output_of is None else number[row.output_of],
                forward_only=i in behind,
            )
            for i, row in enumerate(self.rows)
        )
        by_path = {path: i for path, i in number.items() if not path.endswith("/")}
        return Graph(self.name, nodes, number[self.final], by_path, points)


def _no_return_problems(graph: Graph) -> list[str]:
    """What is wrong with points of no return: beside the first of them and before it is passed nothing may fail, nor behind it."""
    problems = [
        f'Node "{n.path}" is {"a" if n.point_of_no_return else "behind a"} point of no return, so that a deadline cannot make it fail: '
        f"let its deadline pause the saga."
        for n in graph.nodes
        if n.never_given_up and n.deadline is not None and n.deadline.then is OnDeadline.FAIL
    ]
    first = [p for p in graph.points_of_no_return if not graph.nodes[p].forward_only]
    for point in first[:MAX_PROBLEMS]:
        before = _reached((point,), [n.parents for n in graph.nodes])
        problems += [
            f'Node "{graph.nodes[point].path}" is a point of no return, but node "{n.path}" stands beside it and may still fail: '
            f"let one depend on the other."
            for n in graph.nodes
            if n.index != point and n.index not in before and not n.forward_only and _may_fail(n)
        ]
    return problems


def _may_fail(node: GraphNode) -> bool:
    if node.kind is NodeKind.SIGNAL:
        return node.deadline is not None and node.deadline.then is OnDeadline.FAIL
    return node.kind is NodeKind.ACTION


def _reached(starts: Iterable[int], edges: Sequence[Iterable[int]]) -> set[int]:
    """The nodes to which edges lead from any of `starts`."""
    found: set[int] = set()
    todo = list(starts)
    while todo:
        for node in edges[todo.pop()]:
            if node not in found:
                found.add(node)
                todo.append(node)
    return found


def _final(saga: Definition) -> str:
    """The node that nothing depends on; a checked definition has one."""
    with_children = {parent for node in saga.nodes for parent in node.depends_on}
    return next(node.name for node in saga.nodes if node.name not in with_children)


def topological_order(depends_on: Mapping[str, Sequence[str]]) -> tuple[list[str], list[str]]:
    """Kahn's algorithm: (names so that parents come first and the order of insertion is kept where it can be, names on or behind a cycle)."""
    left = {name: len(set(parents)) for name, parents in depends_on.items()}
    children: dict[str, list[str]] = {name: [] for name in depends_on}
    for name, parents in depends_on.items():
        for parent in set(parents):
            children[parent].append(name)
    ready = [name for name, count in left.items() if count == 0]
    order: list[str] = []
    for name in ready:
        order.append(name)
        for child in children[name]:
            left[child] -= 1
            if left[child] == 0:
                ready.append(child)
    return order, [name for name in depends_on if left[name] > 0]


def _ancestor_sets(order: list[str], depends_on: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Of each name its ancestors, as bits numbered by the order."""
    bit = {name: 1 << i for i, name in enumerate(order)}
    ancestors: dict[str, int] = {}
    for name in order:
        mine = 0
        for parent in depends_on[name]:
            mine |= ancestors[parent] | bit[parent]
        ancestors[name] = mine
    return ancestors


def _ranks(saga: Definition) -> dict[str, int]:
    """The longest way to each node."""
    depends_on = {n.name: n.depends_on for n in saga.nodes}
    ranks: dict[str, int] = {}
    for name in topological_order(depends_on)[0]:
        ranks[name] = max((ranks[p] + 1 for p in depends_on[name]), default=0)
    return ranks
