"""What people see, as styled text. Pure: from the values of the client to `rich.text.Text`, with no terminal and no clock."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.text import Text
from sec_client import (
    LogRecord,
    NodeList,
    NodeState,
    NodeView,
    OfferedAction,
    Payload,
    SagaResult,
    SagaState,
    SagaSummary,
    SagaView,
)

NODE_STYLES: dict[NodeState, str] = {
    NodeState.UNKNOWN: "magenta",
    NodeState.BLOCKED: "dim",
    NodeState.QUEUED: "white",
    NodeState.WORKING: "bold cyan",
    NodeState.RETRYING: "bold yellow",
    NodeState.DONE: "green",
    NodeState.FAILED: "bold red",
    NodeState.OUTCOME_UNKNOWN: "bold magenta",
    NodeState.UNDO_QUEUED: "yellow",
    NodeState.UNDOING: "bold yellow",
    NodeState.ABANDONED: "dim",
    NodeState.UNDONE: "blue",
    NodeState.UNDO_FAILED: "bold white on red",
    NodeState.UNDO_SKIPPED: "magenta",
    NodeState.WAITING: "cyan",
}
SAGA_STYLES: dict[SagaState, str] = {
    SagaState.UNKNOWN: "magenta",
    SagaState.CREATED: "white",
    SagaState.RUNNING: "bold cyan",
    SagaState.UNWINDING: "bold yellow",
    SagaState.STUCK: "bold white on red",
    SagaState.DONE: "green",
    SagaState.UNDONE: "blue",
    SagaState.CORRUPT: "bold white on red",
}
_MAX_MESSAGE = 200
_MAX_OUTPUT = 2000


def clean(text: str, limit: int | None = None) -> str:
    """Text from outside on one line, without what would control the terminal."""
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
    return line if limit is None or len(line) <= limit else line[: limit - 1] + "…"


def tree(saga: SagaView) -> Text:
    """The status of a saga: a line for it, one for each node, indented by parallel stage and subsaga, and the errors below."""
    summary = saga.summary
    out = Text()
    out.append(f'saga "{summary.saga_id}" ({summary.name}): ').append(str(summary.state), SAGA_STYLES[summary.state])
    if summary.paused:
        out.append(f", paused: {clean(summary.pause_reason)}" if summary.pause_reason else ", paused", "bold yellow")
    out.append(f", due {instant(saga.due)}" if saga.due is not None else "")
    out.append(f", owned by {summary.owner}" if summary.owner else "").append("\n")
    _stages(saga.nodes, "", "", out)
    if saga.errors:
        out.append("errors:\n", "bold")
        for error in saga.errors:
            out.append(f"  {clean(str(error))}{f' [{clean(error.code)}]' if error.code else ''}\n", "red")
    elif summary.error is not None:
        out.append("errors:\n", "bold").append(f"  {clean(str(summary.error))}\n", "red")
    if saga.output_payload is not None:
        out.append("output: ", "bold").append(f"{payload(saga.output_payload)}\n")
    return out


def _stages(nodes: Sequence[NodeView], parent: str, indent: str, out: Text) -> None:
    """The nodes right inside the (sub)saga `parent`, stage by stage: the first node of a rank opens its stage."""
    stages: dict[int, list[NodeView]] = {}
    for node in nodes:
        if node.parent == parent:
            stages.setdefault(node.rank, []).append(node)
    ordered = [stages[rank] for rank in sorted(stages)]
    for position, stage in enumerate(ordered):
        is_last = position == len(ordered) - 1
        if len(stage) == 1:
            _node(nodes, stage[0], indent, is_last, out)
            continue
        out.append(f"{indent}{_branch(is_last)}in parallel\n")
        for node in stage:
            _node(nodes, node, indent + _gap(is_last), node is stage[-1], out)


def _node(nodes: Sequence[NodeView], node: NodeView, indent: str, is_last: bool, out: Text) -> None:
    out.append(f"{indent}{_branch(is_last)}").append(str(node.state), NODE_STYLES[node.state])
    out.append(f": {'subsaga ' if node.subsaga else ''}{clean(node.label or node.action or node.node)}")
    out.append(f', produces "{node.node}"')
    if node.attempts:
        out.append(f", {node.attempts} {'call' if node.attempts == 1 else 'calls'} without success", "yellow")
        out.append(f": {clean(node.error.message, _MAX_MESSAGE)}" if node.error is not None else "", "yellow")
    out.append(f", {clean(str(node.progress), _MAX_MESSAGE)}" if node.progress is not None else "", "cyan")
    out.append(f", due {instant(node.due)}" if node.due is not None else "")
    if node.detail:
        out.append(f" ({clean(node.detail, _MAX_MESSAGE)})", "yellow")
    out.append("\n")
    if node.subsaga:
        _stages(nodes, node.node, indent + _gap(is_last), out)


def _branch(is_last: bool) -> str:
    return "└─ " if is_last else "├─ "


def _gap(is_last: bool) -> str:
    return "   " if is_last else "│  "


def payload(value: Payload) -> str:
    """JSON as it is, anything else by its type and size."""
    if value == Payload():
        return "none"
    if value.content_type in ("", "application/json"):
        return clean(value.data.decode(errors="replace"), _MAX_OUTPUT)
    return f"{len(value.data)} bytes of {clean(value.content_type)}"


def sagas(found: Sequence[SagaSummary]) -> Text:
    """A table, those that need an operator first."""
    urgent = (SagaState.STUCK, SagaState.CORRUPT)
    ordered = sorted(found, key=lambda s: s.state not in urgent)
    rows = [
        (
            (f"{s.state}, paused" if s.paused else str(s.state), SAGA_STYLES[s.state]),
            (s.saga_id, ""),
            (s.name, ""),
            (s.owner or "-", ""),
            (instant(s.created), ""),
            (",".join(f"{k}={v}" for k, v in sorted(s.labels.items())) or "-", ""),
            (clean(str(s.error), _MAX_MESSAGE), "red") if s.error is not None else (clean(s.pause_reason, _MAX_MESSAGE), "yellow"),
        )
        for s in ordered
    ]
    return table(("STATE", "SAGA", "NAME", "OWNER", "CREATED", "LABELS", "WHY"), rows, "There are no such sagas.")


def record(found: LogRecord) -> Text:
    """A record of the log on one line."""
    out = Text(f"{found.sequence:>5}  {instant(found.time)}  epoch {found.epoch}  {found.writer or '-'}  ")
    out.append(found.kind, _RECORD_STYLES.get(found.kind, ""))
    if found.node:
        out.append(f" {found.node}")
    if found.error is not None:
        code = f" [{clean(found.error.code)}]" if found.error.code else ""
        out.append(f": {clean(found.error.message, _MAX_MESSAGE)}{code}", "red")
    for name, value in found.fields.items():
        out.append(f" {name}={clean(_field(value), _MAX_MESSAGE)}", "dim")
    return out


def _field(value: Any) -> str:
    """A value of a record's fields; a mapping as the contract nests it, its names in parentheses."""
    match value:
        case Payload():
            return payload(value)
        case datetime():
            return instant(value)
        case Mapping():
            inner = (f"{name}{_field(v)}" if isinstance(v, Mapping) else f"{name}={_field(v)}" for name, v in value.items())
            shown = ", ".join(inner)
            return shown if any(isinstance(v, Mapping) for v in value.values()) else f"({shown})"
        case _:
            return str(value)


