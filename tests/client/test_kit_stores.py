"""What every store of the kit promises of `call.db`: the effects and the mark are one transaction. One suite, over all stores that have a database."""

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy
from client_support import Actions, eventually, serving, status_of
from sec_client.kit import ActionFailed, ActionServer, Call, MemoryStore
from sec_client.kit.rules import Delivery, Entry, Mark, Repeat, Run, Stale
from stores_support import KINDS, SHARED_KINDS, Stores, stores_of

WITH_DATABASE = [kind for kind in KINDS if kind != "memory"]


@pytest.fixture(params=WITH_DATABASE)
async def stores(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stores]:
    made = stores_of(request.param, tmp_path, request)
    yield made
    await made.dispose()


shared = pytest.mark.parametrize("stores", SHARED_KINDS, indirect=True)
blocking = pytest.mark.parametrize("stores", [kind for kind in WITH_DATABASE if not kind.startswith("async")], indirect=True)


class Things:
    """A server that keeps things; it raises `errors`, one after the other, between the effect and the return."""

    def __init__(self, stores: Stores, **options: Any) -> None:
        self.stores = stores
        self.store = stores.make(**options)
        self.server = ActionServer("things", store=self.store)
        self.errors: list[BaseException] = []
        self.entered = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.thread_gate = threading.Event()

        @self.server.action("make")
        async def make(call: Call) -> str:
            await self._effect(stores.insert, await call.open_db(), call.key)
            self.entered += 1
            await self.gate.wait()
            self._raise()
            return call.key

        @make.undo
        async def remove(call: Call) -> None:
            await self._effect(stores.delete, await call.open_db(), call.key)
            self._raise()

        if not stores.is_async:

            @self.server.action("make_in_thread")
            def make_in_thread(call: Call) -> str:
                with call.db as db:
                    stores.insert(db, call.key)
                self._raise()
                return call.key

            @make_in_thread.undo
            def remove_in_thread(call: Call) -> None:
                stores.delete(call.db, call.key)
                self._raise()

            @self.server.action("hang_in_thread", undo=None)
            def hang(call: Call) -> None:
                stores.insert(call.db, call.key)
                self.entered += 1
                self.thread_gate.wait(10)
                stores.insert(call.db, "late")

    async def _effect(self, effect: Any, db: Any, name: str) -> None:
        if self.stores.is_async:
            await effect(db, name)
        else:
            await asyncio.to_thread(effect, db, name)

    def _raise(self) -> None:
        if self.errors:
            raise self.errors.pop(0)


@pytest.mark.parametrize("on_thread", [False, True], ids=["on the event loop", "on a thread"])
async def test_an_effect_is_had_with_its_mark_or_not_at_all(stores: Stores, on_thread: bool) -> None:
    things = Things(stores)
    action = "make_in_thread" if on_thread and not stores.is_async else "make"
    async with serving(things.server) as actions:
        things.errors.append(RuntimeError("after the effect"))
        assert (await status_of(actions.do(action)))[0] is grpc.StatusCode.INTERNAL
        assert stores.names() == []
        things.errors.append(ActionFailed("No."))
        assert (await actions.do(action, "k2")).failure.message == "No."
        assert (await actions.do(action, "k2")).failure.message == "No."
        assert stores.names() == []
        await actions.do(action)
        await actions.do(action)
        assert stores.names() == ["k1"]
        things.errors.append(RuntimeError("in the undo"))
        assert (await status_of(actions.undo(action)))[0] is grpc.StatusCode.INTERNAL
        assert stores.names() == ["k1"]
        await actions.undo(action)
        assert stores.names() == []
        assert (await actions.do(action)).failure.code == "undone"


async def test_many_calls_with_effects(stores: Stores) -> None:
    things = Things(stores)
    async with serving(things.server) as actions:
        keys = [f"k{n:02}" for n in range(30)]
        await asyncio.gather(*(actions.do("make", key) for key in keys))
        assert stores.names() == keys
        await asyncio.gather(*(actions.undo("make", key) for key in keys))
        assert stores.names() == []


