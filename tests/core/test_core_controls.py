"""Orders of operators: what is refused and how it is said, and what several events of one step mean together."""

from typing import get_args

import compact
import pytest
from mini_driver import assert_same_state
from sec_model import OnDeadline, Payload
from sec_model.commands import (
    Abort,
    Command,
    InjectError,
    InjectRepeat,
    MarkUndone,
    NodePath,
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
from situations import SITUATIONS, N, reach

from sec.core.decide import (
    AnswerMissing,
    Begin,
    Dispatch,
    DoAnswered,
    Effect,
    Event,
    Hurry,
    NotWaitedFor,
    Ordered,
    TakenOver,
    Withhold,
    decide,
)
from sec.core.errors import IllegalTransition
from sec.core.records import (
    AttemptUnknown,
    BreakpointHit,
    Commanded,
    Created,
    Epoch,
    Fault,
    OutcomeUnknown,
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
from sec.core.refusals import refusal
from sec.core.state import SagaState
from sec.core.transitions import Course

FAULT = Fault("No answer.")
A, B, NOBODY = NodePath("a"), NodePath("b"), NodePath("nobody")
WHY = "By hand."

CREATED = "created"
RUNS = "created begun"
STARTED = "created begun n"
SUCCEEDED = "created begun n n-ok"
PAUSED = "created begun pause"
UNWINDS = "created begun n n-ok x-fails"
UNDOING = "created begun n n-ok x-fails n-undo"
HELD = "created begun n n-unknown n-undo n-held"
FAILED = "created begun n x-fails n-fails"
ABANDONED = "created begun x-fails"
UNKNOWN = "created begun n n-unknown"
UNDONE = "created begun h-ok n n-unknown n-undo n-undone h-held"
DONE = "created begun n n-ok x-ok h-ok z-ok done"

NO_NODE = 'Saga "s" has no node "nobody".'
PAST = 'Node "n" of saga "s" is past that point.'
DO_PAST = 'The do of node "n" of saga "s" is past.'
UNDO_PAST = 'The undo of node "n" of saga "s" is past.'
NOT_FAILED = 'The undo of node "n" of saga "s" has not failed.'
SAY_WHY = 'Say why: a reason is kept with node "n" of saga "s".'
OF_EVERY_KIND: list[Command] = [
    Pause("Why."),
    Resume(),
    Abort("Why."),
    Step(),
    SetBreakpoint(N, after=False),
    SetMaxInFlight(1),
    RetryUndo(N),
    SkipUndo(N, WHY),
    MarkUndone(N, WHY),
    InjectError(N, Phase.DO),
    InjectRepeat(N, Phase.DO, 2),
    Signal(N, Payload.json(1)),
    SetDeadline(N, due_us=1),
]
WAITING = "waits created begun n"
SIGNALLED = "waits created begun n n-signal"
BY_HAND = "manual created begun n n-ok x-fails n-held"
FORWARD = "forward created begun p-ok n"
NO_UNDO = 'Node "n" of saga "s" has no undo action.'
NO_ACTION = 'Node "n" of saga "s" calls no action.'
NO_RETURN = 'Saga "s" has come to its point of no return, node "p": it only goes forward.'
NO_DEADLINES = 'Saga "s" unwinds: deadlines are for going forward.'
SAGA = NodePath("")


def not_in(course: str) -> str:
    return f'Saga "s" is {course}: it takes no commands any more.'


REFUSALS: list[tuple[str, Command, str]] = [
    *(("", c, not_in("nonexistent")) for c in OF_EVERY_KIND),
    *((CREATED, c, "") for c in OF_EVERY_KIND if not isinstance(c, Resume | Step | RetryUndo | SkipUndo | MarkUndone | Signal)),
    *((CREATED, c, NOT_FAILED) for c in OF_EVERY_KIND if isinstance(c, RetryUndo | SkipUndo | MarkUndone)),
    ("waits created", Signal(N, Payload.json(1)), ""),
    (WAITING, Signal(N, Payload.json(1)), ""),
    (SIGNALLED, Signal(N, Payload.json(1)), 'Node "n" of saga "s" has got its signal already.'),
    ("waits created begun n x-fails", Signal(N, Payload()), 'Node "n" of saga "s" does not wait for its signal any more.'),
    (RUNS, Signal(N, Payload()), 'Node "n" of saga "s" does not wait for a signal.'),
    (RUNS, Signal(NOBODY, Payload()), NO_NODE),
    *((WAITING, InjectError(N, phase), NO_ACTION) for phase in Phase),
    (WAITING, MarkUndone(N, WHY), NO_ACTION),
    (WAITING, SetBreakpoint(N, after=True), ""),
    *(("manual created begun", inject, NO_UNDO) for inject in (InjectError(N, Phase.UNDO), InjectRepeat(N, Phase.UNDO, 2))),
    ("manual created begun", InjectError(N, Phase.DO), ""),
    *((BY_HAND, by_hand, "") for by_hand in (SkipUndo(N, WHY), MarkUndone(N, WHY))),
    (
        BY_HAND,
        RetryUndo(N),
        'Node "n" of saga "s" has no undo action that could be called: take its effect back by hand, and say so '
        '("secctl saga mark-undone").',
    ),
    *((s, Abort(""), NO_RETURN) for s in (FORWARD, "forward created begun p-ok")),
    ("forward created begun", Abort(""), ""),
    *((s, SetDeadline(SAGA, then, 1), "") for s in (RUNS, PAUSED, "waits created") for then in OnDeadline),
    (FORWARD, SetDeadline(SAGA, OnDeadline.FAIL, 1), NO_RETURN),
    (FORWARD, SetDeadline(SAGA, OnDeadline.PAUSE, 1), ""),
    *((FORWARD, SetDeadline(node), "") for node in (SAGA, N)),
    (FORWARD, SetDeadline(N, OnDeadline.PAUSE, 1), ""),
    *(
        (
            s,
            SetDeadline(node, OnDeadline.FAIL, 1),
            f'Node "{node}" of saga "s" cannot be given up: let its deadline pause the saga.',
        )
        for s, node in ((FORWARD, N), ("forward created begun", NodePath("p")))
    ),
    *((s, SetDeadline(N, due_us=1), "") for s in (RUNS, STARTED, WAITING)),
    *((s, SetDeadline(node, due_us=1), NO_DEADLINES) for s in (UNWINDS, HELD) for node in (N, SAGA)),
    (SUCCEEDED, SetDeadline(N, due_us=1), 'Node "n" of saga "s" has ended.'),
    (RUNS, SetDeadline(NOBODY, due_us=1), NO_NODE),
    *((DONE, c, not_in("done")) for c in OF_EVERY_KIND),
    *(("created begun x-fails undone", c, not_in("undone")) for c in OF_EVERY_KIND),
    *((s, Pause("Why."), "") for s in (RUNS, UNWINDS, HELD)),
    (PAUSED, Pause("Why."), 'Saga "s" is paused already.'),
    (PAUSED, Resume(), ""),
    *((s, Resume(), 'Saga "s" is not paused.') for s in (RUNS, UNWINDS, HELD)),
    *((s, Abort(""), "") for s in (RUNS, STARTED, PAUSED)),
    *((s, Abort(""), 'Saga "s" unwinds already.') for s in (UNWINDS, HELD)),
    (PAUSED, Step(), ""),
    (RUNS, Step(), 'Saga "s" is not paused: pause it before you step ("secctl saga pause").'),
    *((RUNS, SetMaxInFlight(limit), "") for limit in (0, 1, 1000)),
    (RUNS, SetMaxInFlight(-1), 'Saga "s" cannot have a limit of -1.'),
    *((RUNS, SetBreakpoint(N, after), "") for after in (False, True)),
    *((RUNS, SetBreakpoint(N, after, clear=True), "") for after in (False, True)),
    (STARTED, SetBreakpoint(N, after=False), PAST),
    (STARTED, SetBreakpoint(N, after=True), ""),
    *((SUCCEEDED, SetBreakpoint(N, after), PAST) for after in (False, True)),
    *((s, SetBreakpoint(N, after, clear=True), "") for s in (SUCCEEDED, UNWINDS) for after in (False, True)),
    *((ABANDONED, SetBreakpoint(N, after), PAST) for after in (False, True)),
    *((s, SetBreakpoint(NOBODY, after), NO_NODE) for after in (False, True) for s in (RUNS, UNWINDS, HELD)),
    *((RUNS, InjectRepeat(N, Phase.DO, count), "") for count in (1, 100)),
    *(
        (RUNS, InjectRepeat(N, Phase.DO, count), f"A call can be made 1 to 100 times, not {count}.")
        for count in (-1, 0, 101, 2**32 - 1)
    ),
    *((s, inject, "") for s in (RUNS, PAUSED) for inject in (InjectError(N, Phase.DO), InjectRepeat(N, Phase.DO, 2))),
    *(
        (s, inject, DO_PAST)
        for s in (STARTED, SUCCEEDED, FAILED, UNKNOWN, ABANDONED, HELD)
        for inject in (InjectError(N, Phase.DO), InjectRepeat(N, Phase.DO, 2))
    ),
    *(
        (s, inject, "")
        for s in (RUNS, STARTED, SUCCEEDED, UNKNOWN, HELD)
        for inject in (InjectError(N, Phase.UNDO), InjectRepeat(N, Phase.UNDO, 2))
    ),
    *(
        (s, inject, UNDO_PAST)
        for s in (UNDOING, FAILED, UNDONE, ABANDONED)
        for inject in (InjectError(N, Phase.UNDO), InjectRepeat(N, Phase.UNDO, 2))
    ),
    *((RUNS, InjectError(NOBODY, phase), NO_NODE) for phase in Phase),
    *((RUNS, InjectRepeat(NOBODY, phase, 2), NO_NODE) for phase in Phase),
    *((HELD, by_hand, "") for by_hand in (RetryUndo(N), SkipUndo(N, WHY), MarkUndone(N, WHY))),
    *((HELD, by_hand, SAY_WHY) for reason in ("", " \n") for by_hand in (SkipUndo(N, reason), MarkUndone(N, reason))),
    *(
        (s, by_hand, NOT_FAILED)
        for s in (RUNS, SUCCEEDED, UNDOING, UNDONE)
        for by_hand in (RetryUndo(N), SkipUndo(N, WHY), MarkUndone(N, WHY))
    ),
    *((HELD, by_hand, NO_NODE) for by_hand in (RetryUndo(NOBODY), SkipUndo(NOBODY, WHY), MarkUndone(NOBODY, WHY))),
]


@pytest.mark.parametrize(("situation", "command", "because"), REFUSALS, ids=lambda value: str(value) or "-")
def test_what_is_refused_and_why(situation: str, command: Command, because: str) -> None:
    state = reach(situation)
    assert refusal(state, command) == because
    if state.course not in (Course.RUNNING, Course.UNWINDING, Course.STUCK):
        with pytest.raises(IllegalTransition):
            decide(state, [Ordered("id", "ada", command)])
        return
    first = decide(state, [Ordered("id", "ada", command)]).records[0]
    assert first == Commanded("id", "ada", command, because)
    if because:
        before = (state.controls, state.dues.copy(), state.signals.copy(), state.course)
        state.apply(first)
        assert (state.controls, state.dues, state.signals, state.course) == before
        assert "id" in state.commands
    else:
        state.apply(first)
    assert (
        decide(state, [Ordered("id", "ada", command), Ordered("id", "bob", Pause("Other."))]).records == decide(state, []).records
    )
    with pytest.raises(IllegalTransition, match='the command "id" has been taken up already'):
        state.apply(first)


def test_every_kind_of_command_is_refused_somewhere_and_taken_up_somewhere() -> None:
    assert {type(c) for c in OF_EVERY_KIND} == set(get_args(Command))
    running = [(c, because) for s, c, because in REFUSALS if s in SITUATIONS and SITUATIONS[s][0].value in ("running", "stuck")]
    assert {type(c) for c, because in running if not because} == set(get_args(Command))


@pytest.mark.parametrize(
    ("situation", "command", "because"),
    [
        (UNWINDS, Abort(""), "it cannot begin to unwind"),
        (FORWARD, Abort(""), "it cannot begin to unwind"),
        (SIGNALLED, Signal(N, Payload()), 'no node "n" waits for a signal'),
        (RUNS, Signal(N, Payload()), 'no node "n" waits for a signal'),
        (RUNS, Signal(NOBODY, Payload()), 'no node "nobody" waits for a signal'),
    ],
)
def test_a_log_cannot_say_that_an_order_did_what_is_impossible(situation: str, command: Command, because: str) -> None:
    state = reach(situation)
    with pytest.raises(IllegalTransition) as caught:
        state.apply(Commanded("id", "ada", command))
    assert str(caught.value) == f'Saga "s" cannot take the record Commanded as number {state.next_sequence}: {because}.'


@pytest.mark.parametrize("path", ["k", "sub", "sub/"])
@pytest.mark.parametrize("begun", [False, True])
def test_a_node_without_an_action_takes_no_orders(path: str, begun: bool) -> None:
    """Whether it is behind or not: that it calls no action is what is wrong."""
    state = running("k=1 | sub(y=1) > a" if begun else "a > k=1 | sub(y=1) > b")
    node = NodePath(path)
    commands: list[Command] = [
        SetBreakpoint(node, after=False),
        SetBreakpoint(node, after=True),
        InjectError(node, Phase.DO),
        InjectRepeat(node, Phase.UNDO, 2),
        RetryUndo(node),
        SkipUndo(node, WHY),
        MarkUndone(node, WHY),
        Signal(node, Payload()),
        SetDeadline(node, due_us=1),
    ]
    expected = f'Saga "s" has no node "{path}".' if path == "sub/" else f'Node "{path}" of saga "s" calls no action.'
    assert {refusal(state, command) for command in commands} == {expected}


# several events of one step


def running(text: str, *records: Record) -> SagaState:
    state = SagaState(SagaId("s"), compact.graph(text))
    for record in (Created("uid", "hash"), StartRequested(), *records):
        state.apply(record)
    return state


def order(command: Command) -> Ordered:
    return Ordered(repr(command), "ada", command)


def effects(state: SagaState, *events: Event) -> list[Effect]:
    untouched = state.__dict__.copy()
    ready = decide(state, events)
    assert state.__dict__ == untouched
    return list(ready.effects)


def ordered(command: Command) -> Commanded:
    return Commanded(f"before {command}", "ada", command)


def do(node: int, attempt: int, delay_s: float = 0.0, spent_s: float = 0.0) -> Dispatch:
    return Dispatch(node, Phase.DO, attempt, delay_s, 30.0, spent_s)


def lost(path: NodePath) -> AnswerMissing:
    return AnswerMissing(path, Phase.DO, FAULT, 1.0, 0.0)


PAUSE, RESUME = order(Pause("")), order(Resume())


def test_a_resume_and_a_missing_answer_dispatch_once_as_the_policy_says() -> None:
    state = running("a*3 > b", Started(A), ordered(Pause("")))
    assert effects(state, RESUME, lost(A)) == [do(0, 2, 0.1, 1.0)]
    assert effects(state, lost(A), RESUME) == [do(0, 2, 0.0, 1.0)]


def test_a_do_that_is_undone_at_once_is_not_dispatched_by_a_resume() -> None:
    """The undo action alone is called: a do behind it would bring the effect back."""
    state = running("a | b > c", Started(A), Started(B), ordered(Pause("")))
    undo = Dispatch(0, Phase.UNDO, 1, 0.0, 30.0)
    assert effects(state, DoAnswered(B, FAULT), RESUME, NotWaitedFor(A)) == [undo]
    state.apply(decide(state, [DoAnswered(B, FAULT)]).records[0])
    ready = decide(state, [RESUME, NotWaitedFor(A)])
    assert [type(r) for r in ready.records] == [Commanded, OutcomeUnknown, UndoStarted]
    assert ready.effects == (undo,)


def test_a_pause_takes_back_what_was_to_be_dispatched_in_the_same_step() -> None:
    state = running("a*3 | b > c", Started(A))
    assert effects(state, lost(A), PAUSE) == [Withhold(0)]
    assert effects(running("a*3 > c", Started(A), ordered(Pause(""))), RESUME, order(Pause("Again."))) == [Withhold(0)]
    new_owner = TakenOver(Epoch(9), SecNodeName("sec-9"))
    assert effects(state, new_owner, PAUSE) == [Withhold(0)]
    assert effects(state, PAUSE, new_owner) == [Withhold(0)]


def test_a_pause_that_is_over_at_once_leaves_no_call_withheld() -> None:
    state = running("a*3 > b", Started(A), AttemptUnknown(A, Phase.DO, 1, FAULT, 1.0))
    assert effects(state, PAUSE, RESUME) == [Withhold(0), do(0, 2, 0.0, 1.0)]


def test_an_abort_of_what_was_paused_in_the_same_step_hurries_it() -> None:
    state = running("a > b", Started(A))
    assert effects(state, PAUSE, order(Abort(""))) == [Withhold(0), Hurry(0)]
    assert effects(state, order(Abort("")), PAUSE) == [Withhold(0), Hurry(0)]


def test_a_breakpoint_keeps_its_siblings_from_starting_and_withholds_retries() -> None:
    state = running("x*3 | a | b > c", ordered(SetBreakpoint(B, after=False)), Started(NodePath("x")))
    ready = decide(state, [AnswerMissing(NodePath("x"), Phase.DO, FAULT, 1.0, 0.0)])
    assert ready.records[1:] == (BreakpointHit(B, after=False),)
    assert ready.effects == (Withhold(0),)
    assert ready.controls.paused


def test_a_breakpoint_that_there_is_no_room_for_is_not_reached() -> None:
    state = running("a | b > c", ordered(SetMaxInFlight(1)), Started(A), ordered(SetBreakpoint(B, after=False)))
    assert decide(state, [Begin()]).records == ()
    assert decide(state, [DoAnswered(A, Payload())]).records[1:] == (BreakpointHit(B, after=False),)


def test_steps_start_nodes_in_order_and_use_up_breakpoints_on_their_way() -> None:
    state = running("a | b > c", ordered(SetBreakpoint(B, after=False)), ordered(Pause("")))
    one, two = Ordered("one", "ada", Step()), Ordered("two", "ada", Step())
    assert decide(state, [one]).records[1:] == (Started(A),)
    assert decide(state, [one, two]).records[2:] == (Started(A), BreakpointHit(B, after=False), Started(B))
    assert effects(state, one, two) == [do(0, 1), do(1, 1)]


def test_an_abort_shows_among_the_mishaps() -> None:
    state = running("a > b", Started(A), Succeeded(A, Payload()))
    assert [(m.sequence, m.node, m.error) for m in decide(state, [order(Abort("Not wanted."))]).mishaps] == [
        (5, "", Fault("Not wanted.", "aborted"))
    ]
    assert decide(state, [order(Abort(""))]).mishaps[0].error.message == "An operator aborted the saga."


@pytest.mark.parametrize("command", OF_EVERY_KIND, ids=repr)
@pytest.mark.parametrize("situation", SITUATIONS)
def test_an_order_that_is_rehearsed_leaves_no_trace(situation: str, command: Command) -> None:
    state, untouched = reach(situation), reach(situation)
    if state.course in (Course.RUNNING, Course.UNWINDING, Course.STUCK):
        decide(state, [order(command), RESUME, PAUSE])
    assert_same_state(state, untouched)


def test_an_outcome_uses_up_what_was_set_for_it() -> None:
    undo_too = [ordered(InjectError(A, Phase.UNDO)), ordered(InjectRepeat(A, Phase.UNDO, 3))]
    once = [ordered(InjectRepeat(A, Phase.DO, 2)), *undo_too, ordered(Pause("")), ordered(Step())]
    state = running("a > b", *once, Started(A))
    assert state.controls.stepped == {0}
    state.apply(Succeeded(A, Payload()))
    assert state.controls.stepped == frozenset()
    assert (state.controls.errors, state.controls.repeats) == ({(A, Phase.UNDO)}, {(A, Phase.UNDO): 3})
    for record in (ordered(Abort("")), UndoStarted(A), UndoFailed(A, FAULT)):
        state.apply(record)
    assert (state.controls.errors, state.controls.repeats) == (frozenset(), {})
    assert effects(state, order(RetryUndo(A))) == [Dispatch(0, Phase.UNDO, 1, 0.0, 30.0)]


def test_a_log_cannot_start_what_is_paused() -> None:
    """Not even where `decide` would be wrong."""
    state = running("a | b > c", ordered(Pause("")), ordered(Step()), Started(A))
    for record in (Started(B), BreakpointHit(B, after=False)):
        with pytest.raises(IllegalTransition, match=r"the saga is paused|there is no such breakpoint"):
            state.apply(record)
    state.apply(ordered(Resume()))
    state.apply(Started(B))
