"""What an operator can tell a saga, as values. The contract of each is the comment of its message in protos/sec/v1/commands.proto.

Shared by the client, which gives commands, and the core of the SEC node, which decides what follows from them.
"""

from dataclasses import dataclass
from enum import Enum
from typing import NewType

from sec_model.definition import OnDeadline, Payload

NodePath = NewType("NodePath", str)


class Phase(Enum):
    """Which half of a node: its action or its undo action."""

    __hash__ = object.__hash__  # that of Enum is slow, and these are keys of the tables that every record is looked up in

    DO = "do"
    UNDO = "undo"


@dataclass(frozen=True, slots=True)
class Pause:
    reason: str


@dataclass(frozen=True, slots=True)
class Resume:
    pass


@dataclass(frozen=True, slots=True)
class Abort:
    reason: str


@dataclass(frozen=True, slots=True)
class Step:
    pass


@dataclass(frozen=True, slots=True)
class SetBreakpoint:
    node: NodePath
    after: bool
    clear: bool = False


@dataclass(frozen=True, slots=True)
class SetMaxInFlight:
    limit: int


@dataclass(frozen=True, slots=True)
class RetryUndo:
    node: NodePath


@dataclass(frozen=True, slots=True)
class SkipUndo:
    node: NodePath
    reason: str


@dataclass(frozen=True, slots=True)
class MarkUndone:
    node: NodePath
    reason: str


@dataclass(frozen=True, slots=True)
class InjectError:
    node: NodePath
    phase: Phase


@dataclass(frozen=True, slots=True)
class InjectRepeat:
    node: NodePath
    phase: Phase
    count: int


@dataclass(frozen=True, slots=True)
class Signal:
    node: NodePath
    data: Payload


@dataclass(frozen=True, slots=True)
class SetDeadline:
    """`node` empty: the saga's. An SEC node turns `after_s` into `due_us` when it acknowledges the command; with neither there is none."""

    node: NodePath
    then: OnDeadline = OnDeadline.FAIL
    due_us: int = 0
    after_s: float = 0.0


Command = (
    Pause
    | Resume
    | Abort
    | Step
    | SetBreakpoint
    | SetMaxInFlight
    | RetryUndo
    | SkipUndo
    | MarkUndone
    | InjectError
    | InjectRepeat
    | Signal
    | SetDeadline
)
