"""The inventory: what exists in the world, and a journal of every effect. One SQLite file, which holds the kit's marks too.

The action server writes it through `create` and `remove`; everybody else reads it:

    python -m examples.demo_provision.inventory            # what exists, and whether the journal is in order
    python -m examples.demo_provision.inventory demo-1     # the same of one saga
"""

import argparse
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sec_client.kit import Call, Phase

DEFAULT_PATH = Path("inventory.db")

TABLES = {
    "instances": "instance TEXT NOT NULL",
    "ips": "ip TEXT NOT NULL, instance TEXT NOT NULL",
    "volumes": "volume TEXT NOT NULL, instance TEXT NOT NULL",
    "servers": "server TEXT NOT NULL, rack TEXT NOT NULL",
    "reservations": "server TEXT NOT NULL",
    "configurations": "instance TEXT NOT NULL, ip TEXT NOT NULL, server TEXT NOT NULL",
    "attachments": "volume TEXT NOT NULL, instance TEXT NOT NULL",
    "boots": "instance TEXT NOT NULL, server TEXT NOT NULL",
    "printouts": "text TEXT NOT NULL",
}
"""The columns of each kind of effect, beside the key of the call that had it and its saga."""

# No key is unique, on purpose: an effect that is had twice must be seen, not prevented.
_SCHEMA = [
    *(
        f"CREATE TABLE IF NOT EXISTS {name} (key TEXT NOT NULL, saga_id TEXT NOT NULL, {columns})"
        for name, columns in TABLES.items()
    ),
    *(f"CREATE INDEX IF NOT EXISTS {name}_by_key ON {name} (key)" for name in TABLES),
    """CREATE TABLE IF NOT EXISTS effects (
        number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL, saga_id TEXT NOT NULL, node TEXT NOT NULL, phase TEXT NOT NULL,
        "table" TEXT NOT NULL, epoch INTEGER NOT NULL, sec_node TEXT NOT NULL, time_s REAL NOT NULL)""",
    "CREATE INDEX IF NOT EXISTS effects_by_saga ON effects (saga_id)",
    *(
        f"CREATE TRIGGER IF NOT EXISTS effects_no_{what} BEFORE {what} ON effects "
        "BEGIN SELECT RAISE(ABORT, 'the journal is only ever appended to'); END"
        for what in ("UPDATE", "DELETE")
    ),
]


