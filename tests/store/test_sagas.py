"""Sagas in the store, over both adapters: idempotent submit, fences, lost answers, claims, lists."""

import asyncio

import pytest
from sagas_support import AT_ONCE, NEVER, Desk, summary
from sec_model import Payload
from sec_protos.v1 import coordinator_pb2
from store_support import Store
from waiting_support import until

from sec.core.errors import CorruptLog
from sec.core.records import Done, Epoch, Outcome, OwnerChanged, SagaId, SecNodeName, Started, Succeeded
from sec.store.errors import Fenced, InvalidPageToken, PageTokenExpired, SagaExists, SagaNotFound, WrongState
from sec.store.kv import Delete, Get, Indeterminate, Kv, KvRefused, KvUnavailable, Put, Txn, TxnResult
from sec.store.listing import ListFilter
from sec.store.memory import MemoryEtcd, MemoryKv

RUNNING, STUCK = coordinator_pb2.SAGA_STATE_RUNNING, coordinator_pb2.SAGA_STATE_STUCK
DONE = coordinator_pb2.SAGA_STATE_DONE

SUCCEEDED = Succeeded("a", Payload.json(1))  # type: ignore[arg-type]


@pytest.fixture
async def desk(kv: Kv, prefix: bytes) -> Desk:
    return await Desk(kv, prefix).join()


@pytest.fixture
async def other(store: Store, prefix: bytes) -> Desk:
    """Another SEC node of the same cluster."""
    return await Desk(store.kv(), prefix, "n2").join()


@pytest.fixture
async def memory_desk(memory_kv: MemoryKv, prefix: bytes) -> Desk:
    return await Desk(memory_kv, prefix).join()


async def append(desk: Desk, saga_id: str, epoch: Epoch, sequence: int, *records: object, give_up=NEVER, wanted=NEVER) -> None:
    await desk.sagas.append(
        SagaId(saga_id),
        epoch,
        sequence,
        records,  # type: ignore[arg-type]
        summary=None,
        ended=False,
        give_up=give_up,
        wanted=wanted,
    )


class TestSubmit:
    async def test_a_saga_is_stored_with_its_owner_and_first_records_at_one_revision(self, desk: Desk) -> None:
        head = await desk.head("s1", labels={"team": "storage"}, params={"n": 1})
        submitted = await desk.submit(head)
        stored = await desk.sagas.load(head.saga_id)
        assert submitted.created
        assert stored.head == head
        assert stored.owner == "n1"
        assert [type(e.record).__name__ for e in stored.entries] == ["Created", "StartRequested", "Started"]
        assert [e.sequence for e in stored.entries] == [1, 2, 3]
        assert {e.epoch for e in stored.entries} == {submitted.epoch}, (
            "the epoch is the revision of the transaction that made the owner key"
        )

    async def test_the_same_again_is_the_same_saga(self, desk: Desk) -> None:
        first = await desk.head("s1", params=[1])
        again = await desk.head("s1", params=[1])
        assert (await desk.submit(first)).created
        assert not (await desk.submit(again)).created
        assert (await desk.sagas.load(SagaId("s1"))).head.uid == first.uid

    @pytest.mark.parametrize("change", ["params", "labels", "definition"])
    async def test_other_content_under_the_same_id_is_refused(self, desk: Desk, change: str) -> None:
        await desk.submit(await desk.head("s1", params=[1]))
        given = {
            "params": {"params": [2]},
            "labels": {"params": [1], "labels": {"a": "b"}},
            "definition": {"params": [1], "name": "another"},
        }[change]
        with pytest.raises(SagaExists, match='Saga "s1" exists with another definition, other params or other labels'):
            await desk.submit(await desk.head("s1", **given))  # type: ignore[arg-type]

    async def test_many_at_once_under_one_id_make_one_saga(self, desk: Desk, other: Desk) -> None:
        heads = [await d.head("s1") for d in (desk, other) * 5]
        answers = await asyncio.gather(*(d.submit(h) for d, h in zip((desk, other) * 5, heads, strict=True)))
        assert sum(a.created for a in answers) == 1

    async def test_without_its_definition_it_is_refused_and_nothing_is_written(self, desk: Desk) -> None:
        head = await desk.head("s1")
        await desk.kv.txn(Txn(then=[Delete(desk.keys.definition(head.definition_hash))]))
        with pytest.raises(WrongState, match=r"its definition .* is not in the store"):
            await desk.submit(head)
        with pytest.raises(SagaNotFound, match='There is no saga "s1"'):
            await desk.sagas.load(head.saga_id)

    @pytest.mark.parametrize("landed", [True, False])
    async def test_a_lost_answer_is_settled_by_sending_it_again(self, memory_desk: Desk, landed: bool) -> None:
        head = await memory_desk.head("s1")
        kv = memory_desk.kv
        assert isinstance(kv, MemoryKv)
        kv.lose_next_answer() if landed else kv.drop_next_write()
        submitted = await memory_desk.submit(head)
        assert submitted.created
        item = (await kv.get(Get(memory_desk.keys.owner(head.saga_id)))).items[0]
        assert submitted.epoch == item.create_revision
        await append(memory_desk, "s1", submitted.epoch, 4, SUCCEEDED)  # type: ignore[arg-type]


