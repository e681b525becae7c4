"""Every record in every situation that a node can be in: what the tables allow happens, everything else raises and changes nothing."""

import copy

import compact
import pytest
from mini_driver import assert_same_state
from sec_model import Payload
from sec_model.commands import SetMaxInFlight
from situations import FAULT, SITUATIONS, N, reach

from sec.core.errors import IllegalTransition
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
    NodePath,
    NodeRecord,
    Outcome,
    OutcomeUnknown,
    OwnerChanged,
    Phase,
    Pinned,
    Record,
    SagaId,
    SecNodeName,
    Started,
    StartRequested,
    Succeeded,
    UndoFailed,
    UndoFinished,
    UndoSkipped,
    UndoStarted,
)
from sec.core.state import NO_TRIES, SagaState
from sec.core.transitions import NODE_TRANSITIONS, SAGA_ACCEPTS, Course, Mark

RECORDS: dict[str, type[Record]] = {
    kind.__name__: kind
    for kind in (
        Created,
        StartRequested,
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
        UndoStarted,
        UndoFinished,
        UndoFailed,
        UndoSkipped,
        Done,
    )
}
# Where both tables allow a record, and the rest of the saga does not.
NOT_NOW = {
    ("created begun h-ok n n-ok x-fails h-held", "UndoStarted"),
    ("created begun h-ok n n-unknown h-held", "UndoStarted"),
    ("created begun pause", "Started"),
    ("created begun n n-ok x pause x-failed", "UndoStarted"),
    ("waits created begun n", "Succeeded"),
    ("waits created begun n", "AttemptUnknown"),
    ("waits created begun n n-signal", "AttemptUnknown"),
    ("waits created begun n", "OutcomeUnknown"),
    ("waits created begun n n-signal", "OutcomeUnknown"),
    ("manual created begun n n-ok x-fails", "UndoStarted"),
    ("manual created begun n n-unknown", "UndoStarted"),
    ("manual created begun n n-ok x-fails n-held", "UndoStarted"),
    ("forward created begun p-ok n", "Failed"),
    ("forward created begun p-ok n", "OutcomeUnknown"),
}
ENDS = {
    "created begun n n-ok x-ok h-ok z-ok",
    "created begun x-fails",
    "created begun n n-fails",
    "created begun n n-unknown n-undo n-undone",
    "created begun n n-unknown n-undo n-held n-skipped",
    "waits created begun n x-fails",
    "waits created begun n n-signal n-got-it x-fails",
}


def record_for(kind: type[Record], state: SagaState) -> Record:
    """A record of this kind for n, right in all but perhaps its place."""
    index = state.graph.index_of("n")
    if kind is AttemptFailed:
        return AttemptFailed(N, state.tries.get(index, NO_TRIES).count + 1, FAULT, 1.0)
    if kind is AttemptUnknown:
        attempt = state.tries.get(index, NO_TRIES).count + 1
        return AttemptUnknown(N, state.in_flight.get(index, Phase.DO), attempt, FAULT, 1.0)
    if kind is Done:
        return Done(Outcome.DONE if state.course is Course.RUNNING else Outcome.UNDONE)
    if kind is OwnerChanged:
        return OwnerChanged(Epoch(state.epoch + 1), SecNodeName("sec-2"))
    return {
        Created: Created("uid-2", "hash-2"),
        Commanded: Commanded(f"c{state.next_sequence}", "ada", SetMaxInFlight(7)),
        BreakpointHit: BreakpointHit(N, after=False),
        DeadlinePassed: DeadlinePassed(N),
        Pinned: Pinned("n", "n@1"),
        StartRequested: StartRequested(),
        Started: Started(N),
        Succeeded: Succeeded(N, Payload.json(2)),
        Failed: Failed(N, FAULT),
        OutcomeUnknown: OutcomeUnknown(N, FAULT),
        UndoStarted: UndoStarted(N),
        UndoFinished: UndoFinished(N),
        UndoFailed: UndoFailed(N, FAULT),
        UndoSkipped: UndoSkipped(N, "By hand."),
    }[kind]


def refused(state: SagaState, record: Record) -> str:
    """The sentence with which a record is refused, and not a bit of the state changed."""
    before = copy.deepcopy({k: v for k, v in state.__dict__.items() if k != "graph"})
    with pytest.raises(IllegalTransition) as caught:
        state.apply(record)
    assert {k: v for k, v in state.__dict__.items() if k != "graph"} == before
    return str(caught.value)


@pytest.mark.parametrize("situation", SITUATIONS)
def test_situation_is_what_it_says(situation: str) -> None:
    state = reach(situation)
    assert (state.course, state.marks[state.graph.index_of("n")]) == SITUATIONS[situation]


