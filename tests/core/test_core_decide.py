"""What `decide` says of events that the scripts do not show: those that do not fit, and the shape of its effects."""

import compact
import pytest
from mini_driver import assert_same_state
from sec_model import Payload, RetryPolicy, Saga, action, compile_graph, constant, subsaga
from sec_model.commands import RetryUndo

from sec.core.decide import (
    AnswerMissing,
    Begin,
    Dispatch,
    DoAnswered,
    Effect,
    Event,
    Hurry,
    Ordered,
    TakenOver,
    UndoAnswered,
    decide,
)
from sec.core.errors import IllegalTransition, SagaError
from sec.core.records import (
    AttemptUnknown,
    Commanded,
    Created,
    Epoch,
    Failed,
    Fault,
    NodePath,
    OutcomeUnknown,
    OwnerChanged,
    Phase,
    Record,
    SagaId,
    SecNodeName,
    Started,
    StartRequested,
    Succeeded,
    UndoFailed,
    UndoStarted,
)
from sec.core.state import Mishap, SagaState
from sec.core.transitions import Course

FAULT = Fault("Broken.")
A, B, C = NodePath("a"), NodePath("b"), NodePath("c")
NEW_OWNER = TakenOver(Epoch(9), SecNodeName("sec-9"))


def running(text: str, *records: Record) -> SagaState:
    state = SagaState(SagaId("s"), compact.graph(text))
    for record in (Created("uid", "hash"), StartRequested(), *records):
        state.apply(record)
    return state


def answer(state: SagaState, events: list[Event]) -> tuple[tuple[Record, ...], tuple[Effect, ...]]:
    ready = decide(state, events)
    return ready.records, ready.effects


@pytest.mark.parametrize(
    "event",
    [
        DoAnswered(A, Payload()),
        DoAnswered(A, FAULT),
        DoAnswered(NodePath("nobody"), FAULT),
        UndoAnswered(A, None),
        UndoAnswered(A, FAULT),
        UndoAnswered(NodePath("nobody"), None),
        AnswerMissing(A, Phase.DO, FAULT, 1.0, 0.0),
        AnswerMissing(A, Phase.UNDO, FAULT, 1.0, 0.0),
        AnswerMissing(B, Phase.UNDO, FAULT, 1.0, 0.0),
        AnswerMissing(NodePath("nobody"), Phase.DO, FAULT, 1.0, 0.0),
        AnswerMissing(NodePath("k"), Phase.DO, FAULT, 1.0, 0.0),
        TakenOver(Epoch(0), SecNodeName("sec-9")),
    ],
    ids=repr,
)
def test_an_event_that_does_not_fit_is_refused_and_changes_nothing(event: Event) -> None:
    """Of `a > b > k`, b is under way. What was decided before the event in the same step is not answered either."""
    records = [Started(A), Succeeded(A, Payload()), Started(B)]
    state, untouched = running("a > b > k=1", *records), running("a > b > k=1", *records)
    with pytest.raises(IllegalTransition):
        decide(state, [event])
    with pytest.raises(IllegalTransition):
        decide(state, [AnswerMissing(B, Phase.DO, FAULT, 1.0, 0.0), event])
    assert_same_state(state, untouched)


@pytest.mark.parametrize("started", [False, True])
def test_nobody_takes_over_a_saga_that_does_not_run(started: bool) -> None:
    state = SagaState(SagaId("s"), compact.graph("k=1"))
    state.apply(Created("uid", "hash"))
    if started:
        state.apply(StartRequested())
        for record in decide(state, [Begin()]).records:
            state.apply(record)
        assert state.course.ended
    with pytest.raises(IllegalTransition):
        decide(state, [NEW_OWNER])


def test_a_saga_that_was_not_started_does_not_run() -> None:
    state = SagaState(SagaId("s"), compact.graph("a"))
    state.apply(Created("uid", "hash"))
    assert answer(state, [Begin()]) == ((), ())


def test_no_events_are_no_reason_to_wait() -> None:
    assert answer(running("a"), []) == ((Started(A),), (Dispatch(0, Phase.DO, 1, 0.0, 30.0),))


def test_nodes_start_in_order_of_insertion() -> None:
    ready = decide(running("a | b | c > d"), [Begin()])
    assert ready.records == (Started(A), Started(B), Started(C))
    assert [e.node for e in ready.effects] == [0, 1, 2]


