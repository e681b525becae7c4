"""One run: SEC nodes, the store, action servers, clients and an operator, and the steps of a plan. What must not be is noticed when it happens."""

import asyncio
import logging
import zlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random

from sec_model import Payload
from sec_model.codec import definition_bytes
from sec_model.commands import Command, MarkUndone, Resume, Signal, SkipUndo
from sec_model.commands_codec import command_to_proto
from sec_model.graph import Graph
from sec_protos.v1 import coordinator_pb2

from sec.codec import entries_from_bytes
from sec.core.checkers import Checker, Violated, check_all_or_none, check_settled
from sec.core.errors import CorruptLog, SagaError
from sec.core.records import Commanded, Epoch, LogEntry, Phase, SagaId, SecNodeName
from sec.core.refusals import refusal
from sec.core.state import SagaState, fold
from sec.core.transitions import Course
from sec.dispatch.calls import Call
from sec.node.node import SecNode
from sec.node.settings import Settings
from sec.sim.action_servers import ActionServers, SimDirectory
from sec.sim.effects import FakeActionServer
from sec.sim.loop import START_S, SimLoop, SimProcess, Stalled, running_process
from sec.sim.network import Link, SimKv, Weather
from sec.sim.plan import LEASE_TTL_S, Do, Plan, SagaPlan
from sec.store.errors import SagaExists, SagaNotFound, WrongState
from sec.store.keys import Keys, last_segment
from sec.store.kv import Compacted, Delete, Event, EventKind, Get, KvError, LeaseNotFound, Put, Txn, WatchBatch, prefix_end
from sec.store.memory.etcd import MemoryEtcd, Watcher
from sec.store.sagas import SagaHead

_NO_PARAMS = Payload.json(None)

MAX_STEPS = 400_000
"""Turns of the event loop. Far more than any run needs."""
PATIENCE_S = 150.0
"""After all is healed every saga has to settle within this time: what fails behind a point of no return is tried every 30 s."""
QUIET_S = 4.0
"""Then what the network still holds arrives."""
ANSWER_S = 3.0
TRIES = 4


@dataclass(frozen=True)
class Result:
    """What came of a run. `violated` is empty when nothing was found. `digest` tells runs apart."""

    violated: str
    trace: tuple[str, ...]
    digest: int
    seconds: float
    """How much time passed in it."""


class Saga:
    """A saga as the world sees it: what was promised to its clients, what its log has, what its action servers did."""

    def __init__(self, plan: SagaPlan) -> None:
        self.plan = plan
        self.id = SagaId(plan.name)
        self.graph: Graph = plan.graph
        self.state = SagaState(self.id, self.graph)
        self.checker = Checker(self.graph)
        self.log: list[LogEntry] = []
        self.server = FakeActionServer(dict(plan.failing), dict(plan.undo_failing))
        self.owner = Epoch(0)
        self.acknowledged = False
        self.commands: list[str] = []
        """Acknowledged."""
        self.asked: set[str] = set()
        self.seen = 0
        """How much of the log a reader has seen."""


@dataclass
class Member:
    """A run of an SEC node's process."""

    name: str
    process: SimProcess
    link: Link
    kv: SimKv
    node: SecNode
    armed: list[Do] = field(default_factory=list)


