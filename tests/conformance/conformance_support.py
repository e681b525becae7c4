"""The cluster that the conformance rows are run at, what can be done to its logs while no SEC node runs, and sagas to run."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
from cluster_support import Stage
from sec_client import Definition, LogRecord, Saga, SagaResult, SagaState, SagaView, action
from sec_client import aio as sec_aio
from sec_protos.v1 import coordinator_pb2 as pb
from sec_protos.v1 import coordinator_pb2_grpc, records_pb2
from waiting_support import eventually

from examples.demo_provision.inventory import Inventory, Phase
from examples.demo_provision.saga import demo_provision
from sec.core.records import SagaId
from sec.dev.processes import launch
from sec.store.etcd import EtcdConfig, EtcdKv
from sec.store.keys import Keys, last_segment
from sec.store.kv import Delete, Get, GetResult, Op, Put, Txn, prefix_end

ROOT = Path(__file__).resolve().parent.parent.parent
DEMO_ACTIONS = 9
SETTLE_S = 60.0

DEMO_NODES = [
    "instance_id",
    "server_alloc_params",
    "instance_ip",
    "volume_id",
    "server_alloc",
    "server_alloc/server_id",
    "server_alloc/server_reserve",
    "instance_configure",
    "volume_attach",
    "instance_boot",
    "print",
]
DONE = dict.fromkeys(DEMO_NODES, "done")
UNWOUND = dict.fromkeys(DEMO_NODES, "undone") | {"instance_boot": "failed", "print": "abandoned"}
STUCK = UNWOUND | {"instance_id": "undo-failed"}


def chain(*nodes: str, name: str = "chain") -> Definition:
    """A saga whose nodes run one after the other."""
    saga = Saga(name)
    for node in nodes:
        saga.append(action(node, "step"))
    return saga.build()


def join() -> Definition:
    """a, then b and c beside each other, then z, which waits for both."""
    saga = Saga("join").append(action("a", "step"))
    saga.append_parallel(action("b", "step"), action("c", "step"))
    return saga.append(action("z", "step")).build()


def wide(nodes: int) -> Definition:
    """So many nodes beside each other, and one behind them all."""
    return Saga("wide").append_parallel(*(action(f"n{i}", "step") for i in range(nodes))).append(action("end", "step")).build()


def states(view: SagaView) -> dict[str, str]:
    return {node.node: str(node.state) for node in view.nodes}


async def log_of(client: sec_aio.Client, saga_id: str) -> list[LogRecord]:
    return [record async for record in client.log(saga_id)]


def kinds(log: Iterable[LogRecord]) -> list[str]:
    return [f"{record.kind} {record.node}".strip() for record in log]


@dataclass
class Theatre(Stage):
    """The stage of the cluster tests (its action is "step"), and the action server of the demo saga with its inventory beside it."""

    prefix: str = ""
    demo: subprocess.Popen[bytes] | None = None

    def __init__(self, cluster: Any, folder: Path, prefix: str) -> None:
        super().__init__(cluster, folder)
        self.prefix = prefix
        self.demo = None

    # its processes

    def start_servers(self) -> None:
        self.start_effects()
        command = [
            *(sys.executable, "-m", "examples.demo_provision.action_server"),
            *("--sec", ",".join(self.cluster.addresses), "--inventory", str(self.folder / "inventory.db")),
        ]
        self.demo = launch(command, self.folder / "demo.log", environment={**os.environ, "PYTHONPATH": str(ROOT)})

    def stop_servers(self) -> None:
        if self.demo is not None:
            self.demo.terminate()
            self.demo.wait(20)
        self.stop_effects()

    async def ready(self) -> None:
        """Returns when every node serves and reaches both action servers. Nothing is held then."""
        down = [name for name in self.cluster.names if self.cluster.pid(name) is None]
        for name in down:
            self.cluster.launch(name)
        await self.cluster.wait_serving_async()
        self.gate.touch()
        for address in self.cluster.addresses:
            async with sec_aio.Client([address]) as client:

                async def offered(client: sec_aio.Client = client) -> bool:
                    found = await client.actions()
                    return len([a for a in found if any(s.reachable for s in a.servers)]) == DEMO_ACTIONS + 1

                await eventually(offered)

    def hold(self) -> None:
        """From here on what a saga's params list under `hold` and `undo_hold` is held, until `gate.touch()`."""
        self.gate.unlink(missing_ok=True)

    @asynccontextmanager
    async def stub(self) -> AsyncIterator[Any]:
        """The service of the first node, without any client library in between."""
        async with grpc.aio.insecure_channel(self.cluster.addresses[0]) as channel:
            yield coordinator_pb2_grpc.CoordinatorStub(channel)

    # the demo saga

    async def run_demo(self, client: sec_aio.Client, saga_id: str, **params: Any) -> SagaResult:
        """Runs the demo saga until it has settled."""
        return await client.run(demo_provision(), saga_id=saga_id, params=params, timeout_s=SETTLE_S)

    @contextmanager
    def demo_stopped(self) -> Iterator[None]:
        """Meanwhile the demo's action server answers nothing: the first call of a demo saga stays under way, and nothing else of it starts."""
        assert self.demo is not None
        self.demo.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.demo.send_signal(signal.SIGCONT)

    @property
    def demo_inventory(self) -> Inventory:
        return Inventory(self.folder / "inventory.db")

    def demo_effects(self, saga_id: str) -> tuple[list[str], list[str]]:
        """The nodes whose effects were had, and those whose effects were taken back, each as often as it happened."""
        found = self.demo_inventory.effects(saga_id)
        return sorted(e.node for e in found if e.phase is Phase.DO), sorted(e.node for e in found if e.phase is Phase.UNDO)

    # the store

    @property
    def keys(self) -> Keys:
        return Keys(self.prefix)

    @asynccontextmanager
    async def kv(self) -> AsyncIterator[EtcdKv]:
        kv = EtcdKv(EtcdConfig(tuple(self.cluster.etcd_endpoints)))
        try:
            yield kv
        finally:
            await kv.aclose()

    async def written(self) -> dict[bytes, bytes]:
        """All that is stored of sagas and definitions."""
        shard = self.keys.saga(SagaId("")).removesuffix(b"saga/")
        async with self.kv() as kv:
            return {item.key: item.value for item in (await kv.get(Get(shard, prefix_end(shard)))).items}

    async def cut(self, kv: EtcdKv, saga_id: str, records: int) -> None:
        """Takes the last records out of a saga's log, as if they had never been written. To be called while no SEC node runs."""
        found = await self._log(kv, saga_id)
        then: list[Op] = []
        for item in reversed(found.items):
            batch = records_pb2.RecordBatch.FromString(item.value)
            if records >= len(batch.records):
                records -= len(batch.records)
                then.append(Delete(item.key))
            elif records:
                del batch.records[len(batch.records) - records :]
                records = 0
                then.append(Put(item.key, batch.SerializeToString()))
        assert records == 0, f"the log of {saga_id} is not that long"
        await kv.txn(Txn(then=[*then, *await self._active_again(kv, saga_id)]))

    async def damage(self, kv: EtcdKv, saga_id: str) -> None:
        """Makes the log of a saga that has ended unreadable, and the saga an active one. To be called while no SEC node runs."""
        first = (await self._log(kv, saga_id)).items[0]
        await kv.txn(Txn(then=[Put(first.key, b"\xff\xff\xff"), *await self._active_again(kv, saga_id)]))

    async def _log(self, kv: EtcdKv, saga_id: str) -> GetResult:
        log = self.keys.log(SagaId(saga_id))
        return await kv.get(Get(log, prefix_end(log)))

    async def _active_again(self, kv: EtcdKv, saga_id: str) -> list[Op]:
        """Its index entry goes back to where it was before the record that ended it."""
        ended = self.keys.ended(SagaId(saga_id))
        (item,) = (await kv.get(Get(ended))).items
        assert last_segment(item.key) == saga_id
        summary = pb.SagaSummary.FromString(item.value)
        summary.state, summary.ended_us = pb.SAGA_STATE_RUNNING, 0
        return [Delete(ended), Put(self.keys.active(SagaId(saga_id)), summary.SerializeToString())]


