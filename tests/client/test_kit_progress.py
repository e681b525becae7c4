"""What handlers report of how far they are, as it comes by the stream of batches."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from client_support import Actions, eventually, serving
from sec_client.kit import ActionServer, Call, MemoryStore
from sec_client.kit import progress as progress_module
from sec_protos.v1 import action_server_pb2 as pb
from sec_protos.v1 import action_server_pb2_grpc


class Stream:
    """A stream of batches, with all that it has brought."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stream: Any = action_server_pb2_grpc.ActionServerStub(channel).Batch()
        self.progress: list[pb.BatchedProgress] = []
        self.answers: list[pb.BatchedAnswer] = []
        self.reading = asyncio.create_task(self._read())

    async def do(self, number: int, action: str, key: str = "k1") -> None:
        request = pb.DoRequest(call=Actions.about(action, key, 1, "u1"))
        await self._stream.write(pb.BatchRequest(calls=[pb.BatchedCall(id=number, timeout_s=60, do_request=request)]))

    async def undo(self, number: int, action: str, key: str = "k1") -> None:
        request = pb.UndoRequest(call=Actions.about(action, key, 1, "u1"))
        await self._stream.write(pb.BatchRequest(calls=[pb.BatchedCall(id=number, timeout_s=60, undo_request=request)]))

    async def _read(self) -> None:
        async for response in self._stream:
            self.progress += response.progress
            self.answers += response.answers

    async def close(self) -> None:
        self._stream.cancel()
        await asyncio.wait([self.reading])


@asynccontextmanager
async def streaming(server: ActionServer) -> AsyncIterator[Callable[[], Stream]]:
    await server.start()
    streams: list[Stream] = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:

        def make() -> Stream:
            streams.append(Stream(channel))
            return streams[-1]

        try:
            yield make
        finally:
            for stream in streams:
                await stream.close()
            await server.stop(0)


def said(stream: Stream) -> list[tuple[int, float | None, str]]:
    return [(p.id, p.fraction if p.HasField("fraction") else None, p.message) for p in stream.progress]


async def test_reports_of_a_handler_on_the_event_loop() -> None:
    server, gate = ActionServer("slow", store=MemoryStore()), asyncio.Event()

    @server.action()
    async def copy(call: Call) -> None:
        await call.report(0.4, "copied 40 of 100 GB")
        await gate.wait()

    @copy.undo
    async def remove(call: Call) -> None:
        await call.report(message="removing \udcff")
        await gate.wait()

    async with streaming(server) as make:
        stream = make()
        await stream.do(7, "copy")
        await eventually(lambda: stream.progress)
        gate.set()
        await eventually(lambda: stream.answers)
        gate.clear()
        await stream.undo(8, "copy")
        await eventually(lambda: len(stream.progress) == 2)
        gate.set()
        await eventually(lambda: len(stream.answers) == 2)
        assert said(stream) == [(7, 0.4, "copied 40 of 100 GB"), (8, None, "removing ?")]


async def test_reports_of_a_handler_on_a_thread() -> None:
    server, gate = ActionServer("slow", store=MemoryStore()), threading.Event()

    @server.action(undo=None)
    def copy(call: Call) -> None:
        call.report(2.0, "x" * 300)
        gate.wait(10)

    async with streaming(server) as make:
        stream = make()
        await stream.do(1, "copy")
        await eventually(lambda: stream.progress)
        gate.set()
        await eventually(lambda: stream.answers)
        assert said(stream) == [(1, 1.0, "x" * 200)]


async def test_of_many_reports_the_last_one_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "REPORT_INTERVAL_S", 0.2)
    server, gate = ActionServer("chatty", store=MemoryStore()), asyncio.Event()

    @server.action(undo=None)
    async def talk(call: Call) -> None:
        for n in range(101):
            await call.report(n / 100)
        await call.report(float("nan"), "in the end")
        await gate.wait()

    async with streaming(server) as make:
        stream = make()
        await stream.do(1, "talk")
        await eventually(lambda: len(stream.progress) == 2)
        gate.set()
        await eventually(lambda: stream.answers)
        assert said(stream) == [(1, 0.0, ""), (1, None, "in the end")]


async def test_a_call_that_comes_again_hears_of_the_handler_that_is_at_work() -> None:
    server, go_on, gate = ActionServer("slow", store=MemoryStore()), asyncio.Event(), asyncio.Event()

    @server.action(undo=None)
    async def copy(call: Call) -> None:
        await go_on.wait()
        await call.report(0.5)
        await gate.wait()

    async with streaming(server) as make:
        one, two = make(), make()
        await one.do(1, "copy")
        await two.do(5, "copy")
        service = server._service  # noqa: SLF001 # that the second call waits cannot be seen from outside
        assert service is not None
        await eventually(lambda: "k1" in service._keys and service._keys["k1"].users == 2)  # noqa: SLF001
        go_on.set()
        await eventually(lambda: one.progress and two.progress)
        gate.set()
        await eventually(lambda: one.answers and two.answers)
        assert said(one) == [(1, 0.5, "")]
        assert said(two) == [(5, 0.5, "")]


async def test_a_call_by_itself_reports_to_nobody() -> None:
    server = ActionServer("slow", store=MemoryStore())

    @server.action(undo=None)
    async def copy(call: Call) -> str:
        await call.report(0.5)
        return "done"

    async with serving(server) as actions:
        assert (await actions.do("copy")).output.data == b'"done"'
