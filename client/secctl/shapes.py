"""What `--output json` prints. The shapes are stable: keys are added, never renamed or removed.

Times are ISO 8601 in UTC, or null. A payload is `{"json": value}`, or `{"content_type": …, "base64": …}` where it is no JSON, or null where there is
none. States are the words of the status text. Every shape is one JSON value; `saga watch` and `saga log --follow` print one a line.
"""

import base64
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sec_client import (
    LogRecord,
    NodeError,
    NodeList,
    NodeView,
    OfferedAction,
    Payload,
    SagaResult,
    SagaSummary,
    SagaView,
    SubmitResult,
)
from sec_model import ActionSchemas


def text(value: Any, *, line: bool = False) -> str:
    """A shape as JSON: indented, or on one line."""
    if line:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return json.dumps(value, ensure_ascii=False, indent=2)


def time(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat(timespec="microseconds").replace("+00:00", "Z")


def payload(value: Payload | None) -> dict[str, Any] | None:
    if value is None or value == Payload():
        return None
    if value.content_type in ("", "application/json"):
        try:
            return {"json": value.value()}
        except ValueError:
            pass
    return {"content_type": value.content_type, "base64": base64.b64encode(value.data).decode()}


def error(value: NodeError | None) -> dict[str, Any] | None:
    if value is None:
        return None
    return {
        "node": value.node,
        "phase": str(value.phase),
        "message": value.message,
        "code": value.code,
        "data": payload(value.data),
        "time": time(value.time),
    }


def submitted(value: SubmitResult) -> dict[str, Any]:
    return {"saga_id": value.saga_id, "created": value.created, "warnings": list(value.warnings)}


def summary(value: SagaSummary) -> dict[str, Any]:
    return {
        "saga_id": value.saga_id,
        "name": value.name,
        "state": str(value.state),
        "labels": dict(value.labels),
        "owner": value.owner,
        "created": time(value.created),
        "ended": time(value.ended),
        "error": error(value.error),
        "paused": value.paused,
        "pause_reason": value.pause_reason,
    }


def node(value: NodeView) -> dict[str, Any]:
    return {
        "node": value.node,
        "label": value.label,
        "state": str(value.state),
        "depends_on": list(value.depends_on),
        "action": value.action,
        "subsaga": value.subsaga,
        "rank": value.rank,
        "attempts": value.attempts,
        "detail": value.detail,
        "due": time(value.due),
        "progress": None
        if value.progress is None
        else {
            "fraction": value.progress.fraction,
            "message": value.progress.message,
            "time": time(value.progress.time),
        },
        "error": error(value.error),
        "output": payload(value.output),
    }


def saga(value: SagaView) -> dict[str, Any]:
    return {
        **summary(value.summary),
        "uid": value.uid,
        "definition_hash": value.definition_hash,
        "epoch": value.epoch,
        "next_sequence": value.next_sequence,
        "due": time(value.due),
        "params": payload(value.params),
        "output": payload(value.output_payload),
        "errors": [error(e) for e in value.errors],
        "nodes": [node(n) for n in value.nodes],
    }


def result(value: SagaResult) -> dict[str, Any]:
    return {
        "saga_id": value.saga_id,
        "state": str(value.state),
        "output": payload(value.output_payload),
        "errors": [error(e) for e in value.errors],
    }


def _field(value: Any) -> Any:
    match value:
        case Payload():
            return payload(value)
        case datetime():
            return time(value)
        case Mapping():
            return {name: _field(v) for name, v in value.items()}
        case _:
            return value


def record(value: LogRecord) -> dict[str, Any]:
    return {
        "sequence": value.sequence,
        "epoch": value.epoch,
        "writer": value.writer,
        "time": time(value.time),
        "kind": value.kind,
        "node": value.node,
        "error": error(value.error),
        "fields": _field(value.fields),
        "saga_state": None if value.saga_state is None else str(value.saga_state),
    }


def nodes(value: NodeList) -> dict[str, Any]:
    listed = [
        {
            "name": n.name,
            "address": n.address,
            "version": n.version,
            "leader": n.leader,
            "draining": n.draining,
            "owned_sagas": n.owned_sagas,
            "started": time(n.started),
            "trouble": n.trouble,
            "condition": str(n.condition),
        }
        for n in value.nodes
    ]
    return {"nodes": listed, "answered_by": value.answered_by}


def action(value: OfferedAction) -> dict[str, Any]:
    servers = [
        {
            "instance_id": s.instance_id,
            "server_name": s.server_name,
            "address": s.address,
            "reachable": s.reachable,
            "configured": s.configured,
        }
        for s in value.servers
    ]
    return {"name": value.name, "summary": value.summary, "servers": servers, "schemas": [schemas(s) for s in value.schemas]}


def schemas(value: ActionSchemas) -> dict[str, Any]:
    """Each schema is a JSON Schema document, or null where nothing is said."""
    return {
        "params": None if value.params is None else value.params.document,
        "inputs": {name: schema.document for name, schema in value.inputs.items()},
        "optional_inputs": sorted(value.optional_inputs),
        "output": None if value.output is None else value.output.document,
    }
