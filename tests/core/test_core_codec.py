"""Records as they are stored: every kind comes back as it went, and what this version does not know is refused."""

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sec_model import Deadline, OnDeadline, Payload
from sec_model.commands import (
    Abort,
    Command,
    InjectError,
    InjectRepeat,
    MarkUndone,
    Pause,
    Resume,
    RetryUndo,
    SetBreakpoint,
    SetDeadline,
    SetMaxInFlight,
    Signal,
    SkipUndo,
    Step,
)
from sec_model.commands_codec import command_from_proto, command_to_proto
from sec_protos.v1 import commands_pb2, records_pb2

from sec.codec import batch_to_bytes, entries_from_bytes, record_from_proto, record_to_proto
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
    NodeRecord,
    Outcome,
    OutcomeUnknown,
    OwnerChanged,
    Phase,
    Pinned,
    Record,
    SagaRecord,
    SecNodeName,
    Started,
    StartRequested,
    Succeeded,
    UndoFailed,
    UndoFinished,
    UndoSkipped,
    UndoStarted,
)

PATH = NodePath("alloc/id")
FAULTS = [Fault("Broken."), Fault("No room.", "no_room"), Fault("", "", Payload("text/plain", b"\xff")), Fault("é", "x", Payload())]
COMMANDS: list[Command] = [
    Pause("Look at it."),
    Pause(""),
    Resume(),
    Abort("Not wanted any more."),
    Abort(""),
    Step(),
    *(SetBreakpoint(PATH, after, clear) for after in (False, True) for clear in (False, True)),
    SetMaxInFlight(0),
    SetMaxInFlight(2**32 - 1),
    RetryUndo(PATH),
    SkipUndo(PATH, "Removed by hand."),
    MarkUndone(PATH, "Removed by hand."),
    *(InjectError(PATH, phase) for phase in Phase),
    *(InjectRepeat(PATH, phase, count) for phase in Phase for count in (1, 100)),
    Signal(PATH, Payload.json({"by": "ada"})),
    Signal(PATH, Payload()),
    *(SetDeadline(path, then, 1_900_000_000_000_000) for path in (PATH, NodePath("")) for then in OnDeadline),
    SetDeadline(PATH, after_s=0.5),
    SetDeadline(PATH),
]
RECORDS: list[Record] = [
    Created("uid", "hash"),
    *(Created("uid", "hash", Deadline(0.5, then)) for then in OnDeadline),
    StartRequested(),
    StartRequested(1_900_000_000_000_000),
    OwnerChanged(Epoch(2**62), SecNodeName("sec-2")),
    Started(PATH),
    Started(PATH, 1_900_000_000_000_000),
    Succeeded(PATH, Payload.json({"a": 1})),
    Succeeded(PATH, Payload()),
    Succeeded(PATH, Payload("application/octet-stream", b"\x00\xff")),
    *(Failed(PATH, fault) for fault in FAULTS),
    *(AttemptUnknown(PATH, phase, 3, fault, 1.25) for phase in Phase for fault in FAULTS),
    *(AttemptFailed(PATH, 3, fault, 1.25) for fault in FAULTS),
    *(OutcomeUnknown(PATH, fault) for fault in FAULTS),
    UndoStarted(PATH),
    UndoFinished(PATH),
    *(UndoFailed(PATH, fault) for fault in FAULTS),
    UndoSkipped(PATH, "Removed by hand."),
    *(Commanded("id", "ada", command) for command in COMMANDS),
    *(Commanded("id", "", command, "It is too late.") for command in COMMANDS),
    *(BreakpointHit(PATH, after) for after in (False, True)),
    *(DeadlinePassed(path) for path in (PATH, NodePath(""))),
    Pinned("charge", "charge@2.1"),
    *(Done(outcome) for outcome in Outcome),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: type(r).__name__)
def test_a_record_comes_back_as_it_went(record: Record) -> None:
    stored = record_to_proto(record).SerializeToString()
    assert record_from_proto(records_pb2.Record.FromString(stored)) == record


def test_every_kind_is_among_those_tried() -> None:
    assert {type(r) for r in RECORDS} == {*get_args(NodeRecord), *get_args(SagaRecord)}
    tried = {record_to_proto(r).WhichOneof("kind") for r in RECORDS}
    assert tried == {f.name for f in records_pb2.Record.DESCRIPTOR.oneofs_by_name["kind"].fields}


@settings(deadline=None)
@given(st.text(), st.text(), st.none() | st.builds(Payload, st.text(), st.binary()), st.floats(0, 1e9), st.integers(1, 2**32 - 1))
def test_any_words_come_back_as_they_went(message: str, code: str, data: Payload | None, spent_s: float, attempt: int) -> None:
    record = AttemptUnknown(PATH, Phase.UNDO, attempt, Fault(message, code, data), spent_s)
    assert record_from_proto(record_to_proto(record)) == record


def test_what_an_error_says_is_bounded() -> None:
    failed = Failed(PATH, Fault("x" * 10_000, "code"))
    assert failed.error.message == "x" * 8_192
    assert record_from_proto(record_to_proto(failed)) == failed, "live and stored are the same"


def test_a_record_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(CorruptLog) as caught:
        record_from_proto(records_pb2.Record())
    assert (
        str(caught.value) == "A record is of a kind that this version does not know: a newer SEC node wrote it, or it is damaged."
    )


def test_a_record_that_a_newer_version_wrote_is_refused() -> None:
    written_later = b"\xf2\x3f\x00"  # field 1022, an empty message
    with pytest.raises(CorruptLog, match="a kind that this version does not know"):
        record_from_proto(records_pb2.Record.FromString(written_later))