async def test_a_handler_cannot_end_the_transaction(stores: Stores) -> None:
    server, how = ActionServer("things", store=stores.make()), ""

    @server.action("end", undo=None)
    async def end(call: Call) -> None:
        db = await call.open_db()
        done = stores.insert(db, call.key)
        if inspect.isawaitable(done):
            await done
        done = getattr(db, how)()
        if inspect.isawaitable(done):
            await done

    async with serving(server) as actions:
        for how in ("commit", "rollback", "close"):  # read by the action
            code, text = await status_of(actions.do("end", how))
            assert code is grpc.StatusCode.INTERNAL
            assert "he kit " in text
    assert stores.names() == []


@pytest.mark.parametrize("statement", ["COMMIT", "ROLLBACK"])
async def test_a_handler_that_ends_the_transaction_by_a_statement_is_found_out(stores: Stores, statement: str) -> None:
    server = ActionServer("things", store=stores.make())

    @server.action("end", undo=None)
    async def end(call: Call) -> None:
        db = await call.open_db()
        if "async" in stores.kind or "sqlalchemy" in stores.kind:
            done = db.execute(sqlalchemy.text(statement))
        else:
            done = db.execute(statement)
        if inspect.isawaitable(done):
            await done
        if stores.kind != "sqlite":  # whose connection commits by itself then
            done = stores.insert(db, call.key)
            if inspect.isawaitable(done):
                await done

    async with serving(server) as actions:
        code, text = await status_of(actions.do("end"))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "end" in text
    assert "the transaction" in text
    assert stores.names() == []


@shared
async def test_a_statement_that_failed_and_was_passed_over_leaves_the_outcome_unknown(stores: Stores) -> None:
    server = ActionServer("things", store=stores.make())

    @server.action("twice", undo=None)
    async def twice(call: Call) -> None:
        db = await call.open_db()
        for _ in range(2):
            try:
                done = stores.insert(db, call.key)
                if inspect.isawaitable(done):
                    await done
            except Exception as error:
                call.log.info("passed over: %s", error)

    async with serving(server) as actions:
        code, text = await status_of(actions.do("twice"))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "must raise when a statement fails" in text
    assert stores.names() == []


async def test_a_stop_without_grace_drops_the_effects_of_a_call_under_way(stores: Stores) -> None:
    things = Things(stores)
    things.gate.clear()
    await things.server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{things.server.port}") as channel:
        call = asyncio.ensure_future(Actions(channel).do("make"))
        await eventually(lambda: things.entered == 1)
        await things.server.stop(0)
        await status_of(call)
    assert stores.names() == []


@blocking
async def test_a_stop_without_grace_takes_the_database_from_a_thread_that_goes_on(stores: Stores) -> None:
    things = Things(stores)
    await things.server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{things.server.port}") as channel:
        call = asyncio.ensure_future(Actions(channel).do("hang_in_thread"))
        await eventually(lambda: things.entered == 1)
        await things.server.stop(0)
        await status_of(call)
    things.thread_gate.set()
    await eventually(lambda: not any(t.name.startswith("sec-action") for t in threading.enumerate()))
    assert stores.names() == []


async def test_marks_outlive_the_store(stores: Stores) -> None:
    do, undo = Delivery("k", "u", 5, undo=False), Delivery("k", "u", 5, undo=True)
    store = stores.make()
    await store.open("things")
    async with store.hold("k"):
        assert await store.begin(do) == Run(first=True)
        effects = await store.begin_effects(do)
        await store.finish(do, Entry(Mark.DONE, b"\x00out\xff"), effects)
    await store.close()
    again = stores.make()
    await again.open("things")
    assert await again.begin(do) == Repeat(Entry(Mark.DONE, b"\x00out\xff"))
    assert await again.begin(Delivery("k2", "u", 4, undo=False)) == Stale(5)
    assert await again.remember_epoch("u", 3) == 5
    assert await again.remember_epoch("u", 7) == 7
    assert await again.remember_epoch("another", 1) == 1
    assert await again.begin(undo) == Stale(7)
    async with again.hold("k"):
        last = Delivery("k", "u", 8, undo=True)
        assert await again.begin(last) == Run(b"\x00out\xff")
        await again.finish(last, Entry(Mark.UNDONE), None)
    assert await again.begin(last) == Repeat(Entry(Mark.UNDONE))
    await again.close()
    await again.close()


