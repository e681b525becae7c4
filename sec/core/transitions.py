"""The transition tables: which record may follow in which state, of a node and of a saga. Literal, and the only such place.

A node's *mark* is what the log says of it. `queued`, `blocked`, `abandoned` and the like are not marks: they follow from the marks
of the nodes around it (see `sec.core.status`). What else a record needs, such as that all parents have succeeded, is checked
by `sec.core.state`.

The tables are the source of the state diagram in the documentation.
"""

from enum import Enum

from sec.core.records import (
    AttemptFailed,
    AttemptUnknown,
    BreakpointHit,
    Commanded,
    Created,
    DeadlinePassed,
    Done,
    Failed,
    NodeRecord,
    OutcomeUnknown,
    OwnerChanged,
    Pinned,
    Record,
    Started,
    StartRequested,
    Succeeded,
    UndoFailed,
    UndoFinished,
    UndoSkipped,
    UndoStarted,
)


class Mark(Enum):
    """What the log says of a node."""

    __hash__ = object.__hash__  # that of Enum is slow, and these are keys of the tables that every record is looked up in

    NEVER_STARTED = "never_started"
    STARTED = "started"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    OUTCOME_UNKNOWN = "outcome_unknown"
    GIVEN_UP = "given_up"
    """It waited for a signal or an instant when the unwinding began. No record says so: it follows from that."""
    UNDO_STARTED = "undo_started"
    UNDO_FINISHED = "undo_finished"
    UNDO_FAILED = "undo_failed"
    UNDO_SKIPPED = "undo_skipped"


class Course(Enum):
    """Where a saga stands. All of it follows from its records; `UNWINDING` and `STUCK` have no record of their own."""

    __hash__ = object.__hash__  # that of Enum is slow, and these are keys of the tables that every record is looked up in

    NONEXISTENT = "nonexistent"
    CREATED = "created"
    RUNNING = "running"
    UNWINDING = "unwinding"
    STUCK = "stuck"
    DONE = "done"
    UNDONE = "undone"

    ended: bool
    """Nothing will be added to its log."""

    def __init__(self, word: str) -> None:
        self.ended = word in ("done", "undone")


NODE_TRANSITIONS: dict[tuple[Mark, type[NodeRecord]], Mark] = {
    # forward
    (Mark.NEVER_STARTED, Started): Mark.STARTED,
    (Mark.STARTED, Succeeded): Mark.SUCCEEDED,
    (Mark.STARTED, Failed): Mark.FAILED,
    (Mark.STARTED, AttemptUnknown): Mark.STARTED,
    (Mark.STARTED, AttemptFailed): Mark.STARTED,
    (Mark.STARTED, OutcomeUnknown): Mark.OUTCOME_UNKNOWN,
    # backward
    (Mark.SUCCEEDED, UndoStarted): Mark.UNDO_STARTED,
    (Mark.OUTCOME_UNKNOWN, UndoStarted): Mark.UNDO_STARTED,
    (Mark.UNDO_STARTED, AttemptUnknown): Mark.UNDO_STARTED,
    (Mark.UNDO_STARTED, UndoFinished): Mark.UNDO_FINISHED,
    (Mark.UNDO_STARTED, UndoFailed): Mark.UNDO_FAILED,
    # of a node that has to be undone by hand
    (Mark.SUCCEEDED, UndoFailed): Mark.UNDO_FAILED,
    (Mark.OUTCOME_UNKNOWN, UndoFailed): Mark.UNDO_FAILED,
    # an operator's
    (Mark.UNDO_FAILED, UndoStarted): Mark.UNDO_STARTED,
    (Mark.UNDO_FAILED, UndoSkipped): Mark.UNDO_SKIPPED,
    (Mark.UNDO_FAILED, UndoFinished): Mark.UNDO_FINISHED,
}

SETTLED = frozenset({Mark.FAILED, Mark.GIVEN_UP, Mark.UNDO_FINISHED, Mark.UNDO_SKIPPED})
"""Marks of a node that needs nothing more while a saga unwinds. `NEVER_STARTED` is settled too: such a node is abandoned."""

SAGA_ACCEPTS: dict[Course, frozenset[type[Record]]] = {
    Course.NONEXISTENT: frozenset({Created}),
    Course.CREATED: frozenset({StartRequested}),
    Course.RUNNING: frozenset(
        {
            OwnerChanged,
            Commanded,
            BreakpointHit,
            DeadlinePassed,
            Pinned,
            Started,
            Succeeded,
            Failed,
            AttemptUnknown,
            AttemptFailed,
            OutcomeUnknown,
            Done,
        }
    ),
    Course.UNWINDING: frozenset(
        {
            OwnerChanged,
            Commanded,
            Succeeded,
            Failed,
            AttemptUnknown,
            OutcomeUnknown,
            UndoStarted,
            UndoFinished,
            UndoFailed,
            UndoSkipped,
            Done,
        }
    ),
    # A failed undo stops what has not begun; what is in flight still gets its records, and an operator may go on with the failed one.
    Course.STUCK: frozenset(
        {
            OwnerChanged,
            Commanded,
            Succeeded,
            Failed,
            AttemptUnknown,
            OutcomeUnknown,
            UndoStarted,
            UndoFinished,
            UndoFailed,
            UndoSkipped,
        }
    ),
    Course.DONE: frozenset(),
    Course.UNDONE: frozenset(),
}
