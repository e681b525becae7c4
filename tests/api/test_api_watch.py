"""Many who watch sagas at one SEC node: what they see is complete, and costs the store one watch."""

import asyncio

import pytest
from inprocess_support import World, chain, cluster
from sec_client import ClusterUnavailable, SagaState
from sec_client.aio import Client
from waiting_support import until

from sec.api import coordinator, log_watch
from sec.api.log_watch import LogWatch
from sec.api.waiting import SettledWatch
from sec.core.records import SagaId
from sec.node.door import Bound
from sec.store.keys import Keys
from sec.store.kv import Compacted, KvUnavailable, Put, Revision, Txn, Watch
from sec.store.memory import MemoryEtcd, MemoryKv
from sec.store.sagas import StoredSaga

KEYS = Keys()


@pytest.fixture
def watches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One for each watch of the logs that is open, by a number of its own."""
    open_now: list[int] = []
    opened = 0
    watch = MemoryKv.watch

    def counted(
        kv: MemoryKv, key: bytes, range_end: bytes | None = None, *, start: Revision | None = None, previous: bool = False
    ) -> Watch:
        nonlocal opened
        made = watch(kv, key, range_end, start=start, previous=previous)
        if key.startswith(KEYS.logs):
            opened += 1
            number, close = opened, made.aclose
            open_now.append(number)

            async def closed() -> None:
                open_now.remove(number)
                await close()

            made.aclose = closed  # type: ignore[method-assign]
        return made

    monkeypatch.setattr(MemoryKv, "watch", counted)
    return open_now


async def test_all_who_watch_at_a_node_cost_one_watch_of_the_store(watches: list[int]) -> None:
    world = World(do={"b": ["hold"] * 20})
    async with cluster("n1") as c, c.client() as client:
        await c.serve(world.server())
        ids = [(await client.submit(chain("a", "b", "c"))).saga_id for _ in range(20)]

        async def watch(saga_id: str) -> list[int]:
            return [record.sequence async for record in client.watch(saga_id)]

        async with asyncio.TaskGroup() as tasks:
            watching = [tasks.create_task(watch(saga_id)) for saga_id in ids for _ in range(3)]
            await until(lambda: world.count("do", "b") == 20)
            await until(lambda: watches)
            assert watches == [1]
            world.gate.set()
        for seen in watching:
            assert seen.result() == list(range(1, len(seen.result()) + 1))
            assert len(seen.result()) >= 7, "created, start requested and taken over, three nodes that start and succeed"
        await until(lambda: not watches)
        assert await watch(ids[0]) == watching[0].result()
        assert (await client.get(ids[0])).state is SagaState.DONE


async def test_a_watcher_that_is_too_slow_reads_the_log_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_watch, "MAX_BEHIND", 0)
    world = World(do={"b": ["hold"]})
    async with cluster("n1") as c, c.client() as client:
        await c.serve(world.server())
        saga_id = (await client.submit(chain("a", "b", "c"))).saga_id
        await until(lambda: world.count("do", "b") == 1)
        seen = []
        async for record in client.watch(saga_id):
            seen.append(record.sequence)
            world.gate.set()
        assert seen == list(range(1, len(seen) + 1))


@pytest.mark.parametrize("bound", ["MAX_BEHIND", "MAX_BEHIND_BYTES"])
async def test_only_the_watcher_that_is_too_slow_is_told_so(monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    monkeypatch.setattr(log_watch, bound, 2)  # each change is one byte
    kv = MemoryKv(MemoryEtcd())
    logs = LogWatch(kv, KEYS)
    saga = SagaId("s")
    async with logs.follow(saga) as slow, logs.follow(saga) as quick, logs.follow(SagaId("other")) as other:
        for number in range(4):
            await kv.txn(Txn(then=[Put(KEYS.log_batch(saga, number), b"x")]))
            assert [e.item.key for e in (await anext(quick)).events] == [KEYS.log_batch(saga, number)]
        with pytest.raises(Compacted, match="wait for their watcher"):
            await anext(slow)
        assert other.events == 0
    await kv.aclose()


async def test_a_store_that_cannot_be_watched_is_said_and_tried_again_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(do={"a": ["hold"]})
    async with cluster("n1") as c, Client([c.members["n1"].address], timeout_s=1) as client:
        await c.serve(world.server())
        saga_id = (await client.submit(chain("a"))).saga_id
        with monkeypatch.context() as broken:

            def refuse(kv: MemoryKv, key: bytes, *_: object, **__: object) -> Watch:
                raise KvUnavailable("The store is away.")

            broken.setattr(MemoryKv, "watch", refuse)
            with pytest.raises(ClusterUnavailable, match="The store is away"):
                async for _ in client.watch(saga_id):
                    pass
        world.gate.set()
        assert [record.kind async for record in client.watch(saga_id)][-1] == "done"


@pytest.mark.parametrize("told", [True, False])
async def test_a_wait_for_a_saga_at_work_reads_it_when_it_has_settled(told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, or again and again when no event tells of it."""
    if not told:
        monkeypatch.setattr(SettledWatch, "_live_changed", lambda self, changes: None)
        monkeypatch.setattr(coordinator, "RECHECK_S", 0.2)
    world = World(do={"a": ["hold"]})
    async with cluster("n1") as c, c.client() as client:
        await c.serve(world.server())
        node = c.members["n1"].node
        await client.submit(chain("a", "b"), saga_id="s1")
        await until(lambda: node.keys.active(SagaId("s1")) in node.live.items)
        reads: list[SagaId] = []
        load = node.sagas.load

        async def counted(saga_id: SagaId) -> StoredSaga:
            reads.append(saga_id)
            return await load(saga_id)

        monkeypatch.setattr(node.sagas, "load", counted)
        waiting = asyncio.create_task(client.wait("s1", timeout_s=60))
        await until(lambda: bool(node.door.used()[Bound.READS][0]))
        assert reads == [] or not told
        world.gate.set()
        assert (await waiting).state is SagaState.DONE
        assert reads == ["s1"] or not told
