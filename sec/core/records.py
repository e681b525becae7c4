"""The records of a saga log, as values. What they mean for a saga stands in `sec.core.state`; how they are written, in `sec.codec`.

Nodes are named by their full paths. The contract of each record is the comment of its message in protos/sec/v1/records.proto.
"""

from dataclasses import dataclass
from enum import Enum
from typing import NewType

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


@dataclass(frozen=True, slots=True)
class Fault:
    """An error that a person reads, and a short stable word (`code`) for programs. A long message is cut."""

    message: str
    code: str = ""
    data: Payload | None = None

    def __post_init__(self) -> None:
        if len(self.message) > MAX_ERROR_CHARS:
            object.__setattr__(self, "message", self.message[:MAX_ERROR_CHARS])


@dataclass(frozen=True, slots=True)
class Created:
    uid: str
    definition_hash: str
    deadline: Deadline | None = None


@dataclass(frozen=True, slots=True)
class StartRequested:
    """`due_us` is when the saga's deadline is; 0: it has none."""

    due_us: int = 0


@dataclass(frozen=True, slots=True)
class OwnerChanged:
    epoch: Epoch
    sec_node: SecNodeName


@dataclass(frozen=True, slots=True)
class Started:
    """`due_us` is when the node's deadline is, or, of a timer, the instant that it waits for; 0: there is none."""

    node: NodePath
    due_us: int = 0


@dataclass(frozen=True, slots=True)
class Succeeded:
    node: NodePath
    output: Payload


@dataclass(frozen=True, slots=True)
class Failed:
    node: NodePath
    error: Fault


@dataclass(frozen=True, slots=True)
class AttemptUnknown:
    """`attempt` counts from 1; `spent_s` is the time for this node and phase so far, by the owners' monotonic clocks."""

    node: NodePath
    phase: Phase
    attempt: int
    error: Fault
    spent_s: float


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """Behind a point of no return. `attempt` and `spent_s` as in `AttemptUnknown`."""

    node: NodePath
    attempt: int
    error: Fault
    spent_s: float


@dataclass(frozen=True, slots=True)
class OutcomeUnknown:
    node: NodePath
    error: Fault


@dataclass(frozen=True, slots=True)
class UndoStarted:
    node: NodePath


@dataclass(frozen=True, slots=True)
class UndoFinished:
    node: NodePath


@dataclass(frozen=True, slots=True)
class UndoFailed:
    node: NodePath
    error: Fault


@dataclass(frozen=True, slots=True)
class UndoSkipped:
    node: NodePath
    reason: str


@dataclass(frozen=True, slots=True)
class Done:
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Commanded:
    """`refused` says why the command had no effect; empty: it had one."""

    command_id: str
    by: str
    command: Command
    refused: str = ""


@dataclass(frozen=True, slots=True)
class BreakpointHit:
    node: NodePath
    after: bool


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """`node` empty: that of the saga."""

    node: NodePath


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
SagaRecord = Created | StartRequested | OwnerChanged | Commanded | BreakpointHit | DeadlinePassed | Done
Record = NodeRecord | SagaRecord


@dataclass(frozen=True, slots=True)
class LogEntry:
    """A record as it stands in a log. `time_us` is the writer's wall clock, for people."""

    sequence: int
    epoch: Epoch
    writer: SecNodeName
    time_us: int
    record: Record
