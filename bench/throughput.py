"""Measures how many sagas a cluster runs, and what each action costs: real processes, a real etcd with fsync. `make bench` runs it.

    python bench/throughput.py [--nodes 1,3] [--in-flight 1,16,64,512] [--shape chain:5] [--seconds 10] [--payload 200] [--wait] [--json FILE]

A number of sagas is kept in flight: when one has ended, which an external watch of etcd tells (with --wait: `Client.wait`, one call more
for each saga), the next is submitted. Times run from the call of submit to that. CPU times are those of whole processes, divided by the actions
that ended in the same seconds; so they can be compared on a machine that is busy with other things as well, and actions/s cannot.
"""

import argparse
import asyncio
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sec_client import aio as sec_aio
from sec_model import Definition, Saga, action
from usage import EtcdCounts, cpu_of, memory_mib

from sec.dev.cluster import DevCluster
from sec.store.etcd import EtcdConfig, EtcdKv
from sec.store.keys import Keys, last_segment
from sec.store.kv import EventKind, Put, Txn, prefix_end

WARM_UP_S = 2.0
ROUND_TIMEOUT_S = 300.0
POLL_S = 0.05
LIMIT_S = 1.0
"""How long each of the raw limits is measured."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the machine could do at best, measured in the same run."""

    etcd_records_per_s: float
    echo_calls_per_s: float
    loop_turns_per_s: float


@dataclass(frozen=True, slots=True)
class Figures:
    """One row. Times in milliseconds, CPU in microseconds for each action."""

    nodes: int
    in_flight: int
    sagas_per_s: float
    actions_per_s: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    cpu_us: dict[str, float]
    memory_mib: dict[str, float]
    etcd_txns: float
    """For each action."""
    etcd_bytes: float
    """For each action."""

    @property
    def sec_us(self) -> float:
        return sum(us for name, us in self.cpu_us.items() if name.startswith("sec-"))

    def __str__(self) -> str:
        return (
            f"{self.nodes:>5} {self.in_flight:>9} {self.sagas_per_s:>8.0f} {self.actions_per_s:>9.0f} "
            f"{self.p50_ms:>8.1f} {self.p99_ms:>8.1f} {self.p999_ms:>8.1f} "
            f"{self.sec_us:>8.0f} {self.cpu_us.get('server', 0):>8.0f} {self.cpu_us.get('etcd', 0):>8.0f} {self.cpu_us.get('client', 0):>8.0f} "
            f"{max(m for n, m in self.memory_mib.items() if n.startswith('sec-')):>8.0f} {self.etcd_txns:>8.3f} {self.etcd_bytes:>8.0f}"
        )


HEAD = (
    "                                                             CPU us an action                        MiB   etcd, an action\n"
    "nodes in flight  sagas/s actions/s   p50 ms   p99 ms p99.9 ms   SEC     server     etcd   client      SEC     txns    bytes"
)


def shape(text: str) -> tuple[Definition, int]:
    """ "chain:5", "fan:1000": a saga and the number of its actions."""
    kind, _, number = text.partition(":")
    count = int(number)
    saga, names = Saga(f"{kind}-{count}"), [f"n{i}" for i in range(count)]
    if kind == "chain":
        for name in names:
            saga.append(action(name, "work"))
        return saga.build(), count
    saga.append_parallel(*(action(name, "work") for name in names)).append(action("end", "work"))
    return saga.build(), count + 1


class Ends:
    """Tells when sagas have ended, by a watch of etcd."""

    def __init__(self, kv: EtcdKv, keys: Keys) -> None:
        self._kv = kv
        self._keys = keys
        self._waiting: dict[str, asyncio.Future[None]] = {}

    def of(self, saga_id: str) -> "asyncio.Future[None]":
        return self._waiting.setdefault(saga_id, asyncio.get_running_loop().create_future())

    async def run(self, ready: asyncio.Event) -> None:
        prefix = self._keys.endeds
        async with aclosing(self._kv.watch(prefix, prefix_end(prefix))) as watch:
            async for batch in watch:
                ready.set()
                for event in batch.events:
                    if event.kind is EventKind.PUT and (waiting := self._waiting.pop(last_segment(event.item.key), None)):
                        waiting.set_result(None)


