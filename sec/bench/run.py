"""The rows of a bench: on clusters that it starts itself, whose processes and etcd it looks at, or on SEC nodes that run already."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc.aio
from sec_client import aio as sec_aio

from sec.bench.figures import Figures, quantile_ms
from sec.bench.limits import Limits, measure, measure_floor
from sec.bench.load import Load, Target
from sec.bench.server import COUNT
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
    """The action server, and where its echoes are."""

    process: "subprocess.Popen[str]"
    echo: str

    async def ran(self) -> int:
        """How many actions and undo actions it has run."""
        async with grpc.aio.insecure_channel(self.echo) as channel:
            count: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(COUNT)
            return int.from_bytes(await count(b""), "big")


@dataclass(frozen=True, slots=True)
class Seen:
    """What of clusters that run already can be looked at from here: processes of this machine by name, and their etcd."""

    pids: Mapping[str, int] = field(default_factory=dict)
    etcd_endpoints: Sequence[str] = ()


async def on_running(options: Options, addresses: Sequence[str], listen: str, seen: Seen) -> AsyncIterator[Figures]:
    """Rows for a cluster that runs. The action server, of ours, listens at an address at which its SEC nodes reach it. Raises `CannotMeasure`, `SagaError`."""
    async with _action_server(options.payload_bytes, addresses, listen) as server:
        await _until_offered(addresses)
        pids = {**seen.pids, "server": server.process.pid, "client": os.getpid()}
        watched = _Watched([Target(addresses)], [server], pids, seen.etcd_endpoints)
        for shape in options.shapes:
            for in_flight in options.in_flight:
                yield await watched.row(options, shape, in_flight)


@dataclass(frozen=True, slots=True)
class Own:
    """Clusters that are started: how many, of how many SEC nodes and members of etcd each, and on how many cores each has to be (0: on all)."""

    nodes: int
    members: int
    clusters: int = 1
    cores: int = 0


async def on_own(options: Options, folder: Path, own: Own) -> AsyncIterator[Limits | Figures]:
    """The raw limits (those of the first one's etcd and action server), and rows, of clusters that are started for it, with data and logs in a folder.

    Raises `CannotMeasure`, `SagaError`, `EtcdNotStarted`, `NodeNotServing`."""
    async with contextlib.AsyncExitStack() as stack:
        targets, servers, pids, endpoints = list[Target](), list[_Server](), {"client": os.getpid()}, list[str]()
        for number, cores in enumerate(_cores(own)):
            cluster = DevCluster(
                folder / f"cluster-{number + 1}", nodes=own.nodes, etcd_size=own.members, extra=["--log-level=warning"]
            )
            await stack.enter_async_context(cluster)
            server = await stack.enter_async_context(_action_server(options.payload_bytes, cluster.addresses, "127.0.0.1:0"))
            _pin(_pids(cluster, server).values(), cores)
            await _until_offered(cluster.addresses)
            targets.append(Target(cluster.addresses, cluster.etcd_endpoints))
            servers.append(server)
            endpoints += cluster.etcd_endpoints
            suffix = f"-c{number + 1}" if own.clusters > 1 else ""
            pids |= {name + suffix: pid for name, pid in _pids(cluster, server).items()}
        limits = await measure(targets[0].etcd_endpoints, servers[0].echo, options.payload_bytes)
        yield limits
        watched = _Watched(targets, servers, pids, endpoints)
        for shape in options.shapes:
            for in_flight in options.in_flight:
                row = await watched.row(options, shape, in_flight)
                yield replace(
                    row,
                    nodes=own.nodes,
                    etcd=own.members,
                    clusters=own.clusters,
                    of_stream=row.actions_per_s / limits.stream_items_per_s,
                    of_etcd=row.actions_per_s / limits.etcd_records_per_s,
                )


def _pids(cluster: DevCluster, server: _Server) -> dict[str, int]:
    assert cluster.etcd is not None, "the cluster has an etcd of its own"
    found = {name: pid for name in cluster.names if (pid := cluster.pid(name))}
    found |= {f"etcd-{n + 1}": pid for n in range(cluster.etcd.size) if (pid := cluster.etcd.pid(n))}
    return found | {"server": server.process.pid}


def _cores(own: Own) -> list[set[int]]:
    """The cores of each cluster. Raises `CannotMeasure`."""
    there, each = sorted(os.sched_getaffinity(0)), own.cores or len(os.sched_getaffinity(0))
    if own.cores and own.clusters * each > len(there):
        told = f"{own.clusters} clusters of {each} cores each need {own.clusters * each}, and there are {len(there)}."
        raise CannotMeasure(told)
    return [set(there[number * own.cores :][:each]) for number in range(own.clusters)]


def _pin(pids: Iterable[int], cores: set[int]) -> None:
    """Lets processes run on these cores alone, with all of their threads, and those to come."""
    for pid in pids:
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), cores)


class _Watched:
    """Clusters whose action servers, processes and etcd are looked at while they are measured, as far as there are some to look at."""

    def __init__(
        self, targets: Sequence[Target], servers: Sequence[_Server], pids: Mapping[str, int], etcd_endpoints: Sequence[str]
    ) -> None:
        self._targets = targets
        self._servers = servers
        self._pids = pids
        self._etcd_endpoints = etcd_endpoints

    async def row(self, options: Options, shape: Shape, in_flight: int) -> Figures:
        alone = in_flight == 1 and len(self._targets) == 1 and self._targets[0].etcd_endpoints
        floor_s = await self._floor_s(options, shape) if alone else None
        load = Load(shape, options.payload_bytes, self._targets)
        async with load.running(in_flight):
            before, ran, cpu, etcd = time.monotonic(), await self._ran(), cpu_of(self._pids), await self._etcd()
            load.begin_again()
            await asyncio.sleep(options.seconds)
            took_s, after, now_ran = sorted(load.took_s), time.monotonic(), await self._ran()
            cpu_after, etcd_after = cpu_of(self._pids), await self._etcd()
            memory = {name: memory_mib(pid) for name, pid in self._pids.items() if name in cpu_after}
        if floor_s is not None:
            floor_s = (floor_s + await self._floor_s(options, shape)) / 2
        seconds, actions = after - before, max(1, now_ran - ran)
        p50_ms, p99_ms, p999_ms = (quantile_ms(took_s, share) for share in (0.5, 0.99, 0.999))
        return Figures(
            shape.name,
            in_flight,
            len(took_s) / seconds,
            (now_ran - ran) / seconds,
            p50_ms,
            p99_ms,
            p999_ms,
            cpu_us={name: 1e6 * (cpu_after[name] - cpu[name]) / actions for name in cpu_after},
            memory_mib=memory,
            etcd_txns=None if etcd is None or etcd_after is None else (etcd_after.transactions - etcd.transactions) / actions,
            etcd_bytes=None if etcd is None or etcd_after is None else (etcd_after.bytes_in - etcd.bytes_in) / actions,
            floor_ms=None if floor_s is None else 1000 * floor_s,
            of_floor=None if floor_s is None else p50_ms / (1000 * floor_s),
        )

    async def _floor_s(self, options: Options, shape: Shape) -> float:
        return await measure_floor(
            self._targets[0].etcd_endpoints, self._servers[0].echo, options.payload_bytes, shape.serial_calls
        )

    async def _ran(self) -> int:
        """Actions and undo actions that the action servers have run."""
        return sum([await server.ran() for server in self._servers])

    async def _etcd(self) -> EtcdCounts | None:
        """Of all members together: each handles the calls of those who are connected to it."""
        if not self._etcd_endpoints:
            return None
        counts = [await asyncio.to_thread(EtcdCounts.read, endpoint) for endpoint in self._etcd_endpoints]
        return EtcdCounts(sum(each.transactions for each in counts), sum(each.bytes_in for each in counts))


@asynccontextmanager
async def _action_server(payload_bytes: int, addresses: Sequence[str], listen: str) -> AsyncIterator[_Server]:
    """Runs the action server, which is registered inside."""
    command = [sys.executable, "-m", "sec.bench.server", str(payload_bytes), ",".join(addresses), listen]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: ASYNC220 # it forks, and does not wait
        try:
            assert process.stdout is not None
            try:
                async with asyncio.timeout(READY_S):
                    line = await asyncio.to_thread(process.stdout.readline)
            except TimeoutError:
                told = f"The action server of the bench could not register itself at {', '.join(addresses)} within {READY_S:g} s. Do these SEC nodes run?"
                raise CannotMeasure(told) from None
            if not line:
                raise CannotMeasure(f"The action server of the bench ended at its start, with status {process.wait()}.")
            yield _Server(process, f"127.0.0.1:{line.split()[1]}")
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
