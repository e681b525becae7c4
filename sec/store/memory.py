"""A faithful etcd in memory: `MemoryEtcd` is the store, `MemoryKv` a client of it. For tests and the simulator.

Everything that our code can see of an etcd is as it is there: revisions, reads and watches in the past, compaction, leases, the
order of compares and writes in nested transactions, and what is refused. There is no randomness, and time is the event loop's, so
that under a loop with virtual time the same calls give the same history. What is not here: several members, authentication,
durability.

Source of the semantics: etcd's server/etcdserver/apply.go (compares of all levels first, then checks, then writes),
api/v3rpc/key.go (what is refused) and storage/mvcc (revisions, compaction), all of 3.5.
"""

import asyncio
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, assert_never

from sec.store.kv import (
    MAX_TXN_BYTES,
    MAX_TXN_OPS,
    NO_LEASE,
    Compacted,
    Compare,
    Delete,
    DeleteResult,
    Event,
    EventKind,
    Get,
    GetResult,
    Indeterminate,
    KeyValue,
    KvError,
    KvRefused,
    KvUnavailable,
    LeaseId,
    LeaseNotFound,
    Op,
    OpResult,
    Put,
    PutResult,
    Relation,
    Revision,
    Target,
    Txn,
    TxnResult,
    Watch,
    WatchBatch,
)
from sec.store.watch_queue import WatchQueue

T = TypeVar("T")

MIN_LEASE_TTL_S = 2
"""What etcd grants at the least with its default election timeout."""

MAX_LEASE_TTL_S = 9_000_000_000

_TO_THE_END = b"\0"
"""As a `range_end`: all keys from `key` on."""

_BYTES_PER_OP = 8
"""About what etcd's encoding adds to the bytes of an operation."""

_NOTHING = KeyValue(b"", b"", Revision(0), Revision(0), 0, NO_LEASE)


def _in_range(key: bytes, start: bytes, end: bytes | None) -> bool:
    if end is None:
        return key == start
    return key >= start and (end == _TO_THE_END or key < end)


@dataclass(slots=True)
class _Lease:
    ttl_s: int
    expiry: asyncio.TimerHandle
    keys: set[bytes] = field(default_factory=set)


class _Watcher:
    """A watch as the store has it: it gets every batch that concerns it, in order."""

    def __init__(self, key: bytes, range_end: bytes | None, previous: bool, push: Callable[[WatchBatch], None]) -> None:
        self.key = key
        self.range_end = range_end
        self.previous = previous
        self.push = push

    def select(self, events: Sequence[Event]) -> tuple[Event, ...]:
        chosen = (event for event in events if _in_range(event.item.key, self.key, self.range_end))
        return tuple(event if self.previous else Event(event.kind, event.item) for event in chosen)


