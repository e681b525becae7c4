"""Valid definitions of every kind, for Hypothesis."""

from dataclasses import replace

from hypothesis import strategies as st
from sec_model import (
    DEFAULT_RETRY,
    DEFAULT_UNDO_RETRY,
    ActionNode,
    ConstantNode,
    Deadline,
    Definition,
    Input,
    Node,
    OnDeadline,
    Payload,
    RetryPolicy,
    SignalNode,
    SubsagaNode,
    TimerNode,
    UndoPolicy,
)
from sec_model.definition import MAX_INSTANT_US, MAX_WAIT_S

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,10}", fullmatch=True)
payloads = st.builds(Payload, st.sampled_from(["", "application/json", "text/plain"]), st.binary(max_size=8))
policies = st.sampled_from([DEFAULT_RETRY, DEFAULT_UNDO_RETRY]) | st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 1_000_000),
    initial_backoff_s=st.floats(0.001, 1),
    max_backoff_s=st.floats(1, 86_400),
    multiplier=st.floats(1, 1000),
    jitter=st.floats(0, 1),
    attempt_timeout_s=st.floats(0.001, 86_400),
    overall_timeout_s=st.none() | st.floats(0.001, 1e9),
    heartbeat_timeout_s=st.none() | st.floats(1, 86_400),
)
waits_s = st.floats(0, MAX_WAIT_S, exclude_min=True)
deadlines = st.none() | st.builds(Deadline, waits_s, st.sampled_from(OnDeadline))
timers = st.builds(TimerNode, after_s=waits_s) | st.builds(TimerNode, until_us=st.integers(1, MAX_INSTANT_US))
undo_policies = st.sampled_from([policy for policy in UndoPolicy if policy is not UndoPolicy.POINT_OF_NO_RETURN])


@st.composite
def definitions(draw: st.DrawFn, depth: int = 0) -> Definition:
    """Up to 6 nodes in each (sub)saga, in any order, with free edges, labels, policies, deadlines, payloads and inputs.

    The last node of the whole may be a point of no return: nothing stands beside it then.
    """
    listed = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    nodes: list[Node] = []
    ancestors: dict[str, set[str]] = {}
    for name in listed:
        parents = draw(st.lists(st.sampled_from([n.name for n in nodes]), max_size=3)) if nodes else []
        nodes.append(_node(draw, name, parents, ancestors, depth))
    sinks = [n.name for n in nodes if not any(n.name in m.depends_on for m in nodes)]
    if len(sinks) > 1:
        nodes.append(_node(draw, "the-last-one", sinks, ancestors, depth))
    last = nodes[-1] if len(nodes) == 1 or len(sinks) > 1 else None
    if depth == 0 and last is not None and isinstance(last.kind, ActionNode) and draw(st.booleans()):
        patient = draw(st.none() | st.builds(Deadline, waits_s, st.just(OnDeadline.PAUSE)))
        nodes[-1] = replace(last, kind=replace(last.kind, undo=UndoPolicy.POINT_OF_NO_RETURN, deadline=patient))
    return Definition(draw(names), tuple(draw(st.permutations(nodes))))


def _node(draw: st.DrawFn, name: str, parents: list[str], ancestors: dict[str, set[str]], depth: int) -> Node:
    seen = ancestors[name] = set(parents).union(*(ancestors[p] for p in parents))
    label, edges = draw(st.text(max_size=5)), tuple(parents)
    match draw(st.sampled_from(["action", "action", "constant", "signal", "timer", "subsaga" if depth < 2 else "action"])):
        case "constant":
            return Node(name, ConstantNode(draw(payloads)), edges, (), label)
        case "signal":
            return Node(name, SignalNode(draw(deadlines)), edges, (), label)
        case "timer":
            return Node(name, draw(timers), edges, (), label)
        case "subsaga":
            inner = draw(definitions(depth + 1))
            return Node(name, SubsagaNode(inner, draw(st.sampled_from(["", *sorted(seen)]))), edges, (), label)
        case _:
            sources = draw(st.lists(st.sampled_from(sorted(seen)), max_size=2)) if seen else []
            words = draw(st.lists(st.text(min_size=1, max_size=5), min_size=len(sources), max_size=len(sources), unique=True))
            inputs = tuple(Input(word, source) for word, source in zip(words, sources, strict=True))
            kind = ActionNode(draw(names), draw(policies), draw(policies), draw(undo_policies), draw(deadlines))
            return Node(name, kind, edges, inputs, label)
