"""Random saga definitions: stages and free edges, constants, subsagas within subsagas, nodes listed before their parents."""

from hypothesis import strategies as st
from sec_model import ActionNode, ConstantNode, Definition, Input, Node, Payload, RetryPolicy, SubsagaNode

MAX_NODES = 40


@st.composite
def definitions(draw: st.DrawFn, max_nodes: int = MAX_NODES) -> Definition:
    """A valid definition of at most so many nodes, those of its subsagas included."""
    budget = [draw(st.integers(1, max_nodes))]
    return _definition(draw, "saga", budget, depth=0)


def _definition(draw: st.DrawFn, name: str, budget: list[int], depth: int) -> Definition:
    shape = draw(st.sampled_from(["stages", "edges", "chain"]))
    count = draw(st.integers(1, max(1, budget[0])))
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
            if stage and draw(st.booleans()):
                previous, stage = stage, []
            stage.append(label)
            parents = previous
        else:
            parents = draw(st.lists(st.sampled_from([n.name for n in nodes]), max_size=4)) if nodes else []
        nodes.append(_node(draw, label, parents, ancestors, budget, depth))
    sinks = [n.name for n in nodes if not any(n.name in m.depends_on for m in nodes)]
    if len(sinks) > 1:
        nodes.append(_node(draw, "last", sinks, ancestors, [0], depth))
    if draw(st.booleans()):
        nodes = draw(st.permutations(nodes))
    return Definition(name, tuple(nodes))


def _node(draw: st.DrawFn, name: str, parents: list[str], ancestors: dict[str, set[str]], budget: list[int], depth: int) -> Node:
    seen = ancestors[name] = set(parents).union(*(ancestors[p] for p in parents))
    kind = draw(st.sampled_from(["action", "action", "action", "action", "constant", "subsaga"]))
    if kind == "constant":
        return Node(name, ConstantNode(Payload.json(name)), tuple(parents))
    if kind == "subsaga" and budget[0] > 0 and depth < 4:
        params_from = draw(st.sampled_from(["", *sorted(seen)]))
        return Node(name, SubsagaNode(_definition(draw, f"sub-{name}", budget, depth + 1), params_from), tuple(parents))
    reads = draw(st.lists(st.sampled_from(sorted(seen)), max_size=2, unique=True)) if seen else []
    policies = st.sampled_from([RetryPolicy(max_attempts=1), RetryPolicy(max_attempts=2), RetryPolicy(max_attempts=5)])
    action = ActionNode(f"act-{name}", draw(policies), draw(policies))
    return Node(name, action, tuple(parents), tuple(Input(r, r) for r in reads))
