"""The records of a saga log, as values. What they mean for a saga stands in `sec.core.state`; how they are written, in `sec.codec`.

Nodes are named by their full paths. The contract of each record is the comment of its message in protos/sec/v1/records.proto.
"""

from enum import Enum
from typing import NewType

from msgspec import Struct
from msgspec.structs import force_setattr
from sec_model import Deadline, Payload
from sec_model.commands import Command, NodePath, Phase

__all__ = [
    "AttemptFailed",
    "AttemptUnknown",
    "BreakpointHit",
    "Commanded",
    "Created",
    "DeadlinePassed",
    "Done",
    "Epoch",
    "Failed",
    "Fault",
    "LogEntry",
    "NodePath",
    "NodeRecord",
    "Outcome",
    "OutcomeUnknown",
    "OwnerChanged",
    "Phase",
    "Pinned",
    "Record",
    "SagaId",
    "SagaRecord",
    "SecNodeName",
    "StartRequested",
    "Started",
    "Succeeded",
    "UndoFailed",
    "UndoFinished",
    "UndoSkipped",
    "UndoStarted",
]

SagaId = NewType("SagaId", str)
Epoch = NewType("Epoch", int)
SecNodeName = NewType("SecNodeName", str)


MAX_ERROR_CHARS = 8_192
"""What is kept of an error's message: an action server's stack trace must not fill the log."""


class Outcome(Enum):
    """How a saga ended."""

    DONE = "done"
    UNDONE = "undone"


class Fault(Struct, frozen=True, gc=False):
    """An error that a person reads, and a short stable word (`code`) for programs. A long message is cut."""

    message: str
    code: str = ""
    data: Payload | None = None

    def __post_init__(self) -> None:
        if len(self.message) > MAX_ERROR_CHARS:
            force_setattr(self, "message", self.message[:MAX_ERROR_CHARS])


class Created(Struct, frozen=True, gc=False):
    uid: str
    definition_hash: str
    deadline: Deadline | None = None


class StartRequested(Struct, frozen=True, gc=False):
    """`due_us` is when the saga's deadline is; 0: it has none."""

    due_us: int = 0


class OwnerChanged(Struct, frozen=True, gc=False):
    epoch: Epoch
    sec_node: SecNodeName


class Started(Struct, frozen=True, gc=False):
    """`due_us` is when the node's deadline is, or, of a timer, the instant that it waits for; 0: there is none."""

    node: NodePath
    due_us: int = 0


class Succeeded(Struct, frozen=True, gc=False):
    node: NodePath
    output: Payload


class Failed(Struct, frozen=True, gc=False):
    node: NodePath
    error: Fault


class AttemptUnknown(Struct, frozen=True, gc=False):
    """`attempt` counts from 1; `spent_s` is the time for this node and phase so far, by the owners' monotonic clocks."""

    node: NodePath
    phase: Phase
    attempt: int
    error: Fault
    spent_s: float


class AttemptFailed(Struct, frozen=True, gc=False):
    """Behind a point of no return. `attempt` and `spent_s` as in `AttemptUnknown`."""

    node: NodePath
    attempt: int
    error: Fault
    spent_s: float


class OutcomeUnknown(Struct, frozen=True, gc=False):
    node: NodePath
    error: Fault


class UndoStarted(Struct, frozen=True, gc=False):
    node: NodePath


class UndoFinished(Struct, frozen=True, gc=False):
    node: NodePath


class UndoFailed(Struct, frozen=True, gc=False):
    node: NodePath
    error: Fault


class UndoSkipped(Struct, frozen=True, gc=False):
    node: NodePath
    reason: str


class Done(Struct, frozen=True, gc=False):
    outcome: Outcome


class Commanded(Struct, frozen=True, gc=False):
    """`refused` says why the command had no effect; empty: it had one."""

    command_id: str
    by: str
    command: Command
    refused: str = ""


class BreakpointHit(Struct, frozen=True, gc=False):
    node: NodePath
    after: bool


class DeadlinePassed(Struct, frozen=True, gc=False):
    """`node` empty: that of the saga."""

    node: NodePath


class Pinned(Struct, frozen=True, gc=False):
    """`action` as the definition asks for it, `offer` as it is called (see `sec_model.versions`)."""

    action: str
    offer: str


NodeRecord = (
    Started
    | Succeeded
    | Failed
    | AttemptUnknown
    | AttemptFailed
    | OutcomeUnknown
    | UndoStarted
    | UndoFinished
    | UndoFailed
    | UndoSkipped
)
SagaRecord = Created | StartRequested | OwnerChanged | Commanded | BreakpointHit | DeadlinePassed | Pinned | Done
Record = NodeRecord | SagaRecord


class LogEntry(Struct, frozen=True, gc=False):
    """A record as it stands in a log. `time_us` is the writer's wall clock, for people."""

    sequence: int
    epoch: Epoch
    writer: SecNodeName
    time_us: int
    record: Record
