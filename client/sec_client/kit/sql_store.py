"""The store of an action server in a SQL database that several server processes share; without the driver, which is behind a port (`Database`).

Small transactions (a mark, an epoch) are done again when they fail: each of them may be. A transaction of effects is not: when it fails, or nobody can tell
whether it was committed, the call ends without an answer and comes again, and the mark tells.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from sec_client.kit import sql_marks
from sec_client.kit.key_locks import FIRST_POLL_S, LONGEST_POLL_S, FileLocks, lock_number
from sec_client.kit.rules import Delivery, Entry, Run, Verdict
from sec_client.kit.sql_marks import Dialect, Execute, Raced
from sec_client.kit.store import Effects, StoreError

T = TypeVar("T")

DEFAULT_MAX_CONNECTIONS = 10
_TRIES = 4
"""Of a small transaction: after a restart of the database, a deadlock, or a race with another process."""
_PAUSE_S = 0.05
"""Between two tries, about."""
_OPENING_TRIES = 10
"""When many processes make the tables at the same moment."""

_logger = logging.getLogger(__name__)


class Transaction(Protocol):
    """An open transaction with a handler's effects."""

    @property
    def db(self) -> object:
        """What the handler gets."""

    async def commit(self, work: Callable[[Execute], bool]) -> bool:
        """Does the work and commits; rolls back when that answers False or raises. It has ended then."""

    async def roll_back(self) -> None: ...

    async def abandon(self) -> None:
        """Ends it although a handler may still be using it."""


class Session(Protocol):
    """A connection that is kept."""

    async def run(self, work: Callable[[Execute], T], *, commit: bool = True) -> T:
        """A transaction in it, rolled back when `commit` is False."""

    async def close(self) -> None:
        """Never raises."""


class Database(Protocol):
    """What a store needs of a driver. `failures` are the errors that it raises; when one was, nothing is left open."""

    dialect: Dialect
    failures: tuple[type[Exception], ...]

    async def run(self, work: Callable[[Execute], T]) -> T:
        """A transaction of its own."""

    async def begin(self, work: Callable[[Execute], bool]) -> Transaction | None:
        """Opens a transaction of a handler, in which the work is done first. None, and nothing is open, when that answers False."""

    async def open(self) -> None: ...

    async def connect(self) -> Session: ...

    async def close(self) -> None:
        """What is open still is closed when it ends."""


class _SqlEffects(Effects):
    def __init__(self, transaction: Transaction, turn: int) -> None:
        super().__init__(transaction.db)
        self.transaction = transaction
        self.turn = turn


class _NoLocks:
    """Of a database that lives in this process."""

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[None]:
        yield

    async def close(self) -> None:
        pass


class _Files:
    def __init__(self, files: FileLocks) -> None:
        self._files = files

    def hold(self, key: str) -> AbstractAsyncContextManager[None]:
        return self._files.hold(key)

    async def close(self) -> None:
        self._files.close()


class _SessionLocks:
    """Locks in one session of the database, which drops them with it. They are tried and never waited for, since all keys of this process share the session.

    When it is lost, so are they. Calls with the same key may then run in two processes at once; at most one of them can store its end.
    """

    def __init__(self, database: Database, error: Callable[[str, Exception], StoreError]) -> None:
        self._database = database
        self._error = error
        self._session: Session | None = None
        self._turn = asyncio.Lock()
        self._closed = False

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[None]:
        lock, unlock, number = self._database.dialect.lock, self._database.dialect.unlock, lock_number(key)
        assert lock is not None
        assert unlock is not None
        pause_s = FIRST_POLL_S
        while (session := await self._try(lock, number)) is None:
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_POLL_S)
        try:
            yield
        finally:
            await asyncio.shield(self._release(session, unlock, number))

    async def _try(self, statement: str, number: int) -> Session | None:
        """The session in which the lock is held now, if it could be had."""
        async with self._turn:
            for last in (False, True):
                if self._closed:
                    raise StoreError("The store is closed.")
                try:
                    if self._session is None:
                        self._session = await self._database.connect()
                    [(got,)] = await self._session.run(lambda execute: execute(statement, number=number).rows)
                except self._database.failures as e:
                    await self._lose(e)
                    if last:
                        raise self._error("cannot lock a key", e) from e
                except BaseException:  # cancelled, so that nobody knows whether it is locked
                    await self._lose(None)
                    raise
                else:
                    return self._session if got else None
        raise AssertionError("the second try raises or returns")

    async def _release(self, session: Session, statement: str, number: int) -> None:
        async with self._turn:
            if session is self._session:
                try:
                    await session.run(lambda execute: execute(statement, number=number))
                except self._database.failures as e:
                    await self._lose(e)

    async def _lose(self, error: Exception | None) -> None:
        session, self._session = self._session, None
        if session is not None:
            if error is not None:
                _logger.warning("the session that holds the locks of keys was lost, and is made again: %s", error)
            await session.close()

    async def close(self) -> None:
        self._closed = True
        await self._lose(None)


