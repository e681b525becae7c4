"""An SEC node's session: a lease that is kept alive, and the node's own certainty of how long it still holds.

The store gives a session's keys away some time after it last heard of it. We must have stopped before: so our deadline counts from
the moment *before* a renewal was sent, which is before the store handled it, and a margin is taken off for clocks that run at
slightly different rates. `alive` compares with the clock whenever it is asked. It needs no timer to have fired, and is right in a
process that was stopped and wakes up past its deadline.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from sec.store.kv import Kv, KvError, LeaseId, LeaseNotFound

DEFAULT_TTL_S = 5
RENEWALS_PER_TTL = 3
RETRIES_PER_TTL = 10
"""A renewal that failed is tried again after this part of the TTL."""
MARGIN_PART = 0.1
"""The safety margin, as a part of the TTL, when none is given."""
REVOKE_TIMEOUT_S = 2.0


class SessionLost(KvError):
    """The session is over: its lease may be gone, and what it held may belong to others already."""


class Session:
    """A lease under renewal. Made by `open` or `start`; once lost it stays lost, also if the store would still renew it."""

    def __init__(self, kv: Kv, lease: LeaseId, *, ttl_s: int, margin_s: float, granted_since: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._kv = kv
        self._ttl_s = ttl_s
        self._margin_s = margin_s
        self._deadline = granted_since + ttl_s - margin_s
        self._callbacks: dict[Callable[[], None], None] = {}  # a set, in order
        self._closed = False
        self._gone = False
        self.lease = lease
        self.lost = asyncio.Event()
        """Set when the session is lost or closed."""
        self.lost_reason: str | None = None
        """A sentence, when it is lost."""
        self._alarm = self._loop.call_at(self._deadline, self._ring)
        self._renewing = self._loop.create_task(self._renew_until_lost(granted_since), name=f"session-{lease:x}")

    @classmethod
    @asynccontextmanager
    async def open(cls, kv: Kv, *, ttl_s: int = DEFAULT_TTL_S, margin_s: float | None = None) -> AsyncIterator["Session"]:
        """A session for a block, revoked at its end. See `start`."""
        session = await cls.start(kv, ttl_s=ttl_s, margin_s=margin_s)
        try:
            yield session
        finally:
            await session.close()

    @classmethod
    async def start(cls, kv: Kv, *, ttl_s: int = DEFAULT_TTL_S, margin_s: float | None = None) -> "Session":
        """Grants a lease and keeps it alive until `close`. Raises `KvError` when the lease cannot be had.

        The deadline is `margin_s` (a tenth of the TTL by default) before the TTL ends. Raises `ValueError` when that leaves less
        than two renewals' time.
        """
        margin_s = ttl_s * MARGIN_PART if margin_s is None else margin_s
        if not 0 <= margin_s < ttl_s / RENEWALS_PER_TTL:
            raise ValueError(
                f"The margin of a session of {ttl_s} s is from 0 to below {ttl_s / RENEWALS_PER_TTL:g} s, not {margin_s:g} s."
            )
        since = asyncio.get_running_loop().time()
        lease = await kv.lease_grant(ttl_s, timeout_s=ttl_s - margin_s)
        return cls(kv, lease, ttl_s=ttl_s, margin_s=margin_s, granted_since=since)

    def alive(self) -> bool:
        """Whether what the session holds is certainly still its own. Asks the clock at each call."""
        if self.lost.is_set():
            return False
        if self._loop.time() >= self._deadline:
            self.lose(f"The lease {self.lease:x} was not renewed within {self._ttl_s - self._margin_s:g} s.")
            return False
        return True

    def over(self) -> bool:
        """The opposite: it is no use to try any longer to write for this session."""
        return not self.alive()

    def remaining_s(self) -> float:
        """How long the session is certain to hold without another renewal; 0 when it is lost."""
        return max(0.0, self._deadline - self._loop.time()) if self.alive() else 0.0

    def on_lost(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Has `callback` called once when the session is lost or closed. Returns what takes it back.

        It is called from the event loop, never from within `alive`. On a session that is over, it is called soon.
        """
        self._callbacks[callback] = None
        if self.lost.is_set():
            self._loop.call_soon(self._tell)
        return lambda: self._callbacks.pop(callback, None)

    def require(self) -> None:
        """Raises `SessionLost` unless the session is alive."""
        if not self.alive():
            raise SessionLost(self.lost_reason or f"The session of lease {self.lease:x} is closed.")

    def lose(self, reason: str) -> None:
        """Ends the session at once: for who learns in another way that the lease is gone, such as by `LeaseNotFound` at a put."""
        if not self.lost.is_set():
            self.lost_reason = reason
            self._end()

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[None]:
        """A block that does not outlive the session: at its loss, the block is cancelled where it waits, and `SessionLost` raised.

        Raises `SessionLost` at once when the session is not alive.
        """
        self.require()
        async with cancelled_by(self.on_lost, self.require):
            yield

    async def close(self, *, revoke: bool = True) -> None:
        """Ends the session; with `revoke` its keys go at once, as well as that can be done within `REVOKE_TIMEOUT_S`.

        Does not raise when the revocation fails: the lease then expires. A second call does nothing.
        """
        if self._closed:
            return
        self._closed = True
        self._renewing.cancel()
        await asyncio.wait((self._renewing,))
        self._end()
        if revoke and not self._gone:
            try:
                async with asyncio.timeout(REVOKE_TIMEOUT_S):
                    await self._kv.lease_revoke(self.lease, timeout_s=REVOKE_TIMEOUT_S)
            except (KvError, TimeoutError):
                pass

    def _set_alarm(self) -> None:
        self._alarm.cancel()
        self._alarm = self._loop.call_at(self._deadline, self._ring)

    def _ring(self) -> None:
        # A loop may call a little early, by its clock's resolution.
        if self.alive():
            self._set_alarm()

    async def _renew_until_lost(self, granted_since: float) -> None:
        renew_at = granted_since + self._ttl_s / RENEWALS_PER_TTL
        while True:
            await asyncio.sleep(max(0.0, renew_at - self._loop.time()))
            if not self.alive():
                return
            sent = self._loop.time()
            timeout_s = min(self._ttl_s / RENEWALS_PER_TTL, self.remaining_s())
            try:
                ttl_s = await self._kv.lease_keepalive(self.lease, timeout_s=timeout_s)
            except LeaseNotFound:
                self._gone = True
                self.lose(f"The lease {self.lease:x} has expired or was revoked.")
                return
            except KvError:
                renew_at = self._loop.time() + self._ttl_s / RETRIES_PER_TTL
                continue
            if not self.alive():
                return  # the answer came after the deadline: nobody knows what was done meanwhile in the belief that it is over
            self._deadline = max(self._deadline, sent + ttl_s - self._margin_s)
            self._set_alarm()
            renew_at = sent + self._ttl_s / RENEWALS_PER_TTL

    def _end(self) -> None:
        if self.lost.is_set():
            return
        self._alarm.cancel()
        self.lost.set()
        self._loop.call_soon(self._tell)

    def _tell(self) -> None:
        while self._callbacks:
            callback = next(iter(self._callbacks))
            del self._callbacks[callback]
            callback()


@asynccontextmanager
async def cancelled_by(
    subscribe: Callable[[Callable[[], None]], Callable[[], None]], explain: Callable[[], None]
) -> AsyncIterator[None]:
    """A block that is cancelled where it waits when a callback comes; then `explain` raises the error to raise in its place.

    `subscribe(callback)` returns what unsubscribes, and must call back from the event loop, never from the block's own task. A
    cancellation from elsewhere goes through as it is, also when both come at once (as with `asyncio.timeout`).
    """
    task = asyncio.current_task()
    assert task is not None, "a scope is for code that runs in a task"
    cancellations = task.cancelling()
    cancelled = False

    def cancel() -> None:
        nonlocal cancelled
        cancelled = True
        task.cancel()

    unsubscribe = subscribe(cancel)
    try:
        yield
    except asyncio.CancelledError:
        if cancelled:
            cancelled = False
            if task.uncancel() <= cancellations:
                explain()
        raise
    finally:
        unsubscribe()
        if cancelled:
            task.uncancel()
