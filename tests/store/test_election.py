"""One leader at a time, and the next one when it goes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest
from store_support import DEADLINE_S, Store, keys, put
from waiting_support import until

from sec.store.election import Election, Leadership, LeadershipLost, current_leader
from sec.store.kv import Delete, Kv, Put, Txn, prefix_end
from sec.store.memory import MemoryEtcd, MemoryKv
from sec.store.session import Session, SessionLost


class Candidate:
    """Campaigns in a task of its own, and leads until told to stop."""

    def __init__(self, kv: Kv, prefix: bytes, session: Session, name: str) -> None:
        self.name = name
        self.session = session
        self.leadership: Leadership | None = None
        self.leads = asyncio.Event()
        self.stop = asyncio.Event()
        self._election = Election(kv, prefix, session, name.encode())
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self._election.lead() as leadership:
            self.leadership = leadership
            self.leads.set()
            try:
                await self.stop.wait()
            finally:
                self.leads.clear()

    async def until_leads(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await self.leads.wait()


@asynccontextmanager
async def candidates(kv: Kv, prefix: bytes, *names: str) -> AsyncIterator[list[Candidate]]:
    """Candidates in the order in which they stood."""
    found: list[Candidate] = []
    try:
        for name in names:
            session = await Session.start(kv, ttl_s=5)
            found.append(Candidate(kv, prefix, session, name))
            async with asyncio.timeout(DEADLINE_S):
                while len(await keys(kv, prefix)) < len(found):
                    pass
        yield found
    finally:
        for candidate in found:
            candidate.task.cancel()
        await asyncio.wait([candidate.task for candidate in found])
        for candidate in found:
            await candidate.session.close()


async def test_one_leads_and_its_successors_follow_in_order(kv: Kv, prefix: bytes) -> None:
    assert await current_leader(kv, prefix) is None
    async with candidates(kv, prefix, "a", "b", "c") as (a, b, c):
        await a.until_leads()
        assert await current_leader(kv, prefix) == b"a"
        assert not b.leads.is_set()
        assert not c.leads.is_set()
        a.stop.set()
        await a.task
        await b.until_leads()
        assert await current_leader(kv, prefix) == b"b"
        assert not c.leads.is_set()
        b.stop.set()
        await c.until_leads()
        assert await current_leader(kv, prefix) == b"c"


async def test_a_candidate_that_leaves_from_the_middle_lets_nobody_up(kv: Kv, prefix: bytes) -> None:
    async with candidates(kv, prefix, "a", "b", "c") as (a, b, c):
        await a.until_leads()
        b.task.cancel()
        await asyncio.wait((b.task,))
        assert len(await keys(kv, prefix)) == 2
        a.stop.set()
        await c.until_leads()


async def test_only_the_predecessor_is_watched(prefix: bytes) -> None:
    watched: list[bytes] = []

    class Watching(MemoryKv):
        def watch(self, key: bytes, *args: object, **options: object) -> object:  # type: ignore[override]
            watched.append(key)
            return super().watch(key, *args, **options)  # type: ignore[arg-type]

    kv = Watching(MemoryEtcd())
    async with candidates(kv, prefix, "a", "b", "c") as (a, b, c):
        await until(lambda: len(watched) == 3)
        leads = [prefix + b"%016x" % candidate.session.lease for candidate in (a, b, c)]
        assert watched == [leads[0], leads[0], leads[1]]  # the leader watches its own


async def test_leadership_goes_with_the_lease(kv: Kv, prefix: bytes) -> None:
    async with candidates(kv, prefix, "a", "b") as (a, b):
        await a.until_leads()
        await kv.lease_revoke(a.session.lease)
        await b.until_leads()
        with pytest.raises((SessionLost, LeadershipLost)):
            await a.task


async def test_the_fence_fails_once_another_leads(kv: Kv, prefix: bytes) -> None:
    async with candidates(kv, prefix, "a", "b") as (a, b):
        await a.until_leads()
        assert a.leadership is not None
        guarded = Txn((a.leadership.fence,), (Put(prefix[:-1] + b".guarded", b""),))
        assert (await kv.txn(guarded)).succeeded
        await kv.lease_revoke(a.session.lease)
        await b.until_leads()
        assert not (await kv.txn(guarded)).succeeded
        assert b.leadership is not None
        assert (await kv.txn(Txn((b.leadership.fence,)))).succeeded


async def test_loss_of_the_session_ends_the_block(memory_kv: MemoryKv, prefix: bytes) -> None:
    async def lead(session: Session) -> None:
        async with asyncio.timeout(DEADLINE_S), Election(memory_kv, prefix, session, b"a").lead():
            session.lose("Lost for a test.")
            await asyncio.Event().wait()

    async with Session.open(memory_kv) as session:
        with pytest.raises(SessionLost, match="for a test"):
            await lead(session)


async def test_loss_of_the_session_ends_the_wait(memory_kv: MemoryKv, prefix: bytes) -> None:
    async with candidates(memory_kv, prefix, "a", "b") as (a, b):
        await a.until_leads()
        b.session.lose("Lost for a test.")
        with pytest.raises(SessionLost, match="for a test"):
            await b.task


async def test_deleting_the_key_ends_leading(kv: Kv, prefix: bytes) -> None:
    async def lead(session: Session) -> None:
        async with asyncio.timeout(DEADLINE_S), Election(kv, prefix, session, b"a").lead() as leadership:
            await kv.txn(Txn(then=[Delete(leadership.key)]))
            await asyncio.Event().wait()

    async with Session.open(kv, ttl_s=60) as session:
        with pytest.raises(LeadershipLost):
            await lead(session)
        assert session.alive()
        async with Election(kv, prefix, session, b"again").lead():
            assert await current_leader(kv, prefix) == b"again"
        assert await current_leader(kv, prefix) is None


async def test_a_waiting_candidate_whose_key_is_deleted_stands_again(kv: Kv, prefix: bytes) -> None:
    async with candidates(kv, prefix, "a", "b") as (a, b):
        await a.until_leads()
        await kv.txn(Txn(then=[Delete(prefix + b"%016x" % b.session.lease)]))
        a.stop.set()
        await b.until_leads()
        assert await current_leader(kv, prefix) == b"b"


async def test_a_lost_answer_when_standing_is_found_out(memory_kv: MemoryKv, prefix: bytes) -> None:
    async with Session.open(memory_kv) as session:
        memory_kv.lose_next_answer()
        memory_kv.drop_next_write()
        async with asyncio.timeout(DEADLINE_S), Election(memory_kv, prefix, session, b"a").lead() as leadership:
            (item,) = (await keys(memory_kv, prefix)).items()
            assert item == (b"%016x" % session.lease, b"a")
            assert (await memory_kv.txn(Txn((leadership.fence,)))).succeeded


async def test_a_partition_while_waiting_is_waited_out(memory_etcd: MemoryEtcd, prefix: bytes) -> None:
    kv = MemoryKv(memory_etcd)
    async with Session.open(kv, ttl_s=60) as session:
        kv.partition()
        candidate = Candidate(kv, prefix, session, "a")
        await asyncio.wait((candidate.task,), timeout=0.01)
        assert not candidate.task.done()
        kv.partition(False)
        await candidate.until_leads()
        candidate.stop.set()
        await candidate.task


async def test_a_compaction_does_not_end_leading(store: Store, prefix: bytes) -> None:
    kv = store.kv()
    async with Session.open(kv, ttl_s=60) as session, Election(kv, prefix, session, b"a").lead() as leadership:
        for _ in range(3):
            revision = await put(kv, b"/elsewhere" + prefix)
        await store.compact(revision)
        async with aclosing(kv.watch(prefix, prefix_end(prefix))) as watch:
            await anext(watch)
        assert (await kv.txn(Txn((leadership.fence,)))).succeeded