class Bench:
    """A cluster of some nodes, with an action server, and the measurements on it."""

    def __init__(self, cluster: DevCluster, server: "subprocess.Popen[str]", port: int, options: argparse.Namespace) -> None:
        self._cluster = cluster
        self._options = options
        self._port = port
        self._definition, self._actions = shape(options.shape)
        self._params = b"p" * options.payload
        assert cluster.etcd is not None
        self._pids = {name: pid for name in cluster.names if (pid := cluster.pid(name))}
        self._pids |= {"server": server.pid, "etcd": cluster.etcd.pid() or 0, "client": os.getpid()}
        self._runs = 0

    async def measure(self, in_flight: int) -> Figures:
        """Keeps so many sagas in flight for a while."""
        self._runs += 1
        kv = EtcdKv(EtcdConfig(self._cluster.etcd_endpoints))
        ends, ready = Ends(kv, Keys()), asyncio.Event()
        watching = asyncio.create_task(ends.run(ready))
        await ready.wait()
        clients = [sec_aio.Client([address]) for address in self._cluster.addresses]
        took: list[float] = []
        numbers, stop = iter(range(10**9)), False

        async def keep_one(client: sec_aio.Client) -> None:
            while not stop:
                saga_id = f"bench-{self._runs}-{next(numbers)}"
                end = ends.of(saga_id)
                start = time.monotonic()
                await client.submit(self._definition, saga_id=saga_id, params=self._params)
                if self._options.wait:
                    await client.wait(saga_id)
                else:
                    await end
                took.append(time.monotonic() - start)

        async with asyncio.timeout(ROUND_TIMEOUT_S):
            workers = [asyncio.create_task(keep_one(clients[n % len(clients)])) for n in range(in_flight)]
            await asyncio.sleep(WARM_UP_S)
            cpu, etcd = cpu_of(self._pids), await self._etcd()
            took.clear()
            start = time.monotonic()
            await asyncio.sleep(self._options.seconds)
            seconds = time.monotonic() - start
            times = sorted(took)
            cpu_after, etcd_after = cpu_of(self._pids), await self._etcd()
            memory = {name: memory_mib(pid) for name, pid in self._pids.items()}
            stop = True
            await asyncio.gather(*workers)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await kv.aclose()
        for client in clients:
            await client.close()
        count = len(times)
        actions = max(1, count * self._actions)

        def quantile(share: float) -> float:
            return 1000 * times[min(count - 1, int(share * count))] if times else 0.0

        return Figures(
            len(clients),
            in_flight,
            count / seconds,
            actions / seconds,
            quantile(0.5),
            quantile(0.99),
            quantile(0.999),
            {name: 1e6 * (cpu_after[name] - cpu[name]) / actions for name in cpu_after},
            memory,
            (etcd_after.transactions - etcd.transactions) / actions,
            (etcd_after.bytes_in - etcd.bytes_in) / actions,
        )

    async def _etcd(self) -> EtcdCounts:
        return await asyncio.to_thread(EtcdCounts.read, self._cluster.etcd_endpoints[0])

    async def limits(self) -> Limits:
        """The raw limits, one after the other."""
        return Limits(await self._etcd_limit(), await self._echo_limit(), await self._loop_limit())

    async def _etcd_limit(self) -> float:
        kv, records = EtcdKv(EtcdConfig(self._cluster.etcd_endpoints)), 0
        value = b"v" * (self._options.payload + 100)
        end = time.monotonic() + LIMIT_S

        async def write(writer: int) -> None:
            nonlocal records
            while time.monotonic() < end:
                puts = [Put(b"/bench/%d/%d" % (writer, n), value) for n in range(100)]
                await kv.txn(Txn(then=puts))
                records += len(puts)

        await asyncio.gather(*(write(n) for n in range(4)))
        await kv.aclose()
        return records / LIMIT_S

    async def _echo_limit(self) -> float:
        calls, end = 0, time.monotonic() + LIMIT_S
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self._port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)

            async def call() -> None:
                nonlocal calls
                while time.monotonic() < end:
                    await stub.Check(health_pb2.HealthCheckRequest())
                    calls += 1

            await asyncio.gather(*(call() for _ in range(64)))
        return calls / LIMIT_S

    async def _loop_limit(self) -> float:
        turns, end = 0, time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            await asyncio.sleep(0)
            turns += 1
        return turns / LIMIT_S