def prepare(path: Path) -> None:
    """Makes the file and its tables, where they are missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA journal_mode = WAL")
        for statement in _SCHEMA:
            db.execute(statement)


def create(call: Call, db: sqlite3.Connection, table: str, **columns: str) -> None:
    """The effect of a do: a row, and a line in the journal. `db` is the call's own, so that both are there with the kit's mark or not at all."""
    names, marks = ", ".join(columns), ", ".join("?" for _ in columns)
    db.execute(f"INSERT INTO {table} (key, saga_id, {names}) VALUES (?, ?, {marks})", (call.key, call.saga_id, *columns.values()))
    _journal(call, db, table)


def remove(call: Call, db: sqlite3.Connection, table: str) -> None:
    """The effect of an undo: no row. When there was none it has no effect, and the journal says nothing."""
    for _ in range(db.execute(f"DELETE FROM {table} WHERE key = ?", (call.key,)).rowcount):
        _journal(call, db, table)


def _journal(call: Call, db: sqlite3.Connection, table: str) -> None:
    db.execute(
        'INSERT INTO effects (key, saga_id, node, phase, "table", epoch, sec_node, time_s) VALUES (?, ?, ?, ?, ?, ?, ?, ?)',
        (call.key, call.saga_id, call.node, str(call.phase), table, call.epoch, call.sec_node, time.time()),
    )


@dataclass(frozen=True, slots=True)
class Effect:
    """A line of the journal. `key` is the idempotency key, `epoch` and `sec_node` those of the call that had the effect."""

    number: int
    key: str
    saga_id: str
    node: str
    phase: Phase
    table: str
    epoch: int
    sec_node: str
    time_s: float


class Inventory:
    """Reads an inventory. Each method opens the file for itself, so that it can be used while the action server writes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def effects(self, saga_id: str | None = None) -> list[Effect]:
        """The journal, oldest first: of one saga, or of all."""
        where, values = _where(saga_id)
        with self._open() as db:
            rows = db.execute(
                'SELECT number, key, saga_id, node, phase, "table", epoch, sec_node, time_s '
                f"FROM effects{where} ORDER BY number", values
            ).fetchall()  # fmt: skip
        return [Effect(n, key, saga, node, Phase(phase), *rest) for n, key, saga, node, phase, *rest in rows]

    def existing(self, saga_id: str | None = None) -> dict[str, list[dict[str, str]]]:
        """The rows of each table that has some."""
        where, values = _where(saga_id)
        found = {}
        with self._open() as db:
            db.row_factory = sqlite3.Row
            for table in TABLES:
                rows = [dict(row) for row in db.execute(f"SELECT * FROM {table}{where} ORDER BY rowid", values)]
                if rows:
                    found[table] = rows
        return found

    def is_empty(self, saga_id: str | None = None) -> bool:
        """Nothing exists."""
        return not self.existing(saga_id)

    def problems(self, saga_id: str | None = None) -> list[str]:
        """Where an effect was not had exactly once, or not undone exactly once, or the tables disagree with the journal, as sentences."""
        where, values = _where(saga_id)
        counts: dict[str, Counter[str]] = {}
        nodes: dict[str, str] = {}
        with self._open() as db:
            db.execute("BEGIN")  # so that both reads see one state of the file
            for key, node, phase in db.execute(f"SELECT key, node, phase FROM effects{where}", values):
                counts.setdefault(key, Counter())[phase] += 1
                nodes[key] = node
            for table in TABLES:
                for (key,) in db.execute(f"SELECT key FROM {table}{where}", values):
                    counts.setdefault(key, Counter())["present"] += 1
        found = []
        for key, count in counts.items():
            node, done, undone, present = nodes.get(key, "?"), count["do"], count["undo"], count["present"]
            if done != 1:
                found.append(f'The effect of node "{node}" was had {done} times (key {key}).')
            if undone > 1:
                found.append(f'The effect of node "{node}" was undone {undone} times (key {key}).')
            if present != done - undone:
                found.append(f'Of node "{node}" there are {present} rows, after {done} do and {undone} undo (key {key}).')
        return found

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        db = sqlite3.connect(f"{self._path.resolve().as_uri()}?mode=rw", uri=True, timeout=10)
        try:
            yield db
        finally:
            db.close()


def _where(saga_id: str | None) -> tuple[str, tuple[str, ...]]:
    return ("", ()) if saga_id is None else (" WHERE saga_id = ?", (saga_id,))


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints an inventory. Answers 1 when the journal is not in order, 2 when there is no inventory."""
    parser = argparse.ArgumentParser(prog="python -m examples.demo_provision.inventory", description="Prints the inventory.")
    parser.add_argument("saga_id", nargs="?", metavar="SAGA_ID", help="only what this saga has made")
    parser.add_argument("--inventory", type=Path, default=DEFAULT_PATH, metavar="FILE", help="the SQLite file (%(default)s)")
    options = parser.parse_args(arguments)
    if not options.inventory.exists():
        print(f'error: there is no inventory "{options.inventory}"; the action server makes it', file=sys.stderr)
        return 2
    inventory = Inventory(options.inventory)
    existing, problems = inventory.existing(options.saga_id), inventory.problems(options.saga_id)
    for table, rows in existing.items():
        print(table)
        for row in rows:
            print("  " + "  ".join(f"{name}={value}" for name, value in row.items() if name != "key"))
    print("" if existing else "The inventory is empty.")
    phases = [effect.phase for effect in inventory.effects(options.saga_id)]
    print(
        f"journal: {phases.count(Phase.DO)} effects, {phases.count(Phase.UNDO)} undone; each exactly once: {'NO' if problems else 'yes'}"
    )
    for problem in problems:
        print(f"  {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
