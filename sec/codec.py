"""Records of the core as messages of the contract, and back. A kind of record that this version does not know is an error."""

from typing import assert_never

from sec_model.codec import deadline_from_proto, deadline_to_proto, payload_from_proto, payload_to_proto
from sec_model.commands_codec import PHASE_FROM_PROTO, PHASE_TO_PROTO, command_from_proto, command_to_proto
from sec_protos.v1 import common_pb2, records_pb2

from sec.core.errors import CorruptLog
from sec.core.records import (
    AttemptFailed,
    AttemptUnknown,
    BreakpointHit,
    Commanded,
    Created,
    DeadlinePassed,
    Done,
    Epoch,
    Failed,
    Fault,
    LogEntry,
    NodePath,
    Outcome,
    OutcomeUnknown,
    OwnerChanged,
    Pinned,
    Record,
    SecNodeName,
    Started,
    StartRequested,
    Succeeded,
    UndoFailed,
    UndoFinished,
    UndoSkipped,
    UndoStarted,
)

_OUTCOME_TO_PROTO = {Outcome.DONE: records_pb2.OUTCOME_DONE, Outcome.UNDONE: records_pb2.OUTCOME_UNDONE}
_OUTCOME_FROM_PROTO = {number: outcome for outcome, number in _OUTCOME_TO_PROTO.items()}


def fault_to_proto(fault: Fault) -> common_pb2.Error:
    return common_pb2.Error(
        message=fault.message,
        code=fault.code,
        data=None if fault.data is None else payload_to_proto(fault.data),
    )


def fault_from_proto(message: common_pb2.Error) -> Fault:
    data = payload_from_proto(message.data) if message.HasField("data") else None
    return Fault(message.message, message.code, data)


def record_to_proto(record: Record) -> records_pb2.Record:
    """The message of a record."""
    message = records_pb2.Record()
    _fill(message, record)
    return message


def _fill(message: records_pb2.Record, record: Record) -> None:
    """Writes a record into an empty message. In place, those of which there are most first: every step of a saga comes by here."""
    match record:
        case Started():
            started = message.started
            started.node = record.node
            if record.due_us:
                started.due_us = record.due_us
        case Succeeded():
            succeeded, output = message.succeeded, record.output
            succeeded.node = record.node
            payload = succeeded.output
            payload.content_type = output.content_type
            payload.data = output.data
        case Created(uid, definition_hash, deadline):
            message.created.uid = uid
            message.created.definition_hash = definition_hash
            if (due := deadline_to_proto(deadline)) is not None:
                message.created.deadline.CopyFrom(due)
        case StartRequested(due_us):
            message.start_requested.due_us = due_us
        case Done(outcome):
            message.done.outcome = _OUTCOME_TO_PROTO[outcome]
        case OwnerChanged(epoch, sec_node):
            message.owner_changed.epoch = epoch
            message.owner_changed.sec_node = sec_node
        case UndoStarted(node):
            message.undo_started.node = node
        case UndoFinished(node):
            message.undo_finished.node = node
        case Failed(node, error):
            message.failed.node = node
            message.failed.error.CopyFrom(fault_to_proto(error))
        case AttemptUnknown(node, phase, attempt, error, spent_s):
            attempt_unknown = message.attempt_unknown
            attempt_unknown.node = node
            attempt_unknown.phase = PHASE_TO_PROTO[phase]
            attempt_unknown.attempt = attempt
            attempt_unknown.error.CopyFrom(fault_to_proto(error))
            attempt_unknown.spent_s = spent_s
        case AttemptFailed(node, attempt, error, spent_s):
            attempt_failed = message.attempt_failed
            attempt_failed.node = node
            attempt_failed.attempt = attempt
            attempt_failed.error.CopyFrom(fault_to_proto(error))
            attempt_failed.spent_s = spent_s
        case OutcomeUnknown(node, error):
            message.outcome_unknown.node = node
            message.outcome_unknown.error.CopyFrom(fault_to_proto(error))
        case UndoFailed(node, error):
            message.undo_failed.node = node
            message.undo_failed.error.CopyFrom(fault_to_proto(error))
        case UndoSkipped(node, reason):
            message.undo_skipped.node = node
            message.undo_skipped.reason = reason
        case Commanded(command_id, by, command, refused):
            commanded = message.commanded
            commanded.command_id = command_id
            commanded.by = by
            commanded.command.CopyFrom(command_to_proto(command))
            commanded.refused = refused
        case BreakpointHit(node, after):
            message.breakpoint_hit.node = node
            message.breakpoint_hit.after = after
        case DeadlinePassed(node):
            message.deadline_passed.node = node
        case Pinned(action, offer):
            message.pinned.action = action
            message.pinned.offer = offer
        case _:
            assert_never(record)


