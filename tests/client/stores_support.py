"""The stores of the kit that the tests run over, each with a database of its own in which there is a table of effects, `things`."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
from postgres_support import Postgres
from sec_client.kit import DbApiStore, MemoryStore, SqliteStore
from sec_client.kit.sqlalchemy import SqlAlchemyStore
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker

SQL_KINDS = ("dbapi-sqlite", "dbapi-postgres", "sqlalchemy-sqlite", "sqlalchemy-postgres", "async-sqlite", "async-postgres")
KINDS = ("memory", "sqlite", *SQL_KINDS)
POSTGRES_KINDS = tuple(kind for kind in SQL_KINDS if "postgres" in kind)
SHARED_KINDS = POSTGRES_KINDS
"""Those that several stores of one process can share, as they are shared by several processes."""

_schemas = count(1)


@dataclass
class Stores:
    """One database, and any number of stores over it."""

    kind: str
    make: Callable[..., Any]
    names: Callable[[], list[str]]
    """Of the things that are there, as somebody else sees them."""
    migrate: Callable[[str], object]
    """Runs a statement, in a transaction of its own."""
    engines: list[Engine | AsyncEngine] = field(default_factory=list)

    @property
    def is_async(self) -> bool:
        return self.kind.startswith("async")

    def insert(self, db: Any, name: str) -> Any:
        """Has an effect in `call.db`; to be awaited when the store is async."""
        if "async" in self.kind or "sqlalchemy" in self.kind:
            return db.execute(text("INSERT INTO things (name) VALUES (:name)"), {"name": name})
        return db.execute(f"INSERT INTO things (name) VALUES ({'%s' if 'postgres' in self.kind else '?'})", (name,))

    def delete(self, db: Any, name: str) -> Any:
        if "async" in self.kind or "sqlalchemy" in self.kind:
            return db.execute(text("DELETE FROM things WHERE name = :name"), {"name": name})
        return db.execute(f"DELETE FROM things WHERE name = {'%s' if 'postgres' in self.kind else '?'}", (name,))

    async def dispose(self) -> None:
        for engine in self.engines:
            if isinstance(engine, AsyncEngine):
                await engine.dispose()
            else:
                engine.dispose()


def stores_of(kind: str, folder: Path, request: pytest.FixtureRequest) -> Stores:
    if kind == "memory":
        return Stores(kind, lambda **_: MemoryStore(), list, lambda statement: None)
    if "postgres" in kind:
        return on_postgres(kind, request.getfixturevalue("postgres"))
    return _on_sqlite(kind, folder / "things.db")


def _on_sqlite(kind: str, path: Path) -> Stores:
    with connected(path) as db:
        db.execute("CREATE TABLE things (name TEXT PRIMARY KEY)")

    def names() -> list[str]:
        with connected(path) as db:
            return [name for (name,) in db.execute("SELECT name FROM things ORDER BY name")]

    def make(**options: Any) -> Any:
        match kind:
            case "sqlite":
                return SqliteStore(path)
            case "dbapi-sqlite":
                return DbApiStore(lambda: sqlite3.connect(path, check_same_thread=False), driver=sqlite3, **options)
            case "sqlalchemy-sqlite":
                engine = create_engine(f"sqlite:///{path}")
                stores.engines.append(engine)
                return SqlAlchemyStore(sessionmaker(engine), **options)
        async_engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
        stores.engines.append(async_engine)
        return SqlAlchemyStore(async_sessionmaker(async_engine), **options)

    def migrate(statement: str) -> None:
        with connected(path) as db:
            db.execute(statement)

    stores = Stores(kind, make, names, migrate)
    return stores


def on_postgres(kind: str, postgres: Postgres) -> Stores:
    schema = f"test_{next(_schemas)}"
    postgres.execute(f"CREATE SCHEMA {schema}")
    postgres.execute(f"CREATE TABLE {schema}.things (name TEXT PRIMARY KEY)")

    def names() -> list[str]:
        return [str(name) for (name,) in postgres.execute(f"SELECT name FROM {schema}.things ORDER BY name")]

    def make(**options: Any) -> Any:
        match kind:
            case "dbapi-postgres":
                return DbApiStore(lambda: psycopg.connect(postgres.dsn(schema)), driver=psycopg, **options)
            case "sqlalchemy-postgres":
                engine = create_engine(postgres.url(schema))
                stores.engines.append(engine)
                return SqlAlchemyStore(sessionmaker(engine), **options)
        async_engine = create_async_engine(postgres.url(schema))
        stores.engines.append(async_engine)
        return SqlAlchemyStore(async_sessionmaker(async_engine), **options)

    def migrate(statement: str) -> None:
        with psycopg.connect(postgres.dsn(schema)) as connection:
            connection.execute(statement.encode())

    stores = Stores(kind, make, names, migrate)
    return stores


@contextmanager
def connected(path: Path) -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(path)
    try:
        with db:
            yield db
    finally:
        db.close()