def test_the_policy_says_how_long_calls_and_pauses_take() -> None:
    saga = Saga("s")
    retry = RetryPolicy(initial_backoff_s=2.0, max_backoff_s=10.0, jitter=0.5, attempt_timeout_s=7.0, overall_timeout_s=20.0)
    undo_retry = RetryPolicy(attempt_timeout_s=3.0)
    saga.append(action("a", "act", retry=retry, undo_retry=undo_retry))
    state = SagaState(SagaId("s"), compile_graph(saga.build()))
    for record in (Created("uid", "hash"), StartRequested()):
        state.apply(record)
    assert decide(state, []).effects == (Dispatch(0, Phase.DO, 1, 0.0, 7.0),)
    state.apply(Started(A))
    ready = decide(state, [AnswerMissing(A, Phase.DO, FAULT, 7.0, 0.5)])
    assert (ready.records, ready.effects) == (
        (AttemptUnknown(A, Phase.DO, 1, FAULT, 7.0),),
        (Dispatch(0, Phase.DO, 2, 1.5, 7.0, 7.0),),
    )
    state.apply(ready.records[0])
    # A new owner does not pause, and goes on with the time that is left.
    assert decide(state, [NEW_OWNER]).effects == (Dispatch(0, Phase.DO, 2, 0.0, 7.0, 7.0),)
    ready = decide(state, [AnswerMissing(A, Phase.DO, FAULT, 15.0, 0.0)])
    assert ready.effects == (Dispatch(0, Phase.DO, 3, 4.0, 1.0, 15.0),)
    state.apply(ready.records[0])
    assert decide(state, [NEW_OWNER]).effects == (Dispatch(0, Phase.DO, 3, 0.0, 5.0, 15.0),)
    # No time is left for a pause: the outcome stays unknown, and the undo action comes with its own policy.
    ready = decide(state, [AnswerMissing(A, Phase.DO, FAULT, 18.0, 0.0)])
    assert ready.records == (AttemptUnknown(A, Phase.DO, 3, FAULT, 18.0), OutcomeUnknown(A, FAULT), UndoStarted(A))
    assert ready.effects == (Dispatch(0, Phase.UNDO, 1, 0.0, 3.0),)


def test_a_new_owner_makes_one_call_even_when_the_policy_leaves_none() -> None:
    """Only an answer can tell what the last call did."""
    saga = Saga("s").append(action("a", "act", retry=RetryPolicy(max_attempts=2, attempt_timeout_s=7.0, overall_timeout_s=10.0)))
    state = SagaState(SagaId("s"), compile_graph(saga.build()))
    for record in (Created("uid", "hash"), StartRequested(), Started(A), AttemptUnknown(A, Phase.DO, 1, FAULT, 11.0)):
        state.apply(record)
    assert decide(state, [NEW_OWNER]).effects == (Dispatch(0, Phase.DO, 2, 0.0, 7.0, 11.0),)
    state.apply(AttemptUnknown(A, Phase.DO, 2, FAULT, 12.0))
    assert decide(state, [NEW_OWNER]).effects == (Dispatch(0, Phase.DO, 3, 0.0, 7.0, 12.0),)
    ready = decide(state, [AnswerMissing(A, Phase.DO, FAULT, 13.0, 0.0)])
    assert ready.records[:2] == (AttemptUnknown(A, Phase.DO, 3, FAULT, 13.0), OutcomeUnknown(A, FAULT))


def test_a_new_owner_dispatches_what_is_in_flight_behind_its_own_record() -> None:
    state = running("a | b | c > d", Started(A), Started(C))
    ready = decide(state, [NEW_OWNER])
    assert ready.records == (OwnerChanged(Epoch(9), SecNodeName("sec-9")), Started(B))
    assert [(e.node, e.attempt) for e in ready.effects if isinstance(e, Dispatch)] == [(0, 1), (2, 1), (1, 1)]


def test_only_dos_are_hurried_and_only_when_the_unwinding_begins() -> None:
    state = running("a | b | c > d", Started(A), Started(B), Started(C))
    ready = decide(state, [DoAnswered(A, FAULT)])
    assert (ready.records, ready.effects) == ((Failed(A, FAULT),), (Hurry(1), Hurry(2)))
    state.apply(ready.records[0])
    assert answer(state, [DoAnswered(B, FAULT)]) == ((Failed(B, FAULT),), ())


def test_an_undo_is_dispatched_whoever_offers_it() -> None:
    """An undo must not be put off: somebody offers the action, or did."""
    state = running("a > b", Started(A), Succeeded(A, Payload()), Started(B))
    ready = decide(state, [DoAnswered(B, FAULT)], offered=frozenset())
    assert ready.effects == (Dispatch(0, Phase.UNDO, 1, 0.0, 30.0),)