@pytest.mark.parametrize("kind", RECORDS)
@pytest.mark.parametrize("situation", SITUATIONS)
def test_every_record_in_every_situation(situation: str, kind: str) -> None:
    state = reach(situation)
    course, mark = SITUATIONS[situation]
    record = record_for(RECORDS[kind], state)
    allowed = RECORDS[kind] in SAGA_ACCEPTS[course]
    if isinstance(record, NodeRecord):
        allowed = allowed and (mark, RECORDS[kind]) in NODE_TRANSITIONS and (situation, kind) not in NOT_NOW
    if isinstance(record, AttemptFailed):
        allowed = allowed and situation.startswith("forward")
    if isinstance(record, UndoFailed) and mark is not Mark.UNDO_STARTED:
        allowed = allowed and situation.startswith("manual")
    if isinstance(record, DeadlinePassed):
        allowed = allowed and "n-due" in situation
    if isinstance(record, Pinned):
        allowed = allowed and mark is Mark.NEVER_STARTED and not situation.startswith("waits")
    if isinstance(record, Done):
        allowed = allowed and situation in ENDS
    if isinstance(record, BreakpointHit):
        allowed = allowed and situation == "created begun n-break"
    if not allowed:
        refused(state, record)
        return
    before = state.next_sequence
    state.apply(record)
    assert state.next_sequence == before + 1
    if isinstance(record, NodeRecord):
        assert state.marks[state.graph.index_of("n")] is NODE_TRANSITIONS[mark, RECORDS[kind]]


def test_the_situations_cover_the_tables() -> None:
    """Every mark and every course is met; every pair of the tables is allowed somewhere."""
    assert {mark for _, mark in SITUATIONS.values()} == set(Mark)
    assert {course for course, _ in SITUATIONS.values()} == set(Course)
    seen = set(SITUATIONS.values())
    for mark, kind in NODE_TRANSITIONS:
        assert any(m is mark and kind in SAGA_ACCEPTS[c] for c, m in seen), (mark, kind)


def test_node_transitions_are_those_of_the_design() -> None:
    written = {f"{mark.value} {kind.__name__} {target.value}" for (mark, kind), target in NODE_TRANSITIONS.items()}
    assert written == {
        "never_started Started started",
        "started Succeeded succeeded",
        "started Failed failed",
        "started AttemptUnknown started",
        "started AttemptFailed started",
        "started OutcomeUnknown outcome_unknown",
        "succeeded UndoStarted undo_started",
        "outcome_unknown UndoStarted undo_started",
        "undo_started AttemptUnknown undo_started",
        "undo_started UndoFinished undo_finished",
        "undo_started UndoFailed undo_failed",
        "succeeded UndoFailed undo_failed",
        "outcome_unknown UndoFailed undo_failed",
        "undo_failed UndoStarted undo_started",
        "undo_failed UndoSkipped undo_skipped",
        "undo_failed UndoFinished undo_finished",
    }


def test_what_a_saga_accepts_is_that_of_the_design() -> None:
    written = {course.value: sorted(kind.__name__ for kind in kinds) for course, kinds in SAGA_ACCEPTS.items()}
    outcomes = ["AttemptUnknown", "Failed", "OutcomeUnknown", "Succeeded"]
    undo = ["UndoFailed", "UndoFinished", "UndoSkipped", "UndoStarted"]
    assert written == {
        "nonexistent": ["Created"],
        "created": ["StartRequested"],
        "running": sorted(
            [
                *outcomes,
                "AttemptFailed",
                "BreakpointHit",
                "Commanded",
                "DeadlinePassed",
                "Done",
                "OwnerChanged",
                "Pinned",
                "Started",
            ]
        ),
        "unwinding": sorted([*outcomes, *undo, "Commanded", "Done", "OwnerChanged"]),
        "stuck": sorted([*outcomes, *undo, "Commanded", "OwnerChanged"]),
        "done": [],
        "undone": [],
    }
    assert {course for course in Course if course.ended} == {Course.DONE, Course.UNDONE}


STEPS = compact.graph("a > sub(b) > k=1 > c")


