"""Election of one leader among candidates, in the store.

Each candidate has a key under the election's prefix, attached to its session's lease. The one whose key was created first leads;
every other one watches only the candidate just before it, so that a change of leader wakes one and not all.

The recipe is that of etcd's client/v3/concurrency: (key, create revision) is the fencing token.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from sec.store.kv import (
    Compacted,
    Compare,
    Delete,
    EventKind,
    Get,
    GetResult,
    Indeterminate,
    KeyValue,
    Kv,
    KvError,
    KvUnavailable,
    LeaseNotFound,
    Put,
    Revision,
    Txn,
    absent,
    created_at,
    prefix_end,
)
from sec.store.session import Session, cancelled_by

T = TypeVar("T")

RETRY_PAUSE_S = 0.2
"""After a try that the store did not carry out, or whose answer was lost."""
RESIGN_TIMEOUT_S = 2.0


class LeadershipLost(KvError):
    """Our key in the election is gone although our session is not: somebody deleted it. Another one leads, or will."""


@dataclass(frozen=True, slots=True)
class Leadership:
    """The proof of leading: as long as `key` exists with this create revision, nobody else leads."""

    key: bytes
    revision: Revision

    @property
    def fence(self) -> Compare:
        """The compare that makes a transaction fail once we do not lead."""
        return created_at(self.key, self.revision)


class Election:
    """One candidate. `prefix` ends with a separator; no other election's prefix may begin with it."""

    def __init__(self, kv: Kv, prefix: bytes, session: Session, value: bytes) -> None:
        self._kv = kv
        self._prefix = prefix
        self._session = session
        self._value = value
        self._key = prefix + b"%016x" % session.lease

    @asynccontextmanager
    async def lead(self) -> AsyncIterator[Leadership]:
        """Waits to be the leader and is it for the block, which is cancelled where it waits when leading ends.

        Raises `SessionLost` when the session is lost, while waiting or leading, and `LeadershipLost` when our key was deleted. At
        the end of the block, or when the wait is cancelled, the candidacy is withdrawn, as well as that can be done within
        `RESIGN_TIMEOUT_S`. While the store cannot be reached it waits on, for as long as the session lasts. May be used again.
        """
        try:
            async with self._session.scope():
                leadership, seen = await self._campaign()
                ending = _Ending()
                async with cancelled_by(ending.subscribe, ending.explain):
                    watching = asyncio.create_task(self._watch_own_key(leadership, seen, ending), name="election")
                    try:
                        yield leadership
                    finally:
                        watching.cancel()
                        await asyncio.wait((watching,))
        finally:
            await self._withdraw()

    async def _campaign(self) -> tuple[Leadership, Revision]:
        # Returns with the leadership the revision at which it was seen to be ours.
        mine = await self._stand()
        while True:
            candidates = await self._persist(self._candidates)
            own = next((each for each in candidates.items if each.key == self._key), None)
            if own is None or own.create_revision != mine:
                mine = await self._stand()
                continue
            before = [each for each in candidates.items if each.create_revision < mine]
            if not before:
                return Leadership(self._key, mine), candidates.revision
            await self._until_gone(max(before, key=_seniority).key, candidates.revision)

    async def _stand(self) -> Revision:
        # Also right when an earlier try had its effect and its answer was lost: the key is then found, with its revision.
        put = Put(self._key, self._value, self._session.lease)
        txn = Txn((absent(self._key),), (put,), (Get(self._key),))
        while True:
            result = await self._persist(lambda timeout_s: self._kv.txn(txn, timeout_s=timeout_s))
            if result.succeeded:
                return result.revision
            match result.results:
                case (GetResult(items=(KeyValue() as found,)),) if found.value == self._value:
                    return found.create_revision
            await self._withdraw()  # an earlier candidacy with another value, whose withdrawal failed

    async def _candidates(self, timeout_s: float) -> GetResult:
        return await self._kv.get(Get(self._prefix, prefix_end(self._prefix), keys_only=True), timeout_s=timeout_s)

    async def _persist(self, call: Callable[[float], Awaitable[T]]) -> T:
        while True:
            self._session.require()
            try:
                return await call(self._session.remaining_s())
            except LeaseNotFound as error:
                self._session.lose(str(error))
                self._session.require()
            except (Indeterminate, KvUnavailable):
                await asyncio.sleep(RETRY_PAUSE_S)

    async def _until_gone(self, key: bytes, seen: Revision) -> None:
        # Returns when the key is gone, or may be: the caller looks again.
        async with aclosing(self._kv.watch(key, start=Revision(seen + 1))) as batches:
            try:
                async for batch in batches:
                    if any(event.kind is EventKind.DELETE for event in batch.events):
                        return
            except Compacted:
                return

    async def _watch_own_key(self, leadership: Leadership, seen: Revision, ending: "_Ending") -> None:
        try:
            while True:
                await self._until_gone(leadership.key, seen)
                found = await self._persist(lambda timeout_s: self._kv.get(Get(leadership.key), timeout_s=timeout_s))
                if not found.items or found.items[0].create_revision != leadership.revision:
                    ending.end(f"The election key {leadership.key!r} was deleted.")
                    return
                seen = found.revision
        except KvError as error:
            ending.end(f"The election key {leadership.key!r} cannot be watched any more: {error}")

    async def _withdraw(self) -> None:
        if not self._session.alive():
            return  # the key goes with the lease
        try:
            async with asyncio.timeout(RESIGN_TIMEOUT_S):
                await self._kv.txn(Txn((), (Delete(self._key),)), timeout_s=RESIGN_TIMEOUT_S)
        except (KvError, TimeoutError):
            pass


class _Ending:
    """Tells the block that leads that it is over."""

    def __init__(self) -> None:
        self._callback: Callable[[], None] | None = None
        self._reason = ""

    def subscribe(self, callback: Callable[[], None]) -> Callable[[], None]:
        self._callback = callback
        return self._unsubscribe

    def _unsubscribe(self) -> None:
        self._callback = None

    def end(self, reason: str) -> None:
        self._reason = reason
        if self._callback is not None:
            self._callback()

    def explain(self) -> None:
        raise LeadershipLost(self._reason)


async def current_leader(kv: Kv, prefix: bytes) -> bytes | None:
    """The value of the candidate that leads, or None. It may have changed when the answer arrives."""
    candidates = await kv.get(Get(prefix, prefix_end(prefix)))
    return min(candidates.items, key=_seniority).value if candidates.items else None


def _seniority(candidate: KeyValue) -> int:
    return candidate.create_revision
