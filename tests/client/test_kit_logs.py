"""What log lines say of the call that they belong to."""

import asyncio
import io
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from client_support import Actions, serving, status_of
from sec_client.kit import ActionServer, Call, CallFields, MemoryStore
from sec_client.logs import JsonFormatter

LIBRARY = logging.getLogger("some.library")
SERVER = """
import logging
from sec_client.kit import ActionServer, Call, MemoryStore

server = ActionServer("talking", store=MemoryStore())


@server.action(undo=None)
def talk(call: Call) -> None:
    logging.getLogger("some.library").warning("from within")
"""


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What is logged meanwhile, as JSON."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.addFilter(CallFields())
    handler.setFormatter(JsonFormatter(service="test"))
    root = logging.getLogger()
    root.addHandler(handler)
    yield text
    root.removeHandler(handler)


def logged(lines: io.StringIO, logger: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, lines.getvalue().splitlines()) if line["logger"] == logger]


async def test_lines_of_other_libraries_say_which_call_they_belong_to(lines: io.StringIO) -> None:
    made = ActionServer("inventory", store=MemoryStore())

    @made.action()
    async def on_the_loop(call: Call) -> None:
        LIBRARY.warning("do of %s", call.key)
        await asyncio.create_task(inner())

    async def inner() -> None:
        LIBRARY.warning("in a task")

    @on_the_loop.undo
    def on_a_thread(call: Call) -> None:
        LIBRARY.warning("undo", extra={"node": "its own", "bytes": b"\x00"})

    async with serving(made, batched=True) as actions:
        await asyncio.gather(actions.do("on_the_loop", "k1"), actions.do("on_the_loop", "k2"))
        await actions.undo("on_the_loop", "k1")
    LIBRARY.warning("outside")

    found = logged(lines, "some.library")
    do = {"service": "test", "saga_id": "s1", "node": "n1", "action": "on_the_loop", "phase": "do", "attempt": 1}
    told = [{k: v for k, v in line.items() if k not in ("time", "level", "logger")} for line in found]
    for message in ("do of k1", "do of k2"):
        assert {"message": message, **do} in told
    assert told.count({"message": "in a task", **do}) == 2
    assert {"message": "undo", **do, "phase": "undo", "node": "its own", "bytes": repr(b"\x00")} in told
    assert told[-1] == {"message": "outside", "service": "test"}
    assert {line["level"] for line in found} == {"warning"}


async def test_a_line_of_the_kit_has_the_exception_of_the_handler(lines: io.StringIO) -> None:
    made = ActionServer("inventory", store=MemoryStore())

    @made.action(undo=None)
    def burst(call: Call) -> None:
        raise RuntimeError("a pipe\nbroke")

    async with serving(made) as actions:
        await status_of(actions.do("burst"))
    (line,) = logged(lines, "sec_client.kit.inventory")[-1:]
    assert (line["action"], line["saga_id"], line["level"]) == ("burst", "s1", "error")
    assert "RuntimeError: a pipe\nbroke" in line["exception"]


async def test_the_kit_logs_as_json_when_it_is_told_to(tmp_path: Path) -> None:
    (tmp_path / "talking.py").write_text(SERVER)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "sec_client.kit",
        "talking:server",
        "--log-format",
        "json",
        cwd=tmp_path,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        listens = json.loads(await process.stderr.readline())
        port = int(listens["message"].rpartition(":")[2])
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await Actions(channel).do("talk", "k1")
        line = json.loads(await process.stderr.readline())
        assert (line["message"], line["saga_id"], line["node"], line["attempt"]) == ("from within", "s1", "n1", 1)
    finally:
        process.terminate()
        await process.wait()
