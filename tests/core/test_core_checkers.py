"""The checkers find what they are there to find: each history here breaks one rule."""

import compact
import pytest
from mini_driver import MiniDriver
from msgspec.structs import replace
from sec_model import OnDeadline, Payload
from sec_model.commands import (
    Abort,
    Command,
    InjectError,
    InjectRepeat,
    MarkUndone,
    Pause,
    Resume,
    RetryUndo,
    SetBreakpoint,
    SetDeadline,
    SetMaxInFlight,
    Signal,
    SkipUndo,
)
from sec_model.commands import Step as StepOnce

from sec.core.checkers import Dispatched, Violated, check_all_or_none, check_history, check_settled, check_step
from sec.core.decide import Dispatch
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
    Fault,
    LogEntry,
    NodePath,
    Outcome,
    OutcomeUnknown,
    Phase,
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
from sec.core.state import SagaState, fold
from sec.sim.effects import FOREVER, FakeActionServer

FAULT = Fault("Broken.")
BY_HAND = "By hand."
GRAPH = compact.graph("a > k=1 > sub(b) > c")
DO_A, UNDO_A, DO_B = (
    Dispatch(GRAPH.index_of(p), phase, 1, 0.0, 30.0) for p, phase in (("a", Phase.DO), ("a", Phase.UNDO), ("sub/b", Phase.DO))
)
A, B = NodePath("a"), NodePath("sub/b")
B_INDEX = GRAPH.index_of(B)
Step = Record | Dispatch | tuple[int, str, Record]


def _ok(path: str) -> list[Record]:
    return [Started(NodePath(path)), Succeeded(NodePath(path), Payload())]


def do(path: str) -> list[Step]:
    return [Started(NodePath(path)), Succeeded(NodePath(path), Payload())]


def fail(path: str) -> list[Step]:
    return [Started(NodePath(path)), Failed(NodePath(path), FAULT)]


def undo(path: str) -> list[Step]:
    return [UndoStarted(NodePath(path)), UndoFinished(NodePath(path))]


def hold(path: str) -> list[Step]:
    return [UndoStarted(NodePath(path)), UndoFailed(NodePath(path), FAULT)]


def order(command: Command, command_id: str = "", refused: str = "") -> Commanded:
    return Commanded(command_id or repr(command), "ada", command, refused)


def skip(path: str) -> list[Step]:
    return [order(SkipUndo(NodePath(path), BY_HAND)), UndoSkipped(NodePath(path), BY_HAND)]


def history(steps: list[Step]) -> list[LogEntry | Dispatched]:
    """Steps in epoch 1 of sec-1, unless they say otherwise."""
    happenings: list[LogEntry | Dispatched] = []
    sequence = 0
    for step in [Created("uid", "hash"), StartRequested(), *steps]:
        if isinstance(step, Dispatch):
            happenings.append(Dispatched(step, Epoch(1)))
            continue
        epoch, writer, record = step if isinstance(step, tuple) else (1, "sec-1", step)
        sequence += 1
        happenings.append(LogEntry(sequence, Epoch(epoch), SecNodeName(writer), 0, record))
    return happenings


@pytest.mark.parametrize(
    "steps",
    [
        [Started(NodePath("a")), DO_A, *do("a")[1:], *do("sub/b"), *do("c"), Done(Outcome.DONE)],
        [
            *do("a"),
            *do("sub/b"),
            *fail("c"),
            *undo("sub/b"),
            UndoStarted(NodePath("a")),
            UNDO_A,
            *undo("a")[1:],
            Done(Outcome.UNDONE),
        ],
        [*do("a"), *fail("sub/b"), *hold("a"), *skip("a"), Done(Outcome.UNDONE)],
        [*do("a"), *fail("sub/b"), *hold("a"), order(RetryUndo(A)), *undo("a"), Done(Outcome.UNDONE)],
        [*do("a"), *fail("sub/b"), *hold("a"), order(MarkUndone(A, BY_HAND)), UndoFinished(A), Done(Outcome.UNDONE)],
        [order(Pause("")), order(StepOnce()), Started(A), DO_A, order(StepOnce(), "again"), *do("a")[1:], *do("sub/b")],
        [order(Pause("")), order(Resume()), Started(A), DO_A, order(Pause(""), "again"), *do("a")[1:]],
        [order(SetBreakpoint(A, after=False)), BreakpointHit(A, after=False), order(StepOnce()), Started(A), DO_A],
        [order(SetBreakpoint(A, after=True)), *do("a"), BreakpointHit(A, after=True), order(Resume()), Started(B)],
        [order(SetBreakpoint(A, after=False)), order(SetBreakpoint(A, after=False, clear=True)), Started(A), DO_A],
        [
            *do("a"),
            Started(B),
            order(Pause("")),
            order(Abort("")),
            OutcomeUnknown(B, FAULT),
            UndoStarted(B),
            Dispatch(B_INDEX, Phase.UNDO, 1, 0.0, 30.0),
        ],
        [order(SetMaxInFlight(1)), Started(A), DO_A],
        [order(InjectError(A, Phase.DO)), Started(A), replace(DO_A, injected_error=True), Failed(A, FAULT), Done(Outcome.UNDONE)],
        [order(InjectRepeat(A, Phase.DO, 3)), Started(A), replace(DO_A, repeats=3), *do("a")[1:]],
        [order(Pause("")), order(Pause(""), "again", "It is paused already."), order(RetryUndo(A), "", "No."), order(Resume())],
    ],
)
def test_a_good_history_passes(steps: list[Step]) -> None:
    check_history(GRAPH, history(steps))
    records = [h for h in history(steps) if isinstance(h, LogEntry)]
    state = fold(SagaId("s"), GRAPH, records)
    assert state.course.ended == isinstance(records[-1].record, Done), "the core agrees"


