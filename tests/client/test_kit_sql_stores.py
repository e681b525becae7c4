"""Stores in a SQL database: their tables, their connections, and what happens when the database goes away or another process is faster."""

import asyncio
import gc
import sqlite3
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import psycopg
import pytest
from client_support import Actions, eventually, serving, status_of
from postgres_support import MISSING, Postgres, find_binaries
from sec_client.kit import ActionServer, Call, DbApiStore, StoreError, ddl
from sec_client.kit.dbapi import _render
from sec_client.kit.rules import Delivery, Entry, Mark, Repeat, Run
from sec_client.kit.sqlalchemy import SqlAlchemyStore
from sec_client.kit.store import Effects
from sqlalchemy import create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from stores_support import POSTGRES_KINDS, SQL_KINDS, Stores, on_postgres

postgres_kinds = pytest.mark.parametrize("stores", POSTGRES_KINDS, indirect=True)
on_sql = pytest.mark.parametrize("stores", SQL_KINDS, indirect=True)
DO = Delivery("k", "u", 1, undo=False)


@asynccontextmanager
async def opened(store: Any) -> AsyncIterator[Any]:
    await store.open("things")
    try:
        yield store
    finally:
        await store.close()


async def insert(stores: Stores, effects: Effects, name: str) -> None:
    if stores.is_async:
        await stores.insert(effects.db, name)
    else:
        await asyncio.to_thread(stores.insert, effects.db, name)


@postgres_kinds
async def test_a_delivery_that_was_overtaken_cannot_store_its_end(stores: Stores) -> None:
    """As when the session with the locks is lost: nothing holds the key any more."""
    async with opened(stores.make()) as one, opened(stores.make()) as two:
        assert await one.begin(DO) == Run(first=True)
        assert await two.begin(DO) == Run()
        with pytest.raises(StoreError, match='has seen a later delivery of the key "k"'):
            await one.begin_effects(DO)
        with pytest.raises(StoreError, match="has seen a later delivery"):
            await one.finish(DO, Entry(Mark.FAILED, b"no"), None)
        effects = await two.begin_effects(DO)
        await insert(stores, effects, "two")
        third = asyncio.ensure_future(one.begin(DO))  # waits for the row
        await two.finish(DO, Entry(Mark.DONE, b"yes"), effects)
        assert await third == Repeat(Entry(Mark.DONE, b"yes"))
    assert stores.names() == ["two"]


@postgres_kinds
async def test_an_undo_that_overtakes_keeps_the_effects_out(stores: Stores) -> None:
    async with opened(stores.make()) as one, opened(stores.make()) as two:
        await one.begin(DO)
        undo = Delivery("k", "u", 2, undo=True)
        assert await two.begin(undo) == Run()
        await two.finish(undo, Entry(Mark.UNDONE), None)
        with pytest.raises(StoreError, match="has seen a later delivery"):
            await one.begin_effects(DO)
    assert stores.names() == []


@postgres_kinds
async def test_marks_of_one_key_that_are_made_at_once(stores: Stores) -> None:
    async with opened(stores.make()) as one, opened(stores.make()) as two:
        for n in range(10):
            do = Delivery(f"k{n}", f"u{n}", 1, undo=False)
            verdicts = await asyncio.gather(one.begin(do), two.begin(do))
            assert sorted(verdicts, key=lambda verdict: verdict.first) == [Run(), Run(first=True)]
            stored = await asyncio.gather(
                *(side.finish(do, Entry(Mark.DONE, b""), None) for side in (one, two)), return_exceptions=True
            )
            assert [type(each) for each in stored].count(StoreError) == 1


@postgres_kinds
async def test_a_lost_session_of_locks_is_made_again(stores: Stores, postgres: Postgres) -> None:
    async with opened(stores.make()) as one, opened(stores.make()) as two:
        async with one.hold("k"):
            postgres.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
            )
            async with asyncio.timeout(10), two.hold("k"):
                pass
        async with one.hold("k"):
            locked = asyncio.ensure_future(_held(two, "k"))
            await asyncio.wait([locked], timeout=0.2)
            assert not locked.done()
        await locked


async def _held(store: Any, key: str) -> None:
    async with store.hold(key):
        pass