def test_a_retried_undo_begins_with_a_fresh_policy() -> None:
    state = running("a > b", Started(A), Succeeded(A, Payload()), Started(B), Failed(B, FAULT), UndoStarted(A))
    state.apply(AttemptUnknown(A, Phase.UNDO, 1, FAULT, 100.0))
    state.apply(UndoFailed(A, FAULT))
    records, effects = answer(state, [Ordered("c1", "ada", RetryUndo(A))])
    assert records == (Commanded("c1", "ada", RetryUndo(A)), UndoStarted(A))
    assert effects == (Dispatch(0, Phase.UNDO, 1, 0.0, 30.0),)


def test_every_mishap_is_kept_in_order() -> None:
    state = running("a | b | c > d", Started(A), Started(B), Started(C))
    for record in (
        Failed(B, Fault("First.")),
        OutcomeUnknown(A, Fault("Second.")),
        UndoStarted(A),
        UndoFailed(A, Fault("Third.")),
        Failed(C, Fault("Fourth.")),
    ):
        state.apply(record)
    assert [(m.sequence, m.node, m.phase, m.error.message) for m in state.mishaps] == [
        (6, "b", Phase.DO, "First."),
        (7, "a", Phase.DO, "Second."),
        (9, "a", Phase.UNDO, "Third."),
        (10, "c", Phase.DO, "Fourth."),
    ]


def test_outputs_of_constants_subsagas_and_actions() -> None:
    inner = Saga("inner").append(action("x", "x")).append(constant("y", {"y": 1}))
    outer = Saga("outer").append(subsaga("in", inner)).append(action("z", "z"))
    saga = Saga("s").append(subsaga("sub", outer)).append(action("a", "a"))
    state = SagaState(SagaId("s"), compile_graph(saga.build()))
    for record in (
        Created("uid", "hash"),
        StartRequested(),
        Started(NodePath("sub/in/x")),
        Succeeded(NodePath("sub/in/x"), Payload.json(1)),
    ):
        state.apply(record)
    graph = state.graph
    assert state.output_of(graph.index_of("sub/in/x")) == Payload.json(1)
    assert state.output_of(graph.index_of("sub/in/y")) == Payload.json({"y": 1})
    assert state.output_of(graph.index_of("sub/in")) == Payload.json({"y": 1})
    state.apply(Started(NodePath("sub/z")))
    state.apply(Succeeded(NodePath("sub/z"), Payload.json(3)))
    assert state.output_of(graph.index_of("sub")) == Payload.json(3)
    with pytest.raises(KeyError):
        state.output_of(graph.index_of("a"))


def test_a_long_row_of_instant_nodes_needs_no_recursion() -> None:
    text = " > ".join(["a", *(f"k{i}=1" for i in range(5000)), "b"])
    state = running(text, Started(A), Succeeded(A, Payload()))
    last = state.graph.index_of("b")
    assert list(state.startable) == [last]
    for record in (Started(B), Failed(B, FAULT)):
        state.apply(record)
    assert list(state.undoable) == [0]


def test_errors_are_definite_and_not_to_be_retried() -> None:
    error = IllegalTransition("No.")
    assert isinstance(error, SagaError)
    assert (error.definite, error.retryable) == (True, False)


def test_ready_tells_how_the_saga_will_stand() -> None:
    """And the saga itself stands as before until the records are durable and applied."""
    state = running("a | b > c", Started(A), Started(B))
    ready = decide(state, [DoAnswered(A, FAULT)])
    assert (state.course, state.mishaps) == (Course.RUNNING, ())
    assert (ready.course, ready.mishaps) == (Course.UNWINDING, (Mishap(5, A, Phase.DO, FAULT),))
    ready = decide(state, [DoAnswered(A, FAULT), DoAnswered(B, FAULT)])
    assert ready.course is Course.UNDONE
    assert [m.sequence for m in ready.mishaps] == [5, 6]


def test_nothing_is_startable_once_the_saga_unwinds() -> None:
    state = running("a | b | c > d", Started(A))
    assert list(state.startable) == [1, 2]
    state.apply(Failed(A, FAULT))
    assert (state.startable, state.undoable, state.in_flight) == ({}, {}, {})


def test_the_output_of_a_subsaga_that_ends_in_a_subsaga() -> None:
    state = running("out(in(x))", Started(NodePath("out/in/x")), Succeeded(NodePath("out/in/x"), Payload.json(7)))
    assert state.output_of(state.graph.final) == Payload.json(7)