@pytest.mark.parametrize(
    ("steps", "violation"),
    [
        ([(2, "sec-2", do("a")[0]), (1, "sec-1", do("a")[1])], "1: epoch 1 follows epoch 2"),
        ([(1, "sec-2", do("a")[0])], "1: epoch 1 has the writers sec-1 and sec-2"),
        ([DO_A], "2: the do of a is dispatched without its record"),
        ([*do("a"), DO_A], "2: the do of a is dispatched without its record"),
        ([*do("a"), UNDO_A], "2: the undo of a is dispatched without its record"),
        ([Started(NodePath("sub/b"))], "2: sub/b starts before the outcome of a"),
        ([Started(NodePath("a")), Started(NodePath("sub/b"))], "2: sub/b starts before the outcome of a"),
        ([*do("a"), *do("a")], "2: a goes from succeeded to open"),
        ([*fail("a"), *do("a")], "2: a starts while the saga unwinds"),
        ([*fail("a"), UndoStarted(NodePath("a"))], "3: a has failed and is undone"),
        ([*do("a"), UndoStarted(NodePath("a"))], "3: a is undone while the saga runs forward"),
        ([*do("a"), *do("sub/b"), *fail("c"), *undo("a")], "3: a is undone before sub/b"),
        (
            [*do("a"), Started(NodePath("sub/b")), OutcomeUnknown(NodePath("sub/b"), FAULT), *undo("a")],
            "3: a is undone before sub/b",
        ),
        ([*fail("a"), Done(Outcome.UNDONE), Started(NodePath("a"))], "4: .* stands behind the end"),
        ([*do("a"), *do("sub/b"), Done(Outcome.DONE)], "5: the saga is done without c"),
        ([*do("a"), *fail("sub/b"), Done(Outcome.UNDONE)], "5: the saga is undone, but not a"),
        ([*do("a"), Done(Outcome.UNDONE)], "5: the saga is undone, but not a"),
        ([*do("a"), *do("sub/b"), *fail("c"), *hold("sub/b"), *undo("a")], "3: a is undone before sub/b"),
        ([*do("a"), AttemptUnknown(NodePath("a"), Phase.DO, 1, FAULT, 1.0)], "2: a goes from succeeded to open"),
        ([UndoSkipped(NodePath("a"), "By hand.")], "2: a goes from never to skipped"),
        ([order(Pause(""), "c1"), order(Resume(), "c1")], "6: the command c1 is taken up twice"),
        ([order(Pause(""), "c1"), order(Resume(), "c1", "No.")], "6: the command c1 is taken up twice"),
        ([order(Pause("")), order(Pause(""), "again")], "6: a paused saga is paused"),
        ([order(Resume())], "6: a saga that is not paused is resumed"),
        ([order(StepOnce())], "6: a saga that is not paused is stepped"),
        ([*fail("a"), order(Abort(""))], "6: a saga that unwinds is aborted"),
        ([order(Abort("")), Started(A)], "2: a starts while the saga unwinds"),
        ([order(Pause("")), Started(A)], "7: a starts while the saga is paused"),
        ([Started(A), order(Pause("")), DO_A], "7: the do of a is dispatched while the saga is paused"),
        ([order(Pause("")), order(StepOnce()), *do("a"), Started(B)], "7: sub/b starts while the saga is paused"),
        ([order(Pause("")), order(StepOnce()), order(Resume()), order(Pause(""), "again"), Started(A)], "7: a starts while"),
        ([*do("a"), Started(B), order(Pause("")), Failed(B, FAULT), *undo("a")], "7: a starts while the saga is paused"),
        ([BreakpointHit(A, after=False)], "6: there is no breakpoint at a"),
        ([order(SetBreakpoint(A, after=True)), BreakpointHit(A, after=True)], "2: a goes from never to succeeded"),
        ([order(SetBreakpoint(A, after=False)), Started(A)], "6: a starts past its breakpoint"),
        ([order(SetBreakpoint(A, after=False)), BreakpointHit(A, after=False), Started(A)], "7: a starts while the saga is"),
        (
            [order(SetBreakpoint(B, after=False)), *fail("a"), BreakpointHit(B, after=False)],
            "6: the breakpoint at sub/b is reached",
        ),
        ([order(InjectError(A, Phase.DO)), *do("a")], "6: a succeeds in spite of its injected error"),
        ([order(InjectError(A, Phase.DO)), Started(A), DO_A], "6: the do of a is dispatched without what was injected"),
        ([order(InjectRepeat(A, Phase.DO, 2)), Started(A), DO_A], "6: the do of a is dispatched without its repeats"),
        (
            [*do("a"), *fail("sub/b"), order(InjectError(A, Phase.UNDO)), *undo("a")],
            "6: a is undone in spite of its injected error",
        ),
        ([*do("a"), *fail("sub/b"), *hold("a"), *undo("a")], "6: nobody ordered that the undo of a be tried again"),
        ([*do("a"), *fail("sub/b"), *hold("a"), UndoSkipped(A, BY_HAND)], "6: nobody ordered that the undo of a be skipped"),
        ([*do("a"), *fail("sub/b"), *hold("a"), UndoFinished(A)], "6: nobody said that a is undone"),
        ([*do("a"), *fail("sub/b"), *hold("a"), order(RetryUndo(A)), UndoFinished(A)], "6: nobody said that a is undone"),
        ([*do("a"), order(RetryUndo(A))], "6: the undo of a has not failed"),
        ([(2, "sec-2", do("a")[0]), DO_A], "7: the do of a is dispatched in epoch 1 while 2 is on"),
    ],
)
def test_a_bad_history_is_found(steps: list[Step], violation: str) -> None:
    with pytest.raises(Violated, match=f"^{violation}"):
        check_history(GRAPH, history(steps))