_RECORD_STYLES = {
    "succeeded": "green",
    "failed": "bold red",
    "attempt_unknown": "yellow",
    "attempt_failed": "bold yellow",
    "deadline_passed": "bold yellow",
    "outcome_unknown": "bold magenta",
    "undo_started": "yellow",
    "undo_finished": "blue",
    "undo_failed": "bold white on red",
    "undo_skipped": "magenta",
    "owner_changed": "bold",
    "done": "bold",
}


def result(found: SagaResult) -> Text:
    """How a saga settled."""
    out = Text(f'saga "{found.saga_id}": ').append(str(found.state), SAGA_STYLES[found.state]).append("\n")
    if found.errors:
        out.append("errors:\n", "bold")
        for error in found.errors:
            out.append(f"  {clean(str(error))}{f' [{clean(error.code)}]' if error.code else ''}\n", "red")
    if found.output_payload is not None:
        out.append("output: ", "bold").append(f"{payload(found.output_payload)}\n")
    return out


def nodes(found: NodeList) -> Text:
    """A table of SEC nodes; the one that answered is marked by an asterisk."""
    rows = []
    for node in found.nodes:
        role = ", ".join(word for word, holds in (("leader", node.leader), ("draining", node.draining)) if holds) or "-"
        name = f"{node.name}{' *' if node.name == found.answered_by else ''}"
        rows.append(
            [(v, "") for v in (name, node.address, role, str(node.owned_sagas), node.version or "-", instant(node.started))]
        )
    out = table(("NODE", "ADDRESS", "ROLE", "SAGAS", "VERSION", "STARTED"), rows, "No SEC node holds a session.")
    for node in found.nodes:
        if node.trouble:
            serving = node.condition.serving
            said = f"is not well ({node.condition})" if serving else f"does not serve ({node.condition})"
            out.append(f"{node.name} {said}: {clean(node.trouble)}\n", "yellow" if serving else "red")
    return out


