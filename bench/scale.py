"""Measures what sagas cost that a cluster has, and does not work on: those that wait, and those that have ended. `make bench-scale` runs it.

    python bench/scale.py [--waiting 20000] [--ended 100000] [--active 2000]

One SEC node, and a real etcd. First sagas that wait for a signal, then for a timer: memory of the node for each, and its CPU time meanwhile. Then what a saga costs
with few and with many ended ones in etcd. Then the node is killed while calls of many sagas are in hand, and started again: how long it takes until the first of these
calls is made again, and the last, from the start of the process. What the rows are to be compared with stands in docs/performance.md.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

import uvloop
from dispatches import Dispatches
from sec_client import Submission
from sec_client import aio as sec_aio
from sec_client.kit import ActionServer, Call
from sec_model import Definition, RetryPolicy, Saga, action, signal, timer

from sec.bench.usage import cpu_s, memory_mib
from sec.dev.cluster import DevCluster

SETTLE_S = 5.0
"""For a node to come to rest."""
IDLE_S = 10.0
COST_SAGAS = 5_000
"""From so many the cost of one is measured."""
AT_ONCE = 500
"""Sagas in one call of `submit_many`."""
IN_FLIGHT = 512
TIMEOUT_S = 900.0
NODE = "sec-1"

QUICK = Saga("quick").append(action("a", "quick")).build()
HELD = Saga("held").append(action("a", "hold", retry=RetryPolicy(attempt_timeout_s=3600))).build()
WAITING = {
    "a signal": Saga("waits-for-a-signal").append(signal("go")).build(),
    "a timer": Saga("waits-for-a-timer").append(timer("later", 86_400)).build(),
}


class Scale:
    """A cluster of one node, and the rows."""

    def __init__(self, cluster: DevCluster) -> None:
        self._cluster = cluster
        self._gate = asyncio.Event()
        self._dispatches = Dispatches()
        self.server = ActionServer("bench", store=self._dispatches, max_concurrency=100_000)

        @self.server.action("quick", undo=None)
        async def quick(call: Call) -> str:
            return call.node

        @self.server.action("hold", undo=None)
        async def hold(call: Call) -> str:
            await self._gate.wait()
            return call.node

    @property
    def _pid(self) -> int:
        return self._cluster.pid(NODE) or 0

    async def waiting(self, what: str, definition: Definition, count: int) -> None:
        await asyncio.sleep(SETTLE_S)
        before = memory_mib(self._pid)
        async with sec_aio.Client(self._cluster.addresses) as client:
            await self._submit(client, definition, count)
            await asyncio.sleep(SETTLE_S)
            kib = 1024 * (memory_mib(self._pid) - before) / count
            cpu, start = cpu_s(self._pid), time.monotonic()
            await asyncio.sleep(IDLE_S)
            busy = (cpu_s(self._pid) - cpu) / (time.monotonic() - start)
        print(f"{count:,} sagas wait for {what}: {kib:.1f} KiB each, and {busy:.1%} of a processor", flush=True)

    async def ended(self, few: int, many: int) -> None:
        async with sec_aio.Client(self._cluster.addresses) as client:
            await self._run_through(client, few)
            first = await self._cost_us(client)
            await self._run_through(client, many - few - COST_SAGAS)
            then = await self._cost_us(client)
        print(
            f"a saga of one action costs the node {first:.0f} us with {few:,} that have ended, {then:.0f} us with {many:,}: {then / first:.2f} times",
            flush=True,
        )

    async def start(self, active: int) -> None:
        async with sec_aio.Client(self._cluster.addresses) as client:
            await self._submit(client, HELD, active)
        calls = self._dispatches
        await calls.until(lambda: sum(len(epochs) for epochs in calls.epochs.values()) >= active)
        self._cluster.kill(NODE)
        calls.repeated = 0
        start = time.monotonic()
        self._cluster.launch(NODE)
        await calls.until(lambda: calls.repeated > 0)
        first = time.monotonic() - start
        await calls.until(lambda: calls.repeated >= active)
        print(
            f"a node that starts with {active:,} active sagas makes the first call after {first:.2f} s, and has made all after {time.monotonic() - start:.2f} s",
            flush=True,
        )
        self._gate.set()

    async def _cost_us(self, client: sec_aio.Client) -> float:
        cpu = cpu_s(self._pid)
        await self._run_through(client, COST_SAGAS)
        return 1e6 * (cpu_s(self._pid) - cpu) / COST_SAGAS

    async def _run_through(self, client: sec_aio.Client, count: int) -> None:
        """Submits sagas of one action, so many at a time, and waits until they have ended."""
        calls = self._dispatches
        calls.epochs.clear()
        for begun in range(0, count, IN_FLIGHT):
            await self._submit(client, QUICK, min(IN_FLIGHT, count - begun))
            await calls.until(lambda: len(calls.epochs) >= begun)  # noqa: B023 # called in this turn of the loop
        await calls.until(lambda: len(calls.epochs) >= count)
        while any(node.owned_sagas for node in (await client.nodes()).nodes):  # noqa: ASYNC110 # nothing tells us
            await asyncio.sleep(0.05)
        calls.epochs.clear()

    @staticmethod
    async def _submit(client: sec_aio.Client, definition: Definition, count: int) -> None:
        for begun in range(0, count, AT_ONCE):
            for result in await client.submit_many([Submission(definition)] * min(AT_ONCE, count - begun)):
                if isinstance(result, Exception):
                    raise result


async def main() -> int:
    parser = argparse.ArgumentParser(description="Measures what waiting and ended sagas cost a cluster on this machine.")
    parser.add_argument("--waiting", type=int, default=20_000, help="sagas that wait")
    parser.add_argument("--ended", type=int, default=100_000, help="sagas that have ended")
    parser.add_argument("--few", type=int, default=100, help="the number of ended ones to compare with")
    parser.add_argument("--active", type=int, default=2_000, help="active sagas when the node starts")
    options = parser.parse_args()
    if options.ended < options.few + COST_SAGAS:
        parser.error(f"--ended is at least --few and {COST_SAGAS:,} more, from which the cost is measured.")
    with tempfile.TemporaryDirectory() as scratch:
        for what, definition in WAITING.items():
            async with DevCluster(Path(scratch) / what.split()[-1], nodes=1, extra=["--log-level=warning"]) as cluster:
                await Scale(cluster).waiting(what, definition, options.waiting)
        async with (
            DevCluster(Path(scratch) / "ended", nodes=1, extra=["--log-level=warning"]) as cluster,
            asyncio.timeout(TIMEOUT_S),
        ):
            scale = Scale(cluster)
            await scale.server.start("127.0.0.1:0", sec=cluster.addresses)
            await scale.server.wait_registered()
            await scale.ended(options.few, options.ended)
            await scale.start(options.active)
            await scale.server.stop(1.0)
    return 0


if __name__ == "__main__":
    sys.exit(uvloop.run(main()))