def at(second: float, *records: Record) -> list[tuple[float, Record]]:
    return [(second, record) for record in records]


SIGNAL = Payload.json(1)
SAGA, P = NodePath(""), NodePath("p")
START_P = [Started(P), Succeeded(P, Payload())]
TRIED = AttemptFailed(A, 1, FAULT, 1.0)


@pytest.mark.parametrize(
    ("saga", "records", "violation"),
    [
        ("a~30 > p", at(0, Started(A, 30_000_000)) + at(30, Succeeded(A, Payload()), *START_P), ""),
        (
            "a~30 > p",
            at(0, Started(A, 30_000_000)) + at(29, Succeeded(A, Payload())),
            "6: what a has at 30000000 comes at 29000000",
        ),
        ("a? > p", at(0, Started(A), order(Signal(A, SIGNAL)), Succeeded(A, SIGNAL), *START_P), ""),
        ("a? > p", at(0, Started(A), Succeeded(A, SIGNAL)), "6: a has not got"),
        ("a? > p", at(0, order(Signal(A, SIGNAL), "c1"), order(Signal(A, SIGNAL), "c2")), "6: a gets a second signal"),
        ("a? | p > b", at(0, Started(A), Started(P), Failed(P, FAULT), Done(Outcome.UNDONE)), ""),
        ("a? | p > b", at(0, Started(A), Started(P), Failed(P, FAULT), Failed(A, FAULT)), "2: a goes from given-up to failed"),
        ("a > p", at(0, DeadlinePassed(A)), "6: there is no deadline of a"),
        ("a^30 > p", at(0, Started(A, 30_000_000)) + at(29, DeadlinePassed(A)), "6: what a has at 30000000 comes at 29000000"),
        (
            "a > p",
            at(0, order(SetDeadline(SAGA, due_us=1))) + at(1, DeadlinePassed(SAGA), Started(A)),
            "2: a starts while the saga",
        ),
        (
            "a > p",
            at(0, order(SetDeadline(SAGA, OnDeadline.PAUSE, 1))) + at(1, DeadlinePassed(SAGA), Started(A)),
            "7: a starts while the saga is paused",
        ),
        ("p!point > a", at(0, *START_P, Started(A), TRIED, Succeeded(A, Payload()), Done(Outcome.DONE)), ""),
        ("p!point > a", at(0, *START_P, Started(A), Failed(A, FAULT)), "5: a fails for good behind the point of no return"),
        ("p!point > a", at(0, *START_P, order(Abort(""))), "5: the saga unwinds past its point of no return, p"),
        (
            "p!point > a",
            at(0, *START_P, Started(A), OutcomeUnknown(A, FAULT)),
            "5: the saga unwinds past its point of no return, p",
        ),
        ("p > a", at(0, *START_P, Started(A), TRIED), "5: a fails and is tried again"),
        ("p!none > a", at(0, *START_P, Started(A), Failed(A, FAULT), Done(Outcome.UNDONE)), ""),
        ("p!none > a", at(0, *START_P, Started(A), Failed(A, FAULT), UndoStarted(P)), "3: p has no undo action, and is undone"),
        ("p!manual > a", at(0, *START_P, Started(A), Failed(A, FAULT), UndoFailed(P, FAULT)), ""),
        ("p!manual > a", at(0, *START_P, Started(A), Failed(A, FAULT), UndoStarted(P)), "3: p has no undo action, and is undone"),
        ("p!manual > a", at(0, *START_P, UndoFailed(P, FAULT)), "3: p is to be undone by hand before"),
        (
            "p!manual | b | a > c",
            at(0, *START_P, Started(NodePath("b")), Started(A), Failed(A, FAULT), UndoFailed(P, FAULT)),
            "7: an operator is asked about p while b is in flight",
        ),
        (
            "p!manual > a",
            at(0, *START_P, Started(A), order(Pause("")), Failed(A, FAULT), UndoFailed(P, FAULT)),
            "7: an operator is asked about p while the saga is paused",
        ),
        ("a!confirm > p", at(0, Started(A)), "6: a starts past its breakpoint"),
        ("a > k!none > b", at(0, *_ok("a"), *_ok("k"), Started(NodePath("b")), Failed(NodePath("b"), FAULT), UndoStarted(A)), ""),
        (
            "a > k!none > p > b",
            at(0, *_ok("a"), *_ok("k"), *START_P, Started(NodePath("b")), Failed(NodePath("b"), FAULT), UndoStarted(A)),
            "3: a is undone before p",
        ),
    ],
)
def test_what_waits_and_what_has_no_undo_action(saga: str, records: list[tuple[float, Record]], violation: str) -> None:
    graph = compact.graph(saga)
    begun: list[tuple[float, Record]] = [(0, Created("uid", "hash")), (0, StartRequested())]
    log = [
        LogEntry(number, Epoch(1), SecNodeName("sec-1"), round(second * 1e6), record)
        for number, (second, record) in enumerate(begun + records, 1)
    ]
    if not violation:
        check_history(graph, log)
        fold(SagaId("s"), graph, log)
        return
    with pytest.raises(Violated, match=f"^{violation}"):
        check_history(graph, log)