class SqlStore:
    """What `DbApiStore` and `SqlAlchemyStore` have in common."""

    def __init__(self, database: Database, *, max_connections: int, create_tables: bool) -> None:
        if max_connections < 3:
            raise ValueError(f"max_connections is {max_connections}; it must be at least 3: for locks, for marks, and for effects.")
        self._database = database
        self._repeated: tuple[type[Exception], ...] = (Raced, *database.failures)
        self._create_tables = create_tables
        self._name = "unnamed"
        self._locks: _NoLocks | _Files | _SessionLocks = _NoLocks()
        self._turns: dict[str, int] = {}
        """Of the deliveries in hand that run a handler, by their keys."""
        self._connections = asyncio.Semaphore(max_connections - 1)
        self._effects = asyncio.Semaphore(max_connections - 2)  # so that marks need not wait for handlers
        self._open = False

    async def open(self, server_name: str) -> None:
        self._name = server_name
        self._open = True
        await self._database.open()
        try:
            await self._prepare()
            self._locks = await self._locks_of_dialect()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        self._open = False
        await self._locks.close()
        await self._database.close()

    def hold(self, key: str) -> AbstractAsyncContextManager[None]:
        return self._hold(key)

    @asynccontextmanager
    async def _hold(self, key: str) -> AsyncIterator[None]:
        async with self._locks.hold(key):
            try:
                yield
            finally:
                self._turns.pop(key, None)

    async def remember_epoch(self, saga_uid: str, epoch: int) -> int:
        return await self._run(lambda execute: sql_marks.remember_epoch(execute, saga_uid, epoch))

    async def begin(self, delivery: Delivery) -> Verdict:
        verdict, turn = await self._run(lambda execute: sql_marks.begin(execute, delivery, int(time.time())))
        if isinstance(verdict, Run):
            self._turns[delivery.key] = turn
        return verdict

    async def begin_effects(self, delivery: Delivery) -> Effects:
        turn = self._turn_of(delivery)
        async with AsyncExitStack() as taken:
            for bound in (self._effects, self._connections):
                await bound.acquire()
                taken.callback(bound.release)
            transaction = await self._retry(
                lambda: self._database.begin(lambda execute: sql_marks.open_effects(execute, delivery.key, turn))
            )
            if transaction is None:
                raise self._overtaken(delivery)
            taken.pop_all()
        return _SqlEffects(transaction, turn)

    async def finish(self, delivery: Delivery, entry: Entry, effects: Effects | None) -> None:
        now_s = int(time.time())
        if effects is None:
            turn = self._turn_of(delivery)
            stored = await self._run(lambda execute: sql_marks.finish(execute, delivery, entry, turn, now_s))
        else:
            assert isinstance(effects, _SqlEffects)
            turn = effects.turn
            try:
                stored = await effects.transaction.commit(
                    lambda execute: sql_marks.finish_effects(execute, delivery, entry, turn, now_s)
                )
            except self._database.failures as e:
                what = "cannot commit the effects of an action (which must raise when a statement fails, and must not end the transaction itself)"
                raise self._error(what, e) from e
            finally:
                self._ended()
        if not stored:
            raise self._overtaken(delivery)

    async def drop_effects(self, effects: Effects, *, in_use: bool) -> None:
        assert isinstance(effects, _SqlEffects)
        try:
            if in_use:
                await effects.transaction.abandon()
            else:
                await effects.transaction.roll_back()
        finally:
            self._ended()

    def _ended(self) -> None:
        self._connections.release()
        self._effects.release()

    async def prune(self, older_than_s: float) -> int:
        """Forgets the sagas whose last mark is older than this; answers how many marks went.

        A late call of a forgotten saga is taken for a new one, and its undo for one of something that never happened. So this must be far longer than
        the longest time for which a saga of yours can be under way or stuck.
        """
        return await self._run(lambda execute: sql_marks.prune(execute, int(time.time() - older_than_s)))

    async def _run(self, work: Callable[[Execute], T]) -> T:
        async with self._connections:
            return await self._retry(lambda: self._database.run(work))

    async def _retry(self, attempt: Callable[[], Awaitable[T]]) -> T:
        for left in reversed(range(_TRIES)):
            self._check_open()
            try:
                return await attempt()
            except self._repeated as e:
                if not left:
                    raise self._error("cannot be written", e) from e
            await asyncio.sleep(_PAUSE_S * random.uniform(0.5, 1.5))
        raise AssertionError("the last try raises or returns")

    async def _prepare(self) -> None:
        """Sees to it that the tables are there, and that what is rolled back is not."""
        found, failure = None, None
        for _ in range(_OPENING_TRIES):
            found, failure = await self._version()
            if found is not None or not self._create_tables:
                break
            try:
                await self._database.run(self._make_tables)
            except self._database.failures as e:  # another process makes them, or it cannot be done
                failure = e
                await asyncio.sleep(_PAUSE_S * random.uniform(0.5, 1.5))
        if found is None:
            if self._create_tables:
                what = "cannot be opened"
            else:
                what = "has no tables of the kit that it can read, and was told not to make any"
            raise self._error(what, failure)
        if found != sql_marks.SCHEMA_VERSION:
            raise StoreError(f"{self._title} has tables of version {found}, of a newer version of the kit: use that one.")
        await self._check_transactions()

    async def _version(self) -> tuple[int | None, Exception | None]:
        try:
            return await self._database.run(sql_marks.version), None
        except self._database.failures as e:
            return None, e

    def _make_tables(self, execute: Execute) -> None:
        for statement in sql_marks.ddl(self._database.dialect.name):
            execute(statement)

    async def _check_transactions(self) -> None:
        try:
            session = await self._database.connect()
            try:
                await session.run(sql_marks.write_probe, commit=False)
                kept = await session.run(sql_marks.take_probe)
            finally:
                await session.close()
        except self._database.failures as e:
            raise self._error("cannot be written", e) from e
        if kept:
            raise StoreError(
                f"{self._title} commits each statement by itself: effects and their marks need one transaction. "
                "Give it connections that do not autocommit, and a database whose tables have transactions."
            )

    async def _locks_of_dialect(self) -> _NoLocks | _Files | _SessionLocks:
        if self._database.dialect.lock is not None:
            return _SessionLocks(self._database, self._error)
        databases = await self._database.run(lambda execute: execute("PRAGMA database_list").rows)
        file = next((str(row[2] or "") for row in databases if row[1] == "main"), "")
        if not file:
            return _NoLocks()
        locks = FileLocks(Path(file))
        with locks.opening():
            return _Files(locks)

    def _check_open(self) -> None:
        if not self._open:
            raise StoreError(f"{self._title} is closed.")

    def _turn_of(self, delivery: Delivery) -> int:
        try:
            return self._turns[delivery.key]
        except KeyError:  # its handler was given up, and is still running on its thread
            raise StoreError(f'The delivery of the key "{delivery.key}" has ended.') from None

    def _overtaken(self, delivery: Delivery) -> StoreError:
        return StoreError(
            f'{self._title} has seen a later delivery of the key "{delivery.key}": the effects of this one, in call.db, are dropped.'
        )

    @property
    def _title(self) -> str:
        return f'The store of "{self._name}" ({self._database.dialect.name})'

    def _error(self, what: str, error: Exception | None) -> StoreError:
        if error is None:
            return StoreError(f"{self._title} {what}.")
        text = " ".join(str(error).split()).rstrip(".")
        return StoreError(f"{self._title} {what}: {type(error).__name__}{f': {text}' if text else ''}.")
