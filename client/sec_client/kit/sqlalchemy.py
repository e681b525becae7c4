"""Marks in a database through SQLAlchemy, in the very transaction of the effects. Imported only by those who use it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Literal, NoReturn, Self, TypeVar

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import InvalidRequestError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker

from sec_client.kit import sql_marks
from sec_client.kit.sql_marks import Dialect, Execute, Result
from sec_client.kit.sql_store import DEFAULT_MAX_CONNECTIONS, SqlStore
from sec_client.kit.threads import in_thread

T = TypeVar("T")

_DIALECTS = {"mariadb": "mysql"}
"""Names of SQLAlchemy's that are not ours."""
_REFUSED = {
    "commit": "The kit commits when the action returns: do not commit call.db.",
    "rollback": "The kit rolls back when the action raises: do not roll call.db back.",
    "close": "The kit closes call.db.",
    "reset": "The kit closes call.db.",
    "invalidate": "The kit closes call.db.",
}


class SqlAlchemyStore(SqlStore):
    """Keeps the marks of an action server in a database that SQLAlchemy (2.0 or later) speaks to: PostgreSQL, MySQL and MariaDB, or SQLite.

        SqlAlchemyStore(sessionmaker(create_engine("postgresql+psycopg:///inventory")))

    `call.db` is a session of the `sessionmaker`, in a transaction that the kit ends: it flushes and commits when the handler returns. `commit`, `rollback` and
    `close` of it raise, `with call.db:` is allowed and ends nothing, and `begin_nested` is yours. Of an `async_sessionmaker` it is an `AsyncSession`, for
    async handlers: `db = await call.open_db()`.

    The sessions are bound to one engine, which does not autocommit. Its pool must have `max_connections` to give; how it finds connections that were lost is
    its own (`pool_pre_ping`, `pool_recycle`).

    Any number of processes may share the tables, and must when they offer the same actions. Tables are made when they are not there, unless
    `create_tables` is False: `ddl` has the statements. Between the processes a key is locked by a session of the database (in SQLite by a file beside it), so a
    proxy that gives each transaction another session will not do.

    Marks are never removed by themselves: see `prune`.
    """

    def __init__(
        self,
        sessions: "sessionmaker[Any] | async_sessionmaker[Any]",
        *,
        max_connections: int = DEFAULT_MAX_CONNECTIONS,
        create_tables: bool = True,
    ) -> None:
        """Raises `ValueError` for sessions that are not bound to an engine, or to a database that is not known."""
        engine = sessions.kw.get("bind")
        database: _Sync | _Async
        if isinstance(sessions, sessionmaker) and isinstance(engine, Engine):
            database = _Sync(sessions, engine, _dialect(engine), max_connections)
        elif isinstance(sessions, async_sessionmaker) and isinstance(engine, AsyncEngine):
            database = _Async(sessions, engine, _dialect(engine.sync_engine))
        else:
            raise ValueError(
                "The sessions are not bound to one engine: give sessionmaker(engine) or async_sessionmaker(async_engine)."
            )
        super().__init__(database, max_connections=max_connections, create_tables=create_tables)


def _dialect(engine: Engine) -> Dialect:
    name = engine.dialect.name
    found = sql_marks.DIALECTS.get(_DIALECTS.get(name, name))
    if found is None:
        known = ", ".join(f'"{name}"' for name in sorted(sql_marks.DIALECTS))
        raise ValueError(f'Marks cannot be kept in "{name}": the store knows {known}.')
    return found


def _execute_on(connection: Connection) -> Execute:
    def execute(statement: str, **values: Any) -> Result:
        result = connection.execute(text(statement), values)
        return Result([tuple(row) for row in result] if result.returns_rows else [], result.rowcount)

    return execute


def _refuse(message: str) -> Callable[..., NoReturn]:
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise InvalidRequestError(message)

    return refuse


