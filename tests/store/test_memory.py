"""The faults that can be ordered of `MemoryKv`, and that the store in memory keeps the event loop's time."""

import asyncio
from contextlib import aclosing

import pytest
from store_support import batch, events, keys, put
from waiting_support import until

from sec.store.kv import (
    Compacted,
    Delete,
    Get,
    Indeterminate,
    KvUnavailable,
    LeaseNotFound,
    Put,
    Revision,
    StoreFull,
    Txn,
    prefix_end,
)
from sec.store.memory import MemoryEtcd, MemoryKv


async def test_a_partitioned_client_is_refused_and_others_are_not(memory_etcd: MemoryEtcd, memory_kv: MemoryKv) -> None:
    other = MemoryKv(memory_etcd)
    memory_kv.partition()
    for call in (put(memory_kv, b"a"), memory_kv.get(Get(b"a")), memory_kv.lease_grant(5), memory_kv.status()):
        with pytest.raises(KvUnavailable):
            await call
    assert await keys(other, b"a") == {}
    await put(other, b"a", b"1")
    memory_kv.partition(False)
    assert (await memory_kv.get(Get(b"a"))).items[0].value == b"1"


async def test_a_watch_is_silent_in_a_partition_and_misses_nothing_after_it(memory_etcd: MemoryEtcd, memory_kv: MemoryKv) -> None:
    other = MemoryKv(memory_etcd)
    async with aclosing(memory_kv.watch(b"a")) as watch:
        await batch(watch)
        await put(other, b"a", b"1")
        memory_kv.partition()
        await put(other, b"a", b"2")
        assert (await events(watch))[0].item.value == b"1"  # was on its way
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.wait((waiting,), timeout=0.01)
        assert not waiting.done()
        memory_kv.partition(False)
        assert [event.item.value for event in (await waiting).events] == [b"2"]
        await put(other, b"a", b"3")
        assert (await events(watch))[0].item.value == b"3"


async def test_a_watch_that_comes_back_after_a_compaction_is_told(memory_etcd: MemoryEtcd, memory_kv: MemoryKv) -> None:
    other = MemoryKv(memory_etcd)
    async with aclosing(memory_kv.watch(b"a")) as watch:
        await batch(watch)
        memory_kv.partition()
        for _ in range(3):
            revision = await put(other, b"a")
        memory_etcd.compact(revision)
        memory_kv.partition(False)
        with pytest.raises(Compacted):
            await events(watch)


async def test_a_lost_answer_has_its_effect_once(memory_kv: MemoryKv) -> None:
    memory_kv.lose_next_answer()
    assert (await memory_kv.get(Get(b"a"))).items == ()
    with pytest.raises(Indeterminate):
        await put(memory_kv, b"a", b"1")
    assert await keys(memory_kv, b"a") == {b"": b"1"}
    await put(memory_kv, b"a", b"2")


async def test_a_dropped_write_has_none(memory_kv: MemoryKv) -> None:
    memory_kv.drop_next_write()
    with pytest.raises(Indeterminate):
        await put(memory_kv, b"a", b"1")
    assert await keys(memory_kv, b"a") == {}
    await put(memory_kv, b"a", b"2")


async def test_the_lost_answer_may_have_been_a_refusal(memory_kv: MemoryKv) -> None:
    lease = await memory_kv.lease_grant(5)
    await memory_kv.lease_revoke(lease)
    memory_kv.lose_next_answer()
    with pytest.raises(Indeterminate):
        await memory_kv.lease_revoke(lease)
    with pytest.raises(LeaseNotFound):
        await memory_kv.lease_revoke(lease)


async def test_latency_comes_before_and_after_the_effect(memory_etcd: MemoryEtcd) -> None:
    slow = MemoryKv(memory_etcd, latency_s=0.1)
    writing = asyncio.create_task(put(slow, b"a"))
    await until(lambda: memory_etcd.revision == 2)
    assert not writing.done()
    slow.partition()
    with pytest.raises(Indeterminate):
        await writing


async def test_what_takes_longer_than_its_timeout_is_indeterminate(memory_etcd: MemoryEtcd) -> None:
    slow = MemoryKv(memory_etcd, latency_s=60)
    with pytest.raises(Indeterminate):
        await slow.txn(Txn(then=[Put(b"a", b"")]), timeout_s=0.01)
    with pytest.raises(KvUnavailable):
        await slow.get(Get(b"a"), timeout_s=0.01)


async def test_a_closed_client(memory_kv: MemoryKv) -> None:
    watch = memory_kv.watch(b"a")
    await batch(watch)
    await memory_kv.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(watch)
    with pytest.raises(KvUnavailable):
        await anext(memory_kv.watch(b"a"))
    with pytest.raises(KvUnavailable):
        await put(memory_kv, b"a")


async def test_leases_expire_by_the_clock_of_the_loop(
    memory_etcd: MemoryEtcd, memory_kv: MemoryKv, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = await memory_kv.lease_grant(3600)
    await put(memory_kv, b"a", b"", lease)
    loop = asyncio.get_running_loop()
    real = loop.time
    monkeypatch.setattr(loop, "time", lambda: real() + 3601)
    async with aclosing(memory_kv.watch(b"a", start=Revision(1))) as watch:
        kinds = [(await events(watch))[0].kind.value for _ in range(2)]
    assert kinds == ["put", "delete"]


async def test_compaction_keeps_what_a_read_at_its_revision_needs(memory_etcd: MemoryEtcd, memory_kv: MemoryKv) -> None:
    for n in range(100):
        await put(memory_kv, b"k%02d" % (n % 10), b"%d" % n)
    revision = memory_etcd.revision
    before = await memory_kv.get(Get(b"k", prefix_end(b"k")), revision=Revision(revision - 5))
    memory_etcd.compact(revision - 5)
    after = await memory_kv.get(Get(b"k", prefix_end(b"k")), revision=Revision(revision - 5))
    assert after == before
    with pytest.raises(Compacted):
        memory_etcd.compact(revision - 5)


async def test_a_store_that_is_full_refuses_to_write_and_goes_on_reading(memory_etcd: MemoryEtcd, memory_kv: MemoryKv) -> None:
    await put(memory_kv, b"a", b"1")
    lease = await memory_kv.lease_grant(5)
    memory_etcd.full = True
    assert (await memory_kv.status()).full
    for write in (put(memory_kv, b"a", b"2"), memory_kv.txn(Txn(then=[Delete(b"a")])), memory_kv.lease_grant(5)):
        with pytest.raises(StoreFull):
            await write
    assert await keys(memory_kv, b"a") == {b"": b"1"}
    assert await memory_kv.lease_keepalive(lease) == 5
    memory_etcd.full = False
    await put(memory_kv, b"a", b"3")
