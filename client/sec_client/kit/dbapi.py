"""Marks in any database that a PEP 249 driver speaks to, in the very transaction of the effects."""

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, Literal, NoReturn, Self, TypeVar

from sec_client.kit import sql_marks
from sec_client.kit.sql_marks import Dialect, Execute, Raced, Result
from sec_client.kit.sql_store import DEFAULT_MAX_CONNECTIONS, SqlStore
from sec_client.kit.threads import in_thread

T = TypeVar("T")

_DIALECTS_OF_DRIVERS = {
    "sqlite3": "sqlite",
    "psycopg": "postgresql",
    "psycopg2": "postgresql",
    "pg8000": "postgresql",
    "pymysql": "mysql",
    "MySQLdb": "mysql",
    "mysql": "mysql",
    "mariadb": "mysql",
}
_PARAMETERS = re.compile(r":([a-z_]+)")
_REFUSED = {
    "commit": "The kit commits when the action returns: do not commit call.db.",
    "rollback": "The kit rolls back when the action raises: do not roll call.db back.",
    "close": "The kit closes call.db.",
    "begin": "The transaction of call.db has begun already.",
    "executescript": "A script would commit the transaction of call.db: use execute.",
}
_SETTINGS = ("row_factory", "text_factory", "cursor_factory")
"""What handlers set on connections, of the drivers that have such attributes; set back before another handler gets the connection."""
_MAX_IDLE_S = 300.0
"""A connection that was not used for longer is made anew: what lies between may have forgotten it."""


class DbApiStore(SqlStore):
    """Keeps the marks of an action server in a database that a PEP 249 driver speaks to: PostgreSQL, MySQL and MariaDB, or SQLite.

        DbApiStore(lambda: psycopg.connect("dbname=inventory"), driver=psycopg)

    `call.db` is a connection of the driver's, in a transaction that the kit ends: `commit`, `rollback` and `close` of it raise, and `with call.db:` is
    allowed and ends nothing. Use it from the handler only.

    `connect` makes a connection that does not autocommit, each time another one, and is called on threads; those of sqlite3 need `check_same_thread=False`.
    `driver` is the module, which says how it names parameters and errors. `dialect` ("postgresql", "mysql" or "sqlite") is derived from a driver that is known.
    `max_connections` are kept open at most, and used again. With a pool of yours give its method that takes a connection back as `release`.

    Any number of processes may share the tables, and must when they offer the same actions. Tables are made when they are not there, unless
    `create_tables` is False: `ddl` has the statements. Between the processes a key is locked by a session of the database (in SQLite by a file beside it), so a
    proxy that gives each transaction another session will not do.

    Marks are never removed by themselves: see `prune`.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        *,
        driver: Any,
        dialect: str | None = None,
        release: Callable[[Any], object] | None = None,
        max_connections: int = DEFAULT_MAX_CONNECTIONS,
        create_tables: bool = True,
    ) -> None:
        """Raises `ValueError` for a driver or a dialect that it does not know."""
        module = str(getattr(driver, "__name__", driver))
        chosen = dialect or _DIALECTS_OF_DRIVERS.get(module.partition(".")[0], "")
        if chosen not in sql_marks.DIALECTS:
            known = ", ".join(f'"{name}"' for name in sorted(sql_marks.DIALECTS))
            raise ValueError(f'What "{chosen or module}" speaks to is not known: give the dialect, one of {known}.')
        if getattr(driver, "paramstyle", None) not in _STYLES:
            raise ValueError(f'"{module}" is no PEP 249 driver: it does not say how it names parameters (paramstyle).')
        database = _DbApiDatabase(connect, release, driver, sql_marks.DIALECTS[chosen], max_connections)
        super().__init__(database, max_connections=max_connections, create_tables=create_tables)


class _Ended:
    """In the place of a connection that belongs to somebody else by now."""

    def __init__(self, error: Callable[[str], Exception]) -> None:
        self._error = error

    def __getattr__(self, name: str) -> NoReturn:
        raise self._error("The transaction of call.db has ended: use it in the handler only.")


class EffectsConnection:
    """What a handler gets as `call.db`: the connection, except that it cannot be ended."""

    def __init__(self, connection: Any, error: Callable[[str], Exception]) -> None:
        object.__setattr__(self, "_connection", connection)
        object.__setattr__(self, "_error", error)

    @property  # type: ignore[misc] # `object` has it writable
    def __class__(self) -> type[Any]:
        """Drivers ask for it: `isinstance(call.db, psycopg.Connection)`."""
        return type(object.__getattribute__(self, "_connection"))

    def __getattr__(self, name: str) -> Any:
        if name in _REFUSED:
            return self._refuse(_REFUSED[name])
        return getattr(object.__getattribute__(self, "_connection"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._connection, name, value)

    def _refuse(self, text: str) -> Callable[..., NoReturn]:
        def refuse(*args: Any, **kwargs: Any) -> NoReturn:
            raise self._error(text)

        return refuse

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> Literal[False]:
        return False


def _take_away(db: EffectsConnection, error: Callable[[str], Exception]) -> None:
    object.__setattr__(db, "_connection", _Ended(error))


class _Connection:
    """A connection of the driver's, as the store uses it: on threads, one at a time."""

    def __init__(self, raw: Any, driver: Any) -> None:
        self.raw = raw
        self._driver = driver
        self._settings = {name: getattr(raw, name) for name in _SETTINGS if hasattr(raw, name)}
        self.idle_since = 0.0
        self.broken = False

    def execute(self, statement: str, **values: Any) -> Result:
        adapted = {name: self._driver.Binary(value) if isinstance(value, bytes) else value for name, value in values.items()}
        text, parameters = _render(statement, self._driver.paramstyle, adapted)
        cursor = self.raw.cursor()
        try:
            cursor.execute(*([text, parameters] if values else [text]))
            rows = cursor.fetchall() if cursor.description else []
            return Result([tuple(row.values() if isinstance(row, Mapping) else row) for row in rows], cursor.rowcount)
        finally:
            cursor.close()

    def transact(self, work: Callable[[Execute], T], *, commit: bool = True) -> T:
        """Does the work, and commits or rolls back."""
        try:
            result = work(self.execute)
            if commit:
                self.raw.commit()
        except BaseException:
            try:
                self.raw.rollback()
            except self._driver.Error:  # what it raised first says more
                self.broken = True
            raise
        if not commit:
            self.raw.rollback()
        return result

    def set_back(self) -> None:
        """Undoes what a handler has set."""
        for name, value in self._settings.items():
            if getattr(self.raw, name) is not value:
                setattr(self.raw, name, value)


