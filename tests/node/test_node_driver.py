"""The driver of one saga, by itself: what happens when events come one to a step, while an append is under way."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from sec_model import Definition, OnDeadline, Payload, RetryPolicy, Saga, action, compile_graph
from sec_model.commands import InjectRepeat, NodePath, Pause, Phase, Resume, SetDeadline
from waiting_support import until

from sec.core.decide import Begin, Event, Ordered, Ready
from sec.core.records import Created, Epoch, Fault, OutcomeUnknown, OwnerChanged, Record, SagaId, SecNodeName, StartRequested
from sec.core.state import SagaState
from sec.dispatch.calls import Answer, Answered, Busy, Call, NotOffered, Pending, Report, Tell, Unanswered
from sec.node.driver import SagaDriver
from sec.store.sagas import SagaHead, Written

A = NodePath("a")
HOUR = RetryPolicy(initial_backoff_s=3600, max_backoff_s=3600)
NODE = SecNodeName("n1")


@dataclass
class FakeHost:
    """Takes one event a step. An append is held while `gate` is shut; the clock stands still until a test moves it."""

    sec_node: SecNodeName = NODE
    offered: frozenset[str] = frozenset({"step"})
    clock_us: int = 1_000_000
    answers: list[Answer] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    written: list[Record] = field(default_factory=list)
    holding: Callable[[Record], bool] = lambda record: False
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    held: asyncio.Event = field(default_factory=asyncio.Event)
    fate: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    reports: list[tuple[NodePath, Report | None]] = field(default_factory=list)
    before_answers: Callable[[Call], object] = lambda call: None
    """Is called with each call, before its answer is told."""
    calls_left: int = 1_000
    """Before the session is past its deadline."""

    def may_dispatch(self) -> bool:
        return len(self.calls) < self.calls_left

    def draw(self) -> float:
        return 0.0

    def now_us(self) -> int:
        return self.clock_us

    def at_most(self, events: list[Event]) -> int:
        return 1

    def append(self, driver: SagaDriver, ready: Ready, written: Written) -> None:
        async def write() -> None:
            if any(self.holding(record) for record in ready.records):
                self.held.set()
                await self.gate.wait()
            self.written += ready.records
            written(None)

        self.writing = asyncio.get_running_loop().create_task(write())

    def call(self, call: Call, tell: Tell) -> Pending:
        self.calls.append(call)
        done = Answered(None if call.phase is Phase.UNDO else Payload.json(1))
        answer = self.answers.pop(0) if self.answers else done
        if isinstance(answer, NotOffered):
            self.offered = frozenset()
        asyncio.get_running_loop().call_soon(self.before_answers, call)
        return asyncio.get_running_loop().call_soon(tell, answer)

    def called(self, call: Call, answer: Answer, took_s: float) -> None: ...

    def cancel(self, idempotency_key: str) -> None:
        self.cancelled.append(idempotency_key)

    def reported(self, driver: SagaDriver, node: NodePath, report: Report | None) -> None:
        self.reports.append((node, report))

    async def still_owned(self, driver: SagaDriver) -> bool:
        return True

    def ended(self, driver: SagaDriver) -> None:
        self.fate.append("ended")

    def lost(self, driver: SagaDriver, reason: str) -> None:
        self.fate.append(reason)

    def broken(self, driver: SagaDriver, reason: str) -> None:
        self.fate.append(reason)

    def dispatched(self) -> list[tuple[str, str]]:
        return [(call.phase.value, call.node) for call in self.calls]


def driver_at(host: FakeHost, definition: Definition) -> SagaDriver:
    """A driver of a saga that has been started."""
    saga_id = SagaId("s1")
    state = SagaState(saga_id, compile_graph(definition))
    for record in (Created("uid", "hash"), StartRequested(), OwnerChanged(Epoch(7), NODE)):
        state.apply(record)
    return SagaDriver(SagaHead(saga_id, "uid", "s", "hash", Payload(), {}, 0), state, Epoch(7), host)


async def test_a_withheld_do_that_is_hurried_is_not_dispatched_by_a_later_resume() -> None:
    """The resume is decided in a step of its own, before what came of the hurrying: only the driver knows of that by then."""
    host = FakeHost(answers=[Unanswered(Fault("no answer"))])
    driver = driver_at(host, Saga("s").append(action("a", "step", retry=HOUR)).build())
    driver.post(Begin())
    await until(lambda: driver.state.tries)
    driver.post(Ordered("c1", "", Pause("")))
    driver.post(Ordered("c2", "", SetDeadline(A, OnDeadline.FAIL, due_us=2_000_000)))
    await until(lambda: A in driver.state.dues)
    host.holding = lambda record: type(record).__name__ == "DeadlinePassed"
    host.clock_us = 3_000_000
    driver.post(Begin())
    await host.held.wait()
    driver.post(Ordered("c3", "", Resume()))  # stands in the inbox before the answer to the hurrying does
    host.gate.set()
    await until(lambda: host.fate)
    assert host.fate == ["ended"]
    assert host.dispatched() == [("do", "a"), ("undo", "a")]
    assert [type(r).__name__ for r in host.written].count(OutcomeUnknown.__name__) == 1


async def test_a_clock_that_was_set_back_makes_a_timer_wait_longer() -> None:
    """The event loop's clock says that the time is over, the wall clock says that it is not: the wall clock counts."""
    host = FakeHost()
    driver = driver_at(host, Saga("s").append(action("a", "step", deadline=0.05)).build())
    host.offered = frozenset()
    driver.post(Ordered("c1", "", SetDeadline(A, OnDeadline.FAIL, due_us=1_000_000 + 20_000)))
    looks: list[int] = []
    host.now_us = lambda: looks.append(1) or host.clock_us  # type: ignore[method-assign,func-returns-value]
    await until(lambda: len(looks) > 5)
    assert A in driver.state.dues
    host.clock_us += 20_000
    await until(lambda: host.fate == ["ended"])
    assert host.calls == []


