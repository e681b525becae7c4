"""The port to the key-value store: what the SEC cluster needs of etcd, and nothing more.

Two adapters keep this contract: `sec.store.etcd` (a real etcd) and `sec.store.memory` (a faithful one in memory, for tests and the
simulator). One contract suite, tests/store/test_kv_contract.py, runs over both. The layout of keys and what a saga log is stand
in other modules; here keys and values are bytes.

Source of the semantics: the etcd v3 API guarantees. A transaction compares, then runs one of its two branches, atomically, at one
revision. Transactions nest: the compares of all levels are evaluated before anything is written, and each nested transaction picks
its branch by its own compares. No key may be written twice in one transaction.
"""

from collections.abc import Sequence
from enum import Enum
from typing import NewType, Protocol, Self

from msgspec import Struct

LeaseId = NewType("LeaseId", int)
Revision = NewType("Revision", int)

NO_LEASE = LeaseId(0)

MAX_TXN_OPS = 128
"""etcd's default --max-txn-ops, for each level of nesting: the operations of a nested transaction and of those around it are added."""

MAX_TXN_BYTES = 1_572_864
"""etcd's default --max-request-bytes."""


class KvError(Exception):
    """Something went wrong between us and the store. Every message says what was being done."""


class KvUnavailable(KvError):
    """The request was not carried out, for certain: no endpoint could be reached, or the store refused it. Trying later can help."""


class NoQuorum(KvUnavailable):
    """The same, and the reason is known: the store's members that answer have lost their majority."""


class Indeterminate(KvError):
    """The request may have been carried out, or may still be: the answer was lost. Read back before going on."""


class KvRefused(KvError):
    """The store answered that the request is not valid (too large, no permission, no space). Sending it again does not help."""


class StoreFull(KvRefused):
    """The store is out of space and refuses to write. An operator has to make some; reads, and leases that there are, go on."""


class LeaseNotFound(KvError):
    """The lease has expired or was revoked, and all keys under it are gone."""


class Compacted(KvError):
    """The revision asked for is older than what the store keeps. Read the present state, and go on from its revision."""


class KeyValue(Struct, frozen=True, gc=False):
    """A key as it stood at the revision of the answer. `version` counts the puts since it was created: 1 for the first."""

    key: bytes
    value: bytes
    create_revision: Revision
    mod_revision: Revision
    version: int
    lease: LeaseId


class Target(Enum):
    """What a `Compare` looks at. A key that does not exist has VERSION, CREATE and MOD 0."""

    __hash__ = object.__hash__  # that of Enum is slow, and these are looked up for every write

    VERSION = "version"
    CREATE = "create"
    MOD = "mod"
    VALUE = "value"


class Relation(Enum):
    """How a `Compare` relates the key's target to its operand."""

    __hash__ = object.__hash__  # that of Enum is slow, and these are looked up for every write

    EQUAL = "="
    NOT_EQUAL = "!="
    GREATER = ">"
    LESS = "<"


_VERSION, _CREATE, _EQUAL = Target.VERSION, Target.CREATE, Relation.EQUAL
"""To look one up in its `Enum` takes as long as to make a comparison."""


class Compare(Struct, frozen=True, gc=False):
    """True when `target` of `key` stands in `relation` to `operand` (bytes for VALUE, an int otherwise)."""

    key: bytes
    target: Target
    relation: Relation
    operand: int | bytes


def exists(key: bytes) -> Compare:
    """True when the key exists."""
    return Compare(key, _VERSION, Relation.GREATER, 0)


def absent(key: bytes) -> Compare:
    """True when the key does not exist."""
    return Compare(key, _VERSION, _EQUAL, 0)


def created_at(key: bytes, revision: int) -> Compare:
    """True when the key exists and was created by the transaction with this revision: the fencing compare."""
    return Compare(key, _CREATE, _EQUAL, revision)


class Get(Struct, frozen=True, gc=False):
    """Reads one key, or with `range_end` all keys in [key, range_end), in key order."""

    key: bytes
    range_end: bytes | None = None
    limit: int = 0
    """At most so many keys; 0 for all."""
    keys_only: bool = False


class Put(Struct, frozen=True, gc=False):
    """Writes a key; with a lease it goes when the lease goes. A put with another lease moves the key to that one."""

    key: bytes
    value: bytes
    lease: LeaseId = NO_LEASE


class Delete(Struct, frozen=True, gc=False):
    """Deletes one key, or with `range_end` all keys in [key, range_end)."""

    key: bytes
    range_end: bytes | None = None


