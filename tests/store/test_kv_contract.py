"""The contract of `sec.store.kv`, over the store in memory and a real etcd."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

import pytest
from store_support import Store, batch, brief, events, keys, put

from sec.store.kv import (
    MAX_TXN_OPS,
    NO_LEASE,
    Compacted,
    Compare,
    Delete,
    DeleteResult,
    Event,
    EventKind,
    Get,
    GetResult,
    Kv,
    KvRefused,
    LeaseNotFound,
    Op,
    Put,
    PutResult,
    Relation,
    Revision,
    Target,
    Txn,
    TxnResult,
    WatchBatch,
    absent,
    created_at,
    exists,
    prefix_end,
)


class TestTxn:
    async def test_takes_then_when_every_compare_holds(self, kv: Kv, prefix: bytes) -> None:
        a, b = prefix + b"a", prefix + b"b"
        result = await kv.txn(Txn((absent(a), absent(b)), (Put(a, b"1"), Get(a)), (Put(b, b"1"),)))
        assert result.succeeded
        assert result.results[0] == PutResult(result.revision)
        got = result.results[1]
        assert isinstance(got, GetResult)
        assert [(item.value, item.create_revision, item.version) for item in got.items] == [(b"1", result.revision, 1)]
        assert await keys(kv, prefix) == {b"a": b"1"}

    async def test_takes_otherwise_when_one_compare_fails(self, kv: Kv, prefix: bytes) -> None:
        a, b = prefix + b"a", prefix + b"b"
        result = await kv.txn(Txn((absent(a), exists(b)), (Put(a, b"1"),), (Put(b, b"2"), Delete(a))))
        assert not result.succeeded
        assert result.results[1:] == (DeleteResult(result.revision, 0),)
        assert await keys(kv, prefix) == {b"b": b"2"}

    async def test_a_transaction_that_writes_nothing_leaves_the_revision(self, kv: Kv, prefix: bytes) -> None:
        before = await put(kv, prefix + b"a")
        result = await kv.txn(Txn((exists(prefix + b"b"),), (Put(prefix + b"b", b""),), (Delete(prefix + b"b"),)))
        assert result.revision == before
        assert (await kv.txn(Txn())).revision == before
        assert await put(kv, prefix + b"a") == before + 1

    async def test_all_writes_have_one_revision(self, kv: Kv, prefix: bytes) -> None:
        result = await kv.txn(Txn(then=[Put(prefix + b"%d" % n, b"") for n in range(5)]))
        found = await kv.get(Get(prefix, prefix_end(prefix)))
        assert {item.mod_revision for item in found.items} == {result.revision}

    async def test_reads_see_the_writes_before_them(self, kv: Kv, prefix: bytes) -> None:
        before = await put(kv, prefix + b"a", b"old")
        result = await kv.txn(Txn(then=[Get(prefix + b"a"), Put(prefix + b"a", b"new"), Get(prefix + b"a")]))
        first, _, last = result.results
        assert isinstance(first, GetResult)
        assert isinstance(last, GetResult)
        assert (first.items[0].value, first.revision) == (b"old", before)
        assert (last.items[0].value, last.revision, last.items[0].version) == (b"new", before + 1, 2)

    @pytest.mark.parametrize(
        ("target", "relation", "operand", "holds"),
        [
            (Target.VERSION, Relation.EQUAL, 2, True),
            (Target.VERSION, Relation.GREATER, 2, False),
            (Target.VERSION, Relation.LESS, 3, True),
            (Target.VERSION, Relation.NOT_EQUAL, 1, True),
            (Target.CREATE, Relation.GREATER, 0, True),
            (Target.CREATE, Relation.EQUAL, 0, False),
            (Target.MOD, Relation.GREATER, 1, True),
            (Target.VALUE, Relation.EQUAL, b"m", True),
            (Target.VALUE, Relation.NOT_EQUAL, b"m", False),
            (Target.VALUE, Relation.GREATER, b"l", True),
            (Target.VALUE, Relation.LESS, b"ma", True),
        ],
    )
    async def test_compares(
        self, kv: Kv, prefix: bytes, target: Target, relation: Relation, operand: int | bytes, holds: bool
    ) -> None:
        await put(kv, prefix + b"a", b"first")
        await put(kv, prefix + b"a", b"m")
        assert (await kv.txn(Txn((Compare(prefix + b"a", target, relation, operand),)))).succeeded is holds

    @pytest.mark.parametrize("relation", list(Relation))
    async def test_no_value_compares_with_the_value_of_an_absent_key(self, kv: Kv, prefix: bytes, relation: Relation) -> None:
        assert not (await kv.txn(Txn((Compare(prefix + b"a", Target.VALUE, relation, b""),)))).succeeded

    async def test_an_absent_key_has_version_and_revisions_0(self, kv: Kv, prefix: bytes) -> None:
        targets = (Target.VERSION, Target.CREATE, Target.MOD)
        assert (await kv.txn(Txn([Compare(prefix, target, Relation.EQUAL, 0) for target in targets]))).succeeded

    async def test_the_fencing_compare_fails_once_the_key_was_created_anew(self, kv: Kv, prefix: bytes) -> None:
        first = await put(kv, prefix + b"owner")
        assert (await kv.txn(Txn((created_at(prefix + b"owner", first),)))).succeeded
        await kv.txn(Txn(then=[Delete(prefix + b"owner")]))
        second = await put(kv, prefix + b"owner")
        assert not (await kv.txn(Txn((created_at(prefix + b"owner", first),)))).succeeded
        assert (await kv.txn(Txn((created_at(prefix + b"owner", second),)))).succeeded

    async def test_deletes_a_range(self, kv: Kv, prefix: bytes) -> None:
        for name in (b"a", b"b", b"c"):
            await put(kv, prefix + name)
        result = await kv.txn(Txn(then=[Delete(prefix + b"a", prefix + b"c")]))
        assert result.results == (DeleteResult(result.revision, 2),)
        assert await keys(kv, prefix) == {b"c": b""}


class TestNested:
    async def test_one_that_fails_does_not_fail_the_others(self, kv: Kv, prefix: bytes) -> None:
        a, b, c = prefix + b"a", prefix + b"b", prefix + b"c"
        await put(kv, b, b"taken")
        result = await kv.txn(Txn(then=[Txn((absent(key),), (Put(key, b"new"),), (Get(key),)) for key in (a, b, c)]))
        nested = [each for each in result.results if isinstance(each, TxnResult)]
        assert [each.succeeded for each in nested] == [True, False, True]
        assert {each.revision for each in nested} == {result.revision}
        (read,) = nested[1].results
        assert isinstance(read, GetResult)
        assert read.items[0].value == b"taken"
        assert await keys(kv, prefix) == {b"a": b"new", b"b": b"taken", b"c": b"new"}

    async def test_every_compare_is_evaluated_before_any_write(self, kv: Kv, prefix: bytes) -> None:
        a, b, c = prefix + b"a", prefix + b"b", prefix + b"c"
        result = await kv.txn(
            Txn(then=[Put(a, b""), Txn((exists(a),), (Put(b, b"saw the write"),), (Put(b, b"saw the state before"),)), Put(c, b"")])
        )
        nested = result.results[1]
        assert isinstance(nested, TxnResult)
        assert not nested.succeeded
        assert (await keys(kv, prefix))[b"b"] == b"saw the state before"

    async def test_nests_deeper(self, kv: Kv, prefix: bytes) -> None:
        a = prefix + b"a"
        inner = Txn((absent(a),), (Put(a, b"innermost"),))
        result = await kv.txn(Txn(then=[Get(a), Txn((exists(a),), (), (Txn(then=[inner]),)), Txn((absent(a),))]))
        middle = result.results[1]
        assert isinstance(middle, TxnResult)
        deep = middle.results[0]
        assert isinstance(deep, TxnResult)
        deepest = deep.results[0]
        assert isinstance(deepest, TxnResult)
        assert (middle.succeeded, deep.succeeded, deepest.succeeded) == (False, True, True)
        last = result.results[2]
        assert isinstance(last, TxnResult)
        assert last.succeeded
        assert await keys(kv, prefix) == {b"a": b"innermost"}

    async def test_both_branches_of_one_may_write_the_same_key(self, kv: Kv, prefix: bytes) -> None:
        a = prefix + b"a"
        await kv.txn(Txn(then=[Txn((exists(a),), (Put(a, b"then"),), (Put(a, b"otherwise"),))]))
        assert await keys(kv, prefix) == {b"a": b"otherwise"}

    async def test_a_dead_lease_in_the_branch_not_taken_is_not_looked_at(self, kv: Kv, prefix: bytes) -> None:
        lease = await kv.lease_grant(60)
        await kv.lease_revoke(lease)
        a = prefix + b"a"
        await kv.txn(Txn(then=[Txn((exists(a),), (Put(a, b"", lease),), (Put(a, b"without"),))]))
        assert await keys(kv, prefix) == {b"a": b"without"}
        with pytest.raises(LeaseNotFound):
            await kv.txn(Txn(then=[Put(prefix + b"b", b""), Txn(then=[Put(prefix + b"c", b"", lease)])]))
        assert await keys(kv, prefix) == {b"a": b"without"}


def _put(key: bytes) -> Put:
    return Put(key, b"")


class TestRefusals:
    @pytest.mark.parametrize(
        "ops",
        [
            [_put(b"a"), _put(b"a")],
            [_put(b"a"), Delete(b"a")],
            [Delete(b"a", b"c"), _put(b"b")],
            [_put(b"a"), Txn(then=[_put(b"a")])],
            [Txn(then=[_put(b"a")]), Txn(otherwise=[_put(b"a")])],
            [Delete(b"a"), Txn(then=[Txn(then=[_put(b"a")])])],
            [Txn(then=[Delete(b"a")]), Txn(then=[_put(b"a")])],
        ],
    )
    async def test_a_key_is_written_once(self, kv: Kv, prefix: bytes, ops: Sequence[Op]) -> None:
        def under_prefix(op: Op) -> Op:
            match op:
                case Put():
                    return _put(prefix + op.key)
                case Delete():
                    return Delete(prefix + op.key, prefix + op.range_end if op.range_end else None)
                case Get():
                    return op
                case Txn():
                    return Txn((), [under_prefix(each) for each in op.then], [under_prefix(each) for each in op.otherwise])

        with pytest.raises(KvRefused):
            await kv.txn(Txn(then=[under_prefix(op) for op in ops]))
        with pytest.raises(KvRefused):
            await kv.txn(Txn(otherwise=[under_prefix(op) for op in ops]))
        assert await keys(kv, prefix) == {}

    @pytest.mark.parametrize(
        "ops",
        [
            [Delete(b"a"), Delete(b"a", b"c")],
            [Txn((exists(b"z"),), [Delete(b"a")]), Txn((exists(b"z"),), [Delete(b"a")])],
            [Txn((exists(b"z"),), [_put(b"a")], [Delete(b"a")])],
            [Txn((exists(b"z"),), [_put(b"a")]), Txn((exists(b"z"),), [Delete(b"a")])],
        ],
    )
    async def test_what_is_allowed(self, kv: Kv, prefix: bytes, ops: Sequence[Op]) -> None:
        await kv.txn(Txn((absent(prefix + b"never"), exists(prefix + b"never")), then=ops))

    async def test_too_many_operations(self, kv: Kv, prefix: bytes) -> None:
        def puts(level: int, n: int) -> list[Op]:
            return [Put(prefix + b"%d-%d" % (level, i), b"") for i in range(n)]

        await kv.txn(Txn(then=puts(0, MAX_TXN_OPS)))
        with pytest.raises(KvRefused):
            await kv.txn(Txn(then=puts(0, MAX_TXN_OPS + 1)))
        with pytest.raises(KvRefused):
            await kv.txn(Txn(compares=[absent(prefix + b"x%d" % n) for n in range(MAX_TXN_OPS + 1)]))

    async def test_the_operations_of_nested_ones_and_those_around_are_added(self, kv: Kv, prefix: bytes) -> None:
        half = MAX_TXN_OPS // 2

        def nested(n: int) -> Txn:
            each = [Txn(then=[Put(prefix + b"%d-%d" % (i, j), b"") for j in range(n)]) for i in range(half)]
            return Txn(then=each)

        await kv.txn(nested(half))
        assert len(await keys(kv, prefix)) == half * half
        with pytest.raises(KvRefused):
            await kv.txn(nested(half + 1))

    async def test_too_many_bytes(self, kv: Kv, prefix: bytes) -> None:
        await put(kv, prefix + b"a", b"x" * 1_500_000)
        with pytest.raises(KvRefused):
            await put(kv, prefix + b"b", b"x" * 1_600_000)
        with pytest.raises(KvRefused):
            await put(kv, prefix + b"b", b"x" * 5_000_000)
        assert list(await keys(kv, prefix)) == [b"a"]

    async def test_an_empty_key(self, kv: Kv) -> None:
        for op in (Put(b"", b""), Get(b""), Delete(b"")):
            with pytest.raises(KvRefused):
                await kv.txn(Txn(then=[op]))
        with pytest.raises(KvRefused):
            await kv.get(Get(b""))


class TestGet:
    async def test_ranges_in_key_order_and_limits(self, kv: Kv, prefix: bytes) -> None:
        for name in (b"c", b"a", b"b", b"d"):
            await put(kv, prefix + name, name)
        found = await kv.get(Get(prefix + b"a", prefix + b"d"))
        assert [item.value for item in found.items] == [b"a", b"b", b"c"]
        assert (found.more, found.count) == (False, 3)
        found = await kv.get(Get(prefix, prefix_end(prefix), limit=2))
        assert [item.value for item in found.items] == [b"a", b"b"]
        assert (found.more, found.count) == (True, 4)
        found = await kv.get(Get(prefix, prefix_end(prefix), limit=4))
        assert (found.more, found.count, len(found.items)) == (False, 4, 4)

    async def test_keys_only(self, kv: Kv, prefix: bytes) -> None:
        revision = await put(kv, prefix + b"a", b"value")
        (item,) = (await kv.get(Get(prefix, prefix_end(prefix), keys_only=True))).items
        assert (item.key, item.value, item.create_revision, item.version) == (prefix + b"a", b"", revision, 1)

    async def test_an_absent_key(self, kv: Kv, prefix: bytes) -> None:
        found = await kv.get(Get(prefix + b"a"))
        assert (found.items, found.more, found.count) == ((), False, 0)

    async def test_counts_versions_anew_after_a_deletion(self, kv: Kv, prefix: bytes) -> None:
        a = prefix + b"a"
        await put(kv, a)
        await put(kv, a)
        await kv.txn(Txn(then=[Delete(a)]))
        revision = await put(kv, a)
        (item,) = (await kv.get(Get(a))).items
        assert (item.create_revision, item.mod_revision, item.version) == (revision, revision, 1)

    async def test_at_a_revision(self, kv: Kv, prefix: bytes) -> None:
        a = prefix + b"a"
        first = await put(kv, a, b"1")
        second = await put(kv, a, b"2")
        third = (await kv.txn(Txn(then=[Delete(a)]))).revision
        assert [
            [item.value for item in (await kv.get(Get(prefix, prefix_end(prefix)), revision=Revision(at))).items]
            for at in (first - 1, first, second, third)
        ] == [[], [b"1"], [b"2"], []]
        assert (await kv.get(Get(a), revision=first)).revision == third

    async def test_in_the_future_is_refused(self, kv: Kv, prefix: bytes) -> None:
        revision = await put(kv, prefix + b"a")
        with pytest.raises(KvRefused):
            await kv.get(Get(prefix), revision=Revision(revision + 1000))

    async def test_serializable(self, kv: Kv, prefix: bytes) -> None:
        await put(kv, prefix + b"a", b"1")
        assert [item.value for item in (await kv.get(Get(prefix + b"a"), serializable=True)).items] == [b"1"]

    async def test_all_keys_from_one_on(self, kv: Kv, prefix: bytes) -> None:
        await put(kv, prefix + b"a")
        assert prefix + b"a" in [item.key for item in (await kv.get(Get(prefix, b"\0"))).items]
        assert prefix_end(b"\xff\xff") == b"\0"

    async def test_compacted(self, store: Store, kv: Kv, prefix: bytes) -> None:
        first = await put(kv, prefix + b"a", b"1")
        await kv.txn(Txn(then=[Delete(prefix + b"gone")]))
        second = await put(kv, prefix + b"a", b"2")
        third = await put(kv, prefix + b"a", b"3")
        await store.compact(second)
        with pytest.raises(Compacted):
            await kv.get(Get(prefix + b"a"), revision=first)
        assert (await kv.get(Get(prefix + b"a"), revision=second)).items[0].value == b"2"
        (item,) = (await kv.get(Get(prefix + b"a"))).items
        assert (item.value, item.create_revision, item.mod_revision, item.version) == (b"3", first, third, 3)


class TestLeases:
    async def test_keys_go_when_it_expires(self, kv: Kv, prefix: bytes) -> None:
        lease = await kv.lease_grant(1)
        await put(kv, prefix + b"a", b"", lease)
        await put(kv, prefix + b"b", b"")
        (item,) = (await kv.get(Get(prefix + b"a"))).items
        assert item.lease == lease
        async with aclosing(kv.watch(prefix, prefix_end(prefix))) as watch:
            assert brief(await events(watch)) == [("delete", prefix + b"a", b"")]
        assert await keys(kv, prefix) == {b"b": b""}
        with pytest.raises(LeaseNotFound):
            await kv.lease_keepalive(lease)

    async def test_a_renewed_one_lives_on(self, kv: Kv, prefix: bytes) -> None:
        renewed, left = await kv.lease_grant(2), await kv.lease_grant(2)
        await put(kv, prefix + b"renewed", b"", renewed)
        await put(kv, prefix + b"left", b"", left)
        async with aclosing(kv.watch(prefix, prefix_end(prefix))) as watch:
            await batch(watch)
            gone = asyncio.create_task(events(watch))
            while not gone.done():
                assert await kv.lease_keepalive(renewed) >= 2
                await asyncio.wait((gone,), timeout=0.3)
            assert brief(gone.result()) == [("delete", prefix + b"left", b"")]
        assert await keys(kv, prefix) == {b"renewed": b""}
        await kv.lease_revoke(renewed)

    async def test_keys_go_at_one_revision_when_it_is_revoked(self, kv: Kv, prefix: bytes) -> None:
        lease = await kv.lease_grant(60)
        await kv.txn(Txn(then=[Put(prefix + name, b"", lease) for name in (b"b", b"a", b"c")]))
        await kv.txn(Txn(then=[Delete(prefix + b"b")]))
        async with aclosing(kv.watch(prefix, prefix_end(prefix))) as watch:
            await batch(watch)
            await kv.lease_revoke(lease)
            found = await events(watch)
        assert brief(found) == [("delete", prefix + b"a", b""), ("delete", prefix + b"c", b"")]
        assert len({event.item.mod_revision for event in found}) == 1

    async def test_a_dead_one(self, kv: Kv, prefix: bytes) -> None:
        lease = await kv.lease_grant(60)
        assert await kv.lease_keepalive(lease) == 60
        await kv.lease_revoke(lease)
        with pytest.raises(LeaseNotFound):
            await kv.lease_keepalive(lease)
        with pytest.raises(LeaseNotFound):
            await kv.lease_revoke(lease)
        with pytest.raises(LeaseNotFound):
            await put(kv, prefix + b"a", b"", lease)
        assert await keys(kv, prefix) == {}

    async def test_a_put_moves_a_key(self, kv: Kv, prefix: bytes) -> None:
        first, second = await kv.lease_grant(60), await kv.lease_grant(60)
        await kv.txn(Txn(then=[Put(prefix + name, b"", first) for name in (b"moved", b"freed", b"kept")]))
        await put(kv, prefix + b"moved", b"", second)
        await put(kv, prefix + b"freed", b"")
        await kv.lease_revoke(first)
        assert await keys(kv, prefix) == {b"moved": b"", b"freed": b""}
        await kv.lease_revoke(second)
        assert await keys(kv, prefix) == {b"freed": b""}

    async def test_a_key_deleted_and_put_again_is_not_under_its_old_lease(self, kv: Kv, prefix: bytes) -> None:
        lease = await kv.lease_grant(60)
        await put(kv, prefix + b"a", b"", lease)
        await kv.txn(Txn(then=[Delete(prefix + b"a")]))
        await put(kv, prefix + b"a", b"")
        await kv.lease_revoke(lease)
        assert await keys(kv, prefix) == {b"a": b""}


class TestWatch:
    async def test_from_now(self, kv: Kv, prefix: bytes) -> None:
        revision = await put(kv, prefix + b"a", b"before")
        async with aclosing(kv.watch(prefix, prefix_end(prefix))) as watch:
            assert await batch(watch) == WatchBatch(revision)
            second = await put(kv, prefix + b"a", b"after")
            await put(kv, prefix[:-1] + b"x", b"outside")
            third = (await kv.txn(Txn(then=[Delete(prefix + b"a")]))).revision
            first_batch, second_batch = await batch(watch), await batch(watch)
        assert (first_batch.revision, brief(first_batch.events)) == (second, [("put", prefix + b"a", b"after")])
        assert (second_batch.revision, brief(second_batch.events)) == (third, [("delete", prefix + b"a", b"")])
        deletion = second_batch.events[0].item
        assert (deletion.mod_revision, deletion.create_revision, deletion.version, deletion.lease) == (third, 0, 0, NO_LEASE)

    async def test_one_key_only(self, kv: Kv, prefix: bytes) -> None:
        async with aclosing(kv.watch(prefix + b"a")) as watch:
            await batch(watch)
            await put(kv, prefix + b"ab")
            await put(kv, prefix + b"a", b"1")
            assert brief(await events(watch)) == [("put", prefix + b"a", b"1")]

    async def test_from_a_revision(self, kv: Kv, prefix: bytes) -> None:
        await put(kv, prefix + b"a", b"0")
        start = await put(kv, prefix + b"a", b"1")
        await put(kv, prefix + b"b", b"2")
        async with aclosing(kv.watch(prefix, prefix_end(prefix), start=start)) as watch:
            assert await batch(watch) == WatchBatch(Revision(start - 1))
            values: list[bytes] = []
            while len(values) < 2:
                values += [event.item.value for event in await events(watch)]
            assert values == [b"1", b"2"]
            await put(kv, prefix + b"a", b"3")
            assert [event.item.value for event in await events(watch)] == [b"3"]

    async def test_from_a_revision_to_come(self, kv: Kv, prefix: bytes) -> None:
        revision = await put(kv, prefix + b"a", b"0")
        async with aclosing(kv.watch(prefix, prefix_end(prefix), start=Revision(revision + 2))) as watch:
            assert (await batch(watch)).events == ()
            await put(kv, prefix + b"a", b"1")
            await put(kv, prefix + b"a", b"2")
            assert [event.item.value for event in await events(watch)] == [b"2"]

    async def test_a_revision_below_1_is_a_mistake_of_the_caller(self, kv: Kv) -> None:
        with pytest.raises(ValueError, match="revision 1 or later"):
            kv.watch(b"a", start=Revision(0))

    async def test_another_watch_goes_on_where_one_ended(self, kv: Kv, prefix: bytes) -> None:
        async with aclosing(kv.watch(prefix, prefix_end(prefix))) as watch:
            await batch(watch)
            await put(kv, prefix + b"a", b"1")
            last = (await batch(watch)).revision
        await put(kv, prefix + b"a", b"2")
        async with aclosing(kv.watch(prefix, prefix_end(prefix), start=Revision(last + 1))) as watch:
            assert [event.item.value for event in await events(watch)] == [b"2"]

    @pytest.mark.parametrize("late", [False, True])
    async def test_a_transaction_is_in_one_batch(self, kv: Kv, prefix: bytes, late: bool) -> None:
        # 60 revisions of 100 writes of 1000 bytes, read as they come or caught up with: far above etcd's size of a fragment.
        start = await put(kv, prefix + b"start")
        watch = kv.watch(prefix, prefix_end(prefix), start=Revision(start + 1))
        async with aclosing(watch):
            if not late:
                await batch(watch)
            write = Txn(then=[Put(prefix + b"%d" % n, b"x" * 1000) for n in range(100)])
            written = [(await kv.txn(write)).revision for _ in range(60)]  # others may write to the same store in between
            revisions: list[int] = []
            while not revisions or revisions[-1] < written[-1]:
                found = await batch(watch)
                if found.events:
                    counted = [event.item.mod_revision for event in found.events]
                    assert all(counted.count(revision) == 100 for revision in set(counted))
                    assert counted == sorted(counted)
                    assert found.revision == counted[-1]
                    revisions += sorted(set(counted))
            assert revisions == written

    async def test_events_come_in_the_order_of_the_operations(self, kv: Kv, prefix: bytes) -> None:
        names = [b"c", b"a", b"b"]
        async with aclosing(kv.watch(prefix, prefix_end(prefix))) as watch:
            await batch(watch)
            await kv.txn(
                Txn(then=[Put(prefix + names[0], b""), Txn(then=[Put(prefix + names[1], b"")]), Put(prefix + names[2], b"")])
            )
            assert [event.item.key.removeprefix(prefix) for event in await events(watch)] == names

    async def test_previous(self, kv: Kv, prefix: bytes) -> None:
        a = prefix + b"a"
        async with aclosing(kv.watch(a, previous=True)) as watch:
            await batch(watch)
            await put(kv, a, b"1")
            await put(kv, a, b"2")
            await kv.txn(Txn(then=[Delete(a)]))
            found: list[Event] = []
            while len(found) < 3:
                found += await events(watch)
        assert [event.previous.value if event.previous else None for event in found] == [None, b"1", b"2"]
        assert [event.kind for event in found] == [EventKind.PUT, EventKind.PUT, EventKind.DELETE]

    async def test_without_previous(self, kv: Kv, prefix: bytes) -> None:
        async with aclosing(kv.watch(prefix + b"a")) as watch:
            await batch(watch)
            await put(kv, prefix + b"a", b"1")
            await put(kv, prefix + b"a", b"2")
            assert [event.previous for event in (*await events(watch), *await events(watch))] == [None, None]

    async def test_compacted(self, store: Store, kv: Kv, prefix: bytes) -> None:
        start = await put(kv, prefix + b"a", b"1")
        await put(kv, prefix + b"a", b"2")
        last = await put(kv, prefix + b"a", b"3")
        await store.compact(last)
        async with aclosing(kv.watch(prefix, prefix_end(prefix), start=start)) as watch:
            for _ in range(2):
                with pytest.raises(Compacted):
                    await events(watch)
        async with aclosing(kv.watch(prefix, prefix_end(prefix), start=last)) as watch:
            assert [event.item.value for event in await events(watch)] == [b"3"]

    async def test_a_compaction_does_not_end_a_watch_that_is_ahead(self, store: Store, kv: Kv, prefix: bytes) -> None:
        async with aclosing(kv.watch(prefix, prefix_end(prefix))) as watch:
            await batch(watch)
            for _ in range(3):
                revision = await put(kv, b"/elsewhere" + prefix)
            await store.compact(revision)
            await put(kv, prefix + b"a", b"1")
            assert [event.item.value for event in await events(watch)] == [b"1"]

    async def test_a_cancelled_wait_loses_nothing(self, kv: Kv, prefix: bytes) -> None:
        async with aclosing(kv.watch(prefix, prefix_end(prefix))) as watch:
            await batch(watch)
            for _ in range(3):
                waiting = asyncio.ensure_future(anext(watch))
                await asyncio.wait((waiting,), timeout=0.01)
                waiting.cancel()
                await asyncio.wait((waiting,))
            for n in range(3):
                await put(kv, prefix + b"a", b"%d" % n)
            assert [(await events(watch))[0].item.value for _ in range(3)] == [b"0", b"1", b"2"]

    async def test_closing_ends_it(self, store: Store, kv: Kv, prefix: bytes) -> None:
        watch, other = kv.watch(prefix), store.kv().watch(prefix)
        await batch(watch)
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.wait((waiting,), timeout=0.01)
        await watch.aclose()
        for ended in (waiting, anext(watch)):
            with pytest.raises(StopAsyncIteration):
                await ended
        await batch(other)
        await other.aclose()
        await other.aclose()

    async def test_many_at_once(self, kv: Kv, prefix: bytes) -> None:
        watches = [kv.watch(prefix + b"%d" % n) for n in range(50)]
        await asyncio.gather(*(batch(watch) for watch in watches))
        await kv.txn(Txn(then=[Put(prefix + b"%d" % n, b"%d" % n) for n in range(50)]))
        found = await asyncio.gather(*(events(watch) for watch in watches))
        assert [[event.item.value for event in each] for each in found] == [[b"%d" % n] for n in range(50)]
        for watch in watches:
            await watch.aclose()

    async def test_the_changes_of_other_clients(self, store: Store, kv: Kv, prefix: bytes) -> None:
        async with aclosing(kv.watch(prefix + b"a")) as watch:
            await batch(watch)
            await put(store.kv(), prefix + b"a", b"1")
            assert [event.item.value for event in await events(watch)] == [b"1"]


async def test_status(kv: Kv) -> None:
    status = await kv.status()
    assert int(status.version.split(".")[0]) >= 3
    assert not status.full


async def test_concurrent_transactions_on_one_key(kv: Kv, prefix: bytes) -> None:
    results = await asyncio.gather(*(kv.txn(Txn((absent(prefix),), (Put(prefix, b"%d" % n),))) for n in range(20)))
    assert [result.succeeded for result in results].count(True) == 1