class _Transaction:
    """A connection with a handler's effects."""

    def __init__(self, database: "_DbApiDatabase", connection: _Connection) -> None:
        self._database = database
        self._connection = connection
        self.db = EffectsConnection(connection.raw, database.error)

    async def commit(self, work: Callable[[Execute], bool]) -> bool:
        _take_away(self.db, self._database.error)

        def end() -> bool:
            with self._database.using(self._connection) as connection:
                connection.set_back()
                try:
                    connection.transact(lambda execute: _must(work(execute)))
                except Raced:
                    return False
            return True

        return await self._database.in_thread(end)

    async def roll_back(self) -> None:
        _take_away(self.db, self._database.error)

        def end() -> None:
            with suppress(*self._database.failures), self._database.using(self._connection) as connection:
                connection.set_back()
                connection.raw.rollback()

        await self._database.in_thread(end)

    async def abandon(self) -> None:
        _take_away(self.db, self._database.error)
        await self._database.in_thread(lambda: self._database.discard(self._connection))


class _Session:
    def __init__(self, database: "_DbApiDatabase", connection: _Connection) -> None:
        self._database = database
        self._connection = connection

    async def run(self, work: Callable[[Execute], T], *, commit: bool = True) -> T:
        return await self._database.in_thread(lambda: self._connection.transact(work, commit=commit))

    async def close(self) -> None:
        await self._database.in_thread(lambda: self._database.discard(self._connection))


