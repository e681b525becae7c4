"""The action server of a bench, a process of its own: the kit, with its marks in memory, so that only the cluster's disk counts. And echoes, as raw limits.

    python -m sec.bench.server PAYLOAD_BYTES SEC_ADDRESSES [LISTEN]

It prints the ports of the two. The echoes are gRPC without anything else: a unary call, and a stream of messages with many items each. Beside them it tells how many actions
and undo actions it has run.
"""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import uvloop
from sec_client.kit import ActionFailed, ActionServer, Call, MemoryStore

from sec.bench.shapes import FAIL, STEP, WORK

UNARY, STREAM, COUNT = "/sec.bench.Echo/Unary", "/sec.bench.Echo/Stream", "/sec.bench.Echo/Count"
COUNT_BYTES = 8


class Count:
    """How many actions and undo actions were run: a saga that has not ended counts by what it has done."""

    def __init__(self) -> None:
        self.ran = 0


def action_server(payload_bytes: int, count: Count) -> ActionServer:
    """What it offers. Outputs have `payload_bytes`."""
    server = ActionServer("bench", store=MemoryStore(), max_concurrency=100_000)
    output = b"x" * payload_bytes

    @server.action(WORK, undo=None)
    async def work(call: Call) -> bytes:
        count.ran += 1
        return output

    @server.action(STEP)
    async def step(call: Call) -> bytes:
        count.ran += 1
        return output

    @step.undo
    async def undo(call: Call) -> None:
        count.ran += 1

    @server.action(FAIL, undo=None)
    async def fail(call: Call) -> None:
        count.ran += 1
        raise ActionFailed("It always does.")

    return server


async def _unary(message: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
    return message


async def _stream(messages: AsyncIterator[bytes], context: "grpc.aio.ServicerContext[bytes, bytes]") -> AsyncIterator[bytes]:
    async for message in messages:
        yield message


async def _echoes(count: Count) -> tuple[grpc.aio.Server, int]:
    async def ran(message: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        return count.ran.to_bytes(COUNT_BYTES, "big")

    server = grpc.aio.server()
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Unary": grpc.unary_unary_rpc_method_handler(_unary),
        "Stream": grpc.stream_stream_rpc_method_handler(_stream),
        "Count": grpc.unary_unary_rpc_method_handler(ran),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("sec.bench.Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, port


async def main() -> None:
    """Serves until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    count = Count()
    server = action_server(int(sys.argv[1]), count)
    echoes, echo_port = await _echoes(count)
    await server.start(sys.argv[3] if len(sys.argv) > 3 else "127.0.0.1:0", sec=sys.argv[2])
    registering, stopping = asyncio.create_task(server.wait_registered()), asyncio.create_task(stop.wait())
    await asyncio.wait([registering, stopping], return_when=asyncio.FIRST_COMPLETED)
    if registering.done():
        print(server.port, echo_port, flush=True)
    registering.cancel()
    await stopping
    await server.stop(1.0)
    await echoes.stop(None)


if __name__ == "__main__":
    uvloop.run(main())
