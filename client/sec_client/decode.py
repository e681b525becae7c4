"""From the messages of the contract to the values of `sec_client.views`. Nothing else knows both."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.message import Message
from sec_model.codec import ON_DEADLINE_FROM_PROTO, payload_from_proto
from sec_model.schemas import ActionSchemas, SchemaError
from sec_model.schemas_codec import schemas_from_proto
from sec_protos.v1 import action_server_pb2, common_pb2, coordinator_pb2, records_pb2

from sec_client.views import (
    ActionServerView,
    LogRecord,
    NodeCondition,
    NodeError,
    NodeList,
    NodeState,
    NodeView,
    OfferedAction,
    Phase,
    Progress,
    SagaResult,
    SagaState,
    SagaSummary,
    SagaView,
    SecNode,
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_PHASES: Mapping[int, Phase] = {common_pb2.PHASE_DO: Phase.DO, common_pb2.PHASE_UNDO: Phase.UNDO}
_SAGA_STATES: Mapping[int, SagaState] = {
    number: SagaState(name.removeprefix("SAGA_STATE_").lower()) for name, number in coordinator_pb2.SagaState.items() if number != 0
}
_NODE_STATES: Mapping[int, NodeState] = {
    number: NodeState(name.removeprefix("NODE_STATE_").lower().replace("_", "-"))
    for name, number in coordinator_pb2.NodeState.items()
    if number != 0
}
_CONDITIONS: Mapping[int, NodeCondition] = {
    number: NodeCondition(name.removeprefix("SEC_NODE_CONDITION_").lower().replace("_", " "))
    for name, number in coordinator_pb2.SecNodeCondition.items()
    if number != 0
}
_CONSEQUENCES: Mapping[int, str] = {number: then.value for number, then in ON_DEADLINE_FROM_PROTO.items()}
_OUTCOMES: Mapping[int, str] = {records_pb2.OUTCOME_DONE: "done", records_pb2.OUTCOME_UNDONE: "undone"}
SAGA_STATE_NUMBERS: Mapping[SagaState, coordinator_pb2.SagaState.ValueType] = {
    state: coordinator_pb2.SagaState.Value(f"SAGA_STATE_{state.name}") for state in SagaState if state is not SagaState.UNKNOWN
}


def time_of(microseconds: int) -> datetime | None:
    """A time of the contract; None for 0, and for what no calendar holds."""
    if microseconds <= 0:
        return None
    try:
        return _EPOCH + timedelta(microseconds=microseconds)
    except OverflowError:
        return None


def saga_state(number: int) -> SagaState:
    return _SAGA_STATES.get(number, SagaState.UNKNOWN)


def node_state(number: int) -> NodeState:
    return _NODE_STATES.get(number, NodeState.UNKNOWN)


def error(message: common_pb2.Error, node: str, phase: Phase, time: datetime | None = None) -> NodeError:
    data = payload_from_proto(message.data) if message.HasField("data") else None
    return NodeError(node, phase, message.message, message.code, data, time)


def node_error(message: coordinator_pb2.NodeError) -> NodeError:
    return error(message.error, message.node, _PHASES.get(message.phase, Phase.UNKNOWN), time_of(message.time_us))


def summary(message: coordinator_pb2.SagaSummary) -> SagaSummary:
    return SagaSummary(
        saga_id=message.saga_id,
        name=message.name,
        state=saga_state(message.state),
        labels=dict(message.labels),
        owner=message.owner,
        created=time_of(message.created_us),
        ended=time_of(message.ended_us),
        error=node_error(message.error) if message.HasField("error") else None,
        paused=message.paused,
        pause_reason=message.pause_reason,
    )


def node(message: coordinator_pb2.NodeStatus) -> NodeView:
    return NodeView(
        node=message.node,
        label=message.label,
        state=node_state(message.state),
        depends_on=tuple(message.depends_on),
        action=message.action,
        attempts=message.attempts,
        detail=message.detail,
        error=node_error(message.error) if message.HasField("error") else None,
        output=payload_from_proto(message.output) if message.HasField("output") else None,
        subsaga=message.subsaga,
        rank=message.rank,
        due=time_of(message.due_us),
        progress=progress(message.progress) if message.HasField("progress") else None,
    )


def progress(message: coordinator_pb2.Progress) -> Progress:
    fraction = message.fraction if message.HasField("fraction") else None
    return Progress(fraction, message.message, time_of(message.time_us))


def saga(message: coordinator_pb2.Saga) -> SagaView:
    return SagaView(
        summary=summary(message.summary),
        uid=message.uid,
        definition_hash=message.definition_hash,
        params=payload_from_proto(message.params),
        nodes=tuple(node(n) for n in message.nodes),
        output_payload=payload_from_proto(message.output) if message.HasField("output") else None,
        errors=tuple(node_error(e) for e in message.errors),
        next_sequence=message.next_sequence,
        epoch=message.epoch,
        due=time_of(message.due_us),
    )


def result(message: coordinator_pb2.WaitSagaResponse) -> SagaResult:
    found = summary(message.summary)
    errors = tuple(node_error(e) for e in message.errors)
    return SagaResult(
        saga_id=found.saga_id,
        state=found.state,
        output_payload=payload_from_proto(message.output) if message.HasField("output") else None,
        errors=tuple(sorted(errors, key=lambda e: e.time or _EPOCH)),
        summary=found,
    )


_UNDO_KINDS = ("undo_started", "undo_finished", "undo_failed", "undo_skipped")


def record(message: coordinator_pb2.SequencedRecord, state: SagaState | None = None) -> LogRecord:
    kind = message.record.WhichOneof("kind") or "unknown"
    fields = {} if kind == "unknown" else _fields(getattr(message.record, kind))
    path, failure = fields.pop("node", ""), fields.pop("error", None)
    phase = fields.get("phase", Phase.UNDO if kind in _UNDO_KINDS else Phase.DO)
    time = time_of(message.time_us)
    return LogRecord(
        sequence=message.sequence,
        epoch=message.epoch,
        writer=message.writer,
        time=time,
        kind=kind,
        node=path,
        error=None if failure is None else error(failure, path, phase, time),
        fields=fields,
        saga_state=state,
    )


def _fields(message: Message) -> dict[str, Any]:
    """What a message says, by the contract's names. See `LogRecord`."""
    found: dict[str, Any] = {}
    for descriptor, value in message.ListFields():
        match descriptor.name, value:
            case "phase", int():
                found["phase"] = _PHASES.get(value, Phase.UNKNOWN)
            case "outcome", int():
                found["outcome"] = _OUTCOMES.get(value, "unknown")
            case "then", int():
                found["then"] = _CONSEQUENCES.get(value, "unknown")
            case name, int() if name.endswith("_us"):
                found[name.removesuffix("_us")] = time_of(value)
            case name, common_pb2.Payload():
                found[name] = payload_from_proto(value)
            case name, Message() if not isinstance(value, common_pb2.Error):
                found[name] = _fields(value)
            case name, _:
                found[name] = value
    return found


def nodes(message: coordinator_pb2.ListNodesResponse) -> NodeList:
    return NodeList(
        tuple(
            SecNode(
                n.name,
                n.address,
                n.version,
                n.leader,
                n.draining,
                n.owned_sagas,
                time_of(n.started_us),
                n.trouble,
                _CONDITIONS.get(n.condition, NodeCondition.UNKNOWN),
            )
            for n in message.nodes
        ),
        message.answered_by,
    )


def action(message: coordinator_pb2.OfferedAction) -> OfferedAction:
    servers = (ActionServerView(s.instance_id, s.server_name, s.address, s.reachable, s.configured) for s in message.servers)
    return OfferedAction(message.name, message.summary, tuple(servers), tuple(_schemas(s) for s in message.schemas))


def _schemas(message: action_server_pb2.ActionSchemas) -> ActionSchemas:
    try:
        return schemas_from_proto(message)
    except SchemaError:  # of a cluster that allows more: it says nothing here
        return ActionSchemas()