@pytest.mark.parametrize(
    ("records", "record", "because"),
    [
        ([], Started(NodePath("nobody")), 'the saga has no node "nobody" that has records'),
        ([], Started(NodePath("k")), 'the saga has no node "k" that has records'),
        ([], Started(NodePath("sub")), 'the saga has no node "sub" that has records'),
        ([], Started(NodePath("sub/")), 'the saga has no node "sub/" that has records'),
        ([], Started(NodePath("c")), "not all of its parents have succeeded"),
        ([], Succeeded(NodePath("a"), Payload()), "the node is never_started"),
        ([], UndoFinished(NodePath("a")), "the saga is running"),
        ([], OwnerChanged(Epoch(0), SecNodeName("x")), "the epoch before it is 0"),
        ([], Done(Outcome.DONE), "its final node has not succeeded"),
        ([], Done(Outcome.UNDONE), "it has not been unwound"),
        ([Started(NodePath("a"))], AttemptUnknown(NodePath("a"), Phase.UNDO, 1, FAULT, 1.0), "attempt 1 of its do comes next"),
        ([Started(NodePath("a"))], AttemptUnknown(NodePath("a"), Phase.DO, 2, FAULT, 1.0), "attempt 1 of its do comes next"),
        (
            [Started(NodePath("a")), AttemptUnknown(NodePath("a"), Phase.DO, 1, FAULT, 1.0)],
            AttemptUnknown(NodePath("a"), Phase.DO, 1, FAULT, 1.0),
            "attempt 2 of its do comes next",
        ),
        (
            [
                Started(NodePath("a")),
                Succeeded(NodePath("a"), Payload()),
                Started(NodePath("sub/b")),
                OutcomeUnknown(NodePath("sub/b"), FAULT),
            ],
            UndoStarted(NodePath("a")),
            "not all of its children are undone, abandoned or failed",
        ),
        (
            [
                Started(NodePath("a")),
                Succeeded(NodePath("a"), Payload()),
                Started(NodePath("sub/b")),
                OutcomeUnknown(NodePath("sub/b"), FAULT),
            ],
            Done(Outcome.DONE),
            "its final node has not succeeded",
        ),
    ],
)
def test_why_a_record_is_refused(records: list[Record], record: Record, because: str) -> None:
    state = SagaState(SagaId("s"), STEPS)
    for r in [Created("uid", "hash"), StartRequested(), *records]:
        state.apply(r)
    of_node = f' of node "{record.node}"' if isinstance(record, NodeRecord) else ""
    name, number = type(record).__name__, 3 + len(records)
    assert refused(state, record) == f'Saga "s" cannot take the record {name}{of_node} as number {number}: {because}.'


def test_an_undo_that_is_ready_does_not_start_while_the_saga_is_stuck() -> None:
    state = reach("created begun h-ok n n-ok x-fails h-held")
    assert (
        refused(state, UndoStarted(N)) == 'Saga "s" cannot take the record UndoStarted of node "n" as number 11: the saga is stuck.'
    )
    state.apply(UndoSkipped(NodePath("h"), "By hand."))
    state.apply(UndoStarted(N))
    assert state.in_flight == {state.graph.index_of("n"): Phase.UNDO}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_rehearsal_leaves_no_trace(situation: str) -> None:
    """Whatever can be applied is, one after the other, and taken back; so it is when an exception ends the rehearsal."""
    state, untouched = reach(situation), reach(situation)
    with state.rehearsal():
        applied = rehearse_all(state)
    assert_same_state(state, untouched)
    assert applied or SITUATIONS[situation][0].ended
    with pytest.raises(ZeroDivisionError):
        rehearse_and_raise(state)
    assert_same_state(state, untouched)
    assert rehearse_all(state) == applied, "what was taken back can be applied for good"


def rehearse_and_raise(state: SagaState) -> None:
    with state.rehearsal():
        rehearse_all(state)
        raise ZeroDivisionError


def rehearse_all(state: SagaState) -> int:
    """Applies what fits, again and again, until nothing fits any more."""
    applied = 0
    again = True
    while again and applied < 30:
        again = False
        for kind in RECORDS.values():
            try:
                state.apply(record_for(kind, state))
            except IllegalTransition:
                continue
            applied += 1
            again = True
    return applied


def test_rehearsals_do_not_nest() -> None:
    state = reach("created")
    with state.rehearsal(), pytest.raises(AssertionError, match="rehearsals do not nest"), state.rehearsal():
        pass


@pytest.mark.parametrize("situation", SITUATIONS)
def test_to_repeat_a_rehearsal_is_to_apply_its_records(situation: str) -> None:
    """The mini driver compares that at every step of the random sagas, too."""
    state, applied_to = reach(situation), reach(situation)
    with state.rehearsal() as rehearsal:
        rehearse_all(state)
    state.repeat(rehearsal)
    rehearse_all(applied_to)
    assert_same_state(state, applied_to)


def test_a_rehearsal_is_not_repeated_on_another_state() -> None:
    state = reach("created")
    with state.rehearsal() as rehearsal:
        rehearse_all(state)
    assert rehearse_all(state)
    with pytest.raises(AssertionError, match="something was applied since the rehearsal"):
        state.repeat(rehearsal)