async def test_a_clock_that_was_set_forward_is_noticed_long_before_the_time_that_was_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sec.node.driver.MAX_SLEEP_S", 0.02)
    host = FakeHost(offered=frozenset())
    driver = driver_at(host, Saga("s").append(action("a", "step")).build())
    week_us = 7 * 86_400 * 1_000_000
    driver.post(Ordered("c1", "", SetDeadline(A, OnDeadline.FAIL, due_us=host.clock_us + week_us)))
    await until(lambda: A in driver.state.dues)
    host.clock_us += week_us
    await until(lambda: host.fate == ["ended"])


async def test_a_repeated_call_that_meets_a_busy_server_is_not_made_more_often_than_ordered() -> None:
    done = Answered(Payload.json(1))
    host = FakeHost(answers=[done, Busy(), done, done])
    driver = driver_at(host, Saga("s").append(action("a", "step")).build())
    driver.post(Ordered("c1", "", InjectRepeat(A, Phase.DO, 3)))
    await until(lambda: host.fate == ["ended"])
    assert len(host.calls) == 4, "three that were answered, and the busy one"


async def test_repeats_end_with_the_session() -> None:
    """Nothing is dispatched past the session's deadline, not even the rest of a set of calls."""
    host = FakeHost(calls_left=2)
    driver = driver_at(host, Saga("s").append(action("a", "step")).build())
    driver.post(Ordered("c1", "", InjectRepeat(A, Phase.DO, 5)))
    await until(lambda: not host.may_dispatch())
    await asyncio.sleep(0)
    assert (len(host.calls), host.fate) == (2, [])


async def test_a_call_has_no_more_time_than_is_left_to_its_node_when_it_begins() -> None:
    host = FakeHost()
    driver = driver_at(host, Saga("s").append(action("a", "step", deadline=20)).build())
    driver.post(Begin())
    host.holding = lambda record: True
    await host.held.wait()
    host.offered = frozenset()
    host.gate.set()
    await until(lambda: driver.state.in_flight)
    host.clock_us += 15_000_000
    host.offered = frozenset({"step"})
    driver.offers_changed()
    assert host.calls[0].timeout_s == 5.0


async def test_a_call_that_waits_for_a_server_is_made_though_nobody_tells_that_there_is_one() -> None:
    host = FakeHost(answers=[NotOffered()])
    driver = driver_at(host, Saga("s").append(action("a", "step")).build())
    driver.post(Begin())
    await until(lambda: not host.offered)
    driver.look_again()
    assert len(host.calls) == 1, "nobody offers the action"
    host.offered = frozenset({"step"})
    driver.look_again()
    await until(lambda: host.fate == ["ended"])
    assert host.dispatched() == [("do", "a"), ("do", "a")]


async def test_what_a_call_reports_is_told_until_it_is_over() -> None:
    half = Report(0.5, "half")
    host = FakeHost()
    driver = driver_at(host, Saga("s").append(action("a", "step", retry=RetryPolicy(heartbeat_timeout_s=7))).build())
    host.before_answers = lambda call: driver.heard(call, half)
    driver.post(Begin())
    await until(lambda: host.fate)
    assert host.reports == [(A, half), (A, None)]
    assert [call.heartbeat_timeout_s for call in host.calls] == [7]
    driver.heard(host.calls[0], half)  # late
    assert len(host.reports) == 2


async def test_a_driver_that_is_shut_takes_back_what_its_calls_have_reported() -> None:
    half = Report(0.5, "half")
    host = FakeHost()
    driver = driver_at(host, Saga("s").append(action("a", "step")).build())

    def report_and_shut(call: Call) -> None:
        driver.heard(call, half)
        driver.shut()

    host.before_answers = report_and_shut
    driver.post(Begin())
    await until(lambda: driver.closed)
    assert host.reports == [(A, half), (A, None)]


async def test_the_heartbeat_timeout_of_an_undo_is_that_of_its_own_policy() -> None:
    host = FakeHost(answers=[Unanswered(Fault("no answer"))])
    once = RetryPolicy(max_attempts=1, heartbeat_timeout_s=7)
    driver = driver_at(
        host, Saga("s").append(action("a", "step", retry=once, undo_retry=RetryPolicy(heartbeat_timeout_s=9))).build()
    )
    driver.post(Begin())
    await until(lambda: host.fate)
    assert [(call.phase, call.heartbeat_timeout_s) for call in host.calls] == [(Phase.DO, 7), (Phase.UNDO, 9)]
    assert host.reports == []
