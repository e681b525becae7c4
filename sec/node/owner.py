"""The sagas that this SEC node owns: takes them on, gives them up, and is the host of their drivers.

Ownership lives within a session. `attach` begins it, `detach` ends it at once (the session is lost), `hand_over` ends it in good order.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager

from sec_model import Graph, Payload
from sec_model.commands import Signal

from sec.core.decide import AnswerMissing, Begin, DoAnswered, Event, Ordered, Ready, TakenOver, UndoAnswered, decide
from sec.core.errors import CorruptLog
from sec.core.records import Commanded, Created, Done, Epoch, Fault, NodePath, Record, SagaId, SecNodeName, StartRequested
from sec.core.state import SagaState, fold
from sec.core.transitions import Course
from sec.dispatch.calls import Answer, Call, Pending, Report, Tell
from sec.dispatch.directory import Directory
from sec.node import failpoints
from sec.node.claims import Claims
from sec.node.driver import SagaDriver
from sec.node.orders import MAX_PER_STEP, Orders, read_orders
from sec.node.rebalance import OwnedCounts
from sec.node.reports import Reports, Timed
from sec.node.settings import Settings
from sec.store.definitions import DefinitionStore
from sec.store.errors import Fenced, WrongState
from sec.store.keys import Keys
from sec.store.kv import KeyValue, KvError, LeaseNotFound
from sec.store.mirror import Mirror
from sec.store.sagas import Claimed, GiveUp, Ownership, SagaHead, SagaStore, Submitted, Written
from sec.store.session import Session
from sec.summaries import Summary, summary_of, unreadable_summary

_log = logging.getLogger(__name__)

WriteFirst = Callable[[tuple[Record, ...], Summary, Ownership | None], Awaitable[Submitted]]


def wall_clock_us() -> int:
    """Microseconds since 1970. For people, and for the deadlines and timers that they set: nothing is ordered by it."""
    return time.time_ns() // 1000


class Owner:
    """Owns sagas on behalf of one SEC node."""

    def __init__(
        self,
        settings: Settings,
        keys: Keys,
        sagas: SagaStore,
        definitions: DefinitionStore,
        directory: Directory,
        live: Mirror,
        rng: random.Random,
        counts: OwnedCounts,
        clock_us: Callable[[], int] = wall_clock_us,
    ) -> None:
        self.drivers: dict[SagaId, SagaDriver] = {}
        self.unreadable: dict[SagaId, Epoch] = {}
        """Sagas that are ours although their logs cannot be folded: kept so that nobody tries again and again."""
        self.on_call: Callable[[Call, Answer, float], None] = lambda call, answer, took_s: None
        """Is told of each call of an action server, with how many seconds it took."""
        self.reports = Reports()
        self._settings = settings
        self._sagas = sagas
        self._definitions = definitions
        self._directory = directory
        self._rng = rng
        self._clock_us = clock_us
        self._session: Session | None = None
        self._nodes: Iterable[SecNodeName] = ()
        self._notes: set[asyncio.Task[None]] = set()
        self._coming: Counter[SagaId] = Counter()
        """Sagas that are being submitted, started or claimed here: the store may name us as their owner before we know."""
        self._orders = Orders(keys, live, self.deliver)
        self._claims = Claims(
            settings.name, keys, live, lambda: self._nodes, self._claim, settings.claim_fallback_s, counts.below_the_mean
        )
        directory.subscribe(self._offers_changed)
        directory.heard = self._heard

    # the session

    def attach(self, session: Session) -> None:
        """Takes sagas from now on, under this session."""
        self._session = session
        self._claims.enable()

    def detach(self) -> None:
        """Lets go of everything at once and writes nothing: the session is lost, and its keys are or will be gone."""
        self._claims.disable()
        self._session = None
        drivers, self.drivers = self.drivers, {}
        self.unreadable.clear()
        for driver in drivers.values():
            driver.shut()
        if drivers:
            _log.warning('SEC node "%s" let go of %d sagas.', self._settings.name, len(drivers))

    async def hand_over(self) -> None:
        """Takes nothing more and gives all sagas to the others, at once. Calls under way are dropped: the next owner makes them again."""
        session = self._session
        if session is None:
            return
        self._claims.disable()
        self._session = None
        drivers, self.drivers = self.drivers, {}
        ours = [(d.saga_id, d.epoch) for d in drivers.values()] + list(self.unreadable.items())
        self.unreadable.clear()
        await asyncio.gather(*(driver.close() for driver in drivers.values()))
        await self._release(session, ours)
        _log.info('SEC node "%s" handed over %d sagas.', self._settings.name, len(drivers))

    def give_away(self, count: int) -> None:
        """Lets others claim up to so many sagas: those that have only waited for longest. A saga that is at work is not among them."""
        session = self._session
        if session is None:
            return
        latest = asyncio.get_running_loop().time() - self._settings.sweep_interval_s
        idle = [(since, d) for d in self.drivers.values() if (since := d.idle_since) is not None and since <= latest]
        idle.sort(key=lambda each: each[0])
        given = [driver for _, driver in idle[:count]]
        for driver in given:
            self._forget(driver)
            driver.shut()
        if given:
            _log.info('SEC node "%s" gives %d sagas away, to nodes that own fewer.', self._settings.name, len(given))
            self._note(self._release(session, [(driver.saga_id, driver.epoch) for driver in given]))

    def set_claimers(self, nodes: Iterable[SecNodeName]) -> None:
        """The SEC nodes that take sagas now."""
        self._nodes = tuple(nodes)

    def drivers_now(self) -> list[SagaDriver]:
        """The drivers of the sagas that it owns now."""
        return list(self.drivers.values())

    def lacks_driver(self, saga_id: SagaId, owner: KeyValue) -> bool:
        """Whether a saga, by its owner key, is ours under the present session, and nothing is done with it."""
        if saga_id in self.drivers or saga_id in self.unreadable or saga_id in self._coming:
            return False
        return self._session is not None and owner.lease == self._session.lease

    async def release(self, sagas: Sequence[tuple[SagaId, Epoch]]) -> None:
        """Lets others claim sagas that are ours and have no driver."""
        if self._session is not None:
            await self._release(self._session, sagas)

    async def run_claims(self) -> None:
        """Claims unowned sagas until it is cancelled."""
        await self._claims.run()

    def claim_now(self, saga_ids: Sequence[SagaId]) -> None:
        """Claims what a sweep has found unowned."""
        self._claims.claim_now(s for s in saga_ids if s not in self.drivers and s not in self.unreadable)

    # taking sagas on

    async def submit(self, head: SagaHead, graph: Graph, *, start: bool, give_up: GiveUp) -> Submitted:
        """Creates a saga; starts and owns it in the same transaction, when it is to be started and this node takes sagas.

        Raises `SagaExists`, `WrongState` (the definition is gone), and `KvError`.
        """
        state = SagaState(head.saga_id, graph)
        records: tuple[Record, ...] = (Created(head.uid, head.definition_hash, head.deadline),)
        if start:
            records += (_start_requested(head, self._clock_us()),)
        for record in records:
            state.apply(record)

        async def write(written: tuple[Record, ...], summary: Summary, owner: Ownership | None) -> Submitted:
            return await self._sagas.submit(head, written, summary, owner, started=start, give_up=give_up)

        if start:
            return await self._begin(head, state, records, write)
        return await write(records, summary_of(head, state.course, ()), None)

    async def start(self, saga_id: SagaId, give_up: GiveUp) -> None:
        """Starts a saga that was created and not started. Raises `SagaNotFound`, `WrongState`, `CorruptLog`, `KvError`."""
        stored = await self._sagas.load(saga_id)
        if stored.problem:
            raise CorruptLog(stored.problem)
        graph = await self._definitions.graph(stored.head.definition_hash)
        state = fold(saga_id, graph, stored.entries)
        if state.course.ended:
            raise WrongState(
                f'Saga "{saga_id}" has ended ({state.course.value}) and cannot be started. Submit it under another id.'
            )
        if state.course is not Course.CREATED:
            raise WrongState(f'Saga "{saga_id}" has been started already.')
        first_sequence, requested = state.next_sequence, _start_requested(stored.head, self._clock_us())
        state.apply(requested)
        orders = read_orders(saga_id, await self._sagas.commands(saga_id))[:MAX_PER_STEP]

        async def write(written: tuple[Record, ...], summary: Summary, owner: Ownership | None) -> Submitted:
            taken_up = [record.command_id for record in written if isinstance(record, Commanded)]
            return await self._sagas.start(stored, first_sequence, written, summary, owner, give_up, taken_up)

        await self._begin(stored.head, state, (requested,), write, orders)

    async def _begin(
        self,
        head: SagaHead,
        state: SagaState,
        records: tuple[Record, ...],
        write: WriteFirst,
        orders: Sequence[Ordered] = (),
    ) -> Submitted:
        """Has the records that start a saga written, with us as its owner and our first step along with them, when this node takes sagas.

        `state` has the records applied. `orders` were given before the start.
        """
        session = self._session
        if session is not None:
            first = self._first_step(state, orders)
            ready = first or Ready((), (), state.course, (), state.controls)
            summary = summary_of(head, ready.course, ready.mishaps, controls=ready.controls, now_us=self._clock_us())
            try:
                with self._taking_on([head.saga_id]):
                    failpoints.reach("before_submit")
                    submitted = await write(records + ready.records, summary, Ownership(self._settings.name, session.lease))
                    failpoints.reach("after_submit")
                    if submitted.epoch is not None:
                        self._adopt(session, head, state, submitted.epoch, first, orders)
                    return submitted
            except LeaseNotFound:
                _log.debug("The session is gone, of which we will hear soon: somebody else runs the saga.")
        return await write(records, summary_of(head, state.course, ()), None)

    def _first_step(self, state: SagaState, orders: Sequence[Ordered]) -> Ready | None:
        """The step that can share the transaction that starts a saga. None when it would end it there and then."""
        ready = decide(state, [*orders, Begin()], self._directory.offered, self._clock_us())
        return None if any(isinstance(record, Done) for record in ready.records) else ready

    def _adopt(
        self, session: Session, head: SagaHead, state: SagaState, epoch: Epoch, first: Ready | None, orders: Sequence[Ordered]
    ) -> None:
        """Drives a saga that was started with us as its owner. `orders` were given before; `first`, if there is one, has taken them up."""
        if self._session is not session:
            self._let_go(session, head.saga_id, epoch)
            return
        state.epoch, state.owner = epoch, self._settings.name
        driver = SagaDriver(head, state, epoch, self)
        self.drivers[head.saga_id] = driver
        for ordered in (*orders, *self._orders.of(head.saga_id)):  # the same one twice is one
            driver.post(ordered)
        if first is None:
            driver.post(Begin())
            return
        driver.take(first)
        driver.run_effects(first)
        driver.offers_changed()  # they may have, since the step was decided

    async def _claim(self, saga_ids: Sequence[SagaId]) -> int:
        """Takes sagas over, as far as nobody else does. Answers how many bytes of logs were read for that."""
        session = self._session
        wanted = [s for s in saga_ids if s not in self.drivers and s not in self.unreadable]
        if session is None or not wanted:
            return 0
        with self._taking_on(wanted):
            failpoints.reach("before_claim")
            try:
                claimed = await self._sagas.claim(wanted, Ownership(self._settings.name, session.lease), session.over)
            except KvError as error:
                _log.warning("Could not claim %d sagas; the sweep will see to them: %s", len(wanted), error)
                return 0
            failpoints.reach("after_claim")
            for one in claimed.values():
                await self._take_over(session, one)
        if claimed:
            _log.info('SEC node "%s" took over %d sagas.', self._settings.name, len(claimed))
        return sum(one.saga.log_bytes for one in claimed.values())

    @contextmanager
    def _taking_on(self, saga_ids: Sequence[SagaId]) -> Iterator[None]:
        """While their owner keys are written, read back and made drivers of. Without it the sweep would give them up in the middle."""
        for saga_id in saga_ids:
            self._coming[saga_id] += 1
        try:
            yield
        finally:
            for saga_id in saga_ids:
                self._coming[saga_id] -= 1
                if not self._coming[saga_id]:
                    del self._coming[saga_id]

    async def _take_over(self, session: Session, claimed: Claimed) -> None:
        head = claimed.saga.head
        try:
            if claimed.saga.problem:
                raise CorruptLog(claimed.saga.problem)
            graph = await self._definitions.graph(head.definition_hash)
            state = fold(head.saga_id, graph, claimed.saga.entries)
        except CorruptLog as error:
            await self._cannot_read(session, head, claimed.epoch, str(error))
            return
        except KvError as error:
            _log.warning('The definition of saga "%s" could not be read; giving the saga up: %s', head.saga_id, error)
            await self._release(session, [(head.saga_id, claimed.epoch)])
            return
        if self._session is not session:
            self._let_go(session, head.saga_id, claimed.epoch)
            return
        driver = SagaDriver(head, state, claimed.epoch, self)
        self.drivers[head.saga_id] = driver
        driver.post(TakenOver(claimed.epoch, self._settings.name))
        # Some may have been given since the claim, and some the mirror may not have seen yet.
        for ordered in (*read_orders(head.saga_id, claimed.commands), *self._orders.of(head.saga_id)):
            driver.post(ordered)

    def _let_go(self, session: Session, saga_id: SagaId, epoch: Epoch) -> None:
        """A saga became ours too late: we take none any more. It goes with the session, unless that lasts, since we are only drained."""
        self._note(self._release(session, [(saga_id, epoch)]))

    async def _cannot_read(self, session: Session, head: SagaHead, epoch: Epoch, reason: str) -> None:
        _log.error('SEC node "%s" cannot run saga "%s": %s', self._settings.name, head.saga_id, reason)
        if self._session is not session:
            self._let_go(session, head.saga_id, epoch)
            return
        self.unreadable[head.saga_id] = epoch
        summary = unreadable_summary(head, reason, self._clock_us())
        try:
            await self._sagas.update_summary(head.saga_id, epoch, summary, session.over)
        except (KvError, Fenced) as error:
            _log.warning('It could not be noted that saga "%s" cannot be read: %s', head.saga_id, error)

    async def _release(self, session: Session, sagas: Sequence[tuple[SagaId, Epoch]]) -> None:
        """Lets others claim sagas. What cannot be given up goes with the session."""
        if not sagas or not session.alive():
            return
        try:
            await self._sagas.release(sagas, session.over)
        except KvError as error:
            _log.warning("Ownership could not be given up and goes with the session instead: %s", error)

    def deliver(self, saga_id: SagaId, ordered: Ordered) -> None:
        """Hands a command to the driver of its saga, if that is here. Twice is once."""
        driver, session = self.drivers.get(saga_id), self._session
        if driver is None or session is None:
            return
        if ordered.command_id in driver.state.commands:  # sent once more while it was being taken up
            self._note(self._drop_command(session, saga_id, ordered.command_id))
        else:
            driver.post(ordered)

    async def _drop_command(self, session: Session, saga_id: SagaId, command_id: str) -> None:
        try:
            await self._sagas.drop_command(saga_id, command_id, session.over)
        except KvError as error:
            _log.warning('The command "%s" of saga "%s", long taken up, stays until the saga ends: %s', command_id, saga_id, error)

    def _offers_changed(self) -> None:
        for driver in list(self.drivers.values()):
            driver.offers_changed()

    # the drivers' host

    @property
    def sec_node(self) -> SecNodeName:
        return self._settings.name

    @property
    def offered(self) -> frozenset[str]:
        return self._directory.offered

    def may_dispatch(self) -> bool:
        return self._session is not None and self._session.alive()

    def draw(self) -> float:
        return self._rng.random()

    def now_us(self) -> int:
        return self._clock_us()

    def at_most(self, events: list[Event]) -> int:
        """Bounded so that what they bring fits into a transaction, with the records that follow from them."""
        if len(events) == 1:
            return 1
        limits, size, commands = self._settings.limits, 0, 0
        for count, event in enumerate(events[: limits.records_per_append]):
            size += _payload_bytes(event)
            commands += isinstance(event, Ordered)
            if (size > limits.payload_bytes_per_append and count) or commands > MAX_PER_STEP:
                return count
        return min(len(events), limits.records_per_append)

    def append(self, driver: SagaDriver, ready: Ready, written: Written) -> None:
        session = self._session
        if session is None:
            raise Fenced(f'SEC node "{self._settings.name}" has no session: saga "{driver.saga_id}" is not its own any more.')
        state = driver.state
        before, after = state.controls, ready.controls
        held_otherwise = before is not after and (before.paused, before.pause_reason) != (after.paused, after.pause_reason)
        summary = None
        if ready.course is not state.course or ready.mishaps != state.mishaps or held_otherwise:
            summary = summary_of(driver.head, ready.course, ready.mishaps, controls=ready.controls, now_us=self._clock_us())
        commands = [record.command_id for record in ready.records if isinstance(record, Commanded)]
        self._sagas.append(
            driver.saga_id,
            driver.epoch,
            state.next_sequence,
            ready.records,
            written,
            summary=summary,
            ended=ready.course.ended,
            give_up=session.over,
            commands=commands,
            wanted=lambda: not driver.closed,
        )

    def call(self, call: Call, tell: Tell) -> Pending:
        return self._directory.call(call, tell)

    def called(self, call: Call, answer: Answer, took_s: float) -> None:
        self.on_call(call, answer, took_s)

    def cancel(self, idempotency_key: str) -> None:
        self._directory.cancel(idempotency_key)

    def reported(self, driver: SagaDriver, node: NodePath, report: Report | None) -> None:
        self.reports.put(driver.state.uid, node, None if report is None else Timed(report, self._clock_us()))

    def _heard(self, call: Call, report: Report) -> None:
        driver = self.drivers.get(call.saga_id)
        if driver is not None and driver.epoch == call.epoch:
            driver.heard(call, report)

    async def still_owned(self, driver: SagaDriver) -> bool:
        return await self._sagas.owns(driver.saga_id, driver.epoch)

    def ended(self, driver: SagaDriver) -> None:
        self._forget(driver)

    def lost(self, driver: SagaDriver, reason: str) -> None:
        """The owner key may still be ours, if the driver was in doubt: without letting go of it nobody else could claim the saga."""
        self._forget(driver)
        _log.warning('SEC node "%s" let go of a saga. %s', self._settings.name, reason)
        if self._session is not None:
            self._note(self._release(self._session, [(driver.saga_id, driver.epoch)]))

    def broken(self, driver: SagaDriver, reason: str) -> None:
        """A fault of ours must not turn into a loop of takeovers: the saga stays where it is, and is shown as one that cannot be run."""
        self._forget(driver)
        if self._session is not None:
            self._note(self._cannot_read(self._session, driver.head, driver.epoch, reason))

    def _note(self, work: Coroutine[None, None, None]) -> None:
        """Has something written for which a driver, which is closed, cannot wait."""
        task = asyncio.get_running_loop().create_task(work)
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)

    def _forget(self, driver: SagaDriver) -> None:
        if self.drivers.get(driver.saga_id) is driver:
            del self.drivers[driver.saga_id]


def _start_requested(head: SagaHead, now_us: int) -> StartRequested:
    return StartRequested(0 if head.deadline is None else now_us + round(head.deadline.after_s * 1e6))


def _payload_bytes(event: Event) -> int:
    match event:
        case DoAnswered(_, Payload(data=data)):
            return len(data)
        case DoAnswered(_, Fault(data=data)) | UndoAnswered(_, Fault(data=data)) | AnswerMissing(error=Fault(data=data)):
            return 16_384 + (len(data.data) if data is not None else 0)
        case Ordered(command=Signal(data=data)):
            return 2 * len(data.data)  # in the command and in the output
        case _:
            return 0