class MemoryEtcd:
    """The store. Its methods are synchronous and atomic; `MemoryKv` is how code under test gets at it.

    They raise what an etcd that can be reached answers: `KvRefused`, `LeaseNotFound`, `Compacted`.
    """

    def __init__(self, *, max_txn_ops: int = MAX_TXN_OPS, max_txn_bytes: int = MAX_TXN_BYTES, version: str = "3.6.0") -> None:
        self.version = version
        self.revision = Revision(1)
        """The store's. 1 when it is empty, as in etcd."""
        self.compacted = Revision(0)
        self._max_txn_ops = max_txn_ops
        self._max_txn_bytes = max_txn_bytes
        self._history: dict[bytes, list[KeyValue]] = {}  # the item after each change; version 0 after a deletion
        self._keys: list[bytes] = []  # those of _history, sorted
        self._changes: deque[tuple[Revision, tuple[Event, ...]]] = deque()
        self._leases: dict[LeaseId, _Lease] = {}
        self._last_lease = 0x1000
        self._watchers: dict[_Watcher, None] = {}  # a set with an order

    # Reads

    def get(self, get: Get, revision: Revision | None = None) -> GetResult:
        """Reads now or at a revision."""
        _check_op(get, self._max_txn_ops)
        if revision is not None and revision > self.revision:
            raise KvRefused(f"Revision {revision} is in the future: the store is at {self.revision}.")
        if revision is not None and 0 < revision < self.compacted:
            raise Compacted(f"Revision {revision} has been compacted: the store keeps what is from {self.compacted} on.")
        return self._get(get, revision or self.revision, self.revision)

    def _get(self, get: Get, at: Revision, answered_at: Revision) -> GetResult:
        found = [item for key in self._range(get.key, get.range_end) if (item := self._item(key, at)) is not None]
        chosen = found[: get.limit] if get.limit > 0 else found
        if get.keys_only:
            chosen = [KeyValue(i.key, b"", i.create_revision, i.mod_revision, i.version, i.lease) for i in chosen]
        return GetResult(tuple(chosen), len(chosen) < len(found), len(found), answered_at)

    def _range(self, key: bytes, end: bytes | None) -> list[bytes]:
        if end is None:
            return [key] if key in self._history else []
        first = bisect_left(self._keys, key)
        last = len(self._keys) if end == _TO_THE_END else bisect_left(self._keys, end)
        return self._keys[first:last]

    def _item(self, key: bytes, at: Revision) -> KeyValue | None:
        items = self._history.get(key)
        if not items:
            return None
        item = items[-1] if items[-1].mod_revision <= at else None
        if item is None:
            position = bisect_right(items, at, key=lambda each: each.mod_revision)
            item = items[position - 1] if position else None
        return item if item is not None and item.version > 0 else None

    # Transactions

    def txn(self, txn: Txn) -> TxnResult:
        """Carries out a transaction, or refuses it with nothing changed."""
        _check_txn(txn, self._max_txn_ops)
        _check_intervals(txn.then)
        _check_intervals(txn.otherwise)
        if (size := _size(txn)) > self._max_txn_bytes:
            raise KvRefused(f"The transaction is too large: {size} bytes, of at most {self._max_txn_bytes}.")
        path: dict[int, bool] = {}
        self._compare_all(txn, path)
        self._check_leases(txn, path)
        writing = _Writing(Revision(self.revision + 1))
        result = self._carry_out(txn, path, writing)
        self._commit(writing)
        return _at_revision(result, self.revision)

    def _compare_all(self, txn: Txn, path: dict[int, bool]) -> None:
        # A transaction that stands in two places is compared twice, and equal: nothing is written in between.
        path[id(txn)] = succeeded = all(self._holds(compare) for compare in txn.compares)
        for op in txn.then if succeeded else txn.otherwise:
            if isinstance(op, Txn):
                self._compare_all(op, path)

    def _holds(self, compare: Compare) -> bool:
        item = self._item(compare.key, self.revision)
        if compare.target is Target.VALUE:
            if item is None:
                return False  # as in etcd, for every relation: no value is not an empty value
            assert isinstance(compare.operand, bytes)
            return _related(item.value, compare.relation, compare.operand)
        assert isinstance(compare.operand, int)
        item = item or _NOTHING
        match compare.target:
            case Target.VERSION:
                found = item.version
            case Target.CREATE:
                found = item.create_revision
            case Target.MOD:
                found = item.mod_revision
            case _:
                assert_never(compare.target)
        return _related(found, compare.relation, compare.operand)

    def _check_leases(self, txn: Txn, path: dict[int, bool]) -> None:
        for op in txn.then if path[id(txn)] else txn.otherwise:
            if isinstance(op, Put) and op.lease != NO_LEASE and op.lease not in self._leases:
                raise LeaseNotFound(f"Could not put {op.key!r}: there is no lease {op.lease:x}; it has expired or was revoked.")
            if isinstance(op, Txn):
                self._check_leases(op, path)

    def _carry_out(self, txn: Txn, path: dict[int, bool], writing: "_Writing") -> TxnResult:
        results: list[OpResult] = []
        succeeded = path[id(txn)]
        for op in txn.then if succeeded else txn.otherwise:
            now = writing.revision if writing.events else self.revision
            match op:
                case Get():
                    results.append(self._get(op, now, now))
                case Put():
                    self._put(op, writing)
                    results.append(PutResult(writing.revision))
                case Delete():
                    deleted = self._delete(op.key, op.range_end, writing)
                    results.append(DeleteResult(writing.revision if deleted else now, deleted))
                case Txn():
                    results.append(self._carry_out(op, path, writing))
                case _:
                    assert_never(op)
        return TxnResult(succeeded, self.revision, tuple(results))

    def _put(self, put: Put, writing: "_Writing") -> None:
        before = self._item(put.key, writing.revision)
        created = before.create_revision if before else writing.revision
        item = KeyValue(put.key, put.value, created, writing.revision, (before.version if before else 0) + 1, put.lease)
        self._move(put.key, before.lease if before else NO_LEASE, put.lease)
        self._write(item, EventKind.PUT, before, writing)

    def _delete(self, key: bytes, end: bytes | None, writing: "_Writing") -> int:
        deleted = 0
        for each in self._range(key, end):
            before = self._item(each, writing.revision)
            if before is not None:
                deleted += 1
                self._move(each, before.lease, NO_LEASE)
                gone = KeyValue(each, b"", Revision(0), writing.revision, 0, NO_LEASE)
                self._write(gone, EventKind.DELETE, before, writing)
        return deleted

    def _write(self, item: KeyValue, kind: EventKind, before: KeyValue | None, writing: "_Writing") -> None:
        if item.key not in self._history:
            self._history[item.key] = []
            insort(self._keys, item.key)
        self._history[item.key].append(item)
        if before is not None and before.mod_revision == writing.revision:
            before = writing.before.get(item.key)  # only what earlier transactions left counts as previous
        else:
            writing.before[item.key] = before
        writing.events.append(Event(kind, item, before))

    def _move(self, key: bytes, old: LeaseId, new: LeaseId) -> None:
        if old in self._leases:
            self._leases[old].keys.discard(key)
        if new != NO_LEASE:
            self._leases[new].keys.add(key)

    def _commit(self, writing: "_Writing") -> None:
        if not writing.events:
            return
        self.revision = writing.revision
        self._changes.append((self.revision, tuple(writing.events)))
        for watcher in list(self._watchers):
            if events := watcher.select(writing.events):
                watcher.push(WatchBatch(self.revision, events))

    def compact(self, revision: int) -> None:
        """Forgets what was before `revision`. Reads at that revision stay possible."""
        if revision > self.revision:
            raise KvRefused(f"Revision {revision} is in the future: the store is at {self.revision}.")
        if revision <= self.compacted:
            raise Compacted(f"Revision {revision} has been compacted already.")
        self.compacted = Revision(revision)
        while self._changes and self._changes[0][0] < revision:
            self._changes.popleft()
        for key, items in list(self._history.items()):
            first = max(0, bisect_right(items, revision, key=lambda item: item.mod_revision) - 1)
            if items[first].mod_revision <= revision and items[first].version == 0:
                first += 1
            del items[:first]
            if not items:
                del self._history[key]
                del self._keys[bisect_left(self._keys, key)]

    # Watches

    def attach(self, watcher: _Watcher, start: Revision | None) -> Revision:
        """Gives a watcher what there is from `start` on and then all that comes. Returns the revision before its first."""
        if start is None:
            self._watchers[watcher] = None
            return self.revision
        if start < self.compacted:
            raise Compacted(f"Cannot watch from revision {start}: the store keeps what is from {self.compacted} on.")
        for revision, changes in list(self._changes):
            if revision >= start and (events := watcher.select(changes)):
                watcher.push(WatchBatch(revision, events))
        self._watchers[watcher] = None
        return Revision(start - 1)

    def detach(self, watcher: _Watcher) -> None:
        self._watchers.pop(watcher, None)

    # Leases

    def lease_grant(self, ttl_s: int) -> LeaseId:
        if not 0 < ttl_s <= MAX_LEASE_TTL_S:
            raise KvRefused(f"A lease of {ttl_s} s cannot be granted.")
        self._last_lease += 1
        lease = LeaseId(self._last_lease)
        ttl_s = max(ttl_s, MIN_LEASE_TTL_S)
        self._leases[lease] = _Lease(ttl_s, self._expire_in(lease, ttl_s))
        return lease

    def lease_keepalive(self, lease: LeaseId) -> float:
        granted = self._leases.get(lease)
        if granted is None:
            raise LeaseNotFound(f"Could not renew the lease {lease:x}: it has expired or was revoked.")
        granted.expiry.cancel()
        granted.expiry = self._expire_in(lease, granted.ttl_s)
        return float(granted.ttl_s)

    def lease_revoke(self, lease: LeaseId) -> None:
        granted = self._leases.get(lease)
        if granted is None:
            raise LeaseNotFound(f"Could not revoke the lease {lease:x}: it has expired or was revoked.")
        granted.expiry.cancel()
        writing = _Writing(Revision(self.revision + 1))
        for key in sorted(granted.keys):
            self._delete(key, None, writing)
        del self._leases[lease]
        self._commit(writing)

    def _expire_in(self, lease: LeaseId, ttl_s: float) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(ttl_s, self.lease_revoke, lease)


