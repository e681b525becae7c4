"""Marks in a SQLite file, in the very transaction of the effects where these are in the same file.

There is one connection for writing. Whoever writes holds `_lock`: either a batch of small writes that came together (they share one
commit), or one handler with its effects. All of SQLite's own waiting is done on a thread, never on the event loop.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, Self, TypeVar

from sec_client.kit.key_locks import FileLocks
from sec_client.kit.rules import Delivery, Entry, Mark, Stale, Verdict, judge
from sec_client.kit.store import Effects, StoreError
from sec_client.kit.threads import in_thread

T = TypeVar("T")

_SCHEMA_VERSION = 1
_BUSY_TIMEOUT_S = 10.0
"""How long another process that shares the file may hold its transaction open."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sec_kit (version INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS sec_epochs (saga_uid TEXT PRIMARY KEY, epoch INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sec_calls (
    key TEXT PRIMARY KEY, saga_uid TEXT NOT NULL, mark TEXT NOT NULL, answer BLOB, changed_s INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS sec_calls_by_saga ON sec_calls (saga_uid, changed_s);
"""


class EffectsConnection(sqlite3.Connection):
    """What a handler gets as `call.db`: a connection inside an open transaction that the kit, and nobody else, ends.

    `with call.db:` is allowed and ends nothing.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> Literal[False]:
        return False

    def commit(self) -> NoReturn:
        raise sqlite3.ProgrammingError("The kit commits when the action returns: do not commit call.db.")

    def rollback(self) -> NoReturn:
        raise sqlite3.ProgrammingError("The kit rolls back when the action raises: do not roll call.db back.")

    def executescript(self, sql_script: str, /) -> NoReturn:
        raise sqlite3.ProgrammingError("A script would commit the transaction of call.db: use execute.")

    def close(self) -> NoReturn:
        raise sqlite3.ProgrammingError("The kit closes call.db.")


class SqliteStore:
    """Keeps the marks of an action server in a SQLite file (WAL, synchronous=FULL), by default `./<server name>.sec.db`.

    A server that is started again on the same file goes on where the last one was. Several server processes on one machine may share the file,
    and must when they offer the same actions; not over a network file system, and not on Windows.

    Marks are never removed by themselves: see `prune`.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self._given_path = path
        self._path = Path("unnamed.sec.db")
        self._db: EffectsConnection | None = None
        self._lock = asyncio.Lock()
        self._waiting: list[tuple[Callable[[sqlite3.Connection], Any], asyncio.Future[Any]]] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sec-store")
        self._locks = FileLocks(self._path)

    @property
    def path(self) -> Path:
        """The file; known once the store is open."""
        return self._path

    async def open(self, server_name: str) -> None:
        self._path = self._resolve(server_name)
        self._locks = FileLocks(self._path)
        self._db = await in_thread(self._thread, self._open)

    def _resolve(self, server_name: str) -> Path:
        return Path(self._given_path if self._given_path is not None else f"{server_name}.sec.db").resolve()

    def _open(self) -> EffectsConnection:
        with self._locks.opening():  # SQLite does not wait for another process when it changes the journal mode of a new file
            return self._connect()

    def _connect(self) -> EffectsConnection:
        try:
            db = sqlite3.connect(
                self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, factory=EffectsConnection
            )
            try:
                self._make_tables(db)
            except BaseException:
                sqlite3.Connection.close(db)
                raise
        except sqlite3.Error as e:
            raise self._error("cannot be opened", e) from e
        return db

    def _make_tables(self, db: sqlite3.Connection) -> None:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA.split(";"):
            db.execute(statement)
        row = db.execute("SELECT version FROM sec_kit").fetchone()
        if row is None:
            db.execute("INSERT INTO sec_kit (version) VALUES (?)", (_SCHEMA_VERSION,))
        elif row[0] != _SCHEMA_VERSION:
            raise StoreError(f'The store "{self._path}" was written by a newer version of the kit: use that one.')
        db.execute("COMMIT")

    async def close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            await in_thread(self._thread, lambda: sqlite3.Connection.close(db))
            self._locks.close()

    def hold(self, key: str) -> AbstractAsyncContextManager[None]:
        return self._locks.hold(key)

    async def remember_epoch(self, saga_uid: str, epoch: int) -> int:
        return await self._write(lambda db: _remember_epoch(db, saga_uid, epoch))

    async def begin(self, delivery: Delivery) -> Verdict:
        return await self._write(lambda db: _begin(db, delivery))

    async def begin_effects(self, delivery: Delivery) -> Effects:
        await self._lock.acquire()
        try:
            return Effects(await in_thread(self._thread, self._begin_effects))
        except BaseException:
            self._lock.release()
            raise

    def _begin_effects(self) -> sqlite3.Connection:
        db = self._connection()
        try:
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as e:
            raise self._error("cannot be written", e) from e
        return db

    async def finish(self, delivery: Delivery, entry: Entry, effects: Effects | None) -> None:
        if effects is None:
            await self._write(lambda db: _put(db, delivery, entry))
            return
        try:
            await in_thread(self._thread, lambda: self._commit_effects(delivery, entry))
        finally:
            self._lock.release()

    def _commit_effects(self, delivery: Delivery, entry: Entry) -> None:
        db = self._connection()
        _restore_factories(db)
        if not db.in_transaction:
            raise StoreError(f'The action ended the transaction of call.db in "{self._path}" by itself: its effects have no mark.')
        try:
            _put(db, delivery, entry)
            db.execute("COMMIT")
        except sqlite3.Error as e:
            _roll_back(db)
            raise self._error("cannot be written", e) from e

    async def drop_effects(self, effects: Effects, *, in_use: bool) -> None:
        try:
            if in_use:  # after a rollback each write of the handler would commit by itself: take the connection away instead
                await self.close()
            elif self._db is not None:
                await in_thread(self._thread, lambda: _roll_back(self._connection()))
        finally:
            self._lock.release()

    async def prune(self, older_than_s: float) -> int:
        """Forgets the sagas whose last mark is older than this; answers how many marks went.

        A late call of a forgotten saga is taken for a new one, and its undo for one of something that never happened. So this must be far longer than
        the longest time for which a saga of yours can be under way or stuck.
        """
        limit = int(time.time() - older_than_s)
        return await self._write(lambda db: _prune(db, limit))

    async def _write(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """Runs an operation in a transaction that it shares with all others that wait for the lock at the same time."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((operation, future))
        async with self._lock:
            if not future.done():
                batch, self._waiting = self._waiting, []
                try:
                    results = await in_thread(self._thread, lambda: self._run_batch([operation for operation, _ in batch]))
                except BaseException as e:
                    for _, waiter in batch:
                        if waiter is not future and not waiter.done():
                            waiter.set_exception(e if isinstance(e, StoreError) else StoreError(f"The store was closed: {e}."))
                    future.cancel()
                    raise
                for (_, waiter), result in zip(batch, results, strict=True):
                    if not waiter.done():
                        waiter.set_result(result)
        return await future

    def _run_batch(self, operations: list[Callable[[sqlite3.Connection], Any]]) -> list[Any]:
        db = self._connection()
        try:
            db.execute("BEGIN IMMEDIATE")
            results = [operation(db) for operation in operations]
            db.execute("COMMIT")
        except sqlite3.Error as e:
            _roll_back(db)
            raise self._error("cannot be written", e) from e
        return results

    def _connection(self) -> EffectsConnection:
        if self._db is None:
            raise StoreError(f'The store "{self._path}" is closed.')
        return self._db

    def _error(self, what: str, error: sqlite3.Error) -> StoreError:
        return StoreError(f'The store "{self._path}" {what}: {error}.')


