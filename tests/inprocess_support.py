"""SEC nodes and action servers within the test's process: real gRPC between them, a store in memory under them.

What needs real processes and a real etcd stands in tests/cluster.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from sec_client.aio import Client
from sec_client.kit import ActionFailed, ActionServer, Call, MemoryStore, Unavailable
from sec_model import Definition, RetryPolicy, Saga, action
from waiting_support import until

from sec.api.server import ApiServer, TlsFiles
from sec.core.records import SecNodeName
from sec.node.node import SecNode
from sec.node.settings import Settings
from sec.store.kv import Get, Put, Txn, prefix_end
from sec.store.memory import MemoryEtcd, MemoryKv

FAST = RetryPolicy(max_attempts=3, initial_backoff_s=0.01, max_backoff_s=0.02, attempt_timeout_s=10)


@dataclass
class World:
    """What the action servers of a test do: each node of a saga behaves as scripted, and every handler's run is noted.

    `do` and `undo` hold, by node, outcomes that are used up one after the other: "fail", "unknown", "hold" (until `gate` is set), "hold fail", anything
    else succeeds. `ran` lists (phase, node, epoch) in order, `calls` the calls; `effects` counts what is in the world by (saga, node).
    """

    do: dict[str, list[str]] = field(default_factory=dict)
    undo: dict[str, list[str]] = field(default_factory=dict)
    ran: list[tuple[str, str, int]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    effects: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    served_by: list[str] = field(default_factory=list)

    def server(self, name: str = "world", actions: tuple[str, ...] = ("step",), max_concurrency: int = 64) -> ActionServer:
        """An action server, not started yet, whose actions all follow the script."""
        server = ActionServer(name, store=MemoryStore(), max_concurrency=max_concurrency)

        async def do(call: Call) -> Any:
            self.served_by.append(name)
            await self._play("do", self.do, call)
            self.effects[call.saga_id, call.node] += 1
            return {"node": call.node, "inputs": dict(call.inputs)}

        async def undo(call: Call) -> None:
            await self._play("undo", self.undo, call)
            self.effects[call.saga_id, call.node] -= 1

        for each in actions:
            server.action(each)(do).undo(undo)
        return server

    async def _play(self, phase: str, script: dict[str, list[str]], call: Call) -> None:
        self.ran.append((phase, call.node, call.epoch))
        self.calls.append(call)
        outcomes = script.get(call.node, [])
        match outcomes.pop(0) if outcomes else "":
            case "fail":
                raise ActionFailed(f"{call.node} does not work", code="scripted")
            case "unknown":
                raise Unavailable(f"{call.node} does not know")
            case "hold":
                await self.gate.wait()
            case "hold fail":
                await self.gate.wait()
                raise ActionFailed(f"{call.node} does not work", code="scripted")

    def count(self, phase: str, node: str) -> int:
        return sum(1 for p, n, _ in self.ran if (p, n) == (phase, node))


@dataclass
class Member:
    """One SEC node of a test."""

    node: SecNode
    kv: MemoryKv
    api: ApiServer
    running: "asyncio.Task[None]"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.api.port}"

    async def stop(self) -> None:
        self.node.stop()
        await self.running


class Cluster:
    """SEC nodes over one store in memory. Use `cluster(...)`."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.etcd = MemoryEtcd()
        self.members: dict[str, Member] = {}
        self._stack = stack

    async def add(
        self,
        name: str,
        *,
        tls: TlsFiles | None = None,
        action_servers_tls: grpc.ChannelCredentials | None = None,
        peers_tls: grpc.ChannelCredentials | None = None,
        **settings: Any,
    ) -> Member:
        """Starts a node and waits until it has joined."""
        kv = MemoryKv(self.etcd, latency_s=0.001)
        given = {
            "lease_ttl_s": 2,
            "store_timeout_s": 0.5,
            "claim_fallback_s": 0.2,
            "sweep_interval_s": 0.5,
            "listen": "127.0.0.1:0",
        }
        made = Settings(SecNodeName(name), **{**given, **settings})
        node = SecNode(made, kv, random.Random(name), action_servers_tls, peers_tls)
        api = ApiServer(node, tls)
        await api.start()
        member = Member(node, kv, api, asyncio.create_task(self._run(node, api, kv)))
        self.members[name] = member
        self._stack.push_async_callback(member.stop)
        await until(lambda: node.serving)
        return member

    async def _run(self, node: SecNode, api: ApiServer, kv: MemoryKv) -> None:
        health = asyncio.create_task(api.run_health())
        try:
            await node.run()
        finally:
            health.cancel()
            await api.stop(0.1)
            await kv.aclose()

    async def serve(self, server: ActionServer) -> ActionServer:
        """Starts an action server and waits until every node can call it."""
        await server.start("127.0.0.1:0", sec=[m.address for m in self.members.values()])
        self._stack.push_async_callback(server.stop, 0.0)
        address = f"127.0.0.1:{server.port}"
        await until(lambda: all(self._reaches(m, address) for m in self.members.values() if not m.running.done()))
        return server

    @staticmethod
    def _reaches(member: Member, address: str) -> bool:
        return any(endpoint.up and endpoint.address == address for endpoint, _, _ in member.node.directory.servers())

    def client(self, *names: str) -> Client:
        """A client of some of the nodes, or of all."""
        return Client([self.members[n].address for n in names or self.members])

    def etcd_put(self, key: bytes, value: bytes) -> None:
        """Writes to the store behind everybody's back."""
        self.etcd.txn(Txn(then=[Put(key, value)]))

    def etcd_keys(self, prefix: bytes) -> set[bytes]:
        """What keys the store has under a prefix."""
        return {item.key for item in self.etcd.get(Get(prefix, prefix_end(prefix))).items}

    def owner_of(self, saga_id: str) -> Member | None:
        """The node that drives a saga now."""
        return next((m for m in self.members.values() if saga_id in m.node.owner.drivers), None)


@asynccontextmanager
async def cluster(*names: str, **settings: Any) -> AsyncIterator[Cluster]:
    """A cluster of SEC nodes within this process; everything is stopped at the end."""
    async with AsyncExitStack() as stack:
        made = Cluster(stack)
        for name in names:
            await made.add(name, **settings)
        yield made


def chain(*nodes: str, name: str = "chain", retry: RetryPolicy = FAST) -> Definition:
    """A saga whose nodes run one after the other."""
    saga = Saga(name)
    for node in nodes:
        saga.append(action(node, "step", retry=retry, undo_retry=retry))
    return saga.build()
