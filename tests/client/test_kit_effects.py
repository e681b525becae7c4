"""`call.db`: the effect and the mark are one transaction. And what a crash leaves behind."""

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from client_support import Actions, eventually, serving, status_of
from sec_client.kit import ActionFailed, ActionServer, Call, MemoryStore, SqliteStore


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


def things(path: Path) -> tuple[ActionServer, list[BaseException]]:
    """A server that keeps things; it raises the errors in the list, after the effect and before the return, until none is left."""
    server, errors = ActionServer("things", store=SqliteStore(path)), []

    @server.action("make")
    def make(call: Call) -> str:
        with call.db as db:
            db.execute("INSERT INTO things (name) VALUES (?)", (call.key,))
        if errors:
            raise errors.pop(0)
        return call.key

    @make.undo
    def remove(call: Call) -> None:
        call.db.execute("DELETE FROM things WHERE name = ?", (call.key,))
        if errors:
            raise errors.pop(0)

    @server.action("make_async", undo=remove)
    async def make_async(call: Call) -> str:
        db = await call.open_db()
        assert db is call.db
        await asyncio.to_thread(db.execute, "INSERT INTO things (name) VALUES (?)", (call.key,))
        if errors:
            raise errors.pop(0)
        return call.key

    return server, errors


@pytest.mark.parametrize("action", ["make", "make_async"])
async def test_an_effect_is_had_with_its_mark_or_not_at_all(path: Path, action: str) -> None:
    server, errors = things(path)
    async with serving(server) as actions:
        errors.append(RuntimeError("after the effect"))
        assert (await status_of(actions.do(action)))[0] is grpc.StatusCode.INTERNAL
        assert rows(path) == []
        errors.append(ActionFailed("No."))
        assert (await actions.do(action, "k2")).failure.message == "No."
        assert rows(path) == []
        await actions.do(action)
        await actions.do(action)
        assert rows(path) == ["k1"]
        errors.append(RuntimeError("in the undo"))
        assert (await status_of(actions.undo(action)))[0] is grpc.StatusCode.INTERNAL
        assert rows(path) == ["k1"]
        await actions.undo(action)
        assert rows(path) == []


async def test_many_calls_take_turns_with_the_database(path: Path) -> None:
    server, _ = things(path)
    async with serving(server) as actions:
        names = [f"k{n:02}" for n in range(40)]
        await asyncio.gather(*(actions.do("make" if n % 2 else "make_async", name) for n, name in enumerate(names)))
        assert rows(path) == names
        await asyncio.gather(*(actions.undo("make", name) for name in names))
        assert rows(path) == []


async def test_a_handler_cannot_end_the_transaction(path: Path) -> None:
    server = ActionServer("things", store=SqliteStore(path))
    how = ""

    @server.action("end", undo=None)
    def end(call: Call) -> None:
        call.db.execute("INSERT INTO things (name) VALUES ('x')")
        match how:
            case "script":
                call.db.executescript("SELECT 1")
            case "statement":
                call.db.execute("ROLLBACK")
            case _:
                getattr(call.db, how)()

    async with serving(server) as actions:
        for how in ("commit", "rollback", "close", "script"):  # read by the action
            code, text = await status_of(actions.do("end", how))
            assert (code, text.partition(":")[0]) == (grpc.StatusCode.INTERNAL, "ProgrammingError")
        how = "statement"
        code, text = await status_of(actions.do("end", how))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "ended the transaction of call.db" in text
        assert rows(path) == []


async def test_an_async_action_opens_the_database_first(path: Path) -> None:
    server = ActionServer("things", store=SqliteStore(path))

    @server.action("direct", undo=None)
    async def direct(call: Call) -> None:
        call.db.execute("SELECT 1")

    async with serving(server) as actions:
        assert "db = await call.open_db()" in (await status_of(actions.do("direct")))[1]


