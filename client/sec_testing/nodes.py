"""The SEC nodes of a tester: real ones, over a store in memory and in virtual time. They can be made to die at any write to a saga's log, and come back."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

from sec_model import Graph

from sec.api.coordinator import Coordinator
from sec.codec import entries_from_bytes, record_to_proto
from sec.core.records import LogEntry, SagaId, SecNodeName
from sec.core.state import SagaState
from sec.core.transitions import Course
from sec.node.node import SecNode
from sec.node.settings import Settings
from sec.sim.loop import SimProcess
from sec.sim.network import Link, SimKv, Weather
from sec.store.keys import Keys
from sec.store.kv import EventKind, Indeterminate, LeaseNotFound, Put, Txn, TxnResult, WatchBatch, prefix_end
from sec.store.memory.etcd import MemoryEtcd, Watcher
from sec_testing.asking import InProcessClient, InProcessCluster, unavailable
from sec_testing.directory import InProcessDirectory
from sec_testing.faults import Crash
from sec_testing.loop import VirtualLoop
from sec_testing.servers import Servers

LEASE_TTL_S = 600
SWEEP_S = 600.0
STALL_LIMIT_S = 20_000.0
"""Long ones: nothing is lost here, the sagas of a node that dies are taken over at once, and what nodes do by the clock costs time for each virtual second."""
NOTICED_S = 0.05
"""After so long the others notice that a node has died, as they do when its connections break."""
BACK_S = 1.0
"""After so long it is started again."""


@dataclass
class Member:
    """A run of an SEC node."""

    name: str
    process: SimProcess
    kv: SimKv
    node: SecNode
    coordinator: Coordinator
    asked: list["asyncio.Future[Any]"] = field(default_factory=list)


@dataclass
class Followed:
    """A saga as the store has it."""

    state: SagaState
    crashes: list[Crash]
    writes: int = 0
    owner: str = ""
    """The SEC node that wrote last."""


class _Kv(SimKv):
    """The store of one SEC node, which may die as it writes."""

    def __init__(self, etcd: MemoryEtcd, link: Link, process: SimProcess, write: Callable[[Txn], TxnResult]) -> None:
        super().__init__(etcd, link, process, lambda moment: None)
        self._write = write

    async def txn(self, txn: Txn, *, timeout_s: float | None = None) -> TxnResult:
        return await self._call("carry out a transaction", lambda: self._write(txn), timeout_s, write=True)


class Nodes:
    """All of them. `changed` is called whenever something of a followed saga has been written."""

    def __init__(
        self, loop: VirtualLoop, servers: Servers, clock_us: Callable[[], int], count: int, seed: int, changed: Callable[[], None]
    ) -> None:
        self.sagas: dict[str, Followed] = {}
        self.etcd = MemoryEtcd()
        self.keys = Keys()
        self.fault: BaseException | None = None
        """A node ended by itself: a fault of ours."""
        self.processes: list[SimProcess] = []
        self.client = InProcessClient(InProcessCluster(loop, self._in_order))
        self._loop = loop
        self._servers = servers
        self._clock_us = clock_us
        self._names = [f"sec-{number}" for number in range(1, count + 1)]
        self._seed = seed
        self._changed = changed
        self._members: dict[str, Member] = {}
        self._ending = False
        self.etcd.attach(Watcher(self.keys.logs, prefix_end(self.keys.logs), False, self._committed), None)

    async def start(self) -> None:
        """Starts all of them, and returns when they take sagas."""
        for name in self._names:
            self._start(name)
        while not all(member.node.serving for member in self._members.values()):  # noqa: ASYNC110 # they tell nobody
            await asyncio.sleep(0.01)

    def end(self) -> None:
        """What ends from now on, is to end."""
        self._ending = True

    def follow(self, saga_id: str, graph: Graph, crashes: Sequence[Crash]) -> None:
        """Before a saga is submitted."""
        self.sagas[saga_id] = Followed(SagaState(SagaId(saga_id), graph), list(crashes))

    def crash_owner(self, saga_id: str) -> str:
        """The SEC node that owns a saga dies, now. Answers its name. Raises `ValueError` when there is none."""
        for member in self._members.values():
            if SagaId(saga_id) in member.node.owner.drivers and not member.process.dead:
                self._kill(member)
                return member.name
        raise ValueError(f'No SEC node owns saga "{saga_id}": it has not been started, or has ended.')

    def _in_order(self) -> list[Member]:
        return [self._members[name] for name in self._names]

    def _start(self, name: str) -> None:
        process = SimProcess(name)
        self.processes.append(process)
        link = Link(self._loop, Random(f"{name} {len(self.processes)} {self._seed}"), Weather())
        settings = Settings(
            SecNodeName(name),
            lease_ttl_s=LEASE_TTL_S,
            store_timeout_s=LEASE_TTL_S,
            claim_fallback_s=0.2,
            sweep_interval_s=SWEEP_S,
            stall_limit_s=STALL_LIMIT_S,
            revoke_on_refused=False,  # that looks at real sockets: `_noticed` stands for it
        )
        kv = _Kv(self.etcd, link, process, lambda txn: self._write(name, txn))

        def make() -> SecNode:
            return SecNode(
                settings,
                kv,
                link.rng,
                None,
                clock_us=self._clock_us,
                directory=lambda mirror: InProcessDirectory(mirror, self._servers, name, process),
            )

        def serve(node: SecNode) -> Coordinator:
            return Coordinator(node)

        node = process.context.run(make)
        member = Member(name, process, kv, node, process.context.run(serve, node))
        self._members[name] = member
        self._loop.start(process, self._run(member))

    async def _run(self, member: Member) -> None:
        try:
            await member.node.run()
        except Exception as error:
            self.fault = error
        else:
            if not self._ending:
                self.fault = RuntimeError(f'The SEC node "{member.name}" has ended by itself.')
        self._changed()

    # writes

    def _write(self, name: str, txn: Txn) -> TxnResult:
        member = self._members[name]
        for saga, entries in self._about_to_write(txn):
            for crash in [c for c in saga.crashes if c.before and c.strikes(saga.writes + 1, _told(entries))]:
                saga.crashes.remove(crash)
                self._kill(member)
        if member.process.dead:
            raise Indeterminate("The SEC node died as it wrote.")
        return self.etcd.txn(txn)

    def _about_to_write(self, txn: Txn) -> list[tuple[Followed, list[LogEntry]]]:
        found = []
        for op in txn.then:
            if isinstance(op, Txn):
                found += self._about_to_write(op)
            elif isinstance(op, Put) and op.key.startswith(self.keys.logs):
                saga, sequence = self._place(op.key)
                if saga is not None and sequence == saga.state.next_sequence:
                    found.append((saga, entries_from_bytes(op.value, sequence, self.etcd.revision)))
        return found

    def _place(self, key: bytes) -> tuple[Followed | None, int]:
        saga_id, _, sequence = key[len(self.keys.logs) :].decode().partition("/")
        return self.sagas.get(saga_id), int(sequence, 16)

    def _committed(self, batch: WatchBatch) -> None:
        for event in batch.events:
            saga, sequence = self._place(event.item.key)
            if saga is None or event.kind is EventKind.DELETE:
                continue
            entries = entries_from_bytes(event.item.value, sequence, event.item.create_revision)
            for entry in entries:
                saga.state.apply_entry(entry)
            saga.writes += 1
            saga.owner = entries[-1].writer
            for crash in [c for c in saga.crashes if not c.before and c.strikes(saga.writes, _told(entries))]:
                saga.crashes.remove(crash)
                self._kill(self._members[saga.owner])
        self._changed()

    # deaths

    def _kill(self, member: Member) -> None:
        if member.process.dead:
            return
        member.process.dead = True
        member.kv.break_watches()
        self._servers.forget(member.name)
        for answer in member.asked:
            if not answer.done():
                answer.set_exception(unavailable(member.name))
        self._servers.later(NOTICED_S, lambda: self._noticed(member))
        self._servers.later(BACK_S, lambda: None if self._ending else self._start(member.name))

    def _noticed(self, member: Member) -> None:
        with suppress(LeaseNotFound):
            self.etcd.lease_revoke(member.node.lease)

    # rest

    def settled(self, saga_id: str) -> bool:
        """It has ended or is stuck."""
        course = self.sagas[saga_id].state.course
        return course.ended or course is Course.STUCK

    def not_started(self, saga_id: str) -> bool:
        """It was submitted, and not started."""
        return self.sagas[saga_id].state.course is Course.CREATED

    def rests(self, saga_id: str) -> bool:
        """Nothing of a saga is under way, and unless somebody does something only a deadline can change that."""
        saga = self.sagas[saga_id]
        state = saga.state
        if state.course.ended or state.course is Course.CREATED:
            return True
        under_way = [n for n in state.in_flight if n not in state.waiting]
        if state.controls.paused:
            return all(n in state.tries for n in under_way) and not self._servers.waits_for(saga_id)
        if state.course is Course.STUCK:
            return not under_way
        timers = any(state.graph.nodes[n].timer is not None for n in state.waiting)
        return state.course is Course.RUNNING and not (under_way or state.startable or timers)


def _told(entries: Sequence[LogEntry]) -> list[tuple[str, str]]:
    """Kinds and nodes of records, by the contract's names."""
    told: list[tuple[str, str]] = []
    for entry in entries:
        message = record_to_proto(entry.record)
        kind = message.WhichOneof("kind") or ""
        told.append((kind, getattr(getattr(message, kind), "node", "")))
    return told
