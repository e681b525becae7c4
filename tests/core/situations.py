"""Every situation that a node can be in, by what has happened, and a state that is in it."""

import compact
from sec_model import Payload
from sec_model.commands import Pause, SetBreakpoint, SetDeadline, Signal

from sec.core.records import (
    Commanded,
    Created,
    Done,
    Failed,
    Fault,
    NodePath,
    Outcome,
    OutcomeUnknown,
    Record,
    SagaId,
    Started,
    StartRequested,
    Succeeded,
    UndoFailed,
    UndoFinished,
    UndoSkipped,
    UndoStarted,
)
from sec.core.state import SagaState
from sec.core.transitions import Course, Mark

# What happens to a saga, by words: "n" is the node that the tests look at, "x" one beside it that fails, "h" one whose undo is held.
FAULT = Fault("Broken.")
N = NodePath("n")
GRAPH = compact.graph("n | x | h > z")
GRAPHS = {
    "waits": compact.graph("n? | x | h > z"),
    "manual": compact.graph("n!manual | x | h > z"),
    "forward": compact.graph("p!point > n | x | h > z"),
}
"""What n is, when it is not an action like all others: the first word of a situation."""
WORDS: dict[str, list[Record]] = {
    "created": [Created("uid", "hash")],
    "begun": [StartRequested()],
    "n": [Started(N)],
    "n-ok": [Succeeded(N, Payload.json(1))],
    "n-fails": [Failed(N, FAULT)],
    "n-unknown": [OutcomeUnknown(N, FAULT)],
    "n-undo": [UndoStarted(N)],
    "n-undone": [UndoFinished(N)],
    "n-held": [UndoFailed(N, FAULT)],
    "n-skipped": [UndoSkipped(N, "By hand.")],
    "n-due": [Commanded("c3", "ada", SetDeadline(N, due_us=30_000_000))],
    "n-signal": [Commanded("c4", "ada", Signal(N, Payload.json(2)))],
    "n-got-it": [Succeeded(N, Payload.json(2))],
    "p-ok": [Started(NodePath("p")), Succeeded(NodePath("p"), Payload.json(1))],
    "n-break": [Commanded("c1", "ada", SetBreakpoint(N, after=False))],
    "pause": [Commanded("c2", "ada", Pause("Look at it."))],
    "x": [Started(NodePath("x"))],
    "x-failed": [Failed(NodePath("x"), FAULT)],
    "x-fails": [Started(NodePath("x")), Failed(NodePath("x"), FAULT)],
    "x-ok": [Started(NodePath("x")), Succeeded(NodePath("x"), Payload.json(1))],
    "h-ok": [Started(NodePath("h")), Succeeded(NodePath("h"), Payload.json(1))],
    "h-held": [UndoStarted(NodePath("h")), UndoFailed(NodePath("h"), FAULT)],
    "h-undo": [UndoStarted(NodePath("h"))],
    "h-late": [UndoFailed(NodePath("h"), FAULT)],
    "z-ok": [Started(NodePath("z")), Succeeded(NodePath("z"), Payload.json(1))],
    "done": [Done(Outcome.DONE)],
    "undone": [Done(Outcome.UNDONE)],
}
SITUATIONS: dict[str, tuple[Course, Mark]] = {
    "": (Course.NONEXISTENT, Mark.NEVER_STARTED),
    "created": (Course.CREATED, Mark.NEVER_STARTED),
    "created begun": (Course.RUNNING, Mark.NEVER_STARTED),
    "created begun pause": (Course.RUNNING, Mark.NEVER_STARTED),
    "created begun n-break": (Course.RUNNING, Mark.NEVER_STARTED),
    "created begun n-due": (Course.RUNNING, Mark.NEVER_STARTED),
    "created begun n": (Course.RUNNING, Mark.STARTED),
    "created begun n n-due": (Course.RUNNING, Mark.STARTED),
    "waits created begun n": (Course.RUNNING, Mark.STARTED),
    "waits created begun n n-signal": (Course.RUNNING, Mark.STARTED),
    "waits created begun n n-signal n-got-it": (Course.RUNNING, Mark.SUCCEEDED),
    "waits created begun n x-fails": (Course.UNWINDING, Mark.GIVEN_UP),
    "waits created begun h-ok n x-fails h-held": (Course.STUCK, Mark.GIVEN_UP),
    "waits created begun n n-signal n-got-it x-fails": (Course.UNWINDING, Mark.UNDO_FINISHED),
    "manual created begun n n-ok x-fails": (Course.UNWINDING, Mark.SUCCEEDED),
    "manual created begun n n-unknown": (Course.UNWINDING, Mark.OUTCOME_UNKNOWN),
    "manual created begun n n-ok x-fails n-held": (Course.STUCK, Mark.UNDO_FAILED),
    "forward created begun p-ok n": (Course.RUNNING, Mark.STARTED),
    "created begun n n-ok": (Course.RUNNING, Mark.SUCCEEDED),
    "created begun n n-ok x-ok h-ok z-ok": (Course.RUNNING, Mark.SUCCEEDED),
    "created begun n n-ok x-ok h-ok z-ok done": (Course.DONE, Mark.SUCCEEDED),
    "created begun h-ok x-fails": (Course.UNWINDING, Mark.NEVER_STARTED),
    "created begun x-fails": (Course.UNWINDING, Mark.NEVER_STARTED),
    "created begun x-fails undone": (Course.UNDONE, Mark.NEVER_STARTED),
    "created begun n x-fails": (Course.UNWINDING, Mark.STARTED),
    "created begun n n-ok x-fails": (Course.UNWINDING, Mark.SUCCEEDED),
    "created begun n n-ok x pause x-failed": (Course.UNWINDING, Mark.SUCCEEDED),
    "created begun n n-fails": (Course.UNWINDING, Mark.FAILED),
    "created begun n n-fails undone": (Course.UNDONE, Mark.FAILED),
    "created begun n n-unknown": (Course.UNWINDING, Mark.OUTCOME_UNKNOWN),
    "created begun n n-ok x-fails n-undo": (Course.UNWINDING, Mark.UNDO_STARTED),
    "created begun n n-unknown n-undo n-undone": (Course.UNWINDING, Mark.UNDO_FINISHED),
    "created begun n n-unknown n-undo n-undone undone": (Course.UNDONE, Mark.UNDO_FINISHED),
    "created begun n n-unknown n-undo n-held": (Course.STUCK, Mark.UNDO_FAILED),
    "created begun n n-unknown n-undo n-held n-undo": (Course.UNWINDING, Mark.UNDO_STARTED),
    "created begun n n-unknown n-undo n-held n-skipped": (Course.UNWINDING, Mark.UNDO_SKIPPED),
    "created begun n n-unknown n-undo n-held n-skipped undone": (Course.UNDONE, Mark.UNDO_SKIPPED),
    "created begun h-ok x-fails h-held": (Course.STUCK, Mark.NEVER_STARTED),
    "created begun h-ok n x-fails h-held": (Course.STUCK, Mark.STARTED),
    "created begun h-ok n n-ok x-fails h-held": (Course.STUCK, Mark.SUCCEEDED),
    "created begun h-ok n n-fails h-held": (Course.STUCK, Mark.FAILED),
    "created begun h-ok n n-unknown h-held": (Course.STUCK, Mark.OUTCOME_UNKNOWN),
    "created begun h-ok n n-unknown n-undo h-held": (Course.STUCK, Mark.UNDO_STARTED),
    "created begun h-ok n n-unknown n-undo n-undone h-held": (Course.STUCK, Mark.UNDO_FINISHED),
    "created begun h-ok n n-unknown n-undo h-undo n-held h-late": (Course.STUCK, Mark.UNDO_FAILED),
    "created begun h-ok n n-unknown n-undo h-held n-held n-skipped": (Course.STUCK, Mark.UNDO_SKIPPED),
}


def reach(situation: str) -> SagaState:
    first, *words = situation.split() or [""]
    special = first in GRAPHS
    state = SagaState(SagaId("s"), GRAPHS[first] if special else GRAPH)
    for word in words if special else situation.split():
        for record in WORDS[word]:
            state.apply(record)
    return state
