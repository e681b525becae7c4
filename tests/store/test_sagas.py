"""Sagas in the store, over both adapters: idempotent submit, fences, lost answers, claims, lists."""

import asyncio

import pytest
from sagas_support import AT_ONCE, NEVER, Desk, summary
from sec_model import Deadline, OnDeadline, Payload
from sec_protos.storage.v1 import storage_pb2
from sec_protos.v1 import coordinator_pb2
from store_support import Store
from waiting_support import until

from sec.core.errors import CorruptLog
from sec.core.records import Done, Epoch, Outcome, OwnerChanged, SagaId, SecNodeName, Started, StartRequested, Succeeded
from sec.node.orders import MAX_PER_STEP
from sec.store.errors import Fenced, InvalidPageToken, PageTokenExpired, SagaExists, SagaNotFound, WrongState
from sec.store.kv import (
    Delete,
    Get,
    Indeterminate,
    KeyValue,
    Kv,
    KvRefused,
    KvUnavailable,
    Put,
    Txn,
    TxnResult,
    created_at,
    prefix_end,
)
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
    await desk.append(
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

    async def test_a_deadline_is_part_of_what_was_submitted(self, desk: Desk) -> None:
        pausing = Deadline(2.5, OnDeadline.PAUSE)
        assert (await desk.submit(await desk.head("s1", deadline=pausing))).created
        assert (await desk.sagas.load(SagaId("s1"))).head.deadline == pausing
        assert not (await desk.submit(await desk.head("s1", deadline=pausing))).created
        for another in (None, Deadline(2.5), Deadline(3, OnDeadline.PAUSE)):
            with pytest.raises(SagaExists, match=r'Saga "s1" exists with .* or another deadline\. Choose another id'):
                await desk.submit(await desk.head("s1", deadline=another))
        assert (await desk.submit(await desk.head("s2"))).created
        with pytest.raises(SagaExists):
            await desk.submit(await desk.head("s2", deadline=pausing))

    async def test_a_deadline_that_this_version_does_not_know_makes_the_saga_unreadable(self, desk: Desk) -> None:
        await desk.submit(await desk.head("s1", deadline=Deadline(5)))
        item = (await desk.kv.get(Get(desk.keys.saga(SagaId("s1"))))).items[0]
        stored = storage_pb2.StoredSaga.FromString(item.value)
        stored.deadline.then = 7  # type: ignore[assignment]
        await desk.kv.txn(Txn(then=[Put(item.key, stored.SerializeToString())]))
        assert "A deadline has the unknown consequence 7." in (await desk.sagas.load(SagaId("s1"))).problem

    @pytest.mark.parametrize("change", ["params", "labels", "definition"])
    async def test_other_content_under_the_same_id_is_refused(self, desk: Desk, change: str) -> None:
        await desk.submit(await desk.head("s1", params=[1]))
        given = {
            "params": {"params": [2]},
            "labels": {"params": [1], "labels": {"a": "b"}},
            "definition": {"params": [1], "name": "another"},
        }[change]
        with pytest.raises(SagaExists, match='Saga "s1" exists with another definition, other params, other labels or another'):
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
        await desk.append(head.saga_id, epoch, 4, records, summary=summary(head, DONE), ended=True, give_up=NEVER)
        assert (await desk.sagas.load(head.saga_id)).owner == ""
        found, _ = await desk.listing.page(ListFilter(), 10, "")
        assert [(s.saga_id, s.state) for s in found] == [("s1", DONE)]
        assert await desk.sagas.claim([head.saga_id], desk.ownership, NEVER) == {}

    async def test_a_claim_whose_answer_was_lost_is_ours_and_brings_the_saga(self, memory_desk: Desk) -> None:
        head = await memory_desk.head("s1")
        await memory_desk.submit(head, owned=False)
        assert await memory_desk.sagas.command(head.saga_id, "c", b"x", NEVER)
        kv = memory_desk.kv
        assert isinstance(kv, MemoryKv)
        kv.lose_next_answer()
        (claimed,) = (await memory_desk.sagas.claim([head.saga_id], memory_desk.ownership, NEVER)).values()
        assert await memory_desk.sagas.owns(head.saga_id, claimed.epoch)
        assert claimed.saga.head == head
        assert claimed.saga.entries == (await memory_desk.sagas.load(head.saga_id)).entries
        assert claimed.saga.log_bytes > 0
        assert claimed.commands == [("c", b"x")]

    async def test_claims_that_the_store_refuses_do_not_cost_those_beside_them(
        self, memory_desk: Desk, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        heads = [await memory_desk.head(saga_id) for saga_id in ("s1", "s2")]
        for head in heads:
            await memory_desk.submit(head, owned=False)
        commit = memory_desk.commits.commit

        async def choosy(saga_id: str, txn: Txn) -> TxnResult:
            if saga_id in refused:
                raise KvRefused("There is no space left.")
            return await commit(saga_id, txn)

        monkeypatch.setattr(memory_desk.commits, "commit", choosy)
        refused = {"s1"}
        assert list(await memory_desk.sagas.claim([SagaId("s1"), SagaId("s2")], memory_desk.ownership, NEVER)) == ["s2"]
        with pytest.raises(KvRefused):
            await memory_desk.sagas.claim([SagaId("s1")], memory_desk.ownership, NEVER)

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
        await memory_desk.append(head.saga_id, epoch, 4, (SUCCEEDED,), summary=last, ended=ended, give_up=NEVER)
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
        started = await desk.sagas.start(
            await desk.sagas.load(head.saga_id), 2, (Started("a"),), summary(head, RUNNING), desk.ownership, NEVER
        )  # type: ignore[arg-type]
        stored = await desk.sagas.load(head.saga_id)
        assert stored.owner == "n1"
        assert stored.entries[-1].epoch == started.epoch
        with pytest.raises(WrongState, match='Saga "s1" has been started already'):
            await desk.sagas.start(
                await desk.sagas.load(head.saga_id), 2, (Started("b"),), summary(head, RUNNING), desk.ownership, NEVER
            )  # type: ignore[arg-type]


class TestCommands:
    async def waiting(self, desk: Desk) -> int:
        prefix = desk.keys.commands
        return (await desk.kv.get(Get(prefix, prefix_end(prefix)))).count

    async def test_a_command_is_kept_for_a_created_and_for_an_active_saga(self, desk: Desk) -> None:
        await desk.submit(await desk.head("created"), started=False)
        await desk.submit(await desk.head("active"))
        for saga_id in ("created", "active"):
            assert await desk.sagas.command(SagaId(saga_id), "c1", b"pause", NEVER)
            assert await desk.sagas.command(SagaId(saga_id), "c1", b"pause", NEVER), "the same again is the same"
            assert await desk.sagas.commands(SagaId(saga_id)) == [("c1", b"pause")]

    async def test_a_command_for_a_saga_that_has_ended_or_never_was_is_not_kept(self, desk: Desk) -> None:
        head = await desk.head("ended")
        epoch = (await desk.submit(head)).epoch
        assert epoch is not None
        assert await desk.sagas.command(head.saga_id, "before", b"x", NEVER)
        await desk.append(head.saga_id, epoch, 4, (SUCCEEDED,), summary=summary(head, DONE), ended=True, give_up=NEVER)
        for saga_id in ("ended", "nobody"):
            assert not await desk.sagas.command(SagaId(saga_id), "late", b"x", NEVER)
        assert await self.waiting(desk) == 0, "what an ended saga did not take up goes with it"

    async def test_they_are_told_in_the_order_in_which_they_were_given(self, desk: Desk, other: Desk) -> None:
        """Whatever their ids: a later deadline replaces an earlier one."""
        await desk.submit(await desk.head("s1"), owned=False)
        await desk.submit(await desk.head("s10"), owned=False)
        given = [("z", b"1"), ("m", b"2"), ("a", b"3"), ("b", b"4")]
        for command_id, message in given:
            assert await desk.sagas.command(SagaId("s1"), command_id, message, NEVER)
        assert await desk.sagas.command(SagaId("s10"), "another", b"5", NEVER)
        assert await desk.sagas.commands(SagaId("s1")) == given
        claimed = await other.sagas.claim([SagaId("s1"), SagaId("s10")], other.ownership, NEVER)
        assert claimed[SagaId("s1")].commands == given
        assert claimed[SagaId("s10")].commands == [("another", b"5")]

    async def test_a_claim_whose_answer_was_lost_has_the_commands(self, memory_desk: Desk) -> None:
        await memory_desk.submit(await memory_desk.head("s1"), owned=False)
        await memory_desk.sagas.command(SagaId("s1"), "c1", b"x", NEVER)
        kv = memory_desk.kv
        assert isinstance(kv, MemoryKv)
        kv.lose_next_answer()
        claimed = await memory_desk.sagas.claim([SagaId("s1")], memory_desk.ownership, NEVER)
        assert claimed[SagaId("s1")].commands == [("c1", b"x")]

    async def test_a_start_removes_those_that_it_takes_up_and_no_others(self, desk: Desk) -> None:
        head = await desk.head("s1")
        await desk.submit(head, started=False)
        for command_id in ("c1", "c2", "c3"):
            await desk.sagas.command(head.saga_id, command_id, b"x", NEVER)
        records, running = (StartRequested(),), summary(head, RUNNING)
        with pytest.raises(WrongState):
            await desk.sagas.start(await desk.sagas.load(head.saga_id), 1, records, running, desk.ownership, NEVER, ["c1"])
        assert len(await desk.sagas.commands(head.saga_id)) == 3, "a start that was refused takes nothing up"
        await desk.sagas.start(await desk.sagas.load(head.saga_id), 2, records, running, desk.ownership, NEVER, ["c1", "c3"])
        assert await desk.sagas.commands(head.saga_id) == [("c2", b"x")]

    async def test_a_start_that_nobody_owns_leaves_them_to_the_claimer(self, desk: Desk, other: Desk) -> None:
        head = await desk.head("s1")
        await desk.submit(head, started=False)
        await desk.sagas.command(head.saga_id, "c1", b"x", NEVER)
        await desk.sagas.start(await desk.sagas.load(head.saga_id), 2, (StartRequested(),), summary(head, RUNNING), None, NEVER)
        claimed = await other.sagas.claim([head.saga_id], other.ownership, NEVER)
        assert claimed[head.saga_id].commands == [("c1", b"x")]

    async def test_a_start_whose_answer_was_lost_takes_them_up_once(self, memory_desk: Desk) -> None:
        head = await memory_desk.head("s1")
        await memory_desk.submit(head, started=False)
        await memory_desk.sagas.command(head.saga_id, "c1", b"x", NEVER)
        kv = memory_desk.kv
        assert isinstance(kv, MemoryKv)
        stored = await memory_desk.sagas.load(head.saga_id)
        kv.lose_next_answer()
        running = summary(head, RUNNING)
        started = await memory_desk.sagas.start(stored, 2, (StartRequested(),), running, memory_desk.ownership, NEVER, ["c1"])
        assert await memory_desk.sagas.owns(head.saga_id, started.epoch)  # type: ignore[arg-type]
        assert await memory_desk.sagas.commands(head.saga_id) == []

    async def test_many_commands_of_one_saga_fit_beside_many_sagas(self, desk: Desk) -> None:
        """etcd bounds the operations of a transaction, those of the nested ones with them."""
        head = await desk.head("s1")
        await desk.submit(head, started=False)
        ids = [f"c{i}" for i in range(MAX_PER_STEP)]
        for command_id in ids:
            await desk.sagas.command(head.saga_id, command_id, b"x", NEVER)
        neighbours = [await desk.head(f"n{i}") for i in range(150)]
        start = desk.sagas.start(
            await desk.sagas.load(head.saga_id), 2, (StartRequested(),), summary(head, RUNNING), desk.ownership, NEVER, ids
        )
        answers = await asyncio.gather(
            *(desk.submit(n) for n in neighbours[:75]), start, *(desk.submit(n) for n in neighbours[75:])
        )
        assert all(answer.created and answer.epoch for answer in answers)
        assert await self.waiting(desk) == 0
        at = {(await desk.sagas.load(n.saga_id)).entries[0].epoch for n in neighbours}
        assert len(at) < 10, "they still share transactions"


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
        await desk.append(head.saga_id, epoch, 4, (SUCCEEDED,), summary=summary(head, DONE), ended=True, give_up=NEVER)
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


class TestRemoval:
    async def ended(self, desk: Desk, saga_id: str) -> KeyValue:
        head = await desk.head(saga_id)
        epoch = (await desk.submit(head)).epoch
        assert epoch is not None
        await desk.append(head.saga_id, epoch, 4, (SUCCEEDED,), summary=summary(head, DONE), ended=True, give_up=NEVER)
        return (await desk.kv.get(Get(desk.keys.ended(head.saga_id)))).items[0]

    async def keys_of(self, desk: Desk, saga_id: str) -> set[bytes]:
        """Every key that has the saga's id as one of its segments."""
        found = await desk.kv.get(Get(desk.prefix, prefix_end(desk.prefix)))
        return {item.key for item in found.items if saga_id.encode() in item.key.split(b"/")}

    async def test_nothing_is_left_of_a_saga_that_was_deleted_and_its_neighbours_stay(self, desk: Desk) -> None:
        for saga_id in ("s1", "s10", "s"):
            await self.ended(desk, saga_id)
        before = await self.keys_of(desk, "s10") | await self.keys_of(desk, "s")
        assert len(await self.keys_of(desk, "s1")) == 4, "its head, two batches of its log, and the index"
        await desk.sagas.delete(SagaId("s1"), NEVER)
        assert await self.keys_of(desk, "s1") == set()
        assert await self.keys_of(desk, "s10") | await self.keys_of(desk, "s") == before
        with pytest.raises(SagaNotFound, match='There is no saga "s1"'):
            await desk.sagas.delete(SagaId("s1"), NEVER)

    async def test_one_that_was_never_started_goes_with_its_commands(self, desk: Desk) -> None:
        await desk.submit(await desk.head("s1"), started=False)
        await desk.sagas.command(SagaId("s1"), "c1", b"x", NEVER)
        await desk.sagas.delete(SagaId("s1"), NEVER)
        assert await self.keys_of(desk, "s1") == set()

    async def test_an_active_one_is_left_alone(self, desk: Desk) -> None:
        await desk.submit(await desk.head("s1"))
        before = await self.keys_of(desk, "s1")
        with pytest.raises(WrongState, match='Saga "s1" has not ended and cannot be deleted'):
            await desk.sagas.delete(SagaId("s1"), NEVER)
        assert await self.keys_of(desk, "s1") == before

    async def test_a_deletion_whose_answer_was_lost_has_happened(self, memory_desk: Desk) -> None:
        await self.ended(memory_desk, "s1")
        kv = memory_desk.kv
        assert isinstance(kv, MemoryKv)
        kv.lose_next_answer()
        await memory_desk.sagas.delete(SagaId("s1"), NEVER)
        assert await self.keys_of(memory_desk, "s1") == set()

    async def test_another_saga_under_the_same_id_is_not_started_in_the_place_of_one_that_was_deleted(self, desk: Desk) -> None:
        await desk.submit(await desk.head("s1"), started=False)
        read_before = await desk.sagas.load(SagaId("s1"))
        await desk.sagas.delete(SagaId("s1"), NEVER)
        another = await desk.head("s1", params="another")
        await desk.submit(another, started=False)
        with pytest.raises(WrongState, match="or was deleted meanwhile"):
            await desk.sagas.start(read_before, 2, (StartRequested(),), summary(another, RUNNING), desk.ownership, NEVER)
        assert len((await desk.sagas.load(SagaId("s1"))).entries) == 1

    async def test_what_a_leader_removes_is_fenced_by_its_leadership_and_by_the_saga_that_it_saw(self, desk: Desk) -> None:
        leader = desk.prefix + b"leader"
        revision = (await desk.kv.txn(Txn(then=[Put(leader, b"")]))).revision
        seen = await self.ended(desk, "s1")
        assert not await desk.sagas.remove_ended(seen, created_at(leader, revision + 1))
        await desk.sagas.delete(SagaId("s1"), NEVER)
        again = await self.ended(desk, "s1")
        assert not await desk.sagas.remove_ended(seen, created_at(leader, revision))
        assert len(await self.keys_of(desk, "s1")) == 4
        assert await desk.sagas.remove_ended(again, created_at(leader, revision))
        assert await self.keys_of(desk, "s1") == set()