class TestAppend:
    async def test_records_follow_each_other(self, desk: Desk) -> None:
        head = await desk.head("s1")
        epoch = (await desk.submit(head)).epoch
        assert epoch is not None
        await append(desk, "s1", epoch, 4, SUCCEEDED, Started("b"))  # type: ignore[arg-type]
        entries = (await desk.sagas.load(head.saga_id)).entries
        assert [(e.sequence, type(e.record).__name__) for e in entries[3:]] == [(4, "Succeeded"), (5, "Started")]
        assert entries[-1].writer == "n1"

    async def test_a_former_owner_cannot_write(self, desk: Desk, other: Desk) -> None:
        head = await desk.head("s1")
        epoch = (await desk.submit(head)).epoch
        assert epoch is not None
        await desk.kv.lease_revoke(desk.lease)
        claimed = (await other.sagas.claim([head.saga_id], other.ownership, NEVER))[head.saga_id]
        with pytest.raises(Fenced, match=f'"n2" owns it in epoch {claimed.epoch}'):
            await append(desk, "s1", epoch, 4, SUCCEEDED)
        await append(other, "s1", claimed.epoch, 4, OwnerChanged(claimed.epoch, SecNodeName("n2")))
        with pytest.raises(Fenced):
            await append(desk, "s1", epoch, 5, SUCCEEDED)

    async def test_nobody_can_write_over_a_record(self, desk: Desk) -> None:
        epoch = (await desk.submit(await desk.head("s1"))).epoch
        assert epoch is not None
        await append(desk, "s1", epoch, 4, SUCCEEDED)
        with pytest.raises(Fenced):
            await append(desk, "s1", epoch, 4, Succeeded("a", Payload.json(2)))  # type: ignore[arg-type]

    async def test_one_fenced_saga_does_not_fail_its_neighbours(self, desk: Desk) -> None:
        epochs = {}
        for i in range(20):
            epochs[f"s{i}"] = (await desk.submit(await desk.head(f"s{i}"))).epoch
        epochs["s7"] = Epoch(1)
        answers = await asyncio.gather(
            *(append(desk, saga_id, epoch, 4, SUCCEEDED) for saga_id, epoch in epochs.items()),  # type: ignore[arg-type]
            return_exceptions=True,
        )
        assert [i for i, a in enumerate(answers) if isinstance(a, Fenced)] == [7]
        assert [a for i, a in enumerate(answers) if i != 7] == [None] * 19

    async def test_the_end_moves_the_saga_from_one_index_to_the_other(self, desk: Desk) -> None:
        head = await desk.head("s1")
        epoch = (await desk.submit(head)).epoch
        assert epoch is not None
        records = (SUCCEEDED, Done(Outcome.DONE))
        await desk.sagas.append(head.saga_id, epoch, 4, records, summary=summary(head, DONE), ended=True, give_up=NEVER)
        assert (await desk.sagas.load(head.saga_id)).owner == ""
        found, _ = await desk.listing.page(ListFilter(), 10, "")
        assert [(s.saga_id, s.state) for s in found] == [("s1", DONE)]
        assert await desk.sagas.claim([head.saga_id], desk.ownership, NEVER) == {}

    @pytest.mark.parametrize("landed", [True, False])
    @pytest.mark.parametrize("ended", [True, False])
    async def test_a_lost_answer_is_settled_by_sending_it_again(self, memory_desk: Desk, landed: bool, ended: bool) -> None:
        head = await memory_desk.head("s1")
        epoch = (await memory_desk.submit(head)).epoch
        assert epoch is not None
        kv = memory_desk.kv
        assert isinstance(kv, MemoryKv)
        kv.lose_next_answer() if landed else kv.drop_next_write()
        last = summary(head, DONE) if ended else None
        await memory_desk.sagas.append(head.saga_id, epoch, 4, (SUCCEEDED,), summary=last, ended=ended, give_up=NEVER)
        assert [e.sequence for e in (await memory_desk.sagas.load(head.saga_id)).entries] == [1, 2, 3, 4]

    async def test_what_is_given_up_says_whether_it_is_known(self, memory_desk: Desk) -> None:
        epoch = (await memory_desk.submit(await memory_desk.head("s1"))).epoch
        assert epoch is not None
        kv = memory_desk.kv
        assert isinstance(kv, MemoryKv)
        kv.lose_next_answer()
        with pytest.raises(Indeterminate):
            await append(memory_desk, "s1", epoch, 4, SUCCEEDED, give_up=AT_ONCE)
        kv.partition(True)
        with pytest.raises(KvUnavailable):
            await append(memory_desk, "s1", epoch, 5, SUCCEEDED, give_up=AT_ONCE)


