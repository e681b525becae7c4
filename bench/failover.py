"""Measures how long sagas stand still when their owner dies, hangs or is drained: real processes, a real etcd. `make bench-failover` runs it.

    python bench/failover.py [--kills 20] [--hangs 3] [--drains 10] [--sagas 100] [--many 5000] [--lease-ttl 5]

In each round one SEC node owns sagas whose actions are in flight. The clock runs from the blow (of a drain: from when the order is sent, on a
connection that stands) until the action server has calls of a new owner: of the first of these sagas, and of the last. CPU times are what all
processes but the client's have used meanwhile, the action server among them, which is in this one. Exits with 1 when a round cannot be finished, and not because of a figure.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from dispatches import Dispatches
from sec_client import aio as sec_aio
from sec_client.kit import ActionServer, Call
from sec_model import Definition, RetryPolicy, Saga, action

from sec.bench.usage import cpu_of
from sec.dev.cluster import DevCluster
from sec.store.etcd import EtcdConfig, EtcdKv
from sec.store.kv import EventKind, Put, Revision, Txn

ROUND_TIMEOUT_S = 120.0
SUBMITS_AT_ONCE = 32
REVOCATIONS = 20
POLL_S = 0.05


@dataclass
class Row:
    """One kind of blow: the times to the first and to the last saga of each round, in seconds."""

    title: str
    first: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        if not self.first:
            return f"{self.title:<34} {'-':>6}"
        figures = (statistics.median(self.first), max(self.first), statistics.median(self.last), max(self.last))
        cpu = f" {statistics.median(self.cpu):>12.3f}" if self.cpu else ""
        return f"{self.title:<34} {len(self.first):>6} " + " ".join(f"{each:>12.3f}" for each in figures) + cpu


HEAD = f"{'seconds':<34} {'rounds':>6} {'first median':>12} {'first worst':>12} {'all median':>12} {'all worst':>12} {'CPU median':>12}"


class Bench:
    """A cluster, an action server, and the rounds."""

    def __init__(self, cluster: DevCluster) -> None:
        self._cluster = cluster
        self._dispatches = Dispatches()
        self._gate = asyncio.Event()
        self._rounds = 0
        self.server = ActionServer("bench", store=self._dispatches, max_concurrency=100_000)

        @self.server.action("hold")
        async def hold(call: Call) -> str:
            await self._gate.wait()
            return call.node

        @hold.undo
        async def undo(call: Call) -> None: ...

    async def round(
        self, row: Row, sagas: int, blow: Callable[[str], Awaitable[None]], mend: Callable[[str], Awaitable[None]]
    ) -> None:
        """Lets the blow fall on the owner of `sagas` sagas in flight, and notes the times. All is well again at the end."""
        owner = self._cluster.names[self._rounds % len(self._cluster.names)]
        self._rounds += 1
        self._gate = asyncio.Event()
        before = set(self._dispatches.epochs)
        async with sec_aio.Client([self._cluster.address(owner)]) as self._client:
            async with asyncio.timeout(ROUND_TIMEOUT_S):
                await self._submit(self._client, sagas)
                await self._dispatches.until(lambda: len(self._dispatches.epochs) - len(before) == sagas)
            ours = [epochs for uid, epochs in self._dispatches.epochs.items() if uid not in before]
            old = [max(epochs) for epochs in ours]
            self._dispatches.repeated = 0
            cpu = cpu_of(self._pids())
            start = time.monotonic()
            await blow(owner)
            try:
                async with asyncio.timeout(ROUND_TIMEOUT_S):
                    await self._dispatches.until(lambda: self._dispatches.repeated == sagas)
                row.cpu.append(sum(after - cpu.get(name, 0.0) for name, after in cpu_of(self._pids()).items()))
            finally:
                await mend(owner)
        times = [min(at for e, at in epochs.items() if e > epoch) - start for epochs, epoch in zip(ours, old, strict=True)]
        row.first.append(min(times))
        row.last.append(max(times))
        self._gate.set()
        await self.settle(owner)
        print(
            f"  {row.title}: first {min(times):.3f} s, all {max(times):.3f} s, CPU {row.cpu[-1]:.2f} s", file=sys.stderr, flush=True
        )

    def _pids(self) -> dict[str, int]:
        pids = {name: pid for name in self._cluster.names if (pid := self._cluster.pid(name))}
        assert self._cluster.etcd is not None
        return pids | {"etcd": self._cluster.etcd.pid() or 0, "action server": os.getpid()}

    async def kill(self, owner: str) -> None:
        self._cluster.kill(owner)

    async def restart(self, owner: str) -> None:
        await self._cluster.restart_async(owner)

    async def hang(self, owner: str) -> None:
        self._cluster.pause(owner)

    async def resume(self, owner: str) -> None:
        self._cluster.resume(owner)

    async def drain(self, owner: str) -> None:
        await self._client.drain(owner)

    async def undrain(self, owner: str) -> None:
        async with sec_aio.Client([self._cluster.address(owner)]) as client:
            await client.drain(owner, undo=True)

    async def _submit(self, client: sec_aio.Client, sagas: int) -> None:
        left = iter(range(sagas))

        async def some() -> None:
            for number in left:
                await client.submit(SAGA, saga_id=f"bench-{self._rounds}-{number}")

        await asyncio.gather(*(some() for _ in range(SUBMITS_AT_ONCE)))

    async def settle(self, owner: str) -> None:
        """Waits until the sagas have ended, and the node that was hit serves and knows the action server again."""
        await self._cluster.wait_serving_async()
        async with asyncio.timeout(ROUND_TIMEOUT_S), sec_aio.Client([self._cluster.address(owner)]) as client:
            while not await _settled(client):  # noqa: ASYNC110 # nothing tells us
                await asyncio.sleep(POLL_S)


async def _settled(client: sec_aio.Client) -> bool:
    reachable = any(server.reachable for each in await client.actions() for server in each.servers)
    return reachable and not any(node.owned_sagas for node in (await client.nodes()).nodes)


def _saga() -> Definition:
    patient = RetryPolicy(attempt_timeout_s=3600)
    return Saga("bench-failover").append(action("held", "hold", retry=patient)).build()


SAGA = _saga()


async def revocations(endpoints: tuple[str, ...]) -> list[float]:
    """How long etcd itself takes: from the revocation of a lease until a watcher sees that its key has gone."""
    kv, times = EtcdKv(EtcdConfig(endpoints)), []
    try:
        for number in range(REVOCATIONS):
            key = b"/bench-failover/%d" % number
            lease = await kv.lease_grant(60)
            written = await kv.txn(Txn(then=[Put(key, b"", lease)]))
            async with aclosing(kv.watch(key, start=Revision(written.revision + 1))) as watch:
                await anext(watch)  # from now on nothing is missed
                start = time.monotonic()
                revoking = asyncio.create_task(kv.lease_revoke(lease))
                async for batch in watch:
                    if any(event.kind is EventKind.DELETE for event in batch.events):
                        break
                times.append(time.monotonic() - start)
                await revoking
    finally:
        await kv.aclose()
    return times


async def main() -> int:
    parser = argparse.ArgumentParser(description="Measures failover on a cluster of three SEC nodes on this machine.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--hangs", type=int, default=3)
    parser.add_argument("--drains", type=int, default=10)
    parser.add_argument("--sagas", type=int, default=100, help="in flight at the node that is hit")
    parser.add_argument(
        "--many", type=int, default=5000, help="in flight at a node that is killed in one more round; 0: no such round"
    )
    parser.add_argument("--lease-ttl", type=int, default=5)
    parser.add_argument("--log-level", default="warning", help="of the SEC nodes")
    parser.add_argument("--keep", type=Path, help="folder for data and logs, which then stay")
    options = parser.parse_args()
    kills, hangs = Row(f"SIGKILL, {options.sagas} sagas"), Row(f"SIGSTOP, {options.sagas} sagas")
    drains, many = Row(f"drain, {options.sagas} sagas, from its sending"), Row(f"SIGKILL, {options.many} sagas")
    etcd = Row("etcd: revocation of one lease")
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        extra = [f"--log-level={options.log_level}"]
        async with DevCluster(folder, lease_ttl_s=options.lease_ttl, extra=extra) as cluster:
            bench = Bench(cluster)
            await bench.server.start("127.0.0.1:0", sec=cluster.addresses)
            try:
                for name in cluster.names:
                    await bench.settle(name)
                for _ in range(options.kills):
                    await bench.round(kills, options.sagas, bench.kill, bench.restart)
                for _ in range(options.drains):
                    await bench.round(drains, options.sagas, bench.drain, bench.undrain)
                for _ in range(options.hangs):
                    await bench.round(hangs, options.sagas, bench.hang, bench.resume)
                if options.many:
                    await bench.round(many, options.many, bench.kill, bench.restart)
                etcd.first = etcd.last = await revocations(cluster.etcd_endpoints)
            finally:
                await bench.server.stop(0.0)
    print(HEAD)
    for row in (kills, drains, hangs, many, etcd):
        print(row)
    print(f"{'lease TTL':<34} {'':>6} {options.lease_ttl:>12.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(uvloop.run(main()))