class Server:
    """Has one effect a call, and waits in the middle of it when it is told to."""

    def __init__(self, stores: Stores) -> None:
        self.server = ActionServer("things", store=stores.make())
        self.entered, self.gate = 0, asyncio.Event()
        self.gate.set()

        @self.server.action("make", undo=None)
        async def make(call: Call) -> None:
            effects = Effects(await call.open_db())
            await insert(stores, effects, call.key)
            self.entered += 1
            await self.gate.wait()


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    binaries = find_binaries()
    if binaries is None:
        pytest.skip(MISSING)
    with Postgres(binaries) as cluster:
        yield cluster


@pytest.mark.parametrize("kind", POSTGRES_KINDS)
async def test_a_restart_of_the_database(own_postgres: Postgres, kind: str) -> None:
    stores = on_postgres(kind, own_postgres)
    made = Server(stores)
    async with serving(made.server) as actions:
        await actions.do("make", "before")
        made.gate.clear()
        lost = asyncio.ensure_future(actions.do("make", "lost"))
        await eventually(lambda: made.entered == 2)
        await asyncio.to_thread(own_postgres.stop)
        made.gate.set()
        code, text_of_lost = await status_of(lost)
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "cannot commit the effects" in text_of_lost
        code, text_of_down = await status_of(actions.do("make", "while it is down"))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert 'The store of "things" (postgresql)' in text_of_down
        await asyncio.to_thread(own_postgres.start)
        for key in ("lost", "while it is down", "before", "after"):
            await actions.do("make", key)
    assert stores.names() == ["after", "before", "lost", "while it is down"]
    await stores.dispose()


@pytest.mark.parametrize("stores", ["dbapi-postgres", "sqlalchemy-postgres"], indirect=True)
async def test_a_deadlock_leaves_the_outcome_unknown_and_the_call_comes_again(stores: Stores) -> None:
    server, met = ActionServer("things", store=stores.make()), asyncio.Barrier(2)
    first = True

    @server.action("lock", undo=None)
    async def lock(call: Call) -> None:
        db = await call.open_db()
        names = ["a", "b"] if call.key == "k1" else ["b", "a"]
        await asyncio.to_thread(stores.delete, db, names[0])
        if first:
            await met.wait()
        await asyncio.to_thread(stores.delete, db, names[1])

    async with serving(server) as actions:
        async with opened(stores.make()) as other:  # things to be deleted
            await other.begin(DO)
            effects = await other.begin_effects(DO)
            for name in ("a", "b"):
                await insert(stores, effects, name)
            await other.finish(DO, Entry(Mark.DONE, b""), effects)
        ends = await asyncio.gather(*(_status(actions, key) for key in ("k1", "k2")))
        assert set(ends) == {(None, False), (grpc.StatusCode.INTERNAL, True)}
        assert stores.names() == []
        first = False
        await actions.do("lock", "k1")
        await actions.do("lock", "k2")


async def _status(actions: Actions, key: str) -> tuple[grpc.StatusCode | None, bool]:
    """The status, if it ended with one, and whether that speaks of a deadlock."""
    try:
        await actions.do("lock", key)
    except grpc.aio.AioRpcError as e:
        return e.code(), "deadlock detected" in (e.details() or "")
    return None, False


async def test_a_serialization_failure_leaves_the_outcome_unknown_and_the_call_comes_again(postgres: Postgres) -> None:
    postgres.execute("CREATE SCHEMA serial")
    postgres.execute("CREATE TABLE serial.things (name TEXT PRIMARY KEY, number BIGINT)")

    def connect() -> psycopg.Connection[Any]:
        connection = psycopg.connect(postgres.dsn("serial"))
        connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        return connection

    server, met = ActionServer("things", store=DbApiStore(connect, driver=psycopg)), asyncio.Barrier(2)
    first = True

    def number_of(db: Any) -> int:
        return int(db.execute("SELECT count(*) FROM things").fetchone()[0])

    @server.action("lock", undo=None)
    async def take_number(call: Call) -> None:
        db = await call.open_db()
        number = await asyncio.to_thread(number_of, db)
        if first:
            await met.wait()
        await asyncio.to_thread(db.execute, "INSERT INTO things VALUES (%s, %s)", (call.key, number))

    keys = ("k1", "k2")
    async with serving(server) as actions:
        ends = await asyncio.gather(*(actions.do("lock", key) for key in keys), return_exceptions=True)
        [failed] = [end for end in ends if isinstance(end, grpc.aio.AioRpcError)]
        assert "could not serialize access" in (failed.details() or "")
        first = False
        for key in keys:
            assert not (await actions.do("lock", key)).HasField("failure")
    assert postgres.execute("SELECT number FROM serial.things ORDER BY number") == [(0,), (1,)]


