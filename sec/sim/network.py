"""What is between the SEC nodes and etcd: every call and answer takes a time of its own, may be lost, and may come late.

`SimKv` implements `sec.store.kv.Kv` over a `MemoryEtcd`. What was sent arrives although its sender has been stopped or killed since.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from sec.sim.loop import WORLD, SimLoop, SimProcess
from sec.store.kv import (
    Compacted,
    Get,
    GetResult,
    Indeterminate,
    KvError,
    KvUnavailable,
    LeaseId,
    Revision,
    Status,
    Txn,
    TxnResult,
    Watch,
    WatchBatch,
)
from sec.store.memory.etcd import MemoryEtcd, Watcher
from sec.store.watch_queue import WatchQueue

T = TypeVar("T")

CALL_TIMEOUT_S = 3.0
"""Of calls that name none."""
_RESET_AFTER_S = 0.02


@dataclass
class Weather:
    """How the network is, as probabilities for each message. All zero: calm."""

    late: float = 0.0
    """It takes up to a second or so, and not some milliseconds."""
    lost_answers: float = 0.0
    lost_calls: float = 0.0


class Link:
    """The way between one process and the others. All that is random about it comes from one generator."""

    def __init__(self, loop: SimLoop, rng: Random, weather: Weather) -> None:
        self.loop = loop
        self.rng = rng
        self.weather = weather
        self.cut = False
        self.slowness = 1.0
        self.lose_answers = 0
        """So many writes from now on have their effect, and no answer."""
        self.lose_writes = 0
        """So many writes from now on have no effect, and no answer."""

    def delay_s(self) -> float:
        rng = self.rng
        if self.weather.late and rng.random() < self.weather.late:
            return rng.uniform(0.05, 1.2)
        return rng.uniform(0.0005, 0.006) * self.slowness

    def later(self, delay_s: float, callback: Callable[[], object]) -> None:
        """Has something happen in the world."""
        self.loop.call_later(delay_s, callback, context=WORLD)

    def is_lost(self, probability: float) -> bool:
        return self.cut or (probability > 0 and self.rng.random() < probability)


class SimKv:
    """A client of the store, of one process."""

    def __init__(self, etcd: MemoryEtcd, link: Link, process: SimProcess, moment: Callable[[str], None]) -> None:
        self._etcd = etcd
        self._link = link
        self._process = process
        self._moment = moment
        self._watches: dict[_SimWatch, None] = {}
        self.broken = False
        """Its watches have ended, and nobody has told them yet."""
        self.renewed: dict[LeaseId, float] = {}
        """When the last grant or renewal that was answered had been sent, and the TTL after that: until when each lease is certain to be held."""

    async def txn(self, txn: Txn, *, timeout_s: float | None = None) -> TxnResult:
        return await self._call("carry out a transaction", lambda: self._etcd.txn(txn), timeout_s, write=True)

    async def get(
        self, get: Get, *, revision: Revision | None = None, serializable: bool = False, timeout_s: float | None = None
    ) -> GetResult:
        try:
            return await self._call(f"read {get.key!r}", lambda: self._etcd.get(get, revision), timeout_s)
        except Indeterminate as error:
            raise KvUnavailable(str(error)) from None

    def watch(self, key: bytes, range_end: bytes | None = None, *, start: Revision | None = None, previous: bool = False) -> Watch:
        return _SimWatch(self._etcd, self._link, Watcher(key, range_end, previous, lambda batch: None), start, self._watches).queue

    async def lease_grant(self, ttl_s: int, *, timeout_s: float | None = None) -> LeaseId:
        sent = self._link.loop.time()
        lease = await self._call(f"grant a lease of {ttl_s} s", lambda: self._etcd.lease_grant(ttl_s), timeout_s, write=True)
        self.renewed[lease] = sent + ttl_s
        return lease

    async def lease_keepalive(self, lease: LeaseId, *, timeout_s: float | None = None) -> float:
        sent = self._link.loop.time()
        ttl_s = await self._call(f"renew the lease {lease:x}", lambda: self._etcd.lease_keepalive(lease), timeout_s)
        self.renewed[lease] = sent + ttl_s
        return ttl_s

    async def lease_revoke(self, lease: LeaseId, *, timeout_s: float | None = None) -> None:
        await self._call(f"revoke the lease {lease:x}", lambda: self._etcd.lease_revoke(lease), timeout_s, write=True)

    async def status(self, *, timeout_s: float | None = None) -> Status:
        try:
            return await self._call("ask for the status", self._etcd.status, timeout_s)
        except Indeterminate as error:
            raise KvUnavailable(str(error)) from None

    async def aclose(self) -> None:
        self.break_watches()

    def break_watches(self) -> None:
        """The connections of the watches end. What they carry is lost."""
        self.broken = True
        for watch in list(self._watches):
            watch.disconnect()

    def mend(self) -> None:
        """The watches go on behind what they have delivered."""
        self.broken = False
        for watch in list(self._watches):
            watch.connect()

    async def _call(self, what: str, effect: Callable[[], T], timeout_s: float | None, *, write: bool = False) -> T:
        link, answer = self._link, self._link.loop.create_future()
        lost = Indeterminate(f"Could not {what}: the answer was lost. It may have been carried out all the same.")
        if link.cut and link.rng.random() < 0.5:
            await asyncio.sleep(_RESET_AFTER_S)
            raise KvUnavailable(f"Could not {what}: the store cannot be reached.")
        fault = self._fault() if write else ""

        def settle(result: T | None, error: Exception | None) -> None:
            if answer.done():
                return
            if error is not None:
                answer.set_exception(error)
            else:
                answer.set_result(result)

        def arrive() -> None:
            if fault == "drop" or link.is_lost(link.weather.lost_calls):
                forget()
                return
            result: T | None = None
            failure: Exception | None = None
            try:
                result = effect()
            except KvError as error:
                failure = error
            if write:
                self._moment("a write has landed")
            if fault or link.is_lost(link.weather.lost_answers):
                forget()
            else:
                link.later(link.delay_s(), lambda: settle(result, failure))

        def forget() -> None:
            if link.rng.random() < 0.5:  # otherwise the silence lasts until the timeout
                link.later(_RESET_AFTER_S, lambda: settle(None, lost))

        link.later(link.delay_s(), arrive)
        if write:
            self._moment("a write is sent")
        try:
            async with asyncio.timeout(timeout_s if timeout_s is not None else CALL_TIMEOUT_S):
                return await answer  # type: ignore[no-any-return] # a future of the loop is one of anything
        except TimeoutError:
            raise lost from None

    def _fault(self) -> str:
        link = self._link
        if link.lose_writes:
            link.lose_writes -= 1
            return "drop"
        if link.lose_answers:
            link.lose_answers -= 1
            return "lose the answer"
        return ""


class _SimWatch:
    """One watch: its connection may break, and it goes on behind the last batch that came."""

    def __init__(
        self, etcd: MemoryEtcd, link: Link, watcher: Watcher, start: Revision | None, watches: "dict[_SimWatch, None]"
    ) -> None:
        self.queue = WatchQueue(self._begin, self._end)
        self._etcd = etcd
        self._link = link
        self._watcher = watcher
        self._next = start
        self._watches = watches
        self._announced = False
        self._connection = 0
        """Counts them: what an earlier one still carries is lost."""
        self._last_s = 0.0

    def _begin(self) -> None:
        self._watches[self] = None
        self.connect()

    def _end(self) -> None:
        self._watches.pop(self, None)
        self.disconnect()

    def connect(self) -> None:
        self._connection += 1
        connection = self._connection
        self._link.later(self._link.delay_s(), lambda: self._attach(connection))

    def disconnect(self) -> None:
        self._connection += 1
        self._etcd.detach(self._watcher)

    def _attach(self, connection: int) -> None:
        if connection != self._connection or self._link.cut:
            return
        self._etcd.detach(self._watcher)
        waiting: list[WatchBatch] = []
        self._watcher.push = waiting.append
        try:
            before = self._etcd.attach(self._watcher, self._next)
        except Compacted as error:
            self.queue.fail(error)
            return
        self._watcher.push = lambda batch: self._send(batch, connection)
        if not self._announced:
            waiting.insert(0, WatchBatch(before))
        for batch in waiting:
            self._send(batch, connection)

    def _send(self, batch: WatchBatch, connection: int) -> None:
        self._last_s = max(self._last_s, self._link.loop.time() + self._link.delay_s())
        self._link.loop.call_at(self._last_s, self._deliver, batch, connection, context=WORLD)

    def _deliver(self, batch: WatchBatch, connection: int) -> None:
        if connection != self._connection:
            return
        self._announced = True
        if self._next is None or batch.revision >= self._next or not batch.events:
            self._next = Revision(batch.revision + 1)
            self.queue.push(batch)
