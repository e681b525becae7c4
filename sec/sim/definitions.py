"""Random saga definitions: stages and free edges, constants, subsagas within subsagas, nodes listed before their parents, signals, timers,
deadlines, and every policy for what has no undo action."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from random import Random

from sec_model import (
    ActionNode,
    ConstantNode,
    Deadline,
    Definition,
    DefinitionError,
    Input,
    Node,
    OnDeadline,
    Payload,
    RetryPolicy,
    SignalNode,
    SubsagaNode,
    TimerNode,
    UndoPolicy,
    compile_graph,
)
from sec_model.versions import has_version, only_offer

_UNDO = [*[UndoPolicy.ACTION] * 6, UndoPolicy.NONE_NEEDED, UndoPolicy.CONFIRM, UndoPolicy.MANUAL]
_VERSIONS = ("", "@2", "@2.1", "@=2")
"""What nodes ask for, in turn. See `offers`."""
_SHAPES = ["stages", "edges", "chain"]


@dataclass(frozen=True)
class Palette:
    """What the nodes of a random definition are made of: retry policies, deadlines, timers."""

    policies: tuple[RetryPolicy, ...]
    deadlines: tuple[Deadline | None, ...]
    timers: tuple[TimerNode, ...]


def _deadlines(*after_s: float) -> tuple[Deadline | None, ...]:
    return (None, None, None, *(Deadline(each_s, then) for each_s in after_s for then in OnDeadline))


PALETTE = Palette(
    (RetryPolicy(max_attempts=1), RetryPolicy(max_attempts=2), RetryPolicy(max_attempts=5)),
    _deadlines(1.0, 10.0, 30.0),
    (TimerNode(after_s=5.0), TimerNode(after_s=20.0), TimerNode(until_us=10_000_000)),
)


def random_definition(random: Random, max_nodes: int, *, plain: bool = False, palette: Palette = PALETTE) -> Definition:
    """A valid definition of at most so many nodes, those of its subsagas included. A plain one has nothing that waits, and an undo action
    for every action."""
    budget = [random.randint(1, max_nodes)]
    with_point = not plain and random.random() < 0.5
    # Where little stands beside each other there is more often place for a point of no return.
    shape = "chain" if with_point and random.random() < 0.5 else random.choice(_SHAPES)
    definition = _definition(random, "saga", shape, budget, 0, plain=plain, palette=palette)
    points = list(_actions(definition, "")) if with_point else []
    random.shuffle(points)
    return next((d for d in (_without_return(definition, point, "") for point in points) if _is_valid(d)), definition)


def _is_valid(definition: Definition) -> bool:
    try:
        compile_graph(definition)
    except DefinitionError:  # something stands beside the point of no return
        return False
    return True


def _actions(definition: Definition, prefix: str) -> Iterator[str]:
    for node in definition.nodes:
        if isinstance(node.kind, ActionNode):
            yield prefix + node.name
        elif isinstance(node.kind, SubsagaNode):
            yield from _actions(node.kind.saga, f"{prefix}{node.name}/")


def _without_return(definition: Definition, point: str, prefix: str) -> Definition:
    """The same with a point of no return, and with deadlines that only pause the saga."""
    nodes = []
    for node in definition.nodes:
        kind = node.kind
        if isinstance(kind, ActionNode | SignalNode) and kind.deadline is not None:
            kind = replace(kind, deadline=replace(kind.deadline, then=OnDeadline.PAUSE))
        if isinstance(kind, ActionNode) and prefix + node.name == point:
            kind = replace(kind, undo=UndoPolicy.POINT_OF_NO_RETURN)
        if isinstance(kind, SubsagaNode):
            kind = replace(kind, saga=_without_return(kind.saga, point, f"{prefix}{node.name}/"))
        nodes.append(replace(node, kind=kind))
    return replace(definition, nodes=tuple(nodes))


def _definition(
    random: Random, name: str, shape: str, budget: list[int], depth: int, *, plain: bool, palette: Palette
) -> Definition:
    count = budget[0] if depth == 0 else random.randint(1, max(1, budget[0]))
    nodes: list[Node] = []
    ancestors: dict[str, set[str]] = {}
    stage: list[str] = []
    previous: list[str] = []
    while len(nodes) < count and (budget[0] > 0 or not nodes):
        budget[0] -= 1
        label = f"n{len(nodes)}"
        if shape == "chain":
            parents = [nodes[-1].name] if nodes else []
        elif shape == "stages":
            if stage and random.random() < 0.5:
                previous, stage = stage, []
            stage.append(label)
            parents = previous
        else:
            parents = random.sample([n.name for n in nodes], random.randint(0, min(4, len(nodes))))
        nodes.append(_node(random, label, parents, ancestors, budget, depth, plain=plain, palette=palette))
    sinks = [n.name for n in nodes if not any(n.name in m.depends_on for m in nodes)]
    if len(sinks) > 1:
        nodes.append(_node(random, "last", sinks, ancestors, [0], depth, plain=plain, palette=palette))
    if random.random() < 0.5:
        random.shuffle(nodes)
    return Definition(name, tuple(nodes))


def _node(
    random: Random,
    name: str,
    parents: list[str],
    ancestors: dict[str, set[str]],
    budget: list[int],
    depth: int,
    *,
    plain: bool,
    palette: Palette,
) -> Node:
    seen = ancestors[name] = set(parents).union(*(ancestors[p] for p in parents))
    kind = random.choice(["action"] * 8 + ["constant", "subsaga"] + ([] if plain else ["signal", "timer"]))
    if kind == "constant":
        return Node(name, ConstantNode(Payload.json(name)), tuple(parents))
    if kind == "signal":
        return Node(name, SignalNode(random.choice(palette.deadlines)), tuple(parents))
    if kind == "timer":
        return Node(name, random.choice(palette.timers), tuple(parents))
    if kind == "subsaga" and budget[0] > 0 and depth < 4:
        params_from = random.choice(["", *sorted(seen)])
        inner = _definition(random, f"sub-{name}", random.choice(_SHAPES), budget, depth + 1, plain=plain, palette=palette)
        return Node(name, SubsagaNode(inner, params_from), tuple(parents))
    reads = random.sample(sorted(seen), random.randint(0, min(2, len(seen))))
    asked = f"act-{name}{_VERSIONS[sum(name.encode()) % len(_VERSIONS)]}"
    action = ActionNode(asked, random.choice(palette.policies), random.choice(palette.policies))
    if not plain:
        action = replace(action, undo=random.choice(_UNDO), deadline=random.choice(palette.deadlines))
    return Node(name, action, tuple(parents), tuple(Input(r, r) for r in reads))


def offers(asked: Iterable[str], releases: int) -> frozenset[str]:
    """What action servers offer of the actions that random sagas ask for, after so many releases: one more version with each, 0, 5, 10 and so on. None goes."""
    found = set()
    for name in asked:
        if (only := only_offer(name)) is not None:
            found |= {only, f"{only}.{releases}"}
        else:
            found |= {name, *(f"{name}{'.' if has_version(name) else '@'}{5 * release}" for release in range(releases))}
    return frozenset(found)