@on_sql
async def test_tables_that_were_made_by_a_migration(stores: Stores, tmp_path: Path) -> None:
    refused = stores.make(create_tables=False)
    with pytest.raises(StoreError, match="has no tables of the kit that it can read, and was told not to make any"):
        await refused.open("things")
    statements = ddl("postgresql" if "postgres" in stores.kind else "sqlite")
    async with opened(stores.make()):  # makes the tables: they are made again, as a migration would
        pass
    for statement in ("DROP TABLE sec_kit_store", "DROP TABLE sec_kit_epochs", "DROP TABLE sec_kit_calls", *statements):
        stores.migrate(statement)
    async with opened(stores.make(create_tables=False)) as store:
        assert await store.begin(DO) == Run(first=True)
    stores.migrate("UPDATE sec_kit_store SET version = 2")
    with pytest.raises(StoreError, match="has tables of version 2, of a newer version of the kit: use that one"):
        await stores.make().open("things")


OPENING = """
import asyncio, sys
import psycopg
from sec_client.kit import DbApiStore

async def main():
    store = DbApiStore(lambda: psycopg.connect(sys.argv[1]), driver=psycopg)
    sys.stdin.readline()
    await store.open("things")
    await store.close()

asyncio.run(main())
"""


def test_processes_can_make_the_tables_at_the_same_moment(postgres: Postgres) -> None:
    postgres.execute("CREATE SCHEMA opening")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPENING, postgres.dsn("opening")], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.communicate(timeout=60)[1] for process in processes] == [""] * 3
    assert postgres.execute("SELECT version FROM opening.sec_kit_store") == [(1,)]


async def test_connections_that_autocommit_are_refused(postgres: Postgres, tmp_path: Path) -> None:
    postgres.execute("CREATE SCHEMA autocommit")
    engine = create_engine(postgres.url("autocommit"), isolation_level="AUTOCOMMIT")
    stores = [
        DbApiStore(lambda: psycopg.connect(postgres.dsn("autocommit"), autocommit=True), driver=psycopg),
        SqlAlchemyStore(sessionmaker(engine)),
        DbApiStore(
            lambda: sqlite3.connect(tmp_path / "a.db", check_same_thread=False, isolation_level=None, timeout=0.1), driver=sqlite3
        ),
    ]
    for store in stores:
        with pytest.raises(StoreError, match="commits each statement by itself"):
            await store.open("things")
    engine.dispose()


async def test_connections_for_one_thread_only_are_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # nor can they be closed in another
        with pytest.raises(StoreError, match=r"SQLite objects created in a thread can only be used in that same thread"):
            await DbApiStore(lambda: sqlite3.connect(tmp_path / "a.db"), driver=sqlite3).open("things")
        gc.collect()


async def test_one_file_serves_one_store_of_a_process(tmp_path: Path) -> None:
    def make() -> DbApiStore:
        return DbApiStore(lambda: sqlite3.connect(tmp_path / "a.db", check_same_thread=False), driver=sqlite3)

    async with opened(make()):
        with pytest.raises(StoreError, match="is open already in this process"):
            await make().open("things")
    async with opened(make()):
        pass


async def test_what_a_handler_sets_on_a_connection_is_set_back(postgres: Postgres) -> None:
    postgres.execute("CREATE SCHEMA setting")
    store = DbApiStore(
        lambda: psycopg.connect(postgres.dsn("setting"), row_factory=psycopg.rows.dict_row), driver=psycopg, max_connections=3
    )
    server = ActionServer("things", store=store)

    @server.action("set", undo=None)
    def read(call: Call) -> Any:
        assert isinstance(call.db, psycopg.Connection)
        with call.db.transaction(), call.db.cursor() as cursor:
            row = cursor.execute("SELECT 1 AS one").fetchone()
        call.db.row_factory = psycopg.rows.scalar_row
        return row

    async with serving(server) as actions:
        for n in range(4):
            assert (await actions.do("set", f"k{n}")).output.data == b'{"one":1}'


