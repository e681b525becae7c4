"""A session is alive for as long as it certainly is, and not a moment longer."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from store_support import DEADLINE_S, Store, keys, put
from waiting_support import until

from sec.store.kv import Kv, LeaseNotFound
from sec.store.memory import MemoryEtcd, MemoryKv
from sec.store.session import Session, SessionLost


class Clock:
    """The loop's clock, which can be put forward: what a process sees that was stopped."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._real = self._loop.time
        self.ahead_s = 0.0
        self._loop.time = self.time  # type: ignore[method-assign]

    def time(self) -> float:
        return self._real() + self.ahead_s

    def restore(self) -> None:
        self._loop.time = self._real  # type: ignore[method-assign]


@pytest.fixture
async def clock() -> AsyncIterator[Clock]:
    made = Clock()
    yield made
    made.restore()


async def lost(session: Session) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await session.lost.wait()


async def test_holds_its_lease_and_revokes_it_at_the_end(kv: Kv, prefix: bytes) -> None:
    async with Session.open(kv, ttl_s=60) as session:
        await put(kv, prefix + b"a", b"", session.lease)
        assert session.alive()
        assert 50 < session.remaining_s() <= 54
        session.require()
    assert await keys(kv, prefix) == {}
    assert not session.alive()
    assert session.remaining_s() == 0
    assert session.lost_reason is None
    with pytest.raises(SessionLost):
        session.require()
    with pytest.raises(LeaseNotFound):
        await kv.lease_keepalive(session.lease)


async def test_can_be_left_to_expire(kv: Kv) -> None:
    session = await Session.start(kv, ttl_s=60)
    await session.close(revoke=False)
    await session.close()
    assert await kv.lease_keepalive(session.lease) == 60
    await kv.lease_revoke(session.lease)


async def test_is_renewed(kv: Kv, prefix: bytes) -> None:
    async with Session.open(kv, ttl_s=2) as session:
        await put(kv, prefix + b"a", b"", session.lease)
        end = asyncio.get_running_loop().time() + 4.5
        await until(lambda: asyncio.get_running_loop().time() > end or not session.alive())
        assert session.alive()
        assert await keys(kv, prefix) == {b"a": b""}


async def test_is_lost_when_its_lease_is_revoked(kv: Kv) -> None:
    called: list[str] = []
    async with Session.open(kv, ttl_s=2) as session:
        session.on_lost(lambda: called.append("kept"))
        session.on_lost(lambda: called.append("taken back"))()
        await kv.lease_revoke(session.lease)
        await lost(session)
        await until(lambda: called == ["kept"])
        assert not session.alive()
        assert session.lost_reason is not None
        assert "expired or was revoked" in session.lost_reason


async def test_a_scope_ends_with_it(kv: Kv) -> None:
    async with Session.open(kv, ttl_s=2) as session:
        await kv.lease_revoke(session.lease)
        with pytest.raises(SessionLost, match="expired or was revoked"):
            async with asyncio.timeout(DEADLINE_S), session.scope():
                await asyncio.Event().wait()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        with pytest.raises(SessionLost):
            async with session.scope():
                pytest.fail("the session is lost already")


async def test_a_scope_that_is_cancelled_from_outside_stays_cancelled(memory_kv: MemoryKv) -> None:
    async def inside(session: Session) -> None:
        async with session.scope():
            await asyncio.Event().wait()

    async with Session.open(memory_kv, ttl_s=5) as session:
        for at_once in (False, True):
            waiting = asyncio.create_task(inside(session))
            await asyncio.wait((waiting,), timeout=0.01)
            if at_once:
                session.lose("a test")
                await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting


async def test_the_block_may_raise_and_return_as_it_likes(memory_kv: MemoryKv) -> None:
    async with Session.open(memory_kv, ttl_s=5) as session:
        with pytest.raises(ZeroDivisionError):
            async with session.scope():
                raise ZeroDivisionError
        async with session.scope():
            pass
        session.lose("a test")
    await asyncio.sleep(0)  # would be cancelled if the scope had left its callback behind