class FullKv(MemoryKv):
    """A store that refuses what is written while it is `full`; `refused` counts that. It is full, too, from the first lost answer on."""

    full = False
    refused = 0

    async def txn(self, txn: Txn, *, timeout_s: float | None = None) -> TxnResult:
        if self.full:
            self.refused += 1
            raise KvRefused("There is no space left.")
        try:
            return await super().txn(txn, timeout_s=timeout_s)
        except Indeterminate:
            self.full = True
            raise


class TestOutOfSpace:
    @pytest.fixture
    async def full_kv(self, memory_etcd: MemoryEtcd) -> FullKv:
        return FullKv(memory_etcd)

    @pytest.fixture
    async def full_desk(self, full_kv: FullKv) -> Desk:
        return await Desk(full_kv, b"/full/").join()

    async def test_records_wait_until_there_is_space(
        self, full_desk: Desk, full_kv: FullKv, caplog: pytest.LogCaptureFixture
    ) -> None:
        epoch = (await full_desk.submit(await full_desk.head("s1"))).epoch
        assert epoch is not None
        full_kv.full = True
        waiting = asyncio.create_task(append(full_desk, "s1", epoch, 4, SUCCEEDED, wanted=lambda: True))
        await until(lambda: full_kv.refused > 2)
        assert not waiting.done()
        full_kv.full = False
        await waiting
        assert len((await full_desk.sagas.load(SagaId("s1"))).entries) == 4
        assert [r.getMessage() for r in caplog.records] == [
            'The store refuses writes of saga "s1", which wait: There is no space left.'
        ]

    @pytest.mark.parametrize("why", ["not wanted", "given up"])
    async def test_records_that_nobody_wants_any_more_do_not_wait(self, full_desk: Desk, full_kv: FullKv, why: str) -> None:
        epoch = (await full_desk.submit(await full_desk.head("s1"))).epoch
        assert epoch is not None
        full_kv.full = True
        over = False
        wanted = (lambda: not over) if why == "not wanted" else (lambda: True)
        give_up = (lambda: over) if why == "given up" else NEVER
        waiting = asyncio.create_task(append(full_desk, "s1", epoch, 4, SUCCEEDED, give_up=give_up, wanted=wanted))
        await until(lambda: full_kv.refused > 2)
        over = True
        with pytest.raises(KvRefused):
            await waiting

    async def test_a_lost_answer_and_then_a_refusal_are_no_reason_to_lose_the_saga(self, full_desk: Desk, full_kv: FullKv) -> None:
        epoch = (await full_desk.submit(await full_desk.head("s1"))).epoch
        assert epoch is not None
        full_kv.lose_next_answer()
        waiting = asyncio.create_task(append(full_desk, "s1", epoch, 4, SUCCEEDED, wanted=lambda: True))
        await until(lambda: full_kv.refused)
        full_kv.full = False
        await waiting
        assert [e.sequence for e in (await full_desk.sagas.load(SagaId("s1"))).entries] == [1, 2, 3, 4]

    async def test_ownership_is_given_up_when_there_is_space(self, full_desk: Desk, full_kv: FullKv) -> None:
        epoch = (await full_desk.submit(await full_desk.head("s1"))).epoch
        assert epoch is not None
        full_kv.full = True
        releasing = asyncio.create_task(full_desk.sagas.release([(SagaId("s1"), epoch)], NEVER))
        await until(lambda: full_kv.refused > 2)
        assert not releasing.done()
        full_kv.full = False
        await releasing
        assert (await full_desk.sagas.load(SagaId("s1"))).owner == ""

    async def test_what_a_client_waits_for_is_refused_at_once(self, full_desk: Desk, full_kv: FullKv) -> None:
        head = await full_desk.head("s1")
        full_kv.full = True
        with pytest.raises(KvRefused):
            await full_desk.submit(head)
        with pytest.raises(KvRefused):
            await full_desk.sagas.command(SagaId("s1"), "c", b"", NEVER)


