"""Valid definitions of every kind, for Hypothesis."""

from hypothesis import strategies as st
from sec_model import (
    DEFAULT_RETRY,
    DEFAULT_UNDO_RETRY,
    ActionNode,
    ConstantNode,
    Definition,
    Input,
    Node,
    Payload,
    RetryPolicy,
    SubsagaNode,
)

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
)


@st.composite
def definitions(draw: st.DrawFn, depth: int = 0) -> Definition:
    """Up to 6 nodes in each (sub)saga, in any order, with free edges, labels, policies, payloads and inputs."""
    listed = draw(st.lists(names, min_size=1, max_size=5, unique=True))
    nodes: list[Node] = []
    ancestors: dict[str, set[str]] = {}
    for name in listed:
        parents = draw(st.lists(st.sampled_from([n.name for n in nodes]), max_size=3)) if nodes else []
        nodes.append(_node(draw, name, parents, ancestors, depth))
    sinks = [n.name for n in nodes if not any(n.name in m.depends_on for m in nodes)]
    if len(sinks) > 1:
        nodes.append(_node(draw, "the-last-one", sinks, ancestors, depth))
    return Definition(draw(names), tuple(draw(st.permutations(nodes))))


def _node(draw: st.DrawFn, name: str, parents: list[str], ancestors: dict[str, set[str]], depth: int) -> Node:
    seen = ancestors[name] = set(parents).union(*(ancestors[p] for p in parents))
    label, edges = draw(st.text(max_size=5)), tuple(parents)
    match draw(st.sampled_from(["action", "action", "constant", "subsaga" if depth < 2 else "action"])):
        case "constant":
            return Node(name, ConstantNode(draw(payloads)), edges, (), label)
        case "subsaga":
            inner = draw(definitions(depth + 1))
            return Node(name, SubsagaNode(inner, draw(st.sampled_from(["", *sorted(seen)]))), edges, (), label)
        case _:
            sources = draw(st.lists(st.sampled_from(sorted(seen)), max_size=2)) if seen else []
            words = draw(st.lists(st.text(min_size=1, max_size=5), min_size=len(sources), max_size=len(sources), unique=True))
            inputs = tuple(Input(word, source) for word, source in zip(words, sources, strict=True))
            return Node(name, ActionNode(draw(names), draw(policies), draw(policies)), edges, inputs, label)