async def test_a_process_that_was_stopped_sees_at_once_that_it_is_late(memory_kv: MemoryKv, clock: Clock) -> None:
    async with Session.open(memory_kv, ttl_s=5, margin_s=0.5) as session:
        clock.ahead_s = 4.4
        assert session.alive()
        assert 0 < session.remaining_s() <= 0.1
        clock.ahead_s = 4.6
        assert not session.alive()  # with no turn of the loop in between
        assert session.remaining_s() == 0
        assert session.lost.is_set()
        clock.ahead_s = 0
        assert not session.alive()


async def test_lost_is_set_at_the_deadline_without_being_asked(memory_kv: MemoryKv, clock: Clock) -> None:
    async with Session.open(memory_kv, ttl_s=5) as session:
        memory_kv.partition()
        clock.ahead_s = 4.4
        await lost(session)
        assert session.lost_reason == f"The lease {session.lease:x} was not renewed within 4.5 s."
        memory_kv.partition(False)


async def test_lives_through_a_short_partition(memory_etcd: MemoryEtcd, memory_kv: MemoryKv, clock: Clock) -> None:
    async with Session.open(memory_kv, ttl_s=5) as session:
        memory_kv.partition()
        clock.ahead_s = 3.0
        await until(lambda: session.remaining_s() < 1.4)
        memory_kv.partition(False)
        await until(lambda: session.remaining_s() > 4)
        assert session.alive()


class SlowKv(MemoryKv):
    """Renewals are handled by the store, and each answer is kept back until `answer` is set."""

    def __init__(self, etcd: MemoryEtcd) -> None:
        super().__init__(etcd)
        self.handled = asyncio.Event()
        self.answer = asyncio.Event()

    async def lease_keepalive(self, lease: int, *, timeout_s: float | None = None) -> float:  # type: ignore[override]
        ttl_s = self.etcd.lease_keepalive(lease)  # type: ignore[arg-type]
        self.handled.set()
        await self.answer.wait()
        self.answer.clear()
        return ttl_s


async def test_the_deadline_counts_from_before_the_renewal_was_sent(memory_etcd: MemoryEtcd, clock: Clock) -> None:
    kv = SlowKv(memory_etcd)
    async with Session.open(kv, ttl_s=6, margin_s=0) as session:
        clock.ahead_s = 2.5
        await kv.handled.wait()
        clock.ahead_s = 4.5  # the answer takes 2 s
        kv.answer.set()
        await until(lambda: session.remaining_s() > 2)
        assert 3 < session.remaining_s() <= 4


async def test_an_answer_after_the_deadline_does_not_bring_it_back(memory_etcd: MemoryEtcd, clock: Clock) -> None:
    kv = SlowKv(memory_etcd)
    async with Session.open(kv, ttl_s=6) as session:
        clock.ahead_s = 2.5
        await kv.handled.wait()
        clock.ahead_s = 7
        kv.answer.set()
        await lost(session)
        assert not session.alive()


async def test_a_failed_revocation_does_not_raise(memory_kv: MemoryKv) -> None:
    async with Session.open(memory_kv):
        memory_kv.partition()


@pytest.mark.parametrize("margin_s", [-0.1, 2.0])
async def test_a_margin_that_leaves_no_time_is_refused(memory_kv: MemoryKv, margin_s: float) -> None:
    with pytest.raises(ValueError, match="margin of a session"):
        await Session.start(memory_kv, ttl_s=5, margin_s=margin_s)


async def test_the_lease_may_be_longer_than_asked_for(store: Store) -> None:
    async with Session.open(store.kv(), ttl_s=1, margin_s=0.1) as session:
        assert session.remaining_s() <= 0.9
        await until(lambda: session.remaining_s() > 0.95)  # renewed: the store says that it granted 2 s
