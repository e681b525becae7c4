"""Measures what must not grow with the size of a saga, or with the number of sagas that a cluster has. `make bench-scale` runs it.

    python bench/scale.py [--waiting 20000] [--ended 100000] [--active 2000] [--long 1000] [--json FILE]

One SEC node, and a real etcd. An action of a long chain, and of a wide fan-out, against one of a short or narrow one. Sagas that wait for a signal, then for a timer: memory of the node for
each, and its CPU time meanwhile. What a saga costs in a cluster with many ended ones against one with few: two clusters beside each other, measured in turns. Then the node with the many is killed
while calls of many sagas are in hand, and started again: how long it takes until the first of these calls is made again, and the last, from the start of the process.

Each row is printed with its bound, which is for the default sizes. Nothing fails when one is not reached.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
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
COST_SAGAS, COST_ACTIONS = 1_000, 10_000
"""From so many the cost of one is measured."""
TURNS = 5
SIDE_BY_SIDE = 50
"""Chains at a time."""
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


@dataclass(frozen=True, slots=True)
class Row:
    """A figure and what it may be at most."""

    what: str
    figure: float
    unit: str
    bound: float

    def __str__(self) -> str:
        said = "reached" if self.figure <= self.bound else "NOT REACHED"
        return f"{self.what}: {self.figure:.3g}{self.unit} (at most {self.bound:g}{self.unit}: {said})"


class Scale:
    """A cluster of one node with an action server in this process, and what is measured there."""

    def __init__(self, cluster: DevCluster) -> None:
        self._cluster = cluster
        self._gate = asyncio.Event()
        self._dispatches = Dispatches()
        self.ran = 0
        """Calls of "quick"."""
        self.server = ActionServer("bench", store=self._dispatches, max_concurrency=100_000)

        @self.server.action("quick", undo=None)
        async def quick(call: Call) -> str:
            self.ran += 1
            return call.node

        @self.server.action("hold", undo=None)
        async def hold(call: Call) -> str:
            await self._gate.wait()
            return call.node

    @classmethod
    @asynccontextmanager
    async def running(cls, folder: Path) -> "AsyncIterator[Scale]":
        """Starts the cluster and the action server, and waits until it can be called."""
        async with DevCluster(folder, nodes=1, extra=["--log-level=warning"]) as cluster, asyncio.timeout(TIMEOUT_S):
            scale = cls(cluster)
            await scale.server.start("127.0.0.1:0", sec=cluster.addresses)
            try:
                await scale.server.wait_registered()
                yield scale
            finally:
                await scale.server.stop(1.0)

    @property
    def _pid(self) -> int:
        return self._cluster.pid(NODE) or 0

    def client(self) -> sec_aio.Client:
        """A client of the node."""
        return sec_aio.Client(self._cluster.addresses)

    async def waiting(self, what: str, definition: Definition, count: int) -> Sequence[Row]:
        await asyncio.sleep(SETTLE_S)
        before = memory_mib(self._pid)
        async with self.client() as client:
            await self._submit(client, definition, count)
            await asyncio.sleep(SETTLE_S)
            kib = 1024 * (memory_mib(self._pid) - before) / count
            cpu, start = cpu_s(self._pid), time.monotonic()
            await asyncio.sleep(IDLE_S)
            busy = (cpu_s(self._pid) - cpu) / (time.monotonic() - start)
        sagas = f"{count:,} sagas that wait for {what}"
        return Row(f"{sagas}, memory of each", kib, " KiB", 12), Row(f"{sagas}, of a processor", 100 * busy, " %", 3)

    async def action_us(self, client: sec_aio.Client, definition: Definition, sagas: int) -> float:
        """CPU time of node and etcd for an action, of so many sagas at a time."""
        cpu, ran = self._cpu_s(), self.ran
        while self.ran - ran < COST_ACTIONS:
            await self._submit(client, definition, sagas)
            await self._until_none_is_left(client)
        return 1e6 * (self._cpu_s() - cpu) / (self.ran - ran)

    async def saga_us(self, client: sec_aio.Client) -> float:
        """CPU time of node and etcd for a saga of one action."""
        cpu = self._cpu_s()
        await self.run_through(client, COST_SAGAS)
        return 1e6 * (self._cpu_s() - cpu) / COST_SAGAS

    def _cpu_s(self) -> float:
        assert self._cluster.etcd is not None, "the cluster has an etcd of its own"
        return cpu_s(self._pid) + cpu_s(self._cluster.etcd.pid(0) or 0)

    async def start(self, active: int) -> Sequence[Row]:
        async with self.client() as client:
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
        last = time.monotonic() - start
        self._gate.set()
        begins = f"a node that starts with {active:,} active sagas"
        return Row(f"{begins}, first call", first, " s", 3), Row(f"{begins}, all calls", last, " s", 10)

    async def run_through(self, client: sec_aio.Client, count: int) -> None:
        """Submits sagas of one action, so many at a time, and waits until they have ended."""
        calls = self._dispatches
        calls.epochs.clear()
        for begun in range(0, count, IN_FLIGHT):
            await self._submit(client, QUICK, min(IN_FLIGHT, count - begun))
            await calls.until(lambda: len(calls.epochs) >= begun)  # noqa: B023 # called in this turn of the loop
        await calls.until(lambda: len(calls.epochs) >= count)
        await self._until_none_is_left(client)

    async def _until_none_is_left(self, client: sec_aio.Client) -> None:
        while any(node.owned_sagas for node in (await client.nodes()).nodes):  # noqa: ASYNC110 # nothing tells us
            await asyncio.sleep(0.05)
        self._dispatches.epochs.clear()

    @staticmethod
    async def _submit(client: sec_aio.Client, definition: Definition, count: int) -> None:
        for begun in range(0, count, AT_ONCE):
            for result in await client.submit_many([Submission(definition)] * min(AT_ONCE, count - begun)):
                if isinstance(result, Exception):
                    raise result


def _chain(length: int) -> Definition:
    saga = Saga(f"chain-{length}")
    for number in range(length):
        saga.append(action(f"n{number}", "quick"))
    return saga.build()


def _fan(width: int) -> Definition:
    saga = Saga(f"fan-{width}").append_parallel(*(action(f"n{number}", "quick") for number in range(width)))
    return saga.append(action("end", "quick")).build()


async def sizes(folder: Path, long: int) -> AsyncIterator[Row]:
    """An action of large sagas against one of small ones, with as many actions at a time."""
    async with Scale.running(folder) as scale, scale.client() as client:
        for what, made, small, large in (("a chain", _chain, SIDE_BY_SIDE, SIDE_BY_SIDE), ("a fan-out", _fan, long // 10, 1)):
            turns = [
                (await scale.action_us(client, made(10), small), await scale.action_us(client, made(long), large))
                for _ in range(TURNS)
            ]
            ratio = statistics.median(of_large / of_small for of_small, of_large in turns)
            yield Row(f"an action of {what} of {long:,}, against that of 10", ratio, " times", 1.2)


async def ended(folder: Path, few: int, many: int, active: int) -> AsyncIterator[Row]:
    """A saga beside many ended ones against one beside few, and the start of the node with the many."""
    async with (
        Scale.running(folder / "few") as with_few,
        Scale.running(folder / "many") as with_many,
        with_few.client() as of_few,
        with_many.client() as of_many,
    ):
        await with_few.run_through(of_few, few)
        await with_many.run_through(of_many, many)
        await with_few.saga_us(of_few)  # until then it has hardly run
        turns = [(await with_few.saga_us(of_few), await with_many.saga_us(of_many)) for _ in range(TURNS)]
        ratio = statistics.median(of_many_us / of_few_us for of_few_us, of_many_us in turns)
        upto = few + (TURNS + 1) * COST_SAGAS
        yield Row(f"a saga beside {many:,} that have ended, against one beside {few:,} to {upto:,}", ratio, " times", 1.1)
        for row in await with_many.start(active):
            yield row


async def main() -> int:
    parser = argparse.ArgumentParser(
        description="Measures what must not grow with the size and the number of sagas, on this machine."
    )
    parser.add_argument("--waiting", type=int, default=20_000, help="sagas that wait")
    parser.add_argument("--ended", type=int, default=100_000, help="sagas that have ended")
    parser.add_argument("--few", type=int, default=100, help="the number of ended ones to compare with")
    parser.add_argument("--active", type=int, default=2_000, help="active sagas when the node starts")
    parser.add_argument("--long", type=int, default=1_000, help="nodes of a large saga")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    rows: list[Row] = []

    def tell(row: Row) -> None:
        print(row, flush=True)
        rows.append(row)

    with tempfile.TemporaryDirectory() as scratch:
        async for row in sizes(Path(scratch) / "sizes", options.long):
            tell(row)
        for what, definition in WAITING.items():
            async with Scale.running(Path(scratch) / what.split()[-1]) as scale:
                for row in await scale.waiting(what, definition, options.waiting):
                    tell(row)
        async for row in ended(Path(scratch) / "ended", options.few, options.ended, options.active):
            tell(row)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(uvloop.run(main()))