def actions(found: Sequence[OfferedAction]) -> Text:
    """A table of actions, one line for each server that offers one."""
    rows = []
    for action in sorted(found, key=lambda a: a.name):
        for server in action.servers:
            state = ("reachable", "green") if server.reachable else ("unreachable", "red")
            shown = clean(server.server_name) or server.instance_id or "-"
            how = "configured" if server.configured else "registered"
            rows.append([(action.name, ""), (shown, ""), (server.address, ""), state, (how, ""), (clean(action.summary), "dim")])
    return table(("ACTION", "SERVER", "ADDRESS", "STATE", "KNOWN BY", "SUMMARY"), rows, "No action server offers any action.")


def action(found: OfferedAction) -> Text:
    """What an action takes and answers: a line for each part, with its schema."""
    out = Text(f'action "{found.name}"{f": {clean(found.summary)}" if found.summary else ""}\n')
    if not found.schemas:
        out.append("Its servers do not describe what it takes and answers.\n")
    for number, way in enumerate(found.schemas, 1):
        if len(found.schemas) > 1:
            out.append(f"description {number} of {len(found.schemas)}:\n", "bold")
        parts = [("params", way.params)]
        parts += [(f'{"optional " if n in way.optional_inputs else ""}input "{clean(n)}"', s) for n, s in way.inputs.items()]
        for what, schema in [*parts, ("output", way.output)]:
            out.append(f"{what}: ", "bold").append("anything\n" if schema is None else f"{clean(schema.text)}\n")
    return out


def table(head: Sequence[str], rows: Iterable[Sequence[tuple[str, str]]], empty: str) -> Text:
    """Columns as wide as what is in them, never cut; cells are (text, style)."""
    rows = [[(clean(cell), style) for cell, style in row] for row in rows]
    if not rows:
        return Text(f"{empty}\n")
    lines: list[Sequence[tuple[str, str]]] = [[(title, "bold") for title in head], *rows]
    widths = [max(len(line[column][0]) for line in lines) for column in range(len(head))]
    out = Text()
    for line in lines:
        filled = [i for i, (cell, _) in enumerate(line) if cell]
        last = filled[-1] if filled else 0
        for column, (cell, style) in enumerate(line[: last + 1]):
            out.append(cell, style)
            out.append("\n" if column == last else " " * (widths[column] - len(cell) + 2))
    return out


def instant(value: datetime | None) -> str:
    """An instant in UTC, to the millisecond."""
    return "-" if value is None else value.strftime("%Y-%m-%d %H:%M:%S.") + f"{value.microsecond // 1000:03d}Z"
