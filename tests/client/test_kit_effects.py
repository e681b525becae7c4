"""`call.db` of `SqliteStore` beyond what holds for every store, and what a crash leaves behind, of one in SQLite and of one in PostgreSQL."""

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import grpc
import pytest
from client_support import Actions, eventually, serving, status_of
from postgres_support import Postgres
from sec_client.kit import ActionServer, Call, SqliteStore

_schemas = count(1)


def rows(path: Path) -> list[str]:
    db = sqlite3.connect(path)
    try:
        return [name for (name,) in db.execute("SELECT name FROM things ORDER BY name")]
    finally:
        db.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "things.db"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE things (name TEXT PRIMARY KEY)")
    db.commit()
    db.close()
    return path


async def test_a_script_would_commit_and_is_refused(path: Path) -> None:
    server = ActionServer("things", store=SqliteStore(path))

    @server.action("end", undo=None)
    def end(call: Call) -> None:
        call.db.execute("INSERT INTO things (name) VALUES ('x')")
        call.db.executescript("SELECT 1")

    async with serving(server) as actions:
        code, text = await status_of(actions.do("end"))
    assert (code, text.partition(":")[0]) == (grpc.StatusCode.INTERNAL, "ProgrammingError")
    assert rows(path) == []


CRASHING = """
import os, sys, time
import psycopg
from sec_client.kit import ActionServer, Call, DbApiStore, SqliteStore

folder, dsn = sys.argv[1:]
store = DbApiStore(lambda: psycopg.connect(dsn), driver=psycopg) if dsn else SqliteStore(f"{folder}/things.db")
server = ActionServer("crashing", store=store)
place = "%s" if dsn else "?"

def note(text):
    with open(f"{folder}/notes", "a") as file:
        file.write(text + "\\n")

@server.action("make")
def make(call: Call) -> str:
    if not call.params["outside"]:
        call.db.execute(f"INSERT INTO things (name) VALUES ({place})", (call.key,))
    note(f"do {call.key}")
    while os.path.exists(f"{folder}/hang"):
        time.sleep(0.005)
    return call.key

@make.undo
def remove(call: Call) -> None:
    note(f"undo {call.key} {call.output_known}")
    call.db.execute(f"DELETE FROM things WHERE name = {place}", (call.key,))

async def main():
    await server.start()
    print(server.port, flush=True)
    await asyncio.Event().wait()

import asyncio
asyncio.run(main())
"""


@asynccontextmanager
async def process(folder: Path, dsn: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, Actions]]:
    """The crashing server as a process of its own, killed at the end."""
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CRASHING, str(folder), dsn, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        assert started.stdout is not None
        port = int(await asyncio.wait_for(started.stdout.readline(), 20))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield started, Actions(channel)
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()


@dataclass(frozen=True)
class Things:
    """Where the effects are, and how they are seen from outside. `dsn`: of PostgreSQL, else a file in the folder."""

    folder: Path
    dsn: str
    names: Callable[[], list[str]]


@pytest.fixture(params=["sqlite", "postgres"])
def things(request: pytest.FixtureRequest, path: Path) -> Things:
    if request.param == "sqlite":
        return Things(path.parent, "", lambda: rows(path))
    postgres: Postgres = request.getfixturevalue("postgres")
    schema = f"crashing_{next(_schemas)}"
    postgres.execute(f"CREATE SCHEMA {schema}")
    postgres.execute(f"CREATE TABLE {schema}.things (name TEXT PRIMARY KEY)")
    select = f"SELECT name FROM {schema}.things ORDER BY name"
    return Things(path.parent, postgres.dsn(schema), lambda: [str(name) for (name,) in postgres.execute(select)])


@pytest.mark.parametrize("outside", [True, False], ids=["effect elsewhere", "effect in call.db"])
async def test_killed_in_the_middle_of_a_do(things: Things, outside: bool) -> None:
    folder = things.folder
    notes, hang = folder / "notes", folder / "hang"
    hang.touch()
    params = {"outside": outside}
    async with process(folder, things.dsn) as (killed, actions):
        lost = [asyncio.ensure_future(actions.do("make", key, params=params)) for key in ("a", "b")[: 1 + outside]]
        await eventually(lambda: notes.exists() and notes.read_text().count("do ") == len(lost))
        killed.kill()
        assert [(await status_of(call))[0] for call in lost] == [grpc.StatusCode.UNAVAILABLE] * len(lost)
    hang.unlink()
    assert things.names() == []
    notes.unlink()
    async with process(folder, things.dsn) as (_, actions):
        await actions.undo("make", "a")
        assert notes.read_text() == "undo a False\n"  # it had begun, so the undo is asked, although nobody knows how far it came
        await actions.undo("make", "never seen")
        assert (await actions.do("make", "b", params=params)).output.data == b'"b"'  # it had begun, and runs again
        assert notes.read_text() == "undo a False\ndo b\n"
        assert things.names() == ([] if outside else ["b"])


async def test_two_processes_on_one_database_run_a_key_once(things: Things) -> None:
    folder = things.folder
    notes, hang = folder / "notes", folder / "hang"
    hang.touch()
    params = {"outside": True}
    async with process(folder, things.dsn) as (_, one), process(folder, things.dsn) as (_, two):
        first = asyncio.ensure_future(one.do("make", "a", params=params))
        await eventually(lambda: notes.exists() and "do a" in notes.read_text())
        second = asyncio.ensure_future(two.do("make", "a", params=params))
        await two.undo("make", "other")  # the second process answers other keys meanwhile
        hang.unlink()
        assert (await first).output == (await second).output
        await two.undo("make", "a")
        assert (await one.do("make", "a", params=params)).failure.code == "undone"
    assert notes.read_text() == "do a\nundo a True\n"