class _Writing:
    """The writes of one transaction."""

    def __init__(self, revision: Revision) -> None:
        self.revision = revision
        self.events: list[Event] = []
        self.before: dict[bytes, KeyValue | None] = {}


def _related(found: Any, relation: Relation, operand: Any) -> bool:
    match relation:
        case Relation.EQUAL:
            return bool(found == operand)
        case Relation.NOT_EQUAL:
            return bool(found != operand)
        case Relation.GREATER:
            return bool(found > operand)
        case Relation.LESS:
            return bool(found < operand)
        case _:
            assert_never(relation)


def _at_revision(result: TxnResult, revision: Revision) -> TxnResult:
    results = tuple(_at_revision(each, revision) if isinstance(each, TxnResult) else each for each in result.results)
    return TxnResult(result.succeeded, revision, results)


def _check_txn(txn: Txn, max_ops: int) -> None:
    most = max(len(txn.compares), len(txn.then), len(txn.otherwise))
    if most > max_ops:
        raise KvRefused(f"Too many operations in a transaction: {most}, where {max_ops} are left.")
    for compare in txn.compares:
        _check_key(compare.key)
    for op in (*txn.then, *txn.otherwise):
        _check_op(op, max_ops - most)


def _check_op(op: Op, max_ops: int) -> None:
    if isinstance(op, Txn):
        _check_txn(op, max_ops)
    else:
        _check_key(op.key)