async def test_the_memory_store_has_no_database() -> None:
    server = ActionServer("things", store=MemoryStore())

    @server.action("direct", undo=None)
    def direct(call: Call) -> None:
        call.db.execute("SELECT 1")

    async with serving(server) as actions:
        assert "The memory store has no database" in (await status_of(actions.do("direct")))[1]


async def test_a_stop_without_grace_drops_the_effects_of_a_call_under_way(path: Path) -> None:
    server = ActionServer("things", store=SqliteStore(path))
    entered = asyncio.Event()

    @server.action("hang", undo=None)
    async def hang(call: Call) -> None:
        (await call.open_db()).execute("INSERT INTO things (name) VALUES ('x')")
        entered.set()
        await asyncio.Event().wait()

    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        call = asyncio.ensure_future(Actions(channel).do("hang"))
        await entered.wait()
        await server.stop(0)
        await status_of(call)
    assert rows(path) == []


CRASHING = """
import os, sys, time
from sec_client.kit import ActionServer, Call, SqliteStore

folder = sys.argv[1]
server = ActionServer("crashing", store=SqliteStore(f"{folder}/things.db"))

def note(text):
    with open(f"{folder}/notes", "a") as file:
        file.write(text + "\\n")

@server.action("make")
def make(call: Call) -> str:
    if not call.params["outside"]:
        call.db.execute("INSERT INTO things (name) VALUES (?)", (call.key,))
    note(f"do {call.key}")
    while os.path.exists(f"{folder}/hang"):
        time.sleep(0.005)
    return call.key

@make.undo
def remove(call: Call) -> None:
    note(f"undo {call.key} {call.output_known}")
    call.db.execute("DELETE FROM things WHERE name = ?", (call.key,))

async def main():
    await server.start()
    print(server.port, flush=True)
    await asyncio.Event().wait()

import asyncio
asyncio.run(main())
"""


@asynccontextmanager
async def process(folder: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, Actions]]:
    """The crashing server as a process of its own, killed at the end."""
    started = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CRASHING, str(folder), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
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


@pytest.mark.parametrize("outside", [True, False], ids=["effect elsewhere", "effect in call.db"])
async def test_killed_in_the_middle_of_a_do(path: Path, outside: bool) -> None:
    folder = path.parent
    notes, hang = folder / "notes", folder / "hang"
    hang.touch()
    params = {"outside": outside}
    async with process(folder) as (killed, actions):
        lost = [asyncio.ensure_future(actions.do("make", key, params=params)) for key in ("a", "b")[: 1 + outside]]
        await eventually(lambda: notes.exists() and notes.read_text().count("do ") == len(lost))
        killed.kill()
        assert [(await status_of(call))[0] for call in lost] == [grpc.StatusCode.UNAVAILABLE] * len(lost)
    hang.unlink()
    assert rows(path) == []
    notes.unlink()
    async with process(folder) as (_, actions):
        await actions.undo("make", "a")
        assert notes.read_text() == "undo a False\n"  # it had begun, so the undo is asked, although nobody knows how far it came
        await actions.undo("make", "never seen")
        assert (await actions.do("make", "b", params=params)).output.data == b'"b"'  # it had begun, and runs again
        assert notes.read_text() == "undo a False\ndo b\n"


async def test_two_processes_on_one_file_run_a_key_once(path: Path) -> None:
    folder = path.parent
    notes, hang = folder / "notes", folder / "hang"
    hang.touch()
    params = {"outside": True}
    async with process(folder) as (_, one), process(folder) as (_, two):
        first = asyncio.ensure_future(one.do("make", "a", params=params))
        await eventually(lambda: notes.exists() and "do a" in notes.read_text())
        second = asyncio.ensure_future(two.do("make", "a", params=params))
        await two.undo("make", "other")  # the second process answers other keys meanwhile
        hang.unlink()
        assert (await first).output == (await second).output
        await two.undo("make", "a")
        assert (await one.do("make", "a", params=params)).failure.code == "undone"
    assert notes.read_text() == "do a\nundo a True\n"