def test_a_limit_that_is_not_kept_is_found() -> None:
    graph = compact.graph("a | b > c")
    limit = order(SetMaxInFlight(1))
    check_history(graph, history([limit, *do("a"), *do("b")]))
    check_history(graph, history([Started(A), Started(NodePath("b")), limit]))
    with pytest.raises(Violated, match=r"^6: b starts as number 2 in flight, of 1"):
        check_history(graph, history([limit, Started(A), Started(NodePath("b"))]))


@pytest.mark.parametrize(
    ("records", "running", "violation"),
    [
        ([order(RetryUndo(A))], False, "the order to retry the undo of a has no effect"),
        ([order(RetryUndo(A)), UndoStarted(B)], False, "the order to retry the undo of a has no effect"),
        ([order(SkipUndo(A, BY_HAND)), UndoSkipped(A, "Other.")], False, "the order to skip the undo of a has no effect"),
        ([order(MarkUndone(A, BY_HAND)), UndoSkipped(A, BY_HAND)], False, "the word that a is undone has no effect"),
        ([Succeeded(A, Payload()), Started(B)], True, "the breakpoint after a is passed by"),
        ([order(SetBreakpoint(B, after=True)), Succeeded(B, Payload())], True, "the breakpoint after sub/b is passed by"),
        ([order(RetryUndo(A)), UndoStarted(A)], False, ""),
        ([order(RetryUndo(A), "", "No.")], False, ""),
        ([order(SkipUndo(A, BY_HAND)), UndoSkipped(A, BY_HAND)], False, ""),
        ([order(MarkUndone(A, BY_HAND)), UndoFinished(A)], False, ""),
        ([Succeeded(A, Payload()), BreakpointHit(A, after=True)], True, ""),
        ([Succeeded(A, Payload())], False, ""),
        ([order(Abort("")), Succeeded(A, Payload())], True, ""),
        ([order(SetBreakpoint(A, after=True, clear=True)), Succeeded(A, Payload())], True, ""),
    ],
)
def test_an_order_without_its_effect_is_found(records: list[Record], running: bool, violation: str) -> None:
    points = frozenset({(A, True)})
    if not violation:
        check_step(records, points, running=running)
        return
    with pytest.raises(Violated, match=f"^6: {violation}$"):
        check_step(records, points, running=running)