class _Guard:
    """Before a class of sessions: such a session cannot be ended by its user."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> Literal[False]:
        return False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> Literal[False]:
        return False


for _name, _message in _REFUSED.items():
    setattr(_Guard, _name, _refuse(_message))


def _guarded(kind: type[T]) -> type[T]:
    return type(f"Effects{kind.__name__}", (_Guard, kind), {})


def _begin(session: Session, work: Callable[[Execute], bool]) -> bool:
    return work(_execute_on(session.connection()))


def _commit(session: Session, work: Callable[[Execute], bool]) -> bool:
    """Rolls back when the work answers False or raises. The session is closed."""
    try:
        session.flush()
        if not work(_execute_on(session.connection())):
            return False
        Session.commit(session)
        return True
    finally:
        Session.close(session)  # which rolls back what was not committed


def _break(session: Session) -> None:
    """Closes the connection under a session that may be in use."""
    with suppress(Exception):  # it may be in any state
        session.connection().invalidate()


def _work_on(connection: Connection, work: Callable[[Execute], T], commit: bool) -> T:
    try:
        result = work(_execute_on(connection))
        if commit:
            connection.commit()
        return result
    finally:
        connection.rollback()


class _Sync:
    """An engine that blocks."""

    failures: tuple[type[Exception], ...] = (SQLAlchemyError, OSError)

    def __init__(self, sessions: "sessionmaker[Any]", engine: Engine, dialect: Dialect, threads: int) -> None:
        self.dialect = dialect
        self._sessions: sessionmaker[Any] = sessionmaker(class_=_guarded(sessions.class_), **sessions.kw)
        self._engine = engine
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="sec-store")

    async def in_thread(self, function: Callable[[], T]) -> T:
        return await in_thread(self._pool, function)

    async def run(self, work: Callable[[Execute], T]) -> T:
        def run() -> T:
            with self._engine.begin() as connection:
                return work(_execute_on(connection))

        return await self.in_thread(run)

    async def begin(self, work: Callable[[Execute], bool]) -> "_SyncTransaction | None":
        session = self._sessions()
        begun = False
        try:
            begun = await self.in_thread(lambda: _begin(session, work))
        finally:
            if not begun:
                await self.in_thread(lambda: Session.close(session))
        return _SyncTransaction(self, session) if begun else None

    async def connect(self) -> "_SyncSession":
        return _SyncSession(self, await self.in_thread(self._engine.connect))

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass  # the engine is its user's


class _SyncTransaction:
    def __init__(self, database: _Sync, session: Session) -> None:
        self._database = database
        self.db = session

    async def commit(self, work: Callable[[Execute], bool]) -> bool:
        return await self._database.in_thread(lambda: _commit(self.db, work))

    async def roll_back(self) -> None:
        def end() -> None:
            with suppress(SQLAlchemyError):
                Session.close(self.db)

        await self._database.in_thread(end)

    async def abandon(self) -> None:
        await self._database.in_thread(lambda: _break(self.db))


class _SyncSession:
    def __init__(self, database: _Sync, connection: Connection) -> None:
        self._database = database
        self._connection = connection

    async def run(self, work: Callable[[Execute], T], *, commit: bool = True) -> T:
        return await self._database.in_thread(lambda: _work_on(self._connection, work, commit))

    async def close(self) -> None:
        def close() -> None:
            with suppress(Exception):
                self._connection.invalidate()  # closed, not given back: it may be broken, or hold locks
                self._connection.close()

        await self._database.in_thread(close)


class _Async:
    """An engine of the event loop's. What is done in a transaction is the same, on SQLAlchemy's bridge (`run_sync`)."""

    failures: tuple[type[Exception], ...] = (SQLAlchemyError, OSError)

    def __init__(self, sessions: "async_sessionmaker[Any]", engine: AsyncEngine, dialect: Dialect) -> None:
        self.dialect = dialect
        self._sessions: async_sessionmaker[Any] = async_sessionmaker(class_=_guarded(sessions.class_), **sessions.kw)
        self._engine = engine

    async def run(self, work: Callable[[Execute], T]) -> T:
        async with self._engine.begin() as connection:
            return await connection.run_sync(lambda sync: work(_execute_on(sync)))

    async def begin(self, work: Callable[[Execute], bool]) -> "_AsyncTransaction | None":
        session: AsyncSession = self._sessions()
        begun = False
        try:
            begun = await session.run_sync(_begin, work)
        finally:
            if not begun:
                await asyncio.shield(AsyncSession.close(session))
        return _AsyncTransaction(session) if begun else None

    async def connect(self) -> "_AsyncSession":
        return _AsyncSession(await self._engine.connect())

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass  # the engine is its user's


class _AsyncTransaction:
    def __init__(self, session: AsyncSession) -> None:
        self.db = session

    async def commit(self, work: Callable[[Execute], bool]) -> bool:
        return await self.db.run_sync(_commit, work)

    async def roll_back(self) -> None:
        with suppress(SQLAlchemyError):
            await AsyncSession.close(self.db)

    async def abandon(self) -> None:
        with suppress(Exception):  # whatever its handler has left it in
            await AsyncSession.invalidate(self.db)


class _AsyncSession:
    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def run(self, work: Callable[[Execute], T], *, commit: bool = True) -> T:
        return await self._connection.run_sync(_work_on, work, commit)

    async def close(self) -> None:
        with suppress(Exception):
            await self._connection.invalidate()
            await self._connection.close()
