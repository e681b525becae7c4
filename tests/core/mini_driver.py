"""A driver without I/O, and an action server that keeps the contract: what the core needs to be run through, crash and recovery included.

`MiniDriver` follows the one rule (records durable, then applied, then the effects) and checks after every record and dispatch that the invariants hold,
that the rehearsal of `decide` left no trace, that `decide` is pure, and that the live state is the one that the log implies.
"""

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any

from sec_model import Deadline, Graph, OnDeadline, Payload
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
    Step,
)
from sec_model.graph import NodeKind
from sec_model.versions import fits

from sec.codec import record_from_proto, record_to_proto
from sec.core.checkers import Checker, Dispatched, check_all_or_none, check_settled, check_step, require
from sec.core.decide import (
    AnswerMissing,
    Begin,
    Dispatch,
    DoAnswered,
    Event,
    Hurry,
    NotWaitedFor,
    Ordered,
    TakenOver,
    UndoAnswered,
    Withhold,
    decide,
)
from sec.core.records import (
    Commanded,
    Created,
    Epoch,
    Fault,
    LogEntry,
    NodePath,
    Phase,
    Pinned,
    Record,
    SagaId,
    SecNodeName,
    Started,
    StartRequested,
)
from sec.core.state import SagaState, fold
from sec.core.transitions import Course
from sec.sim.definitions import offers
from sec.sim.effects import FakeActionServer, Refused

LOST = Fault("The connection was lost.", "unavailable")
Delivery = tuple[str, Phase, int]
"""A call on its way: idempotency key, phase and epoch."""