class World:
    def __init__(self, plan: Plan, *, tracing: bool = False) -> None:
        self.plan = plan
        self.loop = SimLoop()  # type: ignore[abstract] # what is for I/O is not there
        self.etcd = MemoryEtcd()
        self.keys = Keys()
        self.rng = Random(f"world {plan.seed}")
        self.suspected: set[str] = set()
        """Nodes whose leases were revoked although they live: they learn it a little later."""
        self.violated = ""
        self.ended = False
        self.digest = 0
        self.tracing = tracing
        self.trace: list[str] = []
        self.processes: list[SimProcess] = []
        self.members: dict[str, Member] = {}
        self.sagas = {saga.name: Saga(saga) for saga in plan.sagas}
        self.weather = plan.weather
        self.servers = ActionServers(self.loop, Random(f"servers {plan.seed}"), plan.weather)
        self.skew_us = {name: self.rng.randrange(-500_000, 500_000) for name in plan.nodes}
        self._starts = 0
        self._uids = 0

    # what is noticed

    def note(self, who: str, what: str) -> None:
        if self.tracing:
            self.trace.append(f"{self.loop.time() - START_S:7.3f}  {who:8} {what}")

    def violate(self, what: str) -> None:
        """The first is the one that counts."""
        if not self.violated:
            self.violated = what
            self.note("CHECK", what)

    def require(self, holds: bool, what: str) -> None:
        if not holds:
            self.violate(what)

    def _committed(self, batch: WatchBatch) -> None:
        """Something has become durable."""
        try:
            logs = [e for e in batch.events if e.item.key.startswith(self.keys.logs)]
            for event in logs:
                self._log_changed(event)
            for event in batch.events:
                self.digest = zlib.crc32(event.item.key + event.item.value, self.digest)
                if event.item.key.startswith(self.keys.owners):
                    self._owner_changed(event)
                elif event.item.key.startswith(self.keys.commands) and event.kind is EventKind.DELETE:
                    self._command_gone(event)
        except (Violated, SagaError) as error:
            self.violate(str(error))

    def _log_changed(self, event: Event) -> None:
        saga_name, _, sequence = event.item.key[len(self.keys.logs) :].decode().partition("/")
        saga = self.sagas[saga_name]
        if event.kind is EventKind.DELETE:
            self.require(saga.state.course.ended, f"8: a part of the log of {saga_name} is gone")
            return
        self.require(event.item.version == 1, f"8: the log of {saga_name} is overwritten at {int(sequence, 16)}")
        entries = entries_from_bytes(event.item.value, int(sequence, 16), event.item.create_revision)
        for entry in entries:
            own = entry.epoch in (saga.owner, event.item.create_revision)
            self.require(
                own, f"1: epoch {entry.epoch} of {entry.writer} writes to {saga_name}, whose owner's is {saga.owner or 'none'}"
            )
            if self.tracing:
                self.note(entry.writer, f"{saga_name} [{entry.epoch}] {entry.sequence}: {entry.record}")
            saga.checker.see(entry)
            saga.state.apply_entry(entry)
            saga.log.append(entry)
            if isinstance(entry.record, Commanded) and isinstance(entry.record.command, MarkUndone) and not entry.record.refused:
                saga.server.undo_by_hand(entry.record.command.node)

    def _owner_changed(self, event: Event) -> None:
        saga = self.sagas[last_segment(event.item.key)]
        if event.kind is EventKind.PUT:
            self.require(event.item.version == 1, f"1: {saga.id} is taken from its owner")
            saga.owner = Epoch(event.item.create_revision)
            self.note(event.item.value.decode(), f"owns {saga.id} in epoch {saga.owner}")
        else:
            saga.owner = Epoch(0)
            self.note("etcd", f"nobody owns {saga.id}")

    def _command_gone(self, event: Event) -> None:
        saga_name, _, command_id = event.item.key[len(self.keys.commands) :].decode().partition("/")
        state = self.sagas[saga_name].state
        self.require(
            command_id in state.commands or state.course.ended,
            f"6: the command {command_id} of {saga_name} is gone, and not in its log",
        )

    def dispatched(self, member: Member, call: Call) -> None:
        """A node calls an action server."""
        saga = self.sagas[call.saga_id]
        what = f"the {call.phase.value} of {call.node} of {call.saga_id}"
        self.note(member.name, f"calls {what} in epoch {call.epoch}, attempt {call.attempt}")
        session = member.node.session
        held = session is not None and self.loop.time() < member.kv.renewed.get(session.lease, 0.0)
        self.require(held, f"7: {member.name} dispatches {what} past the deadline of its session")
        if call.epoch != saga.owner:
            self.require(
                member.name in self.suspected, f"7: {member.name} dispatches {what} in epoch {call.epoch}, and does not own it"
            )
            return  # which the action servers are there to refuse, once the next owner has called them
        status = saga.checker.status[saga.graph.index_of(call.node)]
        expected = "open" if call.phase is Phase.DO else "undoing"
        self.require(status == expected, f"2: {member.name} dispatches {what}, which is {status}")
        action = saga.graph.nodes[saga.graph.index_of(call.node)].action
        pinned = "" if action is None else saga.checker.called[action.action]
        self.require(call.action == pinned, f'2: {member.name} dispatches {what} as "{call.action}", not as "{pinned}"')
        self.require(call.epoch == saga.checker.epoch, f"2: {member.name} dispatches {what} before its takeover is in the log")

    # members

    def start_member(self, name: str) -> None:
        self._starts += 1
        process = SimProcess(name)
        self.processes.append(process)
        link = Link(self.loop, Random(f"{name} {self._starts} {self.plan.seed}"), self.weather)
        settings = Settings(
            SecNodeName(name),
            lease_ttl_s=LEASE_TTL_S,
            store_timeout_s=0.5,
            claim_fallback_s=0.2,
            sweep_interval_s=1.0,
            revoke_on_refused=False,  # that looks at real sockets; here leases of living nodes are revoked by the plan
        )
        kv = SimKv(self.etcd, link, process, lambda moment: self.at_moment(name, moment))
        skew_us = self.skew_us[name]

        def make() -> SecNode:
            return SecNode(
                settings,
                kv,
                link.rng,
                None,
                clock_us=lambda: round(self.loop.time() * 1e6) + skew_us,
                directory=lambda mirror: SimDirectory(mirror, self, name),
            )

        member = Member(name, process, link, kv, process.context.run(make))
        self.members[name] = member
        self.note(name, "starts")
        self.loop.start(process, self._run(member))

    async def _run(self, member: Member) -> None:
        try:
            await member.node.run()
        except Exception as error:
            self.violate(f"fault: {member.name} ended: {error!r}")
        self.require(self.ended or member.node.stopping, f"fault: {member.name} ended by itself")
        await member.kv.aclose()
        member.process.dead = not self.ended
        self.note(member.name, "has ended")

    def kill(self, member: Member) -> None:
        self.note(member.name, "is killed")
        member.process.dead = True
        member.kv.break_watches()

    def at_moment(self, name: str, moment: str) -> None:
        """A node is where faults may be waiting for it."""
        member = self.members[name]
        for step in [s for s in member.armed if s.moment == moment]:
            member.armed.remove(step)
            self.strike(member, step)

    def strike(self, member: Member, step: Do) -> None:
        """Something goes wrong with a node."""
        if member.process.dead or self.members[member.name] is not member:
            return
        self.note("FAULT", f"{step.what} {member.name}" + (f" for {step.for_s:.3f} s" if step.for_s else ""))
        match step.what:
            case "crash":
                self.kill(member)
                self._later(step.for_s, lambda: self._restart(member))
            case "shut down":
                member.process.context.copy().run(member.node.stop)
                self._later(step.for_s, lambda: self._restart(member))
            case "stop":
                member.process.stopped = True
                self._later(step.for_s, lambda: self.loop.go_on(member.process))
            case "cut off":
                member.link.cut = True
                member.kv.break_watches()
                self._later(step.for_s, lambda: self._mend(member))
            case "lose answers":
                member.link.lose_answers += step.count
            case "lose writes":
                member.link.lose_writes += step.count
            case "revoke the lease of":
                self._revoke(member)
            case "break watches":
                member.kv.break_watches()
                member.kv.mend()
            case "forget the connection":
                member.kv.break_watches()
                self._later(step.for_s, lambda: self._forget(member))
            case "slow down":
                member.link.slowness = 30.0
                self._later(step.for_s, lambda: setattr(member.link, "slowness", 1.0))
            case _:
                raise AssertionError(step.what)

    def _later(self, delay_s: float, what: Callable[[], object]) -> None:
        self.servers.later(delay_s, what)

    def _restart(self, member: Member) -> None:
        if self.members[member.name] is member and not self.ended:
            if not member.process.dead:
                self.kill(member)
            self.start_member(member.name)

    def _mend(self, member: Member) -> None:
        member.link.cut = False
        if not member.process.dead:
            member.kv.mend()

    def _revoke(self, member: Member) -> None:
        """Somebody takes the node for dead."""
        session = member.node.session
        if session is not None:
            self.suspected.add(member.name)
            with suppress(LeaseNotFound):
                self.etcd.lease_revoke(session.lease)

    def _forget(self, member: Member) -> None:
        if member.kv.broken:
            self._compact()
            self._mend(member)

    def _compact(self) -> None:
        with suppress(Compacted):
            self.etcd.compact(self.etcd.revision)

    # the script

    def run(self) -> Result:
        everything = self.keys.saga(SagaId("x"))[: -len("saga/x")]
        self.etcd.attach(Watcher(everything, prefix_end(everything), True, self._committed), None)
        script = self.loop.start(None, self._script())
        try:
            self.loop.run(lambda: bool(self.violated) or script.done(), MAX_STEPS)
            if script.done() and script.exception() is not None:
                raise script.exception() or AssertionError
        except Stalled as error:
            self.violate(f"4: {error}")
        self.ended = True
        seconds = self.loop.time() - START_S
        violated = self.violated
        with suppress(Stalled):
            self.loop.wind_up(self.processes)
        return Result(violated, tuple(self.trace), self.digest, seconds)

    async def _script(self) -> None:
        for name in self.plan.nodes:
            self.start_member(name)
        work: list[asyncio.Task[None]] = []
        end_s = self.loop.time()
        for step in self.plan.steps:
            await asyncio.sleep(max(0.0, START_S + step.at_s - self.loop.time()))
            end_s = max(end_s, self.loop.time() + step.for_s)
            if step.saga:
                work.append(self.loop.start(None, self._client(step)))
            else:
                self._fault(step)
        await asyncio.sleep(max(0.0, end_s - self.loop.time()))
        self._heal()
        for task in work:
            await task
        await self._settle()
        await asyncio.sleep(QUIET_S)
        self._check_end()

    def _fault(self, step: Do) -> None:
        match step.what:
            case "compact":
                self.note("etcd", "compacts")
                self._compact()
            case "no action servers":
                self.note("FAULT", f"no action server can be reached for {step.for_s:.3f} s")
                self.servers.offer(False)
                self._later(step.for_s, lambda: self.servers.offer(True))
            case "drain":
                key = self.keys.drain(SecNodeName(step.node))
                self.note("FAULT", f"{step.node} is drained for {step.for_s:.3f} s")
                self.etcd.txn(Txn(then=[Put(key, b"")]))
                self._later(step.for_s, lambda: self.etcd.txn(Txn(then=[Delete(key)])))
            case _ if step.moment:
                self.members[step.node].armed.append(step)
            case _:
                self.strike(self.members[step.node], step)

    def _heal(self) -> None:
        self.note("etc", "all is healed")
        self.weather = self.servers.weather = Weather()
        self.servers.offer(True)
        for name, member in list(self.members.items()):
            member.armed.clear()
            member.link.weather = self.weather
            member.link.slowness, member.link.lose_answers, member.link.lose_writes = 1.0, 0, 0
            if member.process.dead:
                self.start_member(name)
                continue
            if member.link.cut or member.kv.broken:
                self._mend(member)
            if member.process.stopped:
                self.loop.go_on(member.process)
            self.etcd.txn(Txn(then=[Delete(self.keys.drain(SecNodeName(name)))]))

    # clients

    async def _client(self, step: Do) -> None:
        """A client does a step. It asks another node when it gets no answer."""
        saga = self.sagas[step.saga]
        names = list(self.plan.nodes)
        first = names.index(step.node)
        command_id = f"order-{step.at_s:.6f}"
        for name in (names[first:] + names[:first] + names)[:TRIES]:
            member = self.members[name]
            if await self._ask(member, lambda m=member: self._do(m, saga, step, command_id)):  # type: ignore[misc] # bound here
                return

    async def _do(self, member: Member, saga: Saga, step: Do, command_id: str) -> bool:
        if step.what == "start":
            return await self._start(member, saga)
        if step.command is not None:
            return await self._order(member, saga, command_id, step.command)
        return await self._submit(member, saga, start=step.what == "submit")

    async def _ask(self, member: Member, work: Callable[[], Awaitable[bool]]) -> bool:
        """Has something done by a node, as its API does. True: it was answered, one way or the other."""
        answer: asyncio.Future[bool] = self.loop.create_future()

        async def serve() -> None:
            try:
                done = await work()
            except (KvError, CorruptLog):
                done = False
            except (SagaNotFound, WrongState):
                done = True
            if not answer.done():
                answer.set_result(done)

        self.loop.start(member.process, serve())
        try:
            async with asyncio.timeout(ANSWER_S):
                return await answer
        except TimeoutError:
            return False

    def _give_up(self) -> Callable[[], bool]:
        deadline_s = self.loop.time() + ANSWER_S
        return lambda: self.loop.time() >= deadline_s

    async def _submit(self, member: Member, saga: Saga, *, start: bool) -> bool:
        node, plan = member.node, saga.plan
        digest = await node.definitions.put(definition_bytes(plan.definition), saga.graph)
        self._uids += 1
        head = SagaHead(saga.id, f"uid{self._uids}", plan.definition.name, digest, _NO_PARAMS, {}, 0, plan.deadline)
        try:
            await node.owner.submit(head, saga.graph, start=start, give_up=self._give_up())
        except SagaExists as error:
            self.violate(f"4: {error}")
        saga.acknowledged = True
        self.note("client", f"{member.name} has acknowledged {saga.id}")
        return True

    async def _start(self, member: Member, saga: Saga) -> bool:
        await member.node.owner.start(saga.id, self._give_up())
        return True

    async def _order(self, member: Member, saga: Saga, command_id: str, command: Command) -> bool:
        seen = saga.seen
        stored = await member.node.sagas.load(saga.id)
        self.require(list(stored.entries) == saga.log[: len(stored.entries)], f"8: {member.name} reads another log of {saga.id}")
        self.require(len(stored.entries) >= seen, f"8: {member.name} reads an older log of {saga.id} than was read before")
        saga.seen = max(saga.seen, len(stored.entries))
        if stored.problem:
            raise CorruptLog(stored.problem)
        state = fold(saga.id, await member.node.definitions.graph(stored.head.definition_hash), stored.entries)
        if command_id not in state.commands:
            because = refusal(state, command)
            if because:
                return True
            message = coordinator_pb2.CommandSagaRequest(
                saga_id=saga.id, command_id=command_id, by="ada", command=command_to_proto(command)
            )
            if not await member.node.sagas.command(saga.id, command_id, message.SerializeToString(), self._give_up()):
                return True
        saga.commands.append(command_id)
        self.note("client", f"{member.name} has acknowledged {command_id} for {saga.id}: {command}")
        return True

    # the end

    async def _settle(self) -> None:
        """Has an operator see to what needs one, until every saga has settled."""
        deadline_s = self.loop.time() + PATIENCE_S
        while left := [saga for saga in self.sagas.values() if saga.log and not await self._see_to(saga)]:
            if self.loop.time() >= deadline_s:
                self.violate(f"4: {left[0].id} is left {left[0].state.course.value}, {PATIENCE_S:g} s after all was healed")
                return
            await asyncio.sleep(0.25)

    async def _see_to(self, saga: Saga) -> bool:
        """True: it has settled."""
        state, plan = saga.state, saga.plan
        if state.course.ended:
            return True
        member = self.members[self.plan.nodes[len(saga.asked) % len(self.plan.nodes)]]
        if state.course is Course.CREATED:
            await self._ask(member, lambda: self._start(member, saga))
            return False
        command: Command | None = None
        if state.controls.paused:
            command = Resume()
        elif state.undo_failed and plan.operator != "leaves":
            path = saga.graph.nodes[next(iter(state.undo_failed))].path
            command = SkipUndo(path, "It is gone.") if plan.operator == "skips" else MarkUndone(path, "By hand.")
        elif state.undo_failed:
            return not state.in_flight
        elif signals := [n for n in state.waiting if saga.graph.nodes[n].timer is None and n not in state.signals]:
            command = Signal(saga.graph.nodes[signals[0]].path, _NO_PARAMS)
        command_id = f"operator-{len(saga.log)}-{len(saga.asked)}"
        if command is not None and saga.asked <= state.commands:
            await self._ask(member, lambda: self._order(member, saga, command_id, command))
            saga.asked |= {command_id} & set(saga.commands)
        return False

    def _check_end(self) -> None:
        try:
            for saga in self.sagas.values():
                self._check_saga(saga)
            for name in self.plan.nodes:
                self._check_member(self.members[name])
        except Violated as error:
            self.violate(str(error))
        self.require(not self.loop.failures, f"fault: {self.loop.failures}")

    def _check_saga(self, saga: Saga) -> None:
        if not saga.log:
            self.require(not saga.acknowledged, f"4: {saga.id} was acknowledged and is lost")
            return
        check_settled(saga.state)
        for command_id in saga.commands:
            known = command_id in saga.state.commands or saga.state.course.ended
            self.require(known, f"6: the command {command_id} was acknowledged and is not in the log of {saga.id}")
        if saga.state.course.ended:
            check_all_or_none(saga.graph, saga.log, saga.server.effects)
        keys, id_ = self.keys, saga.id
        places = {
            name: self._has(key)
            for name, key in (("active", keys.active(id_)), ("ended", keys.ended(id_)), ("owner", keys.owner(id_)))
        }
        ended = saga.state.course.ended
        expected = {"active": not ended, "ended": ended, "owner": not ended}
        self.require(places == expected, f"4: {saga.id} is {saga.state.course.value} and stands at {places}")
        drivers = [m.name for m in self.members.values() if id_ in m.node.owner.drivers]
        self.require(
            len(drivers) == (not ended), f"4: {saga.id} is {saga.state.course.value} and is driven by {drivers or 'nobody'}"
        )

    def _has(self, key: bytes) -> bool:
        return bool(self.etcd.get(Get(key)).items)

    def _check_member(self, member: Member) -> None:
        node = member.node
        self.require(not node.owner.unreadable, f"fault: {member.name} cannot run {list(node.owner.unreadable)}")
        for mirror in (node.live, node.nodes, node.drains):
            there = {item.key: item.mod_revision for item in self.etcd.get(Get(mirror.prefix, prefix_end(mirror.prefix))).items}
            here = {key: item.mod_revision for key, item in mirror.items.items()}
            self.require(here == there, f"8: the mirror of {mirror.prefix.decode()} of {member.name} differs from the store")


def run_plan(plan: Plan, *, tracing: bool = False) -> Result:
    """Runs a plan. With `tracing` the result tells all that happened, and the log lines of the nodes with it."""
    world = World(plan, tracing=tracing)
    log, telling = logging.getLogger("sec"), _Telling(world)
    before = (log.level, log.propagate, logging.root.manager.disable)
    logging.disable(logging.NOTSET if tracing else logging.CRITICAL)
    log.addHandler(telling)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        return world.run()
    finally:
        log.removeHandler(telling)
        log.level, log.propagate = before[:2]
        logging.disable(before[2])


class _Telling(logging.Handler):
    """Puts what the nodes log into the trace."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        process = running_process()
        self._world.note(process.name if process else "", f"({record.getMessage()})")