def test_a_gap_in_a_log_is_found() -> None:
    whole = history(do("a"))
    with pytest.raises(Violated, match=r"^1: record 4 follows record 2"):
        check_history(GRAPH, [*whole[:2], *whole[3:]])


def test_an_undo_that_begins_while_the_saga_is_stuck_is_found() -> None:
    graph = compact.graph("a | b | c > d")
    steps = [*do("a"), *do("b"), *fail("c"), *hold("a"), UndoStarted(NodePath("b"))]
    with pytest.raises(Violated, match=r"^7: the undo of b starts while the saga is stuck"):
        check_history(graph, history(steps))


def test_a_saga_that_is_left_behind_is_found() -> None:
    driver = MiniDriver(GRAPH, FakeActionServer())
    driver.submit()
    with pytest.raises(Violated, match=r"^4: the saga is left running"):
        check_settled(driver.state)
    driver.run()
    check_settled(driver.state)


def test_a_stuck_saga_without_a_reason_is_found() -> None:
    driver = MiniDriver(GRAPH, FakeActionServer(failing={"sub/b": FOREVER}, undo_failing={"a": 1}))
    driver.submit()
    driver.run()
    check_settled(driver.state)
    driver.state.mishaps = driver.state.mishaps[:1]
    with pytest.raises(Violated, match=r"^4: the saga is stuck without a reason at \['a'\]"):
        check_settled(driver.state)


def entries(steps: list[Step]) -> list[LogEntry]:
    return [h for h in history(steps) if isinstance(h, LogEntry)]


def test_effects_of_half_a_saga_are_found() -> None:
    done = entries([*do("a"), *do("sub/b"), *do("c"), Done(Outcome.DONE)])
    check_all_or_none(GRAPH, done, {"a", "sub/b", "c"})
    with pytest.raises(Violated, match=r"^5: the saga is done, but the effects differ at"):
        check_all_or_none(GRAPH, done, {"a", "c"})
    undone = entries([*do("a"), *fail("sub/b"), *undo("a"), Done(Outcome.UNDONE)])
    check_all_or_none(GRAPH, undone, set())
    with pytest.raises(Violated, match=r"^5: the saga is undone, but \['a'\] are left"):
        check_all_or_none(GRAPH, undone, {"a"})
    skipped = entries([*do("a"), *fail("sub/b"), *hold("a"), *skip("a"), Done(Outcome.UNDONE)])
    check_all_or_none(GRAPH, skipped, {"a"})


def test_a_core_that_undoes_parents_first_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SagaState, "_needs_nothing", lambda *_: True)
    driver = MiniDriver(compact.graph("a > b > c"), FakeActionServer(failing={"c": FOREVER}))
    driver.submit()
    with pytest.raises(Violated, match=r"^3: a is undone before b"):
        driver.run()


def test_a_server_that_forgets_its_undos_is_found() -> None:
    """The late delivery of a do whose undo came first leaves its effect, if the contract is not kept."""
    server = FakeActionServer(failing={"c": FOREVER})
    driver = MiniDriver(compact.graph("a > b > c"), server)
    driver.submit()
    driver.run()
    check_all_or_none(driver.graph, driver.log, server.effects)
    server.call("uid/a", Phase.DO, 1)
    check_all_or_none(driver.graph, driver.log, server.effects)
    server.tombstones.clear()
    server.call("uid/a", Phase.DO, 1)
    with pytest.raises(Violated, match=r"^5: the saga is undone, but \['a'\] are left"):
        check_all_or_none(driver.graph, driver.log, server.effects)