@dataclass(frozen=True)
class Seen:
    """A saga before the restart, or after it."""

    view: SagaView
    log: list[LogRecord]
    effects: tuple[list[str], list[str]]


LONG = 520
"""Nodes of a saga whose log is longer than a page of GetSagaLog."""
CUT = {"complete": 0, "done": 5, "failed": 3, "stuck": 0, "join": 3, "long": 5, "bystander": 4}
"""How many records each saga of `Recoveries` loses. "damaged" is another one, whose log becomes unreadable."""


@dataclass
class Recoveries:
    """Sagas whose logs lost their last records, or were left alone, while all SEC nodes were down: as they were and as they ended."""

    before: dict[str, Seen] = field(default_factory=dict)
    after: dict[str, Seen] = field(default_factory=dict)
    tried: bool = False

    async def make(self, theatre: Theatre) -> None:
        """Runs the sagas, stops all nodes, cuts, starts the nodes, and waits until the sagas have settled."""
        self.tried = True
        names = [*CUT, "damaged"]
        async with theatre.client() as client:
            await theatre.run_demo(client, "r-complete")
            await theatre.run_demo(client, "r-done")
            await theatre.run_demo(client, "r-failed", fail_at="instance_boot")
            await theatre.run_demo(client, "r-stuck", fail_at="instance_boot", undo_fail_at="instance_id")
            await client.run(join(), saga_id="r-join", params={"fail": ["c"]}, timeout_s=SETTLE_S)
            await client.run(wide(LONG), saga_id="r-long", timeout_s=SETTLE_S)
            await client.run(chain("a", "b"), saga_id="r-bystander", timeout_s=SETTLE_S)
            await client.run(chain("a", "b"), saga_id="r-damaged", timeout_s=SETTLE_S)
            self.before = {name: await self._look(theatre, client, f"r-{name}") for name in names}
        for name in theatre.cluster.names:
            await theatre.cluster.terminate_async(name)
        async with theatre.kv() as kv:
            for name, records in CUT.items():
                if records:
                    await theatre.cut(kv, f"r-{name}", records)
            await theatre.damage(kv, "r-damaged")
        await theatre.ready()
        async with theatre.client() as client:
            for name in CUT:
                await client.wait(f"r-{name}", timeout_s=SETTLE_S)
            await eventually(lambda: self._taken_over(client, "r-stuck"))
            await eventually(lambda: self._listed_as_corrupt(client, "r-damaged"))
            self.after = {name: await self._look(theatre, client, f"r-{name}") for name in CUT}

    def added(self, name: str) -> list[str]:
        """The records that a saga got after the restart."""
        kept = len(self.before[name].log) - CUT[name]
        return kinds(self.after[name].log[kept:])

    @staticmethod
    async def _look(theatre: Theatre, client: sec_aio.Client, saga_id: str) -> Seen:
        return Seen(await client.get(saga_id), await log_of(client, saga_id), theatre.demo_effects(saga_id))

    @staticmethod
    async def _taken_over(client: sec_aio.Client, saga_id: str) -> bool:
        return (await log_of(client, saga_id))[-1].kind == "owner_changed"

    @staticmethod
    async def _listed_as_corrupt(client: sec_aio.Client, saga_id: str) -> bool:
        return saga_id in [s.saga_id async for s in client.list(states=[SagaState.CORRUPT])]
