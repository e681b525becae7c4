"""The rows of a bench: on clusters that it starts itself, whose processes and etcd it looks at, or on SEC nodes that run already."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from sec_client import aio as sec_aio

from sec.bench.figures import Figures, quantile_ms
from sec.bench.limits import Limits, measure
from sec.bench.load import Load
from sec.bench.shapes import STEP, Shape
from sec.bench.usage import EtcdCounts, cpu_of, memory_mib
from sec.dev.cluster import DevCluster

POLL_S = 0.05
READY_S = 30.0


class CannotMeasure(Exception):
    """The bench could not be run. The message is a sentence."""


@dataclass(frozen=True, slots=True)
class Options:
    """What is measured. `payload_bytes`: of the params and of each output. `seconds`: of each row, behind a warm-up of two."""

    shapes: tuple[Shape, ...]
    in_flight: tuple[int, ...]
    payload_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Server:
    process: "subprocess.Popen[str]"
    echo_port: int


async def on_running(options: Options, addresses: Sequence[str], listen: str) -> AsyncIterator[Figures]:
    """Rows for a cluster that runs. The action server, of ours, listens at an address at which its SEC nodes reach it. Raises `CannotMeasure`, `SagaError`."""
    async with _action_server(options.payload_bytes, addresses, listen):
        await _until_offered(addresses)
        for shape in options.shapes:
            for in_flight in options.in_flight:
                load = Load(shape, options.payload_bytes)
                async with load.running(addresses, in_flight):
                    seconds = await _measured(load, options.seconds)
                    yield _figures(shape, in_flight, seconds, load.took_s)


async def on_own(options: Options, folder: Path, nodes: int, members: int) -> AsyncIterator[Limits | Figures]:
    """The raw limits, and rows, of a cluster that is started for it, with data and logs in a folder. Raises `CannotMeasure`, `SagaError`, `EtcdNotStarted`, `NodeNotServing`."""
    async with (
        DevCluster(folder, nodes=nodes, etcd_size=members, extra=["--log-level=warning"]) as cluster,
        _action_server(options.payload_bytes, cluster.addresses, "127.0.0.1:0") as server,
    ):
        await _until_offered(cluster.addresses)
        limits = await measure(cluster.etcd_endpoints, f"127.0.0.1:{server.echo_port}", options.payload_bytes)
        yield limits
        watched = _Watched(cluster, server)
        for shape in options.shapes:
            for in_flight in options.in_flight:
                yield await watched.row(options, shape, in_flight, limits)


class _Watched:
    """A cluster whose processes and etcd are looked at while it is measured."""

    def __init__(self, cluster: DevCluster, server: _Server) -> None:
        assert cluster.etcd is not None, "the cluster has an etcd of its own"
        self._cluster = cluster
        self._members = cluster.etcd.size
        self._pids = {name: pid for name in cluster.names if (pid := cluster.pid(name))}
        self._pids |= {f"etcd-{n + 1}": pid for n in range(self._members) if (pid := cluster.etcd.pid(n))}
        self._pids |= {"server": server.process.pid, "client": os.getpid()}

    async def row(self, options: Options, shape: Shape, in_flight: int, limits: Limits) -> Figures:
        load = Load(shape, options.payload_bytes, self._cluster.etcd_endpoints)
        async with load.running(self._cluster.addresses, in_flight):
            cpu, etcd = cpu_of(self._pids), await self._etcd()
            seconds = await _measured(load, options.seconds)
            took_s = list(load.took_s)
            cpu_after, etcd_after = cpu_of(self._pids), await self._etcd()
            memory = {name: memory_mib(pid) for name, pid in self._pids.items()}
        actions = max(1, len(took_s) * shape.calls)
        row = _figures(shape, in_flight, seconds, took_s)
        floor_s = shape.floor_s(limits.commit_s, limits.call_s, limits.submit_s)
        return replace(
            row,
            nodes=len(self._cluster.names),
            etcd=self._members,
            cpu_us={name: 1e6 * (cpu_after[name] - cpu[name]) / actions for name in cpu_after},
            memory_mib=memory,
            etcd_txns=(etcd_after.transactions - etcd.transactions) / actions,
            etcd_bytes=(etcd_after.bytes_in - etcd.bytes_in) / actions,
            of_stream=row.actions_per_s / limits.stream_items_per_s,
            of_etcd=row.actions_per_s / limits.etcd_records_per_s,
            of_floor=row.p50_ms / 1000 / floor_s if in_flight == 1 else None,
        )

    async def _etcd(self) -> EtcdCounts:
        """Of all members together: each handles the calls of those who are connected to it."""
        counts = [await asyncio.to_thread(EtcdCounts.read, endpoint) for endpoint in self._cluster.etcd_endpoints]
        return EtcdCounts(sum(each.transactions for each in counts), sum(each.bytes_in for each in counts))


async def _measured(load: Load, seconds: float) -> float:
    """Lets a load run; how long it did."""
    load.begin_again()
    start = time.monotonic()
    await asyncio.sleep(seconds)
    return time.monotonic() - start


def _figures(shape: Shape, in_flight: int, seconds: float, took_s: Sequence[float]) -> Figures:
    times = sorted(took_s)
    p50_ms, p99_ms, p999_ms = (quantile_ms(times, share) for share in (0.5, 0.99, 0.999))
    return Figures(shape.name, in_flight, len(times) / seconds, len(times) * shape.calls / seconds, p50_ms, p99_ms, p999_ms)


@asynccontextmanager
async def _action_server(payload_bytes: int, addresses: Sequence[str], listen: str) -> AsyncIterator[_Server]:
    """Runs the action server, which is registered inside."""
    command = [sys.executable, "-m", "sec.bench.server", str(payload_bytes), ",".join(addresses), listen]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: ASYNC220 # it forks, and does not wait
        try:
            assert process.stdout is not None
            try:
                line = await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), READY_S)
            except TimeoutError:
                told = f"The action server of the bench could not register itself at {', '.join(addresses)} within {READY_S:g} s. Do these SEC nodes run?"
                raise CannotMeasure(told) from None
            if not line:
                raise CannotMeasure(f"The action server of the bench ended at its start, with status {process.wait()}.")
            yield _Server(process, int(line.split()[1]))
        finally:
            process.terminate()


async def _until_offered(addresses: Sequence[str]) -> None:
    """Waits until every node can call the actions."""
    for address in addresses:
        async with sec_aio.Client([address]) as client:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(READY_S):
                    while not await _offers(client):  # noqa: ASYNC110 # nothing tells us
                        await asyncio.sleep(POLL_S)
                    continue
            raise CannotMeasure(
                f"The SEC node at {address} does not reach the action server of the bench within {READY_S:g} s: give an address of this machine by --listen."
            )


async def _offers(client: sec_aio.Client) -> bool:
    return any(server.reachable for each in await client.actions() if each.name == STEP for server in each.servers)