@contextmanager
def action_server(payload_bytes: int, addresses: tuple[str, ...]) -> "Iterator[tuple[subprocess.Popen[str], int]]":
    """Runs the action server, which is registered and listens on the port inside."""
    command = [sys.executable, str(Path(__file__).with_name("server.py")), str(payload_bytes), ",".join(addresses)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.terminate()


async def until_offered(cluster: DevCluster) -> None:
    """Waits until every node can call the action."""
    for address in cluster.addresses:
        async with sec_aio.Client([address]) as client:
            while not any(server.reachable for each in await client.actions() for server in each.servers):  # noqa: ASYNC110 # nothing tells us
                await asyncio.sleep(POLL_S)


async def rows(options: argparse.Namespace, nodes: int) -> AsyncIterator[Figures | Limits]:
    """Limits first, then a row for each number of sagas in flight."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.keep or Path(scratch)) / f"nodes-{nodes}"
        async with DevCluster(folder, nodes=nodes, extra=["--log-level=warning"]) as cluster:
            with action_server(options.payload, cluster.addresses) as (server, port):
                await until_offered(cluster)
                bench = Bench(cluster, server, port, options)
                if options.limits:
                    yield await bench.limits()
                for in_flight in options.in_flight:
                    yield await bench.measure(in_flight)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


async def main() -> int:
    parser = argparse.ArgumentParser(description="Measures the throughput of clusters on this machine.")
    parser.add_argument("--nodes", type=numbers, default=[1, 3], help="sizes of clusters")
    parser.add_argument("--in-flight", type=numbers, default=[1, 16, 64, 512], help="sagas in flight")
    parser.add_argument("--shape", default="chain:5", help="chain:N, or fan:N, which has one action more behind them")
    parser.add_argument("--payload", type=int, default=200, help="bytes of the params and of each output")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each row, after a warm-up")
    parser.add_argument("--wait", action="store_true", help="the client waits for each saga by a call")
    parser.add_argument("--no-limits", dest="limits", action="store_false", help="without the raw limits")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--keep", type=Path, help="folder for data and logs, which then stay")
    options = parser.parse_args()
    found: list[dict[str, object]] = []
    print(f"{options.shape}, payloads of {options.payload} bytes, 1 etcd member with fsync, {os.cpu_count()} cores")
    print(HEAD)
    for nodes in options.nodes:
        limits: Limits | None = None
        async for row in rows(options, nodes):
            found.append(dataclasses.asdict(row))
            if isinstance(row, Limits):
                limits = row
                continue
            print(row, flush=True)
        if limits is not None and isinstance(row, Figures):
            per_s = row.actions_per_s
            print(
                f"      raw limits: etcd {limits.etcd_records_per_s:.0f} records/s (actions/s are {per_s / limits.etcd_records_per_s:.1%}), "
                f"unary echo {limits.echo_calls_per_s:.0f} calls/s ({per_s / limits.echo_calls_per_s:.1%}), "
                f"event loop {limits.loop_turns_per_s:.0f} turns/s ({per_s / limits.loop_turns_per_s:.1%})",
                flush=True,
            )
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(uvloop.run(main()))