def _remember_epoch(db: sqlite3.Connection, saga_uid: str, epoch: int) -> int:
    row = db.execute("SELECT epoch FROM sec_epochs WHERE saga_uid = ?", (saga_uid,)).fetchone()
    if row is not None and row[0] >= epoch:
        return int(row[0])
    db.execute("INSERT OR REPLACE INTO sec_epochs (saga_uid, epoch) VALUES (?, ?)", (saga_uid, epoch))
    return epoch


def _begin(db: sqlite3.Connection, delivery: Delivery) -> Verdict:
    highest = _remember_epoch(db, delivery.saga_uid, delivery.epoch)
    if highest > delivery.epoch:
        return Stale(highest)
    row = db.execute("SELECT mark, answer FROM sec_calls WHERE key = ?", (delivery.key,)).fetchone()
    verdict, entry = judge(None if row is None else Entry(Mark(row[0]), row[1]), delivery)
    if entry is not None:
        _put(db, delivery, entry)
    return verdict


def _put(db: sqlite3.Connection, delivery: Delivery, entry: Entry) -> None:
    db.execute(
        "INSERT OR REPLACE INTO sec_calls (key, saga_uid, mark, answer, changed_s) VALUES (?, ?, ?, ?, ?)",
        (delivery.key, delivery.saga_uid, entry.mark.value, entry.answer, int(time.time())),
    )


def _prune(db: sqlite3.Connection, limit_s: int) -> int:
    quiet = "SELECT saga_uid FROM sec_calls GROUP BY saga_uid HAVING max(changed_s) < ?"
    db.execute(f"DELETE FROM sec_epochs WHERE saga_uid IN ({quiet})", (limit_s,))
    return db.execute(f"DELETE FROM sec_calls WHERE saga_uid IN ({quiet})", (limit_s,)).rowcount


def _roll_back(db: sqlite3.Connection) -> None:
    _restore_factories(db)
    if db.in_transaction:
        db.execute("ROLLBACK")


def _restore_factories(db: sqlite3.Connection) -> None:
    """A handler may have set its own."""
    db.row_factory = None
    db.text_factory = str