def record_from_proto(message: records_pb2.Record) -> Record:
    """The record of a message. Raises `CorruptLog` for a kind, phase or outcome that this version does not know."""
    kind = message.WhichOneof("kind")
    if kind is None:
        raise CorruptLog("A record is of a kind that this version does not know: a newer SEC node wrote it, or it is damaged.")
    body = getattr(message, kind)
    match kind:
        case "created":
            return _created(body)
        case "start_requested":
            return StartRequested(body.due_us)
        case "owner_changed":
            return OwnerChanged(Epoch(body.epoch), SecNodeName(body.sec_node))
        case "started":
            return Started(NodePath(body.node), body.due_us)
        case "succeeded":
            return Succeeded(NodePath(body.node), payload_from_proto(body.output))
        case "failed":
            return Failed(NodePath(body.node), fault_from_proto(body.error))
        case "attempt_unknown":
            if body.phase not in PHASE_FROM_PROTO:
                raise CorruptLog(f'A record of node "{body.node}" has the unknown phase {body.phase}.')
            phase = PHASE_FROM_PROTO[body.phase]
            return AttemptUnknown(NodePath(body.node), phase, body.attempt, fault_from_proto(body.error), body.spent_s)
        case "attempt_failed":
            return AttemptFailed(NodePath(body.node), body.attempt, fault_from_proto(body.error), body.spent_s)
        case "outcome_unknown":
            return OutcomeUnknown(NodePath(body.node), fault_from_proto(body.error))
        case "undo_started":
            return UndoStarted(NodePath(body.node))
        case "undo_finished":
            return UndoFinished(NodePath(body.node))
        case "undo_failed":
            return UndoFailed(NodePath(body.node), fault_from_proto(body.error))
        case "undo_skipped":
            return UndoSkipped(NodePath(body.node), body.reason)
        case "commanded":
            try:
                command = command_from_proto(body.command)
            except ValueError as error:
                raise CorruptLog(f'The record of command "{body.command_id}" cannot be read: {error}') from error
            return Commanded(body.command_id, body.by, command, body.refused)
        case "breakpoint_hit":
            return BreakpointHit(NodePath(body.node), body.after)
        case "deadline_passed":
            return DeadlinePassed(NodePath(body.node))
        case "pinned":
            return Pinned(body.action, body.offer)
        case "done":
            if body.outcome not in _OUTCOME_FROM_PROTO:
                raise CorruptLog(f"The last record has the unknown outcome {body.outcome}.")
            return Done(_OUTCOME_FROM_PROTO[body.outcome])
        case _:
            raise CorruptLog(f'A record is of the kind "{kind}", which this version cannot read.')


def _created(body: records_pb2.Created) -> Created:
    if not body.HasField("deadline"):
        return Created(body.uid, body.definition_hash)
    try:
        return Created(body.uid, body.definition_hash, deadline_from_proto(body.deadline))
    except ValueError as error:
        raise CorruptLog(f"The first record cannot be read: {error}") from error


def batch_to_bytes(epoch: Epoch, writer: SecNodeName, time_us: int, records: tuple[Record, ...]) -> bytes:
    """What one append stores."""
    batch = records_pb2.RecordBatch()
    batch.epoch, batch.writer, batch.time_us = epoch, writer, time_us
    add = batch.records.add
    for record in records:
        _fill(add(), record)
    return batch.SerializeToString()


def entries_from_bytes(data: bytes, first_sequence: int, revision: int) -> list[LogEntry]:
    """The entries of one stored batch, whose key carries `first_sequence` and was created at `revision`.

    A batch with epoch 0 was written by the transaction that created the owner key too, so its epoch is that transaction's revision.
    Raises `CorruptLog`.
    """
    try:
        batch = records_pb2.RecordBatch.FromString(data)
    except Exception as error:  # the decoder's own exception type differs between protobuf's implementations
        raise CorruptLog(f"The records from {first_sequence} on are damaged: {error}") from error
    epoch, writer = Epoch(batch.epoch or revision), SecNodeName(batch.writer)
    return [
        LogEntry(first_sequence + i, epoch, writer, batch.time_us, record_from_proto(message))
        for i, message in enumerate(batch.records)
    ]
