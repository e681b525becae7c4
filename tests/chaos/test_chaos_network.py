"""The network of a chaos run lets through what it should, holds up what it should, and refuses where nobody listens."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from waiting_support import eventually, until

from sec.chaos.network import Network, both, ways
from sec.dev.processes import free_ports

HERE, ECHO, CHILD = "client", "server-1", "sec-1"
THERE, BACK = (HERE, ECHO), (ECHO, HERE)
DIAL = """
import socket, sys
line = sys.stdin.readline()
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as s:
    s.sendall(line.encode())
    print(s.recv(100).decode(), end="")
"""


class Echo:
    """Answers each line by itself. `heard` has the lines, and b"end of LINE" for each connection that ended after it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.heard: list[bytes] = []
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def stop(self) -> None:
        """Closes everything, as the end of a process does."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.transport.abort()
        await until(lambda: not self._writers)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        last = b""
        try:
            while line := await reader.readline():
                self.heard.append(last := line)
                writer.write(line)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            if last:
                self.heard.append(b"end of " + last)
            self._writers.discard(writer)
            writer.close()


class Net:
    """A network with an echo behind it."""

    def __init__(self) -> None:
        self.pids = {HERE: os.getpid()}
        self.network = Network(lambda: self.pids)
        (port,) = free_ports(1)
        self.echo = Echo(port)
        self.port = self.network.front(ECHO, port)

    async def listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except ConnectionRefusedError:
            return False
        writer.close()
        return True


@pytest.fixture
async def net() -> AsyncIterator[Net]:
    made = Net()
    await made.echo.start()
    await eventually(made.listens)
    yield made
    await made.network.close()
    await made.echo.stop()


class Line:
    """A connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def say(self, line: bytes) -> None:
        self.writer.write(line)

    async def asks(self, line: bytes) -> bool:
        self.say(line)
        return await self.reader.readline() == line


@asynccontextmanager
async def line_to(net: Net) -> AsyncIterator[Line]:
    reader, writer = await asyncio.open_connection("127.0.0.1", net.port)
    yield Line(reader, writer)
    writer.close()


async def test_what_is_said_comes_to_the_other_side_and_back(net: Net) -> None:
    async with line_to(net) as line:
        assert await line.asks(b"one\n")
        big = b"x" * 60_000 + b"\n"
        assert await line.asks(big)
        assert list(net.network.connections.values()) == [THERE]
    await until(lambda: not net.network.connections)


async def test_a_port_behind_which_nobody_listens_refuses(net: Net) -> None:
    async with line_to(net) as line:
        assert await line.asks(b"one\n")
        await net.echo.stop()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await line.reader.readexactly(1)
        assert not await net.listens(), "who saw the connection end is refused at once"
    await net.echo.start()
    await eventually(net.listens)
    async with line_to(net) as line:
        assert await line.asks(b"two\n")


async def test_a_partition_holds_what_is_said_and_lets_it_through_when_it_heals(net: Net) -> None:
    async with line_to(net) as line, line_to(net) as other:
        assert await line.asks(b"one\n")
        assert await other.asks(b"other\n")
        with net.network.held(both([THERE])):
            line.say(b"two\n")
            answer = asyncio.create_task(line.reader.readline())
            other.writer.close()
            dialled = asyncio.create_task(asked_anew(net))
            await until_said(net)
            assert not answer.done()
            assert net.echo.heard == [b"one\n", b"other\n"], "and that the other has left is not known"
        assert await answer == b"two\n"
        assert await dialled
        await until(lambda: {b"end of other\n", b"end of anew\n"} <= {*net.echo.heard})


async def asked_anew(net: Net) -> bool:
    async with line_to(net) as line:
        return await line.asks(b"anew\n")


async def until_said(net: Net) -> None:
    """Something has gone through another link since: whatever could have come has."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DIAL, str(net.port), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    net.pids[CHILD] = child.pid
    answer, _ = await child.communicate(b"child\n")
    assert answer == b"child\n", "its link is another one"
    await until(lambda: b"end of child\n" in net.echo.heard)
    for line in (b"child\n", b"end of child\n"):
        net.echo.heard.remove(line)


async def test_one_way_lets_the_other_way_through(net: Net) -> None:
    async with line_to(net) as line:
        assert await line.asks(b"one\n")
        with net.network.held([BACK]):
            answer = asyncio.create_task(line.asks(b"two\n"))
            await until(lambda: net.echo.heard == [b"one\n", b"two\n"])
            await until_said(net)
            assert not answer.done()
        assert await answer


async def test_what_is_delayed_comes_later(net: Net) -> None:
    loop = asyncio.get_running_loop()
    async with line_to(net) as line:
        with net.network.delayed([THERE], 0.2), net.network.delayed([THERE, BACK], 0.1):
            began = loop.time()
            assert await line.asks(b"one\n")
            assert loop.time() - began >= 0.29


async def test_a_reset_is_seen_at_both_ends(net: Net) -> None:
    async with line_to(net) as line:
        assert await line.asks(b"one\n")
        net.network.reset([BACK])
        with pytest.raises(ConnectionResetError):
            await line.reader.readexactly(1)
        await until(lambda: b"end of one\n" in net.echo.heard)
    async with line_to(net) as line:
        assert await line.asks(b"two\n")


async def test_a_process_that_is_not_of_the_run_is_not_let_through(net: Net) -> None:
    net.pids.clear()
    async with line_to(net) as line:
        line.say(b"one\n")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await line.reader.readexactly(1)
    assert not net.echo.heard


def test_ways_are_from_each_to_each_but_itself() -> None:
    assert ways(["a", "b"], ["b", "c"]) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert both([("a", "b")]) == [("a", "b"), ("b", "a")]
