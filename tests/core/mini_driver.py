"""A driver without I/O, and an action server that keeps the contract: what the core needs to be run through, crash and recovery included.

`MiniDriver` follows the one rule (records durable, then applied, then the effects) and checks after every record and dispatch that the invariants hold,
that the rehearsal of `decide` left no trace, that `decide` is pure, and that the live state is the one that the log implies.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

from core_checkers import Checker, Dispatched, check_all_or_none, check_settled
from sec_model import Graph, Payload

from sec.codec import record_from_proto, record_to_proto
from sec.core.decide import (
    AnswerMissing,
    Begin,
    Dispatch,
    DoAnswered,
    Event,
    Hurry,
    NotWaitedFor,
    RetryUndo,
    SkipUndo,
    TakenOver,
    UndoAnswered,
    decide,
)
from sec.core.records import (
    Created,
    Epoch,
    Fault,
    LogEntry,
    NodePath,
    Phase,
    Record,
    SagaId,
    SecNodeName,
    StartRequested,
)
from sec.core.state import SagaState, fold
from sec.core.transitions import Course

LOST = Fault("The connection was lost.", "unavailable")
FOREVER = -1


Delivery = tuple[str, Phase, int]
"""A call on its way: idempotency key, phase and epoch."""


class Refused(Exception):
    """The call is of an owner that has been replaced."""


@dataclass
class FakeActionServer:
    """Keeps the contract: one effect for one key, an undo stops a later do, a failure leaves nothing, old epochs are refused.

    `failing` nodes fail; the undo of a node fails for good as often as `undo_failing` says (`FOREVER`: always).
    """

    failing: set[str] = field(default_factory=set)
    undo_failing: dict[str, int] = field(default_factory=dict)
    effects: set[str] = field(default_factory=set)
    tombstones: set[str] = field(default_factory=set)
    highest_epoch: int = 0
    calls: Counter[tuple[str, Phase]] = field(default_factory=Counter)

    def copy(self) -> "FakeActionServer":
        return FakeActionServer(
            set(self.failing),
            dict(self.undo_failing),
            set(self.effects),
            set(self.tombstones),
            self.highest_epoch,
            Counter(self.calls),
        )

    def call(self, key: str, phase: Phase, epoch: int) -> Payload | Fault | None:
        """A delivery of a call: the output of a do, None for an undo, or a fault."""
        if epoch < self.highest_epoch:
            raise Refused
        self.highest_epoch = epoch
        path = key.partition("/")[2]
        self.calls[path, phase] += 1
        return self._do(path) if phase is Phase.DO else self._undo(path)

    def _do(self, path: str) -> Payload | Fault:
        if path in self.tombstones:
            return Fault("It was undone before it was done.", "undone")
        if path in self.failing:
            return Fault(f"No room for {path}.", "no_room")
        self.effects.add(path)
        return Payload.json(path)

    def _undo(self, path: str) -> Fault | None:
        left = self.undo_failing.get(path, 0)
        if left:
            self.undo_failing[path] = max(left - 1, FOREVER)
            return Fault(f"{path} cannot be undone.", "held")
        self.effects.discard(path)
        self.tombstones.add(path)
        return None


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
        offered: AbstractSet[str] | None = None,
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
        self.epoch = max((e.epoch for e in self.log), default=Epoch(1))
        self.checker = Checker(graph)
        for entry in self.log:
            self.checker.see(entry)
        self.state = fold(SagaId("s"), graph, self.log)
        self.shadow = fold(SagaId("s"), graph, self.log)

    @property
    def writer(self) -> SecNodeName:
        return SecNodeName(f"sec-{self.epoch}")

    def submit(self, *, start: bool = True) -> None:
        """Submits the saga, and starts it."""
        self._write(Created("uid", "hash"))
        if start:
            self._write(StartRequested())
            self.handle(Begin())

    def handle(self, *events: Event, crash_after: int | None = None, crash_in_effects: int | None = None) -> bool:
        """Takes events. False: it crashed, after so many records (effects), and has to `recover`."""
        ready = decide(self.state, events, self.offered)
        assert_same_state(self.state, self.shadow)
        assert decide(self.state, events, self.offered) == ready
        assert decide(self.shadow, events, self.offered) == ready
        for record in ready.records[:crash_after]:
            self._write(record)
        if crash_after is not None:
            return False
        assert (ready.course, ready.mishaps) == (self.state.course, self.state.mishaps)
        for effect in ready.effects[:crash_in_effects]:
            if isinstance(effect, Hurry):
                self.hurried.add(effect.node)
            else:
                self.checker.see(Dispatched(effect, self.epoch))
                assert effect.node not in self.calls, "dispatched twice at a time"
                self.calls[effect.node] = effect
        return crash_in_effects is None

    def _write(self, record: Record) -> None:
        if self.worlds is not None:
            under_way = [(self.state.idempotency_key(n), call.phase, int(self.epoch)) for n, call in self.calls.items()]
            self.worlds.append((self.server.copy(), self.late + under_way))
        durable = record_from_proto(record_to_proto(record))
        entry = LogEntry(len(self.log) + 1, self.epoch, self.writer, 0, durable)
        self.log.append(entry)
        if isinstance(record, Created | StartRequested):
            self.state.apply_entry(entry)
        else:
            self.state.apply(record)
        self.shadow.apply_entry(entry)
        assert_same_state(self.state, self.shadow)
        self.checker.see(entry)

    def recover(self, **handling: int | None) -> bool:
        """A new owner, which knows nothing but the log. What was dispatched before is out of its hands."""
        self.calls, self.hurried = {}, set()
        self.state = fold(SagaId("s"), self.graph, self.log)
        self.shadow = fold(SagaId("s"), self.graph, self.log)
        self.epoch = Epoch(self.epoch + 1)
        if self.state.course in (Course.NONEXISTENT, Course.CREATED) or self.state.course.ended:
            return True
        return self.handle(TakenOver(self.epoch, self.writer), **handling)

    # calls

    def answer(self, node: int) -> Event:
        """Makes the call that was dispatched for a node, and gives what comes back."""
        dispatch = self.calls.pop(node)
        path = NodePath(self.graph.nodes[node].path)
        if path in self.injected and dispatch.phase is Phase.DO:
            return DoAnswered(path, Fault("An error was injected.", "injected"))
        result: Payload | Fault | None = None
        for _ in range(self.repeat.get((path, dispatch.phase), 1)):
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
        dispatch = self.calls.pop(node)
        path = NodePath(self.graph.nodes[node].path)
        if node in self.hurried and dispatch.phase is Phase.DO and draw < 0.5:  # it was not under way
            return NotWaitedFor(path)
        return AnswerMissing(path, dispatch.phase, LOST, dispatch.spent_s + dispatch.delay_s + 1.0, draw)

    def run(self) -> None:
        """Answers every call, the longest waiting first, until the saga has settled."""
        while self.calls:
            self.handle(self.answer(next(iter(self.calls))))

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


class RandomRun:
    """Drives a `MiniDriver` to the end of its saga through an order of events, losses and crashes that a seed gives."""

    MAX_STEPS = 20_000
    """Far more than any run needs: a saga that is not settled by then never will be."""

    def __init__(self, driver: MiniDriver, weather: Weather, seed: int) -> None:
        self.driver = driver
        self.weather = weather
        self.random = Random(seed)

    def run_through(self) -> None:
        """Ends with the saga settled, nothing under way, and every invariant checked."""
        driver = self.driver
        steps = 0
        while self._step():
            steps += 1
            assert steps < self.MAX_STEPS, "4: the saga does not come to an end"
        check_settled(driver.state)
        for call in driver.late:
            driver.deliver(call)
        if driver.state.course.ended:
            check_all_or_none(driver.graph, driver.log, driver.server.effects)

    def _step(self) -> bool:
        driver, random = self.driver, self.random
        if driver.late and random.random() < 0.3:
            driver.deliver(driver.late.pop(random.randrange(len(driver.late))))
        if not driver.state.course.ended and random.random() < self.weather.crash:
            self._crash_idle()
        elif driver.calls:
            count = 1 + (random.random() < self.weather.batch) + (random.random() < self.weather.batch)
            nodes = random.sample(sorted(driver.calls), min(count, len(driver.calls)))
            self._handle(*[self._outcome(node) for node in nodes])
        elif driver.state.course.ended:
            return False
        elif driver.state.undo_failed:
            if not self.weather.operator:
                return False
            self._handle(self._command())
        else:
            # Only an action that nobody offers can keep a saga from going on.
            assert driver.offered is not None
            assert driver.state.startable
            driver.offered = None
            self._handle(Begin())
        return True

    def _outcome(self, node: int) -> Event:
        driver, random = self.driver, self.random
        dispatch = driver.calls[node]
        if node in driver.hurried and dispatch.delay_s > 0:
            return driver.lose(node, random.random())
        if random.random() >= self.weather.lost:
            return driver.answer(node)
        self._deliver_unheard(dispatch)
        return driver.lose(node, random.random())

    def _deliver_unheard(self, dispatch: Dispatch) -> None:
        """A call that is lost before it is delivered, behind it, or delivered when everybody has forgotten it."""
        driver = self.driver
        call = (driver.state.idempotency_key(dispatch.node), dispatch.phase, int(driver.epoch))
        match self.random.randrange(3):
            case 0:
                driver.deliver(call)
            case 1:
                driver.late.append(call)
            case _:
                pass

    def _command(self) -> Event:
        driver = self.driver
        node = NodePath(driver.graph.nodes[self.random.choice(sorted(driver.state.undo_failed))].path)
        if self.random.random() < self.weather.skip:
            return SkipUndo(node, "It was removed by hand.")
        return RetryUndo(node)

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
