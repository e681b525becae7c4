"""A client of the store in memory: the port, its latency, and faults to order."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Literal, TypeVar

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

Fault = Literal["lose the answer", "drop"]


class _Subscription:
    """A watch of a `MemoryKv`: what survives when it is cut off from the store and comes back."""

    def __init__(
        self,
        etcd: MemoryEtcd,
        watcher: Watcher,
        start: Revision | None,
        began: Callable[["_Subscription"], None],
        ended: Callable[["_Subscription"], None],
    ) -> None:
        self.queue = WatchQueue(lambda: began(self), self._end)
        self._etcd = etcd
        self._watcher = watcher
        self._next = start
        self._ended = ended
        self._announced = False

    def connect(self) -> None:
        """Goes on after the last batch that came."""
        waiting: list[WatchBatch] = []
        self._watcher.push = waiting.append
        try:
            before = self._etcd.attach(self._watcher, self._next)
        except Compacted as error:
            self.queue.fail(error)
            self._ended(self)
            return
        finally:
            self._watcher.push = self._push
        if not self._announced:
            self._announced = True
            self._next = Revision(before + 1)
            self.queue.push(WatchBatch(before))
        for batch in waiting:
            self._push(batch)

    def disconnect(self) -> None:
        self._etcd.detach(self._watcher)

    def _push(self, batch: WatchBatch) -> None:
        if self._next is None or batch.revision >= self._next:
            self._next = Revision(batch.revision + 1)
            self.queue.push(batch)

    def _end(self) -> None:
        self.disconnect()
        self._ended(self)


class MemoryKv:
    """A client of a `MemoryEtcd`, with faults to order. Implements `sec.store.kv.Kv`.

    `latency_s` passes half before and half after each effect; with 0 a call still gives way to other tasks once before it.
    """

    def __init__(self, etcd: MemoryEtcd, *, latency_s: float = 0.0) -> None:
        self.etcd = etcd
        self.latency_s = latency_s
        self._partitioned = False
        self._closed = False
        self._faults: deque[Fault] = deque()
        self._subscriptions: dict[_Subscription, None] = {}

    def partition(self, on: bool = True) -> None:
        """Cuts this client off, or brings it back.

        Calls made meanwhile raise `KvUnavailable`; of those that were under way the answer is lost. Watches are silent, and miss
        nothing once it is back.
        """
        if on == self._partitioned:
            return
        self._partitioned = on
        for subscription in list(self._subscriptions):
            if on:
                subscription.disconnect()
            else:
                subscription.connect()

    def lose_next_answer(self) -> None:
        """The next write (transaction, grant or revocation) has its effect, and raises `Indeterminate`. Orders queue up."""
        self._faults.append("lose the answer")

    def drop_next_write(self) -> None:
        """The next write has no effect, and raises `Indeterminate`. Orders queue up."""
        self._faults.append("drop")

    async def txn(self, txn: Txn, *, timeout_s: float | None = None) -> TxnResult:
        return await self._call("carry out a transaction", lambda: self.etcd.txn(txn), timeout_s, write=True)

    async def get(
        self, get: Get, *, revision: Revision | None = None, serializable: bool = False, timeout_s: float | None = None
    ) -> GetResult:
        try:
            return await self._call(f"read {get.key!r}", lambda: self.etcd.get(get, revision), timeout_s, write=False)
        except Indeterminate as error:
            raise KvUnavailable(str(error)) from None

    def watch(self, key: bytes, range_end: bytes | None = None, *, start: Revision | None = None, previous: bool = False) -> Watch:
        if start is not None and start < 1:
            raise ValueError(f"A watch starts at revision 1 or later, not at {start}.")
        watcher = Watcher(key, range_end, previous, lambda batch: None)
        return _Subscription(self.etcd, watcher, start, self._began, self._ended).queue

    async def lease_grant(self, ttl_s: int, *, timeout_s: float | None = None) -> LeaseId:
        return await self._call(f"grant a lease of {ttl_s} s", lambda: self.etcd.lease_grant(ttl_s), timeout_s, write=True)

    async def lease_keepalive(self, lease: LeaseId, *, timeout_s: float | None = None) -> float:
        return await self._call(f"renew the lease {lease:x}", lambda: self.etcd.lease_keepalive(lease), timeout_s, write=False)

    async def lease_revoke(self, lease: LeaseId, *, timeout_s: float | None = None) -> None:
        await self._call(f"revoke the lease {lease:x}", lambda: self.etcd.lease_revoke(lease), timeout_s, write=True)

    async def status(self, *, timeout_s: float | None = None) -> Status:
        try:
            return await self._call("ask for the status", self.etcd.status, timeout_s, write=False)
        except Indeterminate as error:
            raise KvUnavailable(str(error)) from None

    async def aclose(self) -> None:
        self._closed = True
        for subscription in list(self._subscriptions):
            subscription.queue.close()

    def _connected(self) -> bool:
        return not self._partitioned and not self._closed

    def _began(self, subscription: _Subscription) -> None:
        if self._closed:
            subscription.queue.fail(KvUnavailable("Could not watch: this client of the store is closed."))
            return
        self._subscriptions[subscription] = None
        if not self._partitioned:
            subscription.connect()

    def _ended(self, subscription: _Subscription) -> None:
        self._subscriptions.pop(subscription, None)

    async def _call(self, what: str, effect: Callable[[], T], timeout_s: float | None, *, write: bool) -> T:
        lost = Indeterminate(f"Could not {what}: the answer was lost. It may have been carried out all the same.")
        if not self._connected():
            await asyncio.sleep(self.latency_s)
            raise KvUnavailable(f"Could not {what}: the store cannot be reached.")
        fault = self._faults.popleft() if write and self._faults else None
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.sleep(self.latency_s / 2)
                if fault == "drop" or not self._connected():
                    raise lost
                answer = effect()
                if self.latency_s > 0:
                    await asyncio.sleep(self.latency_s / 2)
        except TimeoutError:
            raise lost from None
        except KvError:
            if fault is not None:
                raise lost from None
            raise
        if fault is not None or not self._connected():
            raise lost
        return answer