@pytest.mark.parametrize("phase", [0, 7])
def test_an_unknown_phase_is_refused(phase: int) -> None:
    message = records_pb2.Record(attempt_unknown=records_pb2.AttemptUnknown(node="a", attempt=1))
    message.attempt_unknown.phase = phase  # type: ignore[assignment]  # a number that a newer version may know
    with pytest.raises(CorruptLog) as caught:
        record_from_proto(message)
    assert str(caught.value) == f'A record of node "a" has the unknown phase {phase}.'


def test_a_deadline_with_an_unknown_consequence_is_refused() -> None:
    message = records_pb2.Record(created=records_pb2.Created(uid="uid", definition_hash="hash"))
    message.created.deadline.then = 7  # type: ignore[assignment]
    with pytest.raises(CorruptLog) as caught:
        record_from_proto(message)
    assert str(caught.value) == "The first record cannot be read: A deadline has the unknown consequence 7."
    command = commands_pb2.Command()
    command.set_deadline.then = 7  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"^A deadline has the unknown consequence 7\.$"):
        command_from_proto(command)


@pytest.mark.parametrize("outcome", [0, 7])
def test_an_unknown_outcome_is_refused(outcome: int) -> None:
    message = records_pb2.Record(done=records_pb2.Done())
    message.done.outcome = outcome  # type: ignore[assignment]
    with pytest.raises(CorruptLog) as caught:
        record_from_proto(message)
    assert str(caught.value) == f"The last record has the unknown outcome {outcome}."


@pytest.mark.parametrize("command", COMMANDS, ids=repr)
def test_a_command_comes_back_as_it_went(command: Command) -> None:
    stored = command_to_proto(command).SerializeToString()
    assert command_from_proto(commands_pb2.Command.FromString(stored)) == command


def test_every_command_is_among_those_tried() -> None:
    assert {type(c) for c in COMMANDS} == set(get_args(Command))
    tried = {command_to_proto(c).WhichOneof("kind") for c in COMMANDS}
    assert tried == {f.name for f in commands_pb2.Command.DESCRIPTOR.oneofs_by_name["kind"].fields}


@pytest.mark.parametrize("stored", [b"", b"\xf2\x3f\x00"], ids=["none", "one that a newer version wrote"])
def test_a_command_of_an_unknown_kind_is_refused(stored: bytes) -> None:
    message = commands_pb2.Command.FromString(stored)
    with pytest.raises(ValueError, match=r"^A command is of a kind that this version does not know\.$"):
        command_from_proto(message)
    with pytest.raises(CorruptLog) as caught:
        record_from_proto(records_pb2.Record(commanded=records_pb2.Commanded(command_id="c1", command=message)))
    assert str(caught.value) == 'The record of command "c1" cannot be read: A command is of a kind that this version does not know.'


@pytest.mark.parametrize("phase", [0, 7])
@pytest.mark.parametrize("kind", ["inject_error", "inject_repeat"])
def test_a_command_with_an_unknown_phase_is_refused(kind: str, phase: int) -> None:
    message = commands_pb2.Command()
    body = getattr(message, kind)
    body.node, body.phase = "a", phase
    with pytest.raises(ValueError, match=f"^A command has the unknown phase {phase}\\.$"):
        command_from_proto(message)
    with pytest.raises(CorruptLog) as caught:
        record_from_proto(records_pb2.Record(commanded=records_pb2.Commanded(command_id="c1", command=message)))
    assert str(caught.value) == f'The record of command "c1" cannot be read: A command has the unknown phase {phase}.'


@settings(deadline=None)
@given(st.text(), st.text(), st.text(), st.text(), st.text(), st.integers(0, 2**32 - 1))
def test_any_words_of_a_command_come_back_as_they_went(
    command_id: str, by: str, node: str, reason: str, refused: str, number: int
) -> None:
    path = NodePath(node)
    for command in (
        Pause(reason),
        Abort(reason),
        SkipUndo(path, reason),
        MarkUndone(path, reason),
        SetMaxInFlight(number),
        InjectRepeat(path, Phase.UNDO, number),
    ):
        record = Commanded(command_id, by, command, refused)
        assert record_from_proto(record_to_proto(record)) == record


def test_a_batch_comes_back_as_entries() -> None:
    data = batch_to_bytes(Epoch(7), SecNodeName("sec-1"), 99, tuple(RECORDS))
    entries = entries_from_bytes(data, first_sequence=5, revision=1000)
    assert entries == [LogEntry(5 + i, Epoch(7), SecNodeName("sec-1"), 99, record) for i, record in enumerate(RECORDS)]


def test_a_batch_without_an_epoch_has_that_of_its_transaction() -> None:
    data = batch_to_bytes(Epoch(0), SecNodeName("sec-1"), 99, (Created("uid", "hash"), StartRequested()))
    assert [e.epoch for e in entries_from_bytes(data, first_sequence=1, revision=1000)] == [1000, 1000]


def test_a_damaged_batch_is_refused() -> None:
    with pytest.raises(CorruptLog, match=r"^The records from 4 on are damaged: "):
        entries_from_bytes(b"\xff\xff\xff", first_sequence=4, revision=1)


def test_one_unknown_record_refuses_its_whole_batch() -> None:
    batch = records_pb2.RecordBatch(epoch=1, records=[record_to_proto(Started(PATH)), records_pb2.Record()])
    with pytest.raises(CorruptLog):
        entries_from_bytes(batch.SerializeToString(), first_sequence=1, revision=1)