class MiniDriver:
    """Runs one saga. `calls` are the dispatches without an answer; `log` is what is durable; all else is lost in a crash."""

    def __init__(
        self,
        graph: Graph,
        server: FakeActionServer,
        log: Iterable[LogEntry] = (),
        *,
        repeat: Mapping[tuple[str, Phase], int] | None = None,
        injected: AbstractSet[str] = frozenset(),
        offered: frozenset[str] | None = None,
        keep_worlds: bool = False,
    ) -> None:
        self.graph = graph
        self.server = server
        self.repeat = repeat or {}
        self.injected = injected
        self.offered = offered
        self.log = list(log)
        self.worlds: list[tuple[FakeActionServer, list[Delivery]]] | None = [] if keep_worlds else None
        """The action server as it was when each record was about to become durable, and what the network may still deliver to it."""
        self.late: list[Delivery] = []
        """Deliveries that the network still holds."""
        self.calls: dict[int, Dispatch] = {}
        self.hurried: set[int] = set()
        self.given_up: dict[int, None] = {}
        """Dos that were hurried and not under way: `NotWaitedFor` is what is to come of them."""
        self.is_waiting: Callable[[Dispatch], bool] = lambda dispatch: dispatch.delay_s > 0
        """Whether a dispatch pauses still, or waits for an action server: then it can be withheld."""
        self.under_way: set[int] = set()
        self.orders: list[Ordered] = []
        self.now_us = max((e.time_us for e in self.log), default=0)
        self.epoch = max((e.epoch for e in self.log), default=Epoch(1))
        self.checker = Checker(graph)
        for entry in self.log:
            self.checker.see(entry)
        self.state = fold(SagaId("s"), graph, self.log)
        self.shadow = fold(SagaId("s"), graph, self.log)

    @property
    def writer(self) -> SecNodeName:
        return SecNodeName(f"sec-{self.epoch}")

    def submit(self, *, start: bool = True, deadline: Deadline | None = None) -> None:
        """Submits the saga, and starts it."""
        self._write(Created("uid", "hash", deadline))
        if start:
            self._write(StartRequested(0 if deadline is None else self.now_us + round(deadline.after_s * 1e6)))
            self.handle(Begin())

    def handle(self, *events: Event, crash_after: int | None = None, crash_in_effects: int | None = None) -> bool:
        """Takes events. False: it crashed, after so many records (effects), and has to `recover`."""
        ready = decide(self.state, events, self.offered, self.now_us)
        assert_same_state(self.state, self.shadow)
        assert decide(self.state, events, self.offered, self.now_us) == ready
        assert decide(self.shadow, events, self.offered, self.now_us) == ready
        points, running = self.state.controls.breakpoints, self.state.course is Course.RUNNING
        check_step(ready.records, points, running=running)
        for record in ready.records[:crash_after]:
            self._write(record, repeated=crash_after is None)
        if crash_after is not None:
            return False
        assert ready.rehearsal is not None
        self.state.repeat(ready.rehearsal)
        assert_same_state(self.state, self.shadow)
        assert (ready.course, ready.mishaps, ready.controls) == (self.state.course, self.state.mishaps, self.state.controls)
        for record in ready.records:
            self._check_version(record)
        overdue = self.checker.overdue(self.now_us)
        require(not overdue, f"6: nothing happens at {overdue}, which is overdue")
        soonest = min((us for us, _ in self.checker.dues.values()), default=0)
        require(
            ready.wake_at_us == soonest or self.state.course.ended, f"6: the driver sleeps until {ready.wake_at_us}, not {soonest}"
        )
        resumed = any(isinstance(e, Ordered) and isinstance(e.command, Resume) for e in events)
        dispatched = [e.node for e in ready.effects if isinstance(e, Dispatch)]
        assert len(dispatched) == len(set(dispatched)), "dispatched twice in one step"
        for effect in ready.effects[:crash_in_effects]:
            match effect:
                case Hurry(node):
                    if node in self.calls and not self.is_waiting(self.calls[node]):
                        self.hurried.add(node)
                        self.under_way.add(node)
                    else:
                        self.calls.pop(node, None)
                        self.given_up[node] = None
                case Withhold(node):
                    self._withhold(node)
                case Dispatch(node):
                    self.checker.see(Dispatched(effect, self.epoch))
                    under_way = node in self.calls or node in self.given_up
                    assert resumed or not under_way, "dispatched twice at a time"
                    if not under_way:
                        self.calls[node] = effect
        if crash_in_effects is None:
            self._check_who_is_called()
        return crash_in_effects is None

    def _check_version(self, record: Record) -> None:
        """What is pinned is the newest, what starts is offered, and both are what is called."""
        if isinstance(record, Pinned):
            assert self.offered is not None
            rivals = [offer for offer in self.offered if "@" in offer and fits(record.action, offer)]
            numbers = {offer: [int(number) for number in offer.partition("@")[2].split(".")] for offer in rivals}
            require(numbers[record.offer] == max(numbers.values()), f"2: {record} although {rivals} are offered")
        if isinstance(record, Started) and (action := self.graph.nodes[self.graph.index_of(record.node)].action) is not None:
            called = self.checker.called[action.action]
            require(
                self.state.pins[action.action] == called, f"2: {record.node} calls {self.state.pins[action.action]}, not {called}"
            )
            require(self.offered is None or called in self.offered, f"2: {record.node} starts, and nobody offers {called}")

    def _withhold(self, node: int) -> None:
        if node not in self.calls or node in self.under_way:
            return
        if self.is_waiting(self.calls[node]):
            del self.calls[node]
            self.hurried.discard(node)
        else:
            self.under_way.add(node)

    def _check_who_is_called(self) -> None:
        """What is in flight is being called; while the saga is paused, only what was under way before it was and what was stepped."""
        controls, known = self.state.controls, self.calls.keys() | self.given_up.keys()
        assert known <= self.state.in_flight.keys()
        if controls.paused:
            for node, dispatch in self.calls.items():
                loose = node not in controls.stepped and node not in self.under_way
                require(
                    not loose or not self.is_waiting(dispatch), "7: a call that was not under way is left to go on while paused"
                )
        else:
            forgotten = self.state.in_flight.keys() - known
            require(not forgotten, f"4: nobody calls {sorted(forgotten)}, and the saga is not paused")
        deaf = self.state.waiting.keys() & self.state.signals.keys()
        require(not deaf, f"4: {sorted(deaf)} wait for signals that have come")

    def _write(self, record: Record, *, repeated: bool = False) -> None:
        """`repeated`: the driver's own state gets what it rehearsed, when all records of the step are written."""
        if self.worlds is not None:
            under_way = [
                (self.shadow.idempotency_key(n), call.phase, int(self.epoch))
                for n, call in self.calls.items()
                if not call.injected_error
            ]
            self.worlds.append((self.server.copy(), self.late + under_way))
        if isinstance(record, Commanded) and isinstance(record.command, MarkUndone) and not record.refused:
            self.server.undo_by_hand(record.command.node)
        durable = record_from_proto(record_to_proto(record))
        entry = LogEntry(len(self.log) + 1, self.epoch, self.writer, self.now_us, durable)
        self.log.append(entry)
        if isinstance(record, Created | StartRequested):
            self.state.apply_entry(entry)
        elif not repeated:
            self.state.apply(record)
        self.shadow.apply_entry(entry)
        if not repeated:
            assert_same_state(self.state, self.shadow)
        self.checker.see(entry)

    def recover(self, **handling: int | None) -> bool:
        """A new owner, which knows nothing but the log. What was dispatched before is out of its hands."""
        self.calls, self.hurried, self.given_up, self.under_way = {}, set(), {}, set()
        self.state = fold(SagaId("s"), self.graph, self.log)
        self.shadow = fold(SagaId("s"), self.graph, self.log)
        self.epoch = Epoch(self.epoch + 1)
        if self.state.course in (Course.NONEXISTENT, Course.CREATED) or self.state.course.ended:
            return True
        return self.handle(TakenOver(self.epoch, self.writer), **handling)

    # calls

    def answer(self, node: int) -> Event:
        """Makes the call that was dispatched for a node, and gives what comes back."""
        dispatch = self._end_call(node)
        path = NodePath(self.graph.nodes[node].path)
        if dispatch.injected_error:
            fault = Fault("An operator had this call fail.", "injected")
            return DoAnswered(path, fault) if dispatch.phase is Phase.DO else UndoAnswered(path, fault)
        if path in self.injected and dispatch.phase is Phase.DO:
            return DoAnswered(path, Fault("An error was injected.", "injected"))
        result: Payload | Fault | None = None
        for _ in range(self.repeat.get((path, dispatch.phase), dispatch.repeats)):
            result = self.server.call(self.state.idempotency_key(node), dispatch.phase, self.epoch)
        if dispatch.phase is Phase.DO:
            assert result is not None
            return DoAnswered(path, result)
        assert not isinstance(result, Payload)
        return UndoAnswered(path, result)

    def deliver(self, call: Delivery) -> None:
        """The network delivers a call to whose answer nobody listens."""
        with suppress(Refused):
            self.server.call(*call)

    def lose(self, node: int, draw: float = 0.0) -> Event:
        """The call that was dispatched for a node ends without an answer; whether it was delivered is another matter."""
        hurried = node in self.hurried
        dispatch = self._end_call(node)
        path = NodePath(self.graph.nodes[node].path)
        if hurried and dispatch.phase is Phase.DO and draw < 0.5:  # it was not under way
            return NotWaitedFor(path)
        return AnswerMissing(path, dispatch.phase, LOST, dispatch.spent_s + dispatch.delay_s + 1.0, draw)

    def _end_call(self, node: int) -> Dispatch:
        self.hurried.discard(node)
        self.under_way.discard(node)
        return self.calls.pop(node)

    def give_up(self, node: int) -> Event:
        """What comes of a do that was hurried and not under way."""
        del self.given_up[node]
        return NotWaitedFor(NodePath(self.graph.nodes[node].path))

    def order(self, command: Command) -> None:
        """An operator's order, with an id of its own."""
        self.handle(self.ordered(command))

    def ordered(self, command: Command) -> Ordered:
        self.orders.append(Ordered(f"c{len(self.log)}-{len(self.orders)}", "ada", command))
        return self.orders[-1]

    def run(self) -> None:
        """Answers every call, the longest waiting first, until the saga has settled or is paused."""
        while self.calls or self.given_up:
            self.handle(self.give_up(next(iter(self.given_up))) if self.given_up else self.answer(next(iter(self.calls))))

    def called(self, path: str) -> tuple[int, int]:
        """How often a node's action and undo action were called."""
        return self.server.calls[path, Phase.DO], self.server.calls[path, Phase.UNDO]