async def test_a_connection_is_of_no_use_behind_its_handler(postgres: Postgres) -> None:
    postgres.execute("CREATE SCHEMA behind")
    server = ActionServer("things", store=DbApiStore(lambda: psycopg.connect(postgres.dsn("behind")), driver=psycopg))
    kept: list[Any] = []

    @server.action("keep", undo=None)
    def keep(call: Call) -> None:
        kept.append(call.db)

    async with serving(server) as actions:
        await actions.do("keep")
        with pytest.raises(psycopg.ProgrammingError, match=r"The transaction of call.db has ended: use it in the handler only\."):
            kept[0].execute("SELECT 1")


async def test_connections_of_a_pool_are_given_back(postgres: Postgres) -> None:
    postgres.execute("CREATE SCHEMA pooled")
    free: list[psycopg.Connection[Any]] = []
    made: list[psycopg.Connection[Any]] = []

    def take() -> psycopg.Connection[Any]:
        if not free:
            made.append(psycopg.connect(postgres.dsn("pooled")))
            free.append(made[-1])
        return free.pop()

    def give_back(connection: psycopg.Connection[Any]) -> None:
        if not connection.closed:
            free.append(connection)

    async with opened(DbApiStore(take, driver=psycopg, release=give_back)) as store:
        await store.remember_epoch("u", 1)
        made_at_start = len(made)
        for n in range(5):
            await store.remember_epoch(f"u{n}", 1)
        assert len(made) == made_at_start
        assert [connection.info.transaction_status.name for connection in free] == ["IDLE"]
    for connection in made:
        connection.close()


class Base(DeclarativeBase):
    pass


class Booking(Base):
    __tablename__ = "bookings"
    key: Mapped[str] = mapped_column(primary_key=True)


async def test_objects_of_a_session_are_flushed_and_committed_with_the_mark(postgres: Postgres) -> None:
    postgres.execute("CREATE SCHEMA orm")
    engine = create_engine(postgres.url("orm"))
    Base.metadata.create_all(engine)
    server = ActionServer("bookings", store=SqlAlchemyStore(sessionmaker(engine)))

    @server.action("book")
    def book(call: Call) -> None:
        db: Session = call.db
        with db.begin_nested() as nested:
            db.add(Booking(key="not this"))
            nested.rollback()
        db.add(Booking(key=call.key))

    @book.undo
    def free(call: Call) -> None:
        if booking := call.db.get(Booking, call.key):
            call.db.delete(booking)

    def bookings() -> list[str]:
        with engine.connect() as connection:
            return list(connection.execute(text("SELECT key FROM bookings")).scalars())

    async with serving(server) as actions:
        await actions.do("book")
        assert bookings() == ["k1"]
        await actions.undo("book")
        assert bookings() == []
    engine.dispose()


@pytest.mark.parametrize(
    ("style", "text", "parameters"),
    [
        ("qmark", "a = ? AND b = ? OR a = ?", [1, b"x", 1]),
        ("numeric", "a = :1 AND b = :2 OR a = :3", [1, b"x", 1]),
        ("named", "a = :aa AND b = :bb OR a = :aa", {"aa": 1, "bb": b"x"}),
        ("format", "a = %s AND b = %s OR a = %s", [1, b"x", 1]),
        ("pyformat", "a = %(aa)s AND b = %(bb)s OR a = %(aa)s", {"aa": 1, "bb": b"x"}),
    ],
)
def test_statements_in_the_style_of_a_driver(style: str, text: str, parameters: object) -> None:
    assert _render("a = :aa AND b = :bb OR a = :aa", style, {"aa": 1, "bb": b"x"}) == (text, parameters)


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(
        ValueError, match='What "oracledb" speaks to is not known: give the dialect, one of "mysql", "postgresql", "sqlite"'
    ):
        DbApiStore(lambda: None, driver=SimpleNamespace(__name__="oracledb", paramstyle="named"))
    with pytest.raises(ValueError, match='"json" is no PEP 249 driver'):
        DbApiStore(lambda: None, driver=SimpleNamespace(__name__="json"), dialect="sqlite")
    with pytest.raises(ValueError, match="max_connections is 2; it must be at least 3"):
        DbApiStore(lambda: None, driver=sqlite3, max_connections=2)
    with pytest.raises(ValueError, match="The sessions are not bound to one engine"):
        SqlAlchemyStore(sessionmaker())


def test_the_kit_loads_no_database_driver_that_is_not_used() -> None:
    code = "import sys, sec_client.kit; print([m for m in ('sqlalchemy', 'psycopg', 'greenlet') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
