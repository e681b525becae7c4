"""The checkers find what they are there to find: each history here breaks one rule."""

import compact
import pytest
from core_checkers import Dispatched, Violated, check_all_or_none, check_history, check_settled
from mini_driver import FakeActionServer, MiniDriver
from sec_model import Payload

from sec.core.decide import Dispatch
from sec.core.records import (
    AttemptUnknown,
    Created,
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

FAULT = Fault("Broken.")
GRAPH = compact.graph("a > k=1 > sub(b) > c")
DO_A, UNDO_A, DO_B = (
    Dispatch(GRAPH.index_of(p), phase, 1, 0.0, 30.0) for p, phase in (("a", Phase.DO), ("a", Phase.UNDO), ("sub/b", Phase.DO))
)
Step = Record | Dispatch | tuple[int, str, Record]


def do(path: str) -> list[Step]:
    return [Started(NodePath(path)), Succeeded(NodePath(path), Payload())]


def fail(path: str) -> list[Step]:
    return [Started(NodePath(path)), Failed(NodePath(path), FAULT)]


def undo(path: str) -> list[Step]:
    return [UndoStarted(NodePath(path)), UndoFinished(NodePath(path))]


def hold(path: str) -> list[Step]:
    return [UndoStarted(NodePath(path)), UndoFailed(NodePath(path), FAULT)]


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
        [*do("a"), *fail("sub/b"), *hold("a"), UndoSkipped(NodePath("a"), "By hand."), Done(Outcome.UNDONE)],
        [*do("a"), *fail("sub/b"), *hold("a"), *undo("a"), Done(Outcome.UNDONE)],
    ],
)
def test_a_good_history_passes(steps: list[Step]) -> None:
    check_history(GRAPH, history(steps))
    records = [h for h in history(steps) if isinstance(h, LogEntry)]
    assert fold(SagaId("s"), GRAPH, records).course.ended, "the core agrees"


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
        ([(2, "sec-2", do("a")[0]), DO_A], "7: the do of a is dispatched in epoch 1 while 2 is on"),
    ],
)
def test_a_bad_history_is_found(steps: list[Step], violation: str) -> None:
    with pytest.raises(Violated, match=f"^{violation}"):
        check_history(GRAPH, history(steps))


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
    driver = MiniDriver(GRAPH, FakeActionServer(failing={"sub/b"}, undo_failing={"a": 1}))
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
    skipped = entries([*do("a"), *fail("sub/b"), *hold("a"), UndoSkipped(NodePath("a"), "By hand."), Done(Outcome.UNDONE)])
    check_all_or_none(GRAPH, skipped, {"a"})


def test_a_core_that_undoes_parents_first_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SagaState, "_needs_nothing", lambda *_: True)
    driver = MiniDriver(compact.graph("a > b > c"), FakeActionServer(failing={"c"}))
    driver.submit()
    with pytest.raises(Violated, match=r"^3: a is undone before b"):
        driver.run()


def test_a_server_that_forgets_its_undos_is_found() -> None:
    """The late delivery of a do whose undo came first leaves its effect, if the contract is not kept."""
    server = FakeActionServer(failing={"c"})
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