@dataclass(frozen=True)
class Weather:
    """How likely things go wrong in a `RandomRun`. All zero: nothing does."""

    lost: float = 0.0
    crash: float = 0.0
    batch: float = 0.0
    skip: float = 0.5
    operator: bool = True
    """Whether there is one who looks after undos that failed. Pauses are ended whatever it says."""
    orders: float = 0.0
    """How likely an operator says something before a step."""


class RandomRun:
    """Drives a `MiniDriver` to the end of its saga through an order of events, losses and crashes that a seed gives."""

    MAX_STEPS = 2_000
    """Thirty times what runs need: a saga that is not settled by then never will be."""

    def __init__(self, driver: MiniDriver, weather: Weather, seed: int) -> None:
        self.driver = driver
        self.weather = weather
        self.random = Random(seed)
        self.haste = self.random.choice([0.02, 0.1, 0.4])
        """How likely time passes before a step."""
        self.harsh = self.random.choice([0.0, 0.05, 0.2])
        """How likely an order ends the forward way, or makes a call fail."""
        if weather.orders:  # else a call is under way as soon as its pause is over
            driver.is_waiting = lambda dispatch: dispatch.delay_s > 0 or self.random.random() < 0.3

    def run_through(self) -> None:
        """Ends with the saga settled, nothing under way, and every invariant checked."""
        driver = self.driver
        steps = 0
        while self._step():
            steps += 1
            assert steps < self.MAX_STEPS, "4: the saga does not come to an end"
        check_settled(driver.state)
        assert not driver.state.in_flight
        for call in driver.late:
            driver.deliver(call)
        if driver.state.course.ended:
            check_all_or_none(driver.graph, driver.log, driver.server.effects)

    def _step(self) -> bool:
        driver, random = self.driver, self.random
        if driver.late and random.random() < 0.3:
            driver.deliver(driver.late.pop(random.randrange(len(driver.late))))
        if driver.state.dues and random.random() < self.haste:
            driver.now_us += random.randrange(20_000_000)
        if not driver.state.course.ended and random.random() < self.weather.crash:
            self._crash_idle()
        elif not driver.state.course.ended and random.random() < self.weather.orders:
            self._handle(*self._some_events(random.randrange(3)), *self._some_orders(), *self._some_events(random.randrange(2)))
        elif driver.calls or driver.given_up:
            self._handle(*self._some_events(1 + (random.random() < self.weather.batch) + (random.random() < self.weather.batch)))
        elif driver.state.course.ended:
            return False
        elif driver.state.controls.paused and (driver.state.in_flight or not driver.state.undo_failed):
            self._handle(driver.ordered(Step() if random.random() < 0.4 else Resume()))
        elif driver.state.undo_failed:
            if not self.weather.operator:
                return False
            self._handle(self._command())
        elif driver.state.waiting:
            self._end_a_wait()
        else:
            # Only an action that nobody offers can keep a saga from going on.
            assert driver.offered is not None
            assert driver.state.startable
            driver.offered = (
                offers(driver.state.graph.action_names(), releases=random.randrange(4)) if random.random() < 0.5 else None
            )
            self._handle(Begin())
        return True

    def _end_a_wait(self) -> None:
        """A signal comes, or the time."""
        driver, random = self.driver, self.random
        signals = [n for n in driver.state.waiting if driver.graph.nodes[n].timer is None]
        if signals and (not driver.state.dues or random.random() < 0.7):
            self._handle(driver.ordered(Signal(NodePath(driver.graph.nodes[random.choice(signals)].path), Payload.json(1))))
        else:
            driver.now_us = max(driver.now_us, min(due.us for due in driver.state.dues.values()))
            self._handle(Begin())

    def _some_events(self, count: int) -> list[Event]:
        driver = self.driver
        nodes = sorted({*driver.calls, *driver.given_up})
        return [self._outcome(node) for node in self.random.sample(nodes, min(count, len(nodes)))]

    def _some_orders(self) -> list[Event]:
        """Orders that may make sense or not; now and then one that was given before."""
        driver, random = self.driver, self.random
        orders: list[Event] = []
        for _ in range(random.choice([1, 1, 1, 2, 3])):
            if driver.orders and random.random() < 0.2:
                orders.append(random.choice(driver.orders))
            else:
                orders.append(driver.ordered(self._some_command()))
        return orders

    def _some_command(self) -> Command:
        random, nodes = self.random, self.driver.graph.nodes
        node = NodePath("nobody" if random.random() < 0.05 else random.choice(nodes).path)
        phase = random.choice(list(Phase))
        if random.random() < self.harsh:
            soon_us = self.driver.now_us + random.randrange(1, 10_000_000)
            harsh: list[Command] = [
                Abort("Not wanted any more."),
                InjectError(node, phase),
                InjectError(node, Phase.UNDO),
                SetDeadline(node, due_us=soon_us),
                SetDeadline(NodePath(""), due_us=soon_us),
            ]
            return random.choice(harsh)
        signals = [n.path for n in nodes if n.kind is NodeKind.SIGNAL]
        if signals and random.random() < 0.1:
            return Signal(NodePath(random.choice(signals)), Payload.json(random.random()))
        commands: list[Command] = [
            Pause("Look at it."),
            Pause("Look at it."),
            Resume(),
            Step(),
            Step(),
            SetBreakpoint(node, random.random() < 0.5, random.random() < 0.2),
            SetBreakpoint(node, random.random() < 0.5),
            SetMaxInFlight(random.randrange(4)),
            InjectRepeat(node, phase, random.choice([0, 1, 2, 3, 101])),
            Signal(node, Payload.json(1)),
            SetDeadline(
                random.choice([node, NodePath("")]), OnDeadline.PAUSE, self.driver.now_us + random.randrange(1, 30_000_000)
            ),
            SetDeadline(random.choice([node, NodePath("")])),
        ]
        if self.weather.operator:
            commands += [
                RetryUndo(node),
                MarkUndone(node, random.choice(["", "By hand."])),
                SkipUndo(node, random.choice(["", "By hand."])),
            ]
        return random.choice(commands)

    def _outcome(self, node: int) -> Event:
        driver, random = self.driver, self.random
        if node in driver.given_up:
            return driver.give_up(node)
        dispatch = driver.calls[node]
        if dispatch.injected_error:
            return driver.answer(node)
        if random.random() >= self.weather.lost:
            return driver.answer(node)
        self._deliver_unheard(dispatch)
        return driver.lose(node, random.random())

    def _deliver_unheard(self, dispatch: Dispatch) -> None:
        """A call that is lost before it is delivered, behind it, or delivered when everybody has forgotten it."""
        driver = self.driver
        if dispatch.injected_error:
            return
        call = (driver.state.idempotency_key(dispatch.node), dispatch.phase, int(driver.epoch))
        match self.random.randrange(3):
            case 0:
                driver.deliver(call)
            case 1:
                driver.late.append(call)
            case _:
                pass

    def _command(self) -> Event:
        """What an operator says of an undo that failed."""
        driver, random = self.driver, self.random
        node = NodePath(driver.graph.nodes[random.choice(sorted(driver.state.undo_failed))].path)
        if random.random() >= self.weather.skip:
            return driver.ordered(RetryUndo(node))
        return driver.ordered((SkipUndo if random.random() < 0.5 else MarkUndone)(node, "It was removed by hand."))

    def _handle(self, *events: Event) -> None:
        driver, random = self.driver, self.random
        if random.random() >= self.weather.crash:
            driver.handle(*events)
            return
        where: dict[str, Any] = (
            {"crash_after": random.randrange(6)} if random.random() < 0.7 else {"crash_in_effects": random.randrange(3)}
        )
        driver.handle(*events, **where)
        self._crash_idle()

    def _crash_idle(self) -> None:
        driver, random = self.driver, self.random
        while True:
            for dispatch in driver.calls.values():
                self._deliver_unheard(dispatch)
            if random.random() >= self.weather.crash:
                driver.recover()
                return
            driver.recover(crash_after=random.randrange(6))


def assert_same_state(one: SagaState, other: SagaState) -> None:
    """Everything in two states is equal, the order in dicts aside."""
    if one.__dict__ != other.__dict__:
        differing = {k: (v, other.__dict__[k]) for k, v in one.__dict__.items() if v != other.__dict__[k]}
        raise AssertionError(f"the states differ: {differing}")
