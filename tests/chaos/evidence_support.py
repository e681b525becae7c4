"""Evidence of a run in which all is well, to be broken by the tests one thing at a time."""

from collections.abc import Sequence
from dataclasses import replace

from google.protobuf.json_format import MessageToDict
from msgspec import structs
from sec_model import Definition, Payload
from sec_model.commands import Command, Pause, Resume
from sec_model.commands_codec import command_to_proto

from sec.chaos.check import Evidence, Had
from sec.chaos.history import Answer, ClientCall, Delivery, Event, Milestone, Observed, Read
from sec.chaos.plan import SHAPES
from sec.core.records import (
    Commanded,
    Created,
    Done,
    Epoch,
    Failed,
    Fault,
    LogEntry,
    NodePath,
    Outcome,
    OwnerChanged,
    Record,
    SagaId,
    SecNodeName,
    Started,
    StartRequested,
    Succeeded,
    UndoFinished,
    UndoStarted,
)
from sec.debug import ExportedLog
from sec.store.sagas import SagaHead

SECOND = 1_000_000
START = 1_700_000_000 * SECOND
A, B, C = (NodePath(name) for name in "abc")


def at(seconds: float) -> int:
    """A time of the run."""
    return START + round(seconds * SECOND)


def log(saga_id: str, *entries: tuple[float, int, Record], definition: Definition = SHAPES["linear"]) -> ExportedLog:
    """A log of records with their times and epochs; an odd epoch is sec-1's, an even one sec-2's."""
    head = SagaHead(SagaId(saga_id), f"uid-{saga_id}", definition.name, "", Payload(), {}, 0)
    made = [
        LogEntry(number, Epoch(epoch), SecNodeName("sec-1" if epoch % 2 else "sec-2"), at(seconds), record)
        for number, (seconds, epoch, record) in enumerate(entries, 1)
    ]
    return ExportedLog(head, definition, tuple(made))


def begin(saga_id: str) -> list[tuple[float, int, Record]]:
    return [(1.0, 1, Created(f"uid-{saga_id}", "")), (1.0, 1, StartRequested())]


def output() -> Payload:
    return Payload.json("done")


def written(command: Command) -> dict[str, object]:
    return MessageToDict(command_to_proto(command), preserving_proto_field_name=True)


def given(saga_id: str, seconds: float, command_id: str, command: Command, answer: Answer = Answer.OK) -> ClientCall:
    """A command as its client saw it."""
    return ClientCall("command", saga_id, at(seconds), at(seconds) + 1000, answer, "", command_id, written(command))


def delivery(saga_id: str, seconds: float, node: str, phase: str = "do", epoch: int = 1) -> Delivery:
    """A call as the action server saw it."""
    sec_node = "sec-1" if epoch % 2 else "sec-2"
    return Delivery(
        "server-1", at(seconds), saga_id, node, phase, f"uid-{saga_id}/{node}", epoch, 1, sec_node, "output", at(seconds) + 9
    )


def had(saga_id: str, seconds: float, node: str, phase: str = "do") -> Had:
    """An effect in the world."""
    return Had(f"uid-{saga_id}/{node}", phase, saga_id, node, 1, at(seconds))


def healthy() -> Evidence:
    """Two sagas of three steps: "well" is paused, taken over and done; "ill" fails at its last step and is undone. "well" was watched."""
    well = log(
        "well",
        *begin("well"),
        (1.1, 1, Started(A)),
        (2.0, 1, Succeeded(A, output())),
        (2.0, 1, Started(B)),
        (2.5, 1, Commanded("pause-1", "chaos", Pause("chaos"))),
        (3.0, 1, Succeeded(B, output())),
        (10.0, 2, OwnerChanged(Epoch(2), SecNodeName("sec-2"))),
        (20.0, 2, Commanded("resume-1", "chaos", Resume())),
        (20.0, 2, Started(C)),
        (21.0, 2, Succeeded(C, output())),
        (21.0, 2, Done(Outcome.DONE)),
    )
    ill = log(
        "ill",
        *begin("ill"),
        (1.0, 1, Started(A)),
        (2.0, 1, Succeeded(A, output())),
        (2.0, 1, Started(B)),
        (3.0, 1, Succeeded(B, output())),
        (3.0, 1, Started(C)),
        (4.0, 1, Failed(C, Fault("no"))),
        (4.0, 1, UndoStarted(B)),
        (5.0, 1, UndoFinished(B)),
        (5.0, 1, UndoStarted(A)),
        (6.0, 1, UndoFinished(A)),
        (6.0, 1, Done(Outcome.UNDONE)),
    )
    events: list[Event] = [
        Milestone("start", at(0)),
        ClientCall("submit", "well", at(0.9), at(1.1), Answer.OK),
        ClientCall("submit", "ill", at(0.9), at(1.1), Answer.OK),
        given("well", 2.4, "pause-1", Pause("chaos")),
        given("well", 19.9, "resume-1", Resume()),
        *(
            Observed("w", "well", e.sequence, e.epoch, e.writer, kind, e.time_us)
            for e, kind in zip(well.entries[:4], ["created", "start_requested", "started", "succeeded"], strict=True)
        ),
        Read("r", "well", 3, at(1.0), at(1.1)),
        Read("r", "well", 7, at(2.8), at(2.9)),
        Milestone("healed", at(30)),
        Milestone("settled", at(31)),
    ]
    return Evidence(
        events,
        {"well": well, "ill": ill},
        [
            delivery("well", 1.2, "a"),
            delivery("well", 2.1, "b"),
            delivery("well", 20.1, "c", epoch=2),
            delivery("ill", 1.2, "a"),
            delivery("ill", 2.1, "b"),
            delivery("ill", 3.1, "c"),
            delivery("ill", 4.1, "b", "undo"),
            delivery("ill", 5.1, "a", "undo"),
        ],
        [
            had("well", 1.3, "a"),
            had("ill", 1.3, "a"),
            had("well", 2.2, "b"),
            had("ill", 2.2, "b"),
            had("ill", 4.2, "b", "undo"),
            had("ill", 5.2, "a", "undo"),
            had("well", 20.2, "c"),
        ],
        [("well", "a"), ("well", "b"), ("well", "c")],
    )


def with_entries(evidence: Evidence, saga_id: str, entries: Sequence[LogEntry]) -> Evidence:
    """The evidence with another log for a saga; its records are numbered anew."""
    numbered = tuple(structs.replace(entry, sequence=number) for number, entry in enumerate(entries, 1))
    return replace(evidence, logs={**evidence.logs, saga_id: replace(evidence.logs[saga_id], entries=numbered)})