class Txn(Struct, frozen=True, gc=False):
    """If every compare holds, `then` is carried out, else `otherwise`."""

    compares: Sequence[Compare] = ()
    then: Sequence["Op"] = ()
    otherwise: Sequence["Op"] = ()


Op = Get | Put | Delete | Txn


class GetResult(Struct, frozen=True, gc=False):
    """`more` is true when the limit cut the answer short; `count` is how many keys there are in the range."""

    items: tuple[KeyValue, ...]
    more: bool
    count: int
    revision: Revision


class Status(Struct, frozen=True, gc=False):
    """How the server is that answers. `version` is such as "3.5.1"; `full`: the store has raised the alarm that it is out of space."""

    version: str
    full: bool


class PutResult(Struct, frozen=True, gc=False):
    revision: Revision


class DeleteResult(Struct, frozen=True, gc=False):
    revision: Revision
    deleted: int


class TxnResult(Struct, frozen=True, gc=False):
    """`results` answers the operations of the branch that was taken, in order. `revision` is the store's after the transaction."""

    succeeded: bool
    revision: Revision
    results: tuple["OpResult", ...]


OpResult = GetResult | PutResult | DeleteResult | TxnResult


class EventKind(Enum):
    PUT = "put"
    DELETE = "delete"


class Event(Struct, frozen=True, gc=False):
    """One change of one key. For DELETE, `item` has the key and the revision of the deletion as its `mod_revision`; its value is empty."""

    kind: EventKind
    item: KeyValue
    previous: KeyValue | None = None
    """The key before the change, when the watch asked for it."""


class WatchBatch(Struct, frozen=True, gc=False):
    """All changes of one or more whole revisions, in order: a transaction is never split over two batches.

    An empty batch says only that everything up to `revision` has been delivered. The first batch of a watch is
    empty: from then on nothing after its start revision is missed.
    """

    revision: Revision
    events: tuple[Event, ...] = ()


class Watch(Protocol):
    """An async iterator of batches that does not end by itself. Use it under `contextlib.aclosing`.

    One consumer at a time. The watch begins with the first `__anext__`. A cancelled `__anext__` (a timeout, say) loses nothing:
    the next one goes on where it stood. After an error it raises that error again.
    """

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> WatchBatch: ...

    async def aclose(self) -> None:
        """Ends the watch; an `__anext__` that waits, and each later one, raises `StopAsyncIteration`."""
        ...


class Kv(Protocol):
    """The store. Every method may raise `KvError`; which of its kinds tells whether the effect is known."""

    async def txn(self, txn: Txn, *, timeout_s: float | None = None) -> TxnResult:
        """Carries out a transaction.

        Raises `Indeterminate` when the answer was lost. Also when the caller cancels it the effect is unknown.
        """
        ...

    async def get(
        self, get: Get, *, revision: Revision | None = None, serializable: bool = False, timeout_s: float | None = None
    ) -> GetResult:
        """Reads, linearizably unless `serializable`, now or as it was at `revision` (`Compacted` when that is too long ago).

        Reads are repeated within the timeout on other endpoints; they never raise `Indeterminate` but `KvUnavailable`.
        """
        ...

    def watch(self, key: bytes, range_end: bytes | None = None, *, start: Revision | None = None, previous: bool = False) -> Watch:
        """All changes of a key or a range from revision `start` on (default: from now).

        It survives the loss of an endpoint by resuming on another one after the last revision delivered: nothing is missed
        and nothing comes twice. Raises `Compacted` when the store no longer has what comes next. Closing the iterator (`aclose`) ends the watch.
        """
        ...

    async def lease_grant(self, ttl_s: int, *, timeout_s: float | None = None) -> LeaseId:
        """A new lease. `ttl_s` may be raised to the store's minimum."""
        ...

    async def lease_keepalive(self, lease: LeaseId, *, timeout_s: float | None = None) -> float:
        """Renews a lease once. Returns its TTL in seconds, counted from when the store handled it. Raises `LeaseNotFound`."""
        ...

    async def lease_revoke(self, lease: LeaseId, *, timeout_s: float | None = None) -> None:
        """Ends a lease and deletes its keys at one revision. Raises `LeaseNotFound`."""
        ...

    async def status(self, *, timeout_s: float | None = None) -> Status:
        """How the server of the store is that answers."""
        ...

    async def aclose(self) -> None:
        """Ends all watches and connections."""
        ...


def prefix_end(prefix: bytes) -> bytes:
    """The `range_end` of all keys that start with `prefix`: the smallest key above them all."""
    for i in range(len(prefix) - 1, -1, -1):
        if prefix[i] < 0xFF:
            return prefix[:i] + bytes([prefix[i] + 1])
    return b"\0"
