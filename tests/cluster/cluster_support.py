"""A cluster of real processes for each test process: three SEC nodes over the real etcd, and an action server with a real inventory."""

import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
from grpc_health.v1 import health_pb2
from sec_client import LogRecord, NodeCondition
from sec_client import aio as sec_aio
from sec_client.kit import ActionServer, Call, MemoryStore
from sec_client.kit.rules import Delivery, Verdict
from sec_model.commands import Command
from waiting_support import eventually, until

from sec.dev.cluster import DevCluster
from sec.dev.processes import launch

LEASE_TTL_S = 2


class CountingStore(MemoryStore):
    """Counts the calls that reach an action server, those too for which no handler is run, and the effects that the handlers have left."""

    def __init__(self) -> None:
        super().__init__()
        self.effects: Counter[str] = Counter()
        self._calls: Counter[tuple[str, bool]] = Counter()

    async def begin(self, delivery: Delivery) -> Verdict:
        self._calls[delivery.key.partition("/")[2], delivery.undo] += 1
        return await super().begin(delivery)

    def called(self, node: str) -> tuple[int, int]:
        """How often the action and the undo action of a node were called."""
        return self._calls[node, False], self._calls[node, True]


@asynccontextmanager
async def counting_server(addresses: Sequence[str], action: str) -> AsyncIterator[CountingStore]:
    """An action server within the test's process that offers one action, and counts its calls."""
    store = CountingStore()
    server = ActionServer("counting", store=store)

    @server.action(action)
    def do(call: Call) -> str:
        store.effects[call.node] += 1
        return call.node

    @do.undo
    def undo(call: Call) -> None:
        store.effects[call.node] -= 1

    await server.start(sec=addresses)
    try:
        yield store
    finally:
        await server.stop()


@dataclass
class Stage:
    """The cluster, its action server, and what there is in the inventory."""

    cluster: DevCluster
    folder: Path
    effects: subprocess.Popen[bytes] | None = None

    def start_effects(self) -> None:
        """Starts the action server."""
        script = Path(__file__).with_name("effects_server.py")
        command = [sys.executable, str(script), str(self.folder), ",".join(self.cluster.addresses)]
        self.effects = launch(command, self.folder / "effects.log")

    def restart_effects(self) -> None:
        """Kills the action server with SIGKILL and starts another one on the same store."""
        assert self.effects is not None
        self.effects.kill()
        self.effects.wait()
        self.start_effects()

    def stop_effects(self) -> None:
        """Lets the action server leave in good order."""
        if self.effects is not None:
            self.effects.terminate()
            self.effects.wait(20)

    @property
    def gate(self) -> Path:
        """While this file exists nothing is held."""
        return self.folder / "gate"

    def client(self) -> sec_aio.Client:
        return sec_aio.Client(self.cluster.addresses)

    def rows(self, sql: str, *values: str) -> list[tuple[object, ...]]:
        """What a query of the inventory answers; nothing before its first effect."""
        db = sqlite3.connect(self.folder / "effects.db", timeout=30)
        try:
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'inventory'").fetchall():
                return []
            return db.execute(sql, values).fetchall()
        finally:
            db.close()

    def inventory(self, saga_id: str) -> list[str]:
        """The nodes whose effects are in the world."""
        return sorted(str(node) for (node,) in self.rows("SELECT node FROM inventory WHERE saga_id = ?", saga_id))

    def done(self, saga_id: str) -> dict[str, int]:
        """How often each node's effect was had."""
        return dict(self.rows("SELECT node, count(*) FROM journal WHERE phase = 'do' AND saga_id = ? GROUP BY node", saga_id))  # type: ignore[arg-type]

    def undone(self, saga_id: str) -> dict[str, int]:
        """How often each node's effect was taken back."""
        return dict(self.rows("SELECT node, count(*) FROM journal WHERE phase = 'undo' AND saga_id = ? GROUP BY node", saga_id))  # type: ignore[arg-type]

    async def held(self, saga_id: str, node: str, phase: str) -> int:
        """Waits until an action is held, and answers the highest epoch that called it."""
        await until(lambda: list(self.folder.glob(f"{saga_id}.{node}.{phase}.*")))
        return max(int(path.suffix[1:]) for path in self.folder.glob(f"{saga_id}.{node}.{phase}.*"))

    async def owner(self, client: sec_aio.Client, saga_id: str) -> str:
        """The SEC node that owns a saga; waits until there is one."""

        async def found() -> str:
            return (await client.get(saga_id)).summary.owner

        return str(await eventually(found))

    async def takeover(self, client: sec_aio.Client, saga_id: str, former: str) -> LogRecord:
        """Waits for the record that says that somebody else owns a saga."""
        async for record in client.watch(saga_id):
            if record.kind == "owner_changed" and record.writer != former:
                return record
        raise AssertionError("the saga ended without a takeover")


@asynccontextmanager
async def stage_of(cluster: DevCluster, folder: Path) -> AsyncIterator[Stage]:
    """An action server for a cluster of the test's own."""
    stage = Stage(cluster, folder)
    stage.start_effects()
    try:
        yield stage
    finally:
        stage.gate.touch()
        stage.stop_effects()


async def taken_up(client: sec_aio.Client, saga_id: str, command_id: str) -> None:
    async def recorded() -> bool:
        return command_id in [r.fields.get("command_id") async for r in client.log(saga_id)]

    await eventually(recorded)


async def give(client: sec_aio.Client, saga_id: str, command: Command) -> None:
    """Gives a command and waits until its owner has recorded it."""
    await taken_up(client, saga_id, await client.command(saga_id, command, by="a test"))


async def given_to_a_dead_owner(stage: Stage, client: sec_aio.Client, saga_id: str, command: Command) -> str:
    """A command that is acknowledged while the owner hangs, which is killed before it can take it up."""
    owner = await stage.owner(client, saga_id)
    stage.cluster.pause(owner)
    others = [stage.cluster.address(n) for n in stage.cluster.names if n != owner]
    try:
        async with sec_aio.Client(others) as awake:
            command_id = await awake.command(saga_id, command, by="a test")
    finally:
        stage.cluster.kill(owner)
    return command_id


async def serving(address: str) -> bool:
    """What the health service of a node says. Asked without the standard stub, which lacks types."""
    async with grpc.aio.insecure_channel(address) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        answer: health_pb2.HealthCheckResponse = await check(health_pb2.HealthCheckRequest(), timeout=5)
        return answer.status == health_pb2.HealthCheckResponse.SERVING


async def condition_of(address: str) -> NodeCondition:
    """What an SEC node says of itself."""
    async with sec_aio.Client(address) as client:
        found = await client.nodes()
    [condition] = [node.condition for node in found.nodes if node.name == found.answered_by]
    return condition


async def come_to(addresses: Sequence[str], condition: NodeCondition) -> None:
    """Waits until all these SEC nodes say this of themselves, and their health is what that means."""

    async def all_are() -> bool:
        return {await condition_of(address) for address in addresses} == {condition}

    async def health() -> bool:
        return {await serving(address) for address in addresses} == {condition.serving}

    await eventually(all_are)
    await eventually(health)