def _check_key(key: bytes) -> None:
    if not key:
        raise KvRefused("An operation has an empty key.")


_Ranges = list[tuple[bytes, bytes | None]]


def _check_intervals(ops: Sequence[Op]) -> tuple[dict[bytes, None], _Ranges]:
    # No key may be put twice, or put and deleted. etcd looks at both branches of every nested transaction, whichever will be
    # taken, and lets the two branches of one transaction put the same key. It does not see a put in a nested transaction that a
    # later sibling deletes; neither do we.
    deleted: _Ranges = [(op.key, op.range_end) for op in ops if isinstance(op, Delete)]
    puts: dict[bytes, None] = {}

    def add(key: bytes, allowed: dict[bytes, None]) -> None:
        if (key in puts and key not in allowed) or any(_in_range(key, *each) for each in deleted):
            raise KvRefused(f"The transaction writes the key {key!r} twice.")
        puts[key] = None

    for op in ops:
        if isinstance(op, Txn):
            puts_then, deleted_then = _check_intervals(op.then)
            puts_otherwise, deleted_otherwise = _check_intervals(op.otherwise)
            for key in puts_then:
                add(key, {})
            for key in puts_otherwise:
                add(key, puts_then)
            deleted += deleted_then + deleted_otherwise
    for op in ops:
        if isinstance(op, Put):
            add(op.key, {})
    return puts, deleted


def _size(txn: Txn) -> int:
    size = _BYTES_PER_OP
    for compare in txn.compares:
        size += _BYTES_PER_OP + len(compare.key) + (len(compare.operand) if isinstance(compare.operand, bytes) else 0)
    for op in (*txn.then, *txn.otherwise):
        match op:
            case Put():
                size += _BYTES_PER_OP + len(op.key) + len(op.value)
            case Get() | Delete():
                size += _BYTES_PER_OP + len(op.key) + len(op.range_end or b"")
            case Txn():
                size += _size(op)
            case _:
                assert_never(op)
    return size


Fault = Literal["lose the answer", "drop"]


class _Subscription:
    """A watch of a `MemoryKv`: what survives when it is cut off from the store and comes back."""

    def __init__(
        self,
        etcd: MemoryEtcd,
        watcher: _Watcher,
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
        watcher = _Watcher(key, range_end, previous, lambda batch: None)
        return _Subscription(self.etcd, watcher, start, self._began, self._ended).queue

    async def lease_grant(self, ttl_s: int, *, timeout_s: float | None = None) -> LeaseId:
        return await self._call(f"grant a lease of {ttl_s} s", lambda: self.etcd.lease_grant(ttl_s), timeout_s, write=True)

    async def lease_keepalive(self, lease: LeaseId, *, timeout_s: float | None = None) -> float:
        return await self._call(f"renew the lease {lease:x}", lambda: self.etcd.lease_keepalive(lease), timeout_s, write=False)

    async def lease_revoke(self, lease: LeaseId, *, timeout_s: float | None = None) -> None:
        await self._call(f"revoke the lease {lease:x}", lambda: self.etcd.lease_revoke(lease), timeout_s, write=True)

    async def server_version(self) -> str:
        return await self._call("ask for the version", lambda: self.etcd.version, None, write=False)

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
