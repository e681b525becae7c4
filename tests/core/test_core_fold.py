"""Folding a log: what makes one corrupt, and what a cut one still tells."""

import compact
import pytest
from mini_driver import MiniDriver, assert_same_state
from sec_model import Payload

from sec.core.controls import Controls
from sec.core.decide import Begin, Ready, TakenOver, decide
from sec.core.errors import CorruptLog, IllegalTransition
from sec.core.records import (
    Created,
    Done,
    Epoch,
    LogEntry,
    NodePath,
    Outcome,
    OwnerChanged,
    Record,
    SagaId,
    SecNodeName,
    Started,
    StartRequested,
    Succeeded,
)
from sec.core.state import SagaState, fold
from sec.core.transitions import Course
from sec.sim.effects import FOREVER, FakeActionServer

GRAPH = compact.graph("a > b")
A, B = NodePath("a"), NodePath("b")
ONE, TWO = SecNodeName("sec-1"), SecNodeName("sec-2")


def entry(sequence: int, record: Record, epoch: int = 5, writer: SecNodeName = ONE) -> LogEntry:
    return LogEntry(sequence, Epoch(epoch), writer, 0, record)


GOOD = [entry(1, Created("uid", "hash")), entry(2, StartRequested()), entry(3, Started(A)), entry(4, Succeeded(A, Payload()))]
NEXT = entry(5, Started(B))


def test_a_log_is_folded() -> None:
    state = fold(SagaId("s"), GRAPH, GOOD)
    assert (state.course, state.epoch, state.owner, state.next_sequence) == (Course.RUNNING, 5, "sec-1", 5)
    assert (state.uid, state.definition_hash) == ("uid", "hash")
    assert state.startable == {1: None}
    assert state.idempotency_key(1) == "uid/b"


def test_an_empty_log_is_a_saga_that_is_not_there() -> None:
    state = fold(SagaId("s"), GRAPH, [])
    assert state.course is Course.NONEXISTENT
    assert decide(state, [Begin()]) == Ready((), (), Course.NONEXISTENT, (), Controls())


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (entry(4, Started(B)), "record 4 stands where record 5 belongs"),
        (entry(6, Started(B)), "record 6 stands where record 5 belongs"),
        (entry(5, Started(B), epoch=4), "record 5 has epoch 4, but a record before it has 5"),
        (entry(5, OwnerChanged(Epoch(4), ONE), epoch=4), "record 5 has epoch 4, but a record before it has 5"),
        (entry(5, Started(B), writer=TWO), 'record 5 was written by "sec-2" in epoch 5, which is that of "sec-1"'),
        (entry(5, OwnerChanged(Epoch(5), TWO), writer=TWO), 'record 5 was written by "sec-2" in epoch 5, which is that of "sec-1"'),
        (entry(5, Started(B), epoch=6), 'record 5 begins epoch 6 of "sec-1" without an OwnerChanged that says so'),
        (
            entry(5, OwnerChanged(Epoch(7), TWO), epoch=6, writer=TWO),
            'record 5 begins epoch 6 of "sec-2" without an OwnerChanged that says so',
        ),
        (
            entry(5, OwnerChanged(Epoch(6), ONE), epoch=6, writer=TWO),
            'record 5 begins epoch 6 of "sec-2" without an OwnerChanged that says so',
        ),
        (
            entry(5, OwnerChanged(Epoch(9), TWO)),
            'record 5 begins epoch 9 of "sec-2", but was written by "sec-1" in epoch 5',
        ),
    ],
)
def test_a_log_that_makes_no_sense_is_corrupt(bad: LogEntry, problem: str) -> None:
    state = fold(SagaId("s"), GRAPH, GOOD)
    with pytest.raises(CorruptLog) as caught:
        state.apply_entry(bad)
    assert str(caught.value) == f'The log of saga "s" cannot be folded: {problem}.'
    assert_same_state(state, fold(SagaId("s"), GRAPH, GOOD))
    with pytest.raises(CorruptLog):
        fold(SagaId("s"), GRAPH, [*GOOD, bad, NEXT])


@pytest.mark.parametrize(
    ("bad", "refusal"),
    [
        (entry(5, Started(A)), 'the record Started of node "a" as number 5: the node is succeeded'),
        (entry(5, Done(Outcome.DONE)), "the record Done as number 5: its final node has not succeeded"),
        (entry(5, Created("uid", "hash")), "the record Created as number 5: the saga is running"),
        (entry(5, Created("uid", "hash"), epoch=6, writer=TWO), "the record Created as number 5: the saga is running"),
        (entry(5, StartRequested(), epoch=6), "the record StartRequested as number 5: the saga is running"),
    ],
)
def test_a_record_that_does_not_fit_makes_the_log_corrupt(bad: LogEntry, refusal: str) -> None:
    state = fold(SagaId("s"), GRAPH, GOOD)
    with pytest.raises(CorruptLog) as caught:
        state.apply_entry(bad)
    assert str(caught.value) == f'The log of saga "s" cannot be folded. Saga "s" cannot take {refusal}.'
    assert isinstance(caught.value.__cause__, IllegalTransition)
    assert_same_state(state, fold(SagaId("s"), GRAPH, GOOD))


def test_another_sec_node_may_start_what_one_has_created() -> None:
    log = [entry(1, Created("uid", "hash"), epoch=5), entry(2, StartRequested(), epoch=8, writer=TWO), entry(3, Started(A), 8, TWO)]
    state = fold(SagaId("s"), GRAPH, log)
    assert (state.epoch, state.owner, state.course) == (8, "sec-2", Course.RUNNING)


def test_an_owner_may_come_back_in_a_new_epoch() -> None:
    state = fold(SagaId("s"), GRAPH, [*GOOD, entry(5, OwnerChanged(Epoch(6), ONE), epoch=6), entry(6, Started(B), epoch=6)])
    assert (state.epoch, state.owner) == (6, "sec-1")


def test_a_log_without_its_beginning_is_corrupt() -> None:
    with pytest.raises(CorruptLog, match="record 2 stands where record 1 belongs"):
        fold(SagaId("s"), GRAPH, GOOD[1:])


def test_a_rehearsal_takes_entries_back_too() -> None:
    state = fold(SagaId("s"), GRAPH, GOOD[:1])
    with state.rehearsal():
        state.apply_entry(entry(2, StartRequested(), epoch=8, writer=TWO))
        assert state.owner == "sec-2"
    assert_same_state(state, fold(SagaId("s"), GRAPH, GOOD[:1]))


def finished(text: str, **failing: set[str]) -> MiniDriver:
    driver = MiniDriver(compact.graph(text), FakeActionServer(**failing))
    driver.submit()
    driver.run()
    return driver


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_cut_log_tells_what_stood_before_the_cut(cut: int) -> None:
    """Every prefix folds, record by record, to what the longer one was at that point."""
    driver = finished("a > b | c > sub(d > e) > f", failing={"f": FOREVER})
    log = driver.log[: -cut or None]
    assert len(driver.log) > 20
    state = fold(SagaId("s"), driver.graph, log)
    assert state.next_sequence == len(log) + 1
    rest = SagaState(SagaId("s"), driver.graph)
    for e in log:
        rest.apply_entry(e)
    assert_same_state(state, rest)
    if log[1:]:
        ready = decide(state, [TakenOver(Epoch(2), TWO)])
        assert ready.records[0] == OwnerChanged(Epoch(2), TWO)