class TestStart:
    async def test_a_created_saga_is_nobodys_until_it_is_started(self, desk: Desk) -> None:
        head = await desk.head("s1")
        await desk.submit(head, started=False)
        assert await desk.sagas.claim([head.saga_id], desk.ownership, NEVER) == {}
        started = await desk.sagas.start(head.saga_id, 2, (Started("a"),), summary(head, RUNNING), desk.ownership, NEVER)  # type: ignore[arg-type]
        stored = await desk.sagas.load(head.saga_id)
        assert stored.owner == "n1"
        assert stored.entries[-1].epoch == started.epoch
        with pytest.raises(WrongState, match='Saga "s1" has been started already'):
            await desk.sagas.start(head.saga_id, 2, (Started("b"),), summary(head, RUNNING), desk.ownership, NEVER)  # type: ignore[arg-type]


class TestClaim:
    async def test_unowned_sagas_are_claimed_with_their_logs(self, desk: Desk, other: Desk) -> None:
        heads = [await desk.head(f"s{i}") for i in range(5)]
        for head in heads:
            await desk.submit(head)
        await desk.kv.lease_revoke(desk.lease)
        claimed = await other.sagas.claim([h.saga_id for h in heads], other.ownership, NEVER)
        assert set(claimed) == {h.saga_id for h in heads}
        for head in heads:
            one = claimed[head.saga_id]
            assert one.saga.head == head
            assert len(one.saga.entries) == 3
            assert await other.sagas.owns(head.saga_id, one.epoch)

    async def test_each_saga_goes_to_one_claimer(self, desk: Desk, other: Desk) -> None:
        ids = [SagaId(f"s{i}") for i in range(20)]
        for saga_id in ids:
            await desk.submit(await desk.head(saga_id), owned=False)
        mine, theirs = await asyncio.gather(
            desk.sagas.claim(ids, desk.ownership, NEVER), other.sagas.claim(ids, other.ownership, NEVER)
        )
        assert set(mine) | set(theirs) == set(ids)
        assert not set(mine) & set(theirs)

    async def test_a_claim_whose_answer_was_lost_is_found(self, memory_desk: Desk) -> None:
        await memory_desk.submit(await memory_desk.head("s1"), owned=False)
        kv = memory_desk.kv
        assert isinstance(kv, MemoryKv)
        kv.lose_next_answer()
        claimed = await memory_desk.sagas.claim([SagaId("s1")], memory_desk.ownership, NEVER)
        assert await memory_desk.sagas.owns(SagaId("s1"), claimed[SagaId("s1")].epoch)

    async def test_released_sagas_can_be_claimed_and_others_are_left_alone(self, desk: Desk, other: Desk) -> None:
        epoch = (await desk.submit(await desk.head("s1"))).epoch
        assert epoch is not None
        await other.sagas.release([(SagaId("s1"), Epoch(epoch - 1))], NEVER)
        assert await desk.sagas.owns(SagaId("s1"), epoch)
        await desk.sagas.release([(SagaId("s1"), epoch)], NEVER)
        assert SagaId("s1") in await other.sagas.claim([SagaId("s1")], other.ownership, NEVER)

    async def test_a_damaged_saga_is_claimed_with_its_problem_and_harms_no_other(self, desk: Desk) -> None:
        for saga_id in ("s1", "s2", "s3"):
            await desk.submit(await desk.head(saga_id), owned=False)
        await desk.kv.txn(Txn(then=[Put(desk.keys.log_batch(SagaId("s1"), 3), b"\xff\xff")]))
        await desk.kv.txn(Txn(then=[Delete(desk.keys.saga(SagaId("s2")))]))
        claimed = await desk.sagas.claim([SagaId("s1"), SagaId("s2"), SagaId("s3")], desk.ownership, NEVER)
        assert 'Saga "s1" cannot be read. The records from 3 on are damaged' in claimed[SagaId("s1")].saga.problem
        assert len(claimed[SagaId("s1")].saga.entries) == 2
        assert 'Saga "s2" cannot be read. What it was submitted with is missing' in claimed[SagaId("s2")].saga.problem
        assert claimed[SagaId("s3")].saga.problem == ""


