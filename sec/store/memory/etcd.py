"""The store: keys with their history, transactions, leases and watches. Synchronous; who calls it, and what goes wrong on the way, is not here.

Source of the semantics: etcd's server/etcdserver/apply.go (compares of all levels first, then checks, then writes) and storage/mvcc
(revisions, compaction), of 3.5.
"""

import asyncio
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import assert_never

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
    KeyValue,
    KvRefused,
    LeaseId,
    LeaseNotFound,
    OpResult,
    Put,
    PutResult,
    Revision,
    Status,
    StoreFull,
    Target,
    Txn,
    TxnResult,
    WatchBatch,
)
from sec.store.memory.rules import TO_THE_END, check_intervals, check_op, check_txn, in_range, related, txn_bytes

MIN_LEASE_TTL_S = 2
"""What etcd grants at the least with its default election timeout."""

MAX_LEASE_TTL_S = 9_000_000_000

_NOTHING = KeyValue(b"", b"", Revision(0), Revision(0), 0, NO_LEASE)


@dataclass(slots=True)
class _Lease:
    ttl_s: int
    expiry: asyncio.TimerHandle
    keys: set[bytes] = field(default_factory=set)


class Watcher:
    """A watch as the store has it: it gets every batch that concerns it, in order."""

    def __init__(self, key: bytes, range_end: bytes | None, previous: bool, push: Callable[[WatchBatch], None]) -> None:
        self.key = key
        self.range_end = range_end
        self.previous = previous
        self.push = push

    def select(self, events: Sequence[Event]) -> tuple[Event, ...]:
        chosen = (event for event in events if in_range(event.item.key, self.key, self.range_end))
        return tuple(event if self.previous else Event(event.kind, event.item) for event in chosen)


class MemoryEtcd:
    """The store. Its methods are synchronous and atomic; `MemoryKv` is how code under test gets at it.

    They raise what an etcd that can be reached answers: `KvRefused`, `LeaseNotFound`, `Compacted`.
    """

    def __init__(self, *, max_txn_ops: int = MAX_TXN_OPS, max_txn_bytes: int = MAX_TXN_BYTES, version: str = "3.6.0") -> None:
        self.version = version
        self.full = False
        """Out of space: transactions are refused, those too that only read or delete, as etcd does when it is larger than its quota."""
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
        self._watchers: dict[Watcher, None] = {}  # a set with an order

    # Reads

    def status(self) -> Status:
        return Status(self.version, self.full)

    def get(self, get: Get, revision: Revision | None = None) -> GetResult:
        """Reads now or at a revision."""
        check_op(get, self._max_txn_ops)
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
        last = len(self._keys) if end == TO_THE_END else bisect_left(self._keys, end)
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
        check_txn(txn, self._max_txn_ops)
        check_intervals(txn.then)
        check_intervals(txn.otherwise)
        if (size := txn_bytes(txn)) > self._max_txn_bytes:
            raise KvRefused(f"The transaction is too large: {size} bytes, of at most {self._max_txn_bytes}.")
        if self.full:
            raise StoreFull("The transaction is refused: the store is out of space.")
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
            return related(item.value, compare.relation, compare.operand)
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
        return related(found, compare.relation, compare.operand)

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

    def attach(self, watcher: Watcher, start: Revision | None) -> Revision:
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

    def detach(self, watcher: Watcher) -> None:
        self._watchers.pop(watcher, None)

    # Leases

    def lease_grant(self, ttl_s: int) -> LeaseId:
        if not 0 < ttl_s <= MAX_LEASE_TTL_S:
            raise KvRefused(f"A lease of {ttl_s} s cannot be granted.")
        if self.full:
            raise StoreFull(f"A lease of {ttl_s} s is refused: the store is out of space.")
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


def _at_revision(result: TxnResult, revision: Revision) -> TxnResult:
    results = tuple(_at_revision(each, revision) if isinstance(each, TxnResult) else each for each in result.results)
    return TxnResult(result.succeeded, revision, results)
