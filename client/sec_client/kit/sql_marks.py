"""The marks of an action server in tables of a SQL database: the tables, and what is done in one transaction.

Several processes share the tables. Nothing is locked for longer than a transaction: who writes compares first. The row of a key has a `turn`, which each
delivery that runs a handler counts on, and which its end compares: of two deliveries that ran at once, because the lock between their processes was lost, one
commits, and the other is told so. What lost such a race, or met another that inserted the same row, raises `Raced`, and is done again from the start.

An epoch is compared in the statement that reads the mark. It needs no lock: a call that reads before a higher epoch is committed counts as one that was
there before it, as does one whose handler is at work.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from sec_client.kit.rules import Delivery, Entry, Mark, Run, Stale, Verdict, judge

SCHEMA_VERSION = 1
SAVEPOINT = "sec_kit"
"""Within a transaction of effects: it is gone when the handler has ended the transaction, by whatever means."""

MAX_KEY_CHARACTERS = 500
"""Where the database wants a bound: keys have at most 400."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """What differs between databases. `lock` and `unlock` of a key by its number, in a session of the database: None where files are locked instead."""

    name: str
    text: str
    blob: str
    lock: str | None
    unlock: str | None
    suffix: str = ""


DIALECTS: Mapping[str, Dialect] = {
    d.name: d
    for d in (
        Dialect("sqlite", "TEXT", "BLOB", None, None),
        Dialect(
            "postgresql",
            "TEXT",
            "BYTEA",
            "SELECT CASE WHEN pg_try_advisory_lock(CAST(:number AS BIGINT)) THEN 1 ELSE 0 END",
            "SELECT CASE WHEN pg_advisory_unlock(CAST(:number AS BIGINT)) THEN 1 ELSE 0 END",
        ),
        Dialect(
            "mysql",
            f"VARCHAR({MAX_KEY_CHARACTERS}) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
            "LONGBLOB",
            "SELECT GET_LOCK(CONCAT('sec_kit_', :number), 0)",
            "SELECT RELEASE_LOCK(CONCAT('sec_kit_', :number))",
            " ENGINE=InnoDB",
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Result:
    """Of a statement: the rows that it answers, and how many it has changed."""

    rows: list[tuple[Any, ...]]
    count: int


class Execute(Protocol):
    """Runs a statement, whose values stand in it as `:name`."""

    def __call__(self, statement: str, **values: Any) -> Result: ...


class Raced(Exception):
    """Another transaction was faster. To be rolled back, and done again."""


def ddl(dialect: str) -> tuple[str, ...]:
    """The statements that make the tables of `DbApiStore` and `SqlAlchemyStore`, for "postgresql", "mysql" or "sqlite"; for a migration of yours."""
    d = DIALECTS[dialect]
    calls = [
        f"call_key {d.text} PRIMARY KEY",
        f"saga_uid {d.text} NOT NULL",
        "mark VARCHAR(20) NOT NULL",
        f"answer {d.blob}",
        "turn BIGINT NOT NULL",
        "changed_s BIGINT NOT NULL",
    ]
    index = "sec_kit_calls_by_saga"
    if d.name == "mysql":  # it knows no CREATE INDEX IF NOT EXISTS
        calls.append(f"INDEX {index} (saga_uid, changed_s)")
    columns = ",\n    ".join(calls)
    return (
        f"CREATE TABLE IF NOT EXISTS sec_kit_store (version INTEGER PRIMARY KEY){d.suffix}",
        f"CREATE TABLE IF NOT EXISTS sec_kit_epochs (\n    saga_uid {d.text} PRIMARY KEY,\n    epoch BIGINT NOT NULL\n){d.suffix}",
        f"CREATE TABLE IF NOT EXISTS sec_kit_calls (\n    {columns}\n){d.suffix}",
        *([] if d.name == "mysql" else [f"CREATE INDEX IF NOT EXISTS {index} ON sec_kit_calls (saga_uid, changed_s)"]),
        f"INSERT INTO sec_kit_store (version) VALUES ({SCHEMA_VERSION})",
    )


def remember_epoch(execute: Execute, saga_uid: str, epoch: int) -> int:
    """Remembers the epoch if it is higher than what is known; answers the highest."""
    rows = execute("SELECT epoch FROM sec_kit_epochs WHERE saga_uid = :saga_uid", saga_uid=saga_uid).rows
    if not rows:
        execute("INSERT INTO sec_kit_epochs (saga_uid, epoch) VALUES (:saga_uid, :epoch)", saga_uid=saga_uid, epoch=epoch)
    elif rows[0][0] >= epoch:
        return int(rows[0][0])
    else:
        _raise_epoch(execute, saga_uid, epoch)
    return epoch


def _raise_epoch(execute: Execute, saga_uid: str, epoch: int) -> None:
    statement = "UPDATE sec_kit_epochs SET epoch = :epoch WHERE saga_uid = :saga_uid AND epoch < :epoch"
    if execute(statement, saga_uid=saga_uid, epoch=epoch).count != 1:
        raise Raced


def begin(execute: Execute, delivery: Delivery, now_s: int) -> tuple[Verdict, int]:
    """The verdict, and the turn of a delivery that is to run its handler."""
    known = execute(
        "SELECT e.epoch, c.mark, c.answer, c.turn FROM sec_kit_epochs e"
        " LEFT JOIN sec_kit_calls c ON c.call_key = :call_key WHERE e.saga_uid = :saga_uid",
        call_key=delivery.key,
        saga_uid=delivery.saga_uid,
    ).rows
    if not known:  # nor is any call of this saga
        remember_epoch(execute, delivery.saga_uid, delivery.epoch)
    highest, mark, answer, turn = known[0] if known else (delivery.epoch, None, None, 0)
    if highest > delivery.epoch:
        return Stale(int(highest)), 0
    if highest < delivery.epoch:
        _raise_epoch(execute, delivery.saga_uid, delivery.epoch)
    before = None if mark is None else Entry(Mark(mark), None if answer is None else bytes(answer))
    verdict, entry = judge(before, delivery)
    if entry is None and not isinstance(verdict, Run):
        return verdict, 0
    entry = entry or before
    assert entry is not None  # a handler is run for a key of which nothing is known only with a mark
    values = {"call_key": delivery.key, "mark": entry.mark.value, "answer": entry.answer, "changed_s": now_s}
    if before is None:
        execute(
            "INSERT INTO sec_kit_calls (call_key, saga_uid, mark, answer, turn, changed_s)"
            " VALUES (:call_key, :saga_uid, :mark, :answer, 1, :changed_s)",
            saga_uid=delivery.saga_uid,
            **values,
        )
        return verdict, 1
    statement = (
        "UPDATE sec_kit_calls SET mark = :mark, answer = :answer, changed_s = :changed_s, turn = turn + 1"
        " WHERE call_key = :call_key AND turn = :turn"
    )
    if execute(statement, turn=turn, **values).count != 1:
        raise Raced
    return verdict, int(turn) + 1


def open_effects(execute: Execute, key: str, turn: int) -> bool:
    """Begins the transaction of a handler's effects. False: another delivery has had its turn meanwhile.

    It begins with a write, which keeps others that come to this key waiting, and SQLite's reads and writes in one transaction.
    """
    statement = "UPDATE sec_kit_calls SET turn = turn + 1 WHERE call_key = :call_key AND turn = :turn"
    if execute(statement, call_key=key, turn=turn).count != 1:
        return False
    execute(f"SAVEPOINT {SAVEPOINT}")
    return True


def finish(execute: Execute, delivery: Delivery, entry: Entry, turn: int, now_s: int) -> bool:
    """Stores how a delivery has ended. False: another delivery has had its turn meanwhile."""
    return (
        execute(
            "UPDATE sec_kit_calls SET mark = :mark, answer = :answer, changed_s = :changed_s WHERE call_key = :call_key AND turn = :turn",
            call_key=delivery.key,
            mark=entry.mark.value,
            answer=entry.answer,
            changed_s=now_s,
            turn=turn,
        ).count
        == 1
    )


def finish_effects(execute: Execute, delivery: Delivery, entry: Entry, turn: int, now_s: int) -> bool:
    """The same, in the transaction that `open_effects` began with this turn. Raises the driver's error when that is not as it was left."""
    execute(f"RELEASE SAVEPOINT {SAVEPOINT}")
    return finish(execute, delivery, entry, turn + 1, now_s)


def prune(execute: Execute, limit_s: int) -> int:
    """Forgets the sagas whose last mark is older; answers how many marks went."""
    # The second SELECT is for MySQL, which deletes from no table that it reads.
    quiet = "SELECT saga_uid FROM (SELECT saga_uid FROM sec_kit_calls GROUP BY saga_uid HAVING MAX(changed_s) < :limit_s) quiet"
    execute(f"DELETE FROM sec_kit_epochs WHERE saga_uid IN ({quiet})", limit_s=limit_s)
    return execute(f"DELETE FROM sec_kit_calls WHERE saga_uid IN ({quiet})", limit_s=limit_s).count


def version(execute: Execute) -> int | None:
    """The version of the tables; None: there are tables, and nothing in them."""
    rows = execute("SELECT version FROM sec_kit_store WHERE version > 0").rows
    return int(rows[0][0]) if rows else None


def write_probe(execute: Execute) -> None:
    """Something that must not be there when it was rolled back."""
    execute("INSERT INTO sec_kit_store (version) VALUES (0)")


def take_probe(execute: Execute) -> bool:
    """Whether it is there all the same; then not any more."""
    return execute("DELETE FROM sec_kit_store WHERE version = 0").count > 0
