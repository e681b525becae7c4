"""The action server of `bench/throughput.py`, a process of its own: the kit, with its marks in memory, so that only the cluster's disk counts.

python bench/server.py PAYLOAD_BYTES SEC_ADDRESSES
"""

import asyncio
import signal
import sys

import uvloop
from sec_client.kit import ActionServer, Call, MemoryStore

server = ActionServer("bench", store=MemoryStore(), max_concurrency=100_000)
OUTPUT = b"x" * int(sys.argv[1])


@server.action("work", undo=None)
async def work(call: Call) -> bytes:
    return OUTPUT


async def main() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await server.start("127.0.0.1:0", sec=sys.argv[2])
    await server.wait_registered()
    print(server.port, flush=True)
    await stop.wait()
    await server.stop(1.0)


if __name__ == "__main__":
    uvloop.run(main())