class TestList:
    async def ids(self, desk: Desk, wanted: ListFilter, size: int) -> list[list[str]]:
        pages, token = [], ""
        while True:
            found, token = await desk.listing.page(wanted, size, token)
            pages.append([s.saga_id for s in found])
            if not token:
                return pages

    async def test_stuck_first_then_active_then_created_then_ended(self, desk: Desk) -> None:
        for saga_id in ("a1", "a2", "a3"):
            await desk.submit(await desk.head(saga_id))
        await desk.submit(await desk.head("c1"), started=False)
        head = await desk.head("e1")
        epoch = (await desk.submit(head)).epoch
        assert epoch is not None
        await desk.sagas.append(head.saga_id, epoch, 4, (SUCCEEDED,), summary=summary(head, DONE), ended=True, give_up=NEVER)
        stuck = await desk.sagas.load(SagaId("a2"))
        await desk.sagas.update_summary(SagaId("a2"), stuck.entries[0].epoch, summary(stuck.head, STUCK), NEVER)
        expected = ["a2", "a1", "a3", "c1", "e1"]
        for size in range(1, 7):
            pages = await self.ids(desk, ListFilter(), size)
            assert [i for page in pages for i in page] == expected
            assert all(len(page) <= size for page in pages)

    async def test_filters(self, desk: Desk, other: Desk) -> None:
        await desk.submit(await desk.head("s1", labels={"team": "a", "env": "x"}))
        await desk.submit(await desk.head("s2", labels={"team": "b"}, name="another"))
        await other.submit(await other.head("s3", labels={"team": "a"}))
        assert await self.ids(desk, ListFilter(labels={"team": "a"}), 10) == [["s1", "s3"]]
        assert await self.ids(desk, ListFilter(labels={"team": "a", "env": "x"}), 10) == [["s1"]]
        assert await self.ids(desk, ListFilter(name="another"), 10) == [["s2"]]
        assert await self.ids(desk, ListFilter(owner="n2"), 10) == [["s3"]]
        assert await self.ids(desk, ListFilter(states=frozenset({DONE})), 10) == [[]]

    async def test_a_listing_does_not_see_what_happens_meanwhile(self, desk: Desk) -> None:
        for i in range(4):
            await desk.submit(await desk.head(f"s{i}"))
        first, token = await desk.listing.page(ListFilter(), 2, "")
        await desk.submit(await desk.head("s0a"))
        await desk.submit(await desk.head("s9"))
        rest, end = await desk.listing.page(ListFilter(), 10, token)
        assert [s.saga_id for s in (*first, *rest)] == ["s0", "s1", "s2", "s3"]
        assert end == ""

    async def test_a_listing_that_was_left_too_long_has_to_begin_again(self, desk: Desk, store: Store) -> None:
        for i in range(3):
            await desk.submit(await desk.head(f"s{i}"))
        _, token = await desk.listing.page(ListFilter(), 1, "")
        last = await desk.submit(await desk.head("s9"))
        assert last.epoch is not None
        await store.compact(last.epoch)
        with pytest.raises(PageTokenExpired, match="Start it again without a page token"):
            await desk.listing.page(ListFilter(), 1, token)

    @pytest.mark.parametrize("token", ["x", "bm90IGpzb24=", "WzEsIDksICIiXQ==", "ü"])
    async def test_a_made_up_token_is_refused(self, desk: Desk, token: str) -> None:
        with pytest.raises(InvalidPageToken, match="is not a page token"):
            await desk.listing.page(ListFilter(), 1, token)


class TestDefinitions:
    async def test_what_is_missing_or_damaged_is_corrupt(self, desk: Desk, other: Desk) -> None:
        head = await desk.head("s1")
        assert (await other.definitions.graph(head.definition_hash)).name == "chain"
        key = desk.keys.definition(head.definition_hash)
        fresh = Desk(desk.kv, desk.prefix)
        await desk.kv.txn(Txn(then=[Put(key, b"something else")]))
        with pytest.raises(CorruptLog, match="its content has another hash"):
            await fresh.definitions.graph(head.definition_hash)
        await desk.kv.txn(Txn(then=[Delete(key)]))
        with pytest.raises(CorruptLog, match="is not in the store"):
            await fresh.definitions.graph(head.definition_hash)
