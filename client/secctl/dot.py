"""A saga as a graph in the language of Graphviz, with the states as colours."""

from collections.abc import Sequence

from sec_client import NodeState, NodeView, SagaView

COLOURS: dict[NodeState, str] = {
    NodeState.UNKNOWN: "white",
    NodeState.BLOCKED: "gray92",
    NodeState.QUEUED: "white",
    NodeState.WORKING: "lightskyblue",
    NodeState.RETRYING: "khaki",
    NodeState.DONE: "palegreen",
    NodeState.FAILED: "tomato",
    NodeState.OUTCOME_UNKNOWN: "orchid",
    NodeState.UNDO_QUEUED: "navajowhite",
    NodeState.UNDOING: "orange",
    NodeState.ABANDONED: "gray80",
    NodeState.UNDONE: "lightsteelblue",
    NodeState.UNDO_FAILED: "red",
    NodeState.UNDO_SKIPPED: "plum",
    NodeState.WAITING: "lightcyan",
}


def dot(saga: SagaView) -> str:
    """The graph: a box for a node, a frame for a subsaga, an edge from each node to those that wait for it."""
    lines = [
        f"digraph {_quoted(saga.saga_id)} {{",
        f"  label={_quoted(f'{saga.summary.name} {saga.saga_id}: {saga.state}')};",
        "  compound=true;",
        '  node [shape=box, style="rounded,filled", fontname="sans-serif"];',
    ]
    _inside(saga.nodes, "", "  ", lines)
    by_path = {n.node: n for n in saga.nodes}
    edges = ((by_path[parent], node) for node in saga.nodes for parent in node.depends_on if parent in by_path)
    lines += [f"  {_edge(saga.nodes, parent, child)};" for parent, child in edges]
    return "\n".join([*lines, "}"]) + "\n"


def _inside(nodes: Sequence[NodeView], parent: str, indent: str, lines: list[str]) -> None:
    for node in nodes:
        if node.parent != parent:
            continue
        label = _quoted(f"{node.label or node.node}\n{node.node}\n{node.state}")
        if node.subsaga:
            lines.append(f"{indent}subgraph {_quoted(f'cluster_{node.node}')} {{")
            lines.append(f"{indent}  label={label}; style=rounded; bgcolor={_quoted(COLOURS[node.state])};")
            _inside(nodes, node.node, f"{indent}  ", lines)
            lines.append(f"{indent}}}")
        else:
            lines.append(f"{indent}{_quoted(node.node)} [label={label}, fillcolor={_quoted(COLOURS[node.state])}];")


def _edge(nodes: Sequence[NodeView], parent: NodeView, child: NodeView) -> str:
    """An edge of a frame is drawn to a node within and cut off at the frame."""
    cuts = [f"ltail={_quoted(f'cluster_{parent.node}')}"] if parent.subsaga else []
    cuts += [f"lhead={_quoted(f'cluster_{child.node}')}"] if child.subsaga else []
    tail, head = _end_within(nodes, parent, last=True), _end_within(nodes, child, last=False)
    return f"{_quoted(tail.node)} -> {_quoted(head.node)}" + (f" [{', '.join(cuts)}]" if cuts else "")


def _end_within(nodes: Sequence[NodeView], node: NodeView, *, last: bool) -> NodeView:
    while node.subsaga:
        within = [n for n in nodes if n.parent == node.node]
        if not within:
            break
        node = max(within, key=lambda n: n.rank) if last else min(within, key=lambda n: n.rank)
    return node


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
