"""What a person sees of each node, in every situation that it can be in."""

import compact
import pytest
from sec_model import Payload
from situations import FAULT, SITUATIONS, reach

from sec.core.records import (
    AttemptUnknown,
    Created,
    Failed,
    NodePath,
    Outcome,
    OutcomeUnknown,
    Phase,
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
from sec.core.records import Done as DoneRecord
from sec.core.state import SagaState
from sec.core.status import NodeState, node_state
from sec.core.transitions import Course

SHOWN = {
    "": "queued",
    "created": "queued",
    "created begun": "queued",
    "created begun pause": "queued",
    "created begun n-break": "queued",
    "created begun n-due": "queued",
    "created begun n": "working",
    "created begun n n-due": "working",
    "waits created begun n": "waiting",
    "waits created begun n n-signal": "waiting",
    "waits created begun n n-signal n-got-it": "done",
    "waits created begun n x-fails": "abandoned",
    "waits created begun h-ok n x-fails h-held": "abandoned",
    "waits created begun n n-signal n-got-it x-fails": "undone",
    "manual created begun n n-ok x-fails": "undo-queued",
    "manual created begun n n-unknown": "outcome-unknown",
    "manual created begun n n-ok x-fails n-held": "undo-failed",
    "forward created begun p-ok n": "working",
    "created begun n n-ok": "done",
    "created begun n n-ok x-ok h-ok z-ok": "done",
    "created begun n n-ok x-ok h-ok z-ok done": "done",
    "created begun h-ok x-fails": "abandoned",
    "created begun x-fails": "abandoned",
    "created begun x-fails undone": "abandoned",
    "created begun n x-fails": "working",
    "created begun n n-ok x-fails": "undo-queued",
    "created begun n n-ok x pause x-failed": "undo-queued",
    "created begun n n-fails": "failed",
    "created begun n n-fails undone": "failed",
    "created begun n n-unknown": "outcome-unknown",
    "created begun n n-ok x-fails n-undo": "undoing",
    "created begun n n-unknown n-undo n-undone": "undone",
    "created begun n n-unknown n-undo n-undone undone": "undone",
    "created begun n n-unknown n-undo n-held": "undo-failed",
    "created begun n n-unknown n-undo n-held n-undo": "undoing",
    "created begun n n-unknown n-undo n-held n-skipped": "undo-skipped",
    "created begun n n-unknown n-undo n-held n-skipped undone": "undo-skipped",
    "created begun h-ok x-fails h-held": "abandoned",
    "created begun h-ok n x-fails h-held": "working",
    "created begun h-ok n n-ok x-fails h-held": "undo-queued",
    "created begun h-ok n n-fails h-held": "failed",
    "created begun h-ok n n-unknown h-held": "outcome-unknown",
    "created begun h-ok n n-unknown n-undo h-held": "undoing",
    "created begun h-ok n n-unknown n-undo n-undone h-held": "undone",
    "created begun h-ok n n-unknown n-undo h-undo n-held h-late": "undo-failed",
    "created begun h-ok n n-unknown n-undo h-held n-held n-skipped": "undo-skipped",
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_state_of_a_node(situation: str) -> None:
    state = reach(situation)
    assert node_state(state, state.graph.index_of("n")).value == SHOWN[situation]


def test_a_join_is_blocked_until_all_of_its_parents_have_succeeded() -> None:
    state = reach("created begun n n-ok x-ok")
    join = state.graph.index_of("z")
    assert node_state(state, join) is NodeState.BLOCKED
    state.apply(Started(NodePath("h")))
    state.apply(Succeeded(NodePath("h"), Payload()))
    assert node_state(state, join) is NodeState.QUEUED


@pytest.mark.parametrize(("phase", "shown"), [(Phase.DO, "retrying"), (Phase.UNDO, "undoing")])
def test_an_unknown_attempt_shows(phase: Phase, shown: str) -> None:
    state = reach("created begun n" if phase is Phase.DO else "created begun n n-ok x-fails n-undo")
    state.apply(AttemptUnknown(NodePath("n"), phase, 1, FAULT, 1.0))
    assert node_state(state, state.graph.index_of("n")).value == shown


def test_every_state_is_shown_somewhere() -> None:
    assert {s.value for s in NodeState} == {*SHOWN.values(), "blocked", "retrying"}


def do(path: str) -> list[Record]:
    return [Started(NodePath(path)), Succeeded(NodePath(path), Payload())]


def fail(path: str) -> list[Record]:
    return [Started(NodePath(path)), Failed(NodePath(path), FAULT)]


def undo(path: str) -> list[Record]:
    return [UndoStarted(NodePath(path)), UndoFinished(NodePath(path))]


# How the subsaga "sub" of `a > sub(b > c) > d` shows.
SUBSAGA = {
    "blocked": [],
    "its first node is queued": do("a"),
    "working": [*do("a"), Started(NodePath("sub/b"))],
    "between its nodes": [*do("a"), *do("sub/b")],
    "done": [*do("a"), *do("sub/b"), *do("sub/c")],
    "abandoned": fail("a"),
    "its failure": [*do("a"), *do("sub/b"), *fail("sub/c")],
    "its unknown outcome": [*do("a"), Started(NodePath("sub/b")), OutcomeUnknown(NodePath("sub/b"), FAULT)],
    "undoing": [*do("a"), *do("sub/b"), *do("sub/c"), *fail("d")],
    "half undone": [*do("a"), *do("sub/b"), *do("sub/c"), *fail("d"), *undo("sub/c")],
    "undone": [*do("a"), *do("sub/b"), *do("sub/c"), *fail("d"), *undo("sub/c"), *undo("sub/b")],
    "undone to the end": [*do("a"), *do("sub/b"), *fail("sub/c"), *undo("sub/b"), *undo("a"), DoneRecord(Outcome.UNDONE)],
    "its undo fails": [
        *do("a"),
        *do("sub/b"),
        *fail("sub/c"),
        UndoStarted(NodePath("sub/b")),
        UndoFailed(NodePath("sub/b"), FAULT),
    ],
    "its undo is skipped": [
        *do("a"),
        *do("sub/b"),
        *fail("sub/c"),
        UndoStarted(NodePath("sub/b")),
        UndoFailed(NodePath("sub/b"), FAULT),
        UndoSkipped(NodePath("sub/b"), "By hand."),
    ],
}
SUBSAGA_SHOWN = {
    "blocked": "blocked",
    "its first node is queued": "working",
    "working": "working",
    "between its nodes": "working",
    "done": "done",
    "abandoned": "abandoned",
    "its failure": "undoing",
    "its unknown outcome": "undoing",
    "undoing": "undoing",
    "half undone": "undoing",
    "undone": "undone",
    "undone to the end": "failed",
    "its undo fails": "undo-failed",
    "its undo is skipped": "undo-skipped",
}


@pytest.mark.parametrize("case", SUBSAGA)
def test_state_of_a_subsaga(case: str) -> None:
    state = SagaState(SagaId("s"), compact.graph("a > sub(b > c) > d"))
    for record in [Created("uid", "hash"), StartRequested(), *SUBSAGA[case]]:
        state.apply(record)
    assert node_state(state, state.graph.index_of("sub")).value == SUBSAGA_SHOWN[case]


def test_a_subsaga_before_the_start_is_queued_when_nothing_stands_before_it() -> None:
    state = SagaState(SagaId("s"), compact.graph("sub(b > c) > d"))
    state.apply(Created("uid", "hash"))
    assert node_state(state, state.graph.index_of("sub")) is NodeState.QUEUED
    assert node_state(state, state.graph.index_of("sub/b")) is NodeState.BLOCKED


def test_a_subsaga_with_something_behind_it_waits_to_be_undone() -> None:
    state = SagaState(SagaId("s"), compact.graph("sub(b) > d > e"))
    for record in [Created("uid", "hash"), StartRequested(), *do("sub/b"), *do("d"), *fail("e")]:
        state.apply(record)
    assert state.course is Course.UNWINDING
    assert node_state(state, state.graph.index_of("sub")) is NodeState.UNDO_QUEUED
