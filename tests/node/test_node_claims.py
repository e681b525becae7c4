"""Claims of many sagas: in bounded batches, several at once, each saga once, and none that has been taken meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from store_support import put
from waiting_support import until

from sec.core.records import SagaId, SecNodeName
from sec.node.claims import BATCH_BYTES, BATCHES_AT_ONCE, FIRST_BATCH, MAX_BATCH, Claims
from sec.store.keys import Keys
from sec.store.kv import Delete, Kv, Put, Txn
from sec.store.mirror import Mirror

KEYS = Keys("/claims")
ME = SecNodeName("n1")


@dataclass
class Store:
    """The claims of a node over a mirror, and a `claim` that notes what it is to claim and waits for `gate`."""

    kv: Kv
    claims: Claims
    batches: list[list[SagaId]] = field(default_factory=list)
    under_way: int = 0
    most: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    log_bytes: int = 1_000
    """Of each saga."""

    async def claim(self, saga_ids: Sequence[SagaId]) -> int:
        self.batches.append(list(saga_ids))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await self.gate.wait()
        self.under_way -= 1
        return self.log_bytes * len(saga_ids)

    @property
    def claimed(self) -> list[SagaId]:
        return [saga_id for batch in self.batches for saga_id in batch]


@asynccontextmanager
async def claiming(kv: Kv, *nodes: str, unowned: Sequence[SagaId] = (), fallback_s: float = 0.01) -> AsyncIterator[Store]:
    for saga_id in unowned:
        await put(kv, KEYS.active(saga_id))
    live = Mirror(kv, KEYS.live)
    running = [asyncio.create_task(live.run())]
    await live.ready.wait()
    claimers = [SecNodeName(name) for name in nodes or ("n1",)]
    store: Store
    claims = Claims(ME, KEYS, live, lambda: claimers, lambda ids: store.claim(ids), fallback_s)
    store = Store(kv, claims)
    running.append(asyncio.create_task(claims.run()))
    claims.enable()
    try:
        yield store
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def names(count: int) -> list[SagaId]:
    return [SagaId(f"s{i}") for i in range(count)]


async def test_many_are_claimed_in_batches_that_grow_and_of_which_only_some_are_under_way(memory_kv: Kv) -> None:
    wanted = names(10 * MAX_BATCH)
    async with claiming(memory_kv, unowned=wanted) as store:
        await until(lambda: len(store.batches) == BATCHES_AT_ONCE)
        assert {len(batch) for batch in store.batches} == {FIRST_BATCH}
        store.gate.set()
        await until(lambda: len(store.claimed) == len(wanted))
    assert set(store.claimed) == set(wanted)
    assert max(len(batch) for batch in store.batches) == MAX_BATCH
    assert store.most == BATCHES_AT_ONCE


async def test_where_logs_are_large_batches_are_small(memory_kv: Kv) -> None:
    wanted = names(BATCHES_AT_ONCE * FIRST_BATCH + 40)
    async with claiming(memory_kv, unowned=wanted) as store:
        store.log_bytes = BATCH_BYTES // 2
        store.gate.set()
        await until(lambda: len(store.claimed) == len(wanted))
        assert {len(batch) for batch in store.batches[-10:]} == {2}
        store.log_bytes = 2 * BATCH_BYTES
        store.claims.claim_now(names(20))
        await until(lambda: len(store.claimed) == len(wanted) + 20)
        assert len(store.batches[-1]) == 1, "and never none"


async def test_what_others_have_taken_while_it_waited_is_left_to_them(memory_kv: Kv) -> None:
    wanted = names((BATCHES_AT_ONCE + 1) * FIRST_BATCH)
    async with claiming(memory_kv, unowned=wanted) as store:
        await until(lambda: len(store.batches) == BATCHES_AT_ONCE)
        waiting = sorted(set(wanted) - set(store.claimed))
        taken = waiting[: FIRST_BATCH // 2]
        await memory_kv.txn(Txn(then=[Put(KEYS.owner(s), b"n2") for s in taken]))
        await until(lambda: not any(store.claims.unowned(s) for s in taken))
        store.gate.set()
        await until(lambda: len(store.claimed) == len(wanted) - len(taken))
    assert not set(taken) & set(store.claimed)


async def test_what_a_sweep_has_found_is_claimed_whatever_the_mirror_says(memory_kv: Kv) -> None:
    async with claiming(memory_kv) as store:
        store.gate.set()
        await put(memory_kv, KEYS.owner(SagaId("s1")), b"n2")
        store.claims.claim_now([SagaId("s1")])
        await until(lambda: store.claimed == ["s1"])


async def test_a_saga_whose_claim_is_under_way_is_not_claimed_beside_it(memory_kv: Kv) -> None:
    async with claiming(memory_kv) as store:
        await put(memory_kv, KEYS.active(SagaId("s1")))
        await until(lambda: store.claimed == ["s1"])
        store.claims.claim_now([SagaId("s1"), SagaId("s2")])
        await until(lambda: "s2" in store.claimed)
        assert store.claimed == ["s1", "s2"]
        store.gate.set()
        await until(lambda: not store.under_way)
        store.claims.claim_now([SagaId("s1")])
        await until(lambda: store.claimed == ["s1", "s2", "s1"])


async def test_the_former_owner_comes_last(memory_kv: Kv) -> None:
    async with claiming(memory_kv, "n1", "n2", fallback_s=3600) as store:
        store.gate.set()
        mine, other = SagaId("mine"), SagaId("another")
        for saga_id, owner in ((mine, b"n1"), (other, b"n2")):
            await memory_kv.txn(Txn(then=[Put(KEYS.active(saga_id), b""), Put(KEYS.owner(saga_id), owner)]))
        await memory_kv.txn(Txn(then=[Delete(KEYS.owner(mine)), Delete(KEYS.owner(other))]))
        await until(lambda: store.claimed)
        assert store.claimed == [other]