async def test_pruned_sagas_are_forgotten(stores: Stores) -> None:
    store, do = stores.make(), Delivery("k", "u", 5, undo=False)
    await store.open("things")
    await store.begin(do)
    assert await store.prune(3600) == 0
    assert await store.prune(-10) == 1
    assert await store.begin(Delivery("k", "u", 4, undo=False)) == Run(first=True)
    await store.close()


@shared
async def test_effects_of_several_calls_are_open_at_once(stores: Stores) -> None:
    things = Things(stores)
    things.gate.clear()
    async with serving(things.server) as actions:
        calls = [asyncio.ensure_future(actions.do("make", f"k{n}")) for n in range(8)]
        await eventually(lambda: things.entered == 8)
        assert (await actions.undo("make", "another")) is not None  # and marks do not wait for them
        things.gate.set()
        await asyncio.gather(*calls)
    assert stores.names() == [f"k{n}" for n in range(8)]


@shared
async def test_calls_beyond_the_connections_wait(stores: Stores) -> None:
    things = Things(stores, max_connections=3)
    async with serving(things.server) as actions:
        await asyncio.gather(*(actions.do("make", f"k{n}") for n in range(8)))
    assert stores.names() == [f"k{n}" for n in range(8)]


@shared
async def test_two_processes_run_a_key_one_after_the_other(stores: Stores) -> None:
    one, two = Things(stores), Things(stores)
    one.gate.clear()
    async with serving(one.server) as first, serving(two.server) as second:
        doing = asyncio.ensure_future(first.do("make"))
        await eventually(lambda: one.entered == 1)
        again, undoing = asyncio.ensure_future(second.do("make")), None
        await second.do("make", "other")  # the second process answers other keys meanwhile
        assert two.entered == 1
        one.gate.set()
        assert (await doing) == (await again)
        assert two.entered == 1
        undoing = await second.undo("make")
        assert not undoing.HasField("failure")
        assert (await first.do("make")).failure.code == "undone"
    assert stores.names() == ["other"]


@shared
async def test_epochs_of_two_processes_are_compared(stores: Stores) -> None:
    one, two = Things(stores), Things(stores)
    async with serving(one.server) as first, serving(two.server) as second:
        for epoch in range(1, 11):
            answers = await asyncio.gather(
                *(status_or_answer(side.do("make", f"{epoch}-{n}", epoch=epoch)) for n in range(4) for side in (first, second))
            )
            assert all(answer is None for answer in answers)
            late = await status_of((first if epoch % 2 else second).do("make", f"late-{epoch}", epoch=epoch - 1))
            assert late[0] is grpc.StatusCode.FAILED_PRECONDITION
    assert not [name for name in stores.names() if name.startswith("late")]


async def status_or_answer(call: Any) -> grpc.StatusCode | None:
    """None when it was answered."""
    try:
        await call
    except grpc.aio.AioRpcError as e:
        return e.code()
    return None


async def test_the_memory_store_has_no_database() -> None:
    server = ActionServer("things", store=MemoryStore())

    @server.action("direct", undo=None)
    def direct(call: Call) -> None:
        call.db.execute("SELECT 1")

    async with serving(server) as actions:
        assert "The memory store has no database" in (await status_of(actions.do("direct")))[1]


@pytest.mark.parametrize("stores", ["sqlite", "dbapi-postgres", "async-postgres"], indirect=True)
async def test_an_async_action_opens_the_database_first(stores: Stores) -> None:
    server = ActionServer("things", store=stores.make())

    @server.action("direct", undo=None)
    async def direct(call: Call) -> None:
        call.db.execute("SELECT 1")

    @server.action("twice", undo=None)
    async def twice(call: Call) -> bool:
        one, two = await asyncio.gather(call.open_db(), call.open_db())
        return one is two is call.db

    async with serving(server) as actions:
        assert "db = await call.open_db()" in (await status_of(actions.do("direct")))[1]
        assert (await actions.do("twice", "k2")).output.data == b"true"