class _DbApiDatabase:
    """The driver, and the connections that nobody uses."""

    def __init__(
        self, connect: Callable[[], Any], release: Callable[[Any], object] | None, driver: Any, dialect: Dialect, threads: int
    ) -> None:
        self.dialect = dialect
        self.failures: tuple[type[Exception], ...] = (driver.Error, OSError)
        self._connect = connect
        self._release = release
        self._driver = driver
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="sec-store")
        self._closed = True
        self._lock = threading.Lock()
        self._idle: list[_Connection] = []

    def error(self, text: str) -> Exception:
        """What misuse of `call.db` raises."""
        made: Exception = self._driver.ProgrammingError(text)
        return made

    async def in_thread(self, function: Callable[[], T]) -> T:
        return await in_thread(self._pool, function)

    async def run(self, work: Callable[[Execute], T]) -> T:
        def run() -> T:
            with self.using(self._take()) as connection:
                return connection.transact(work)

        return await self.in_thread(run)

    async def begin(self, work: Callable[[Execute], bool]) -> _Transaction | None:
        begun: list[_Connection] = []

        def begin() -> None:
            connection = self._take()
            try:
                if work(connection.execute):
                    begun.append(connection)
                else:
                    connection.raw.rollback()
                    self._give_back(connection)
            except BaseException:
                self._give_up(connection)
                raise

        try:
            await self.in_thread(begin)
        except BaseException:
            if begun:  # cancelled when it was open already
                await self.in_thread(lambda: self.discard(begun[0]))
            raise
        return _Transaction(self, begun[0]) if begun else None

    async def connect(self) -> _Session:
        # On a thread of others, so that a connection for one thread only is found out when the store is opened.
        return _Session(self, await asyncio.to_thread(self._new))

    async def open(self) -> None:
        self._closed = False

    async def close(self) -> None:
        self._closed = True
        await self.in_thread(lambda: self._retire(0.0))

    @contextmanager
    def using(self, connection: _Connection) -> Iterator[_Connection]:
        """Gives the connection back in the end."""
        try:
            yield connection
        except (Raced, self._driver.IntegrityError):  # it is as good as it was
            self._give_back(connection)
            raise
        except BaseException:
            self._give_up(connection)
            raise
        self._give_back(connection)

    def _give_up(self, connection: _Connection) -> None:
        """Closes a connection that may be broken, and all that nobody uses: what broke it broke them, too."""
        self.discard(connection)
        self._retire(0.0)

    def _take(self) -> _Connection:
        self._retire(_MAX_IDLE_S)
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return self._new()

    def _new(self) -> _Connection:
        return _Connection(self._connect(), self._driver)

    def _give_back(self, connection: _Connection) -> None:
        if connection.broken or (self._closed and self._release is None):
            self.discard(connection)
        elif self._release is not None:
            self._release(connection.raw)
        else:
            connection.idle_since = time.monotonic()
            with self._lock:
                self._idle.append(connection)

    def _retire(self, max_idle_s: float) -> None:
        limit = time.monotonic() - max_idle_s
        with self._lock:
            old = [c for c in self._idle if c.idle_since <= limit]
            self._idle = [c for c in self._idle if c.idle_since > limit]
        for connection in old:
            self.discard(connection)

    def discard(self, connection: _Connection) -> None:
        with suppress(Exception):  # it may be broken in any way
            connection.raw.close()
        if self._release is not None:
            with suppress(Exception):
                self._release(connection.raw)


def _must(stored: bool) -> None:
    if not stored:
        raise Raced


_STYLES: Mapping[str, Callable[[str, int], str]] = {
    "qmark": lambda name, number: "?",
    "numeric": lambda name, number: f":{number}",
    "named": lambda name, number: f":{name}",
    "format": lambda name, number: "%s",
    "pyformat": lambda name, number: f"%({name})s",
}


@lru_cache(maxsize=256)
def _translate(statement: str, style: str) -> tuple[str, tuple[str, ...]]:
    names: list[str] = []

    def place(match: re.Match[str]) -> str:
        names.append(match[1])
        return _STYLES[style](match[1], len(names))

    return _PARAMETERS.sub(place, statement), tuple(names)


def _render(statement: str, style: str, values: Mapping[str, Any]) -> tuple[str, Any]:
    """A statement with `:name` in it as a driver of that style (PEP 249) takes it, and its parameters."""
    text, names = _translate(statement, style)
    if style in ("named", "pyformat"):
        return text, {name: values[name] for name in names}
    return text, [values[name] for name in names]
