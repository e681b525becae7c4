"""An SEC node as a whole: its session, and what lives within it.

Mirrors, the directory of action servers and the gRPC services last as long as the process: reads are answered without a session. Ownership
and candidacy live within a session; when it is lost they end at once, and the node rejoins with a new one as soon as the store lets it.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from sec_protos.v1 import coordinator_pb2

from sec import __version__
from sec.core.records import SecNodeName
from sec.dispatch.directory import Directory
from sec.node.definition_sweep import DefinitionSweep
from sec.node.door import Door
from sec.node.health import Condition, Health, Progress
from sec.node.leader import Leader
from sec.node.owner import Owner, wall_clock_us
from sec.node.peers import Peers
from sec.node.rebalance import OwnedCounts, Rebalance
from sec.node.retention import Retention
from sec.node.settings import Settings
from sec.node.store_probe import StoreProbe
from sec.node.sweep import Sweep
from sec.store.commit import GroupCommit
from sec.store.definitions import DefinitionStore
from sec.store.keys import Keys, last_segment
from sec.store.kv import NO_LEASE, Kv, KvError, LeaseId, Put, Txn, absent
from sec.store.listing import SagaListing
from sec.store.mirror import Change, Mirror
from sec.store.sagas import SagaStore
from sec.store.session import Session

_log = logging.getLogger(__name__)

REJOIN_PAUSE_S = 0.5


class SecNode:
    """One SEC node. `run` it until it is told to `stop`.

    `clock_us` is the wall clock; `directory` makes the directory of action servers from the mirror of their registrations, if not the one that
    calls them over gRPC. The simulator has others.
    """

    def __init__(
        self,
        settings: Settings,
        kv: Kv,
        rng: random.Random,
        action_server_credentials: grpc.ChannelCredentials | None,
        peer_credentials: grpc.ChannelCredentials | None = None,
        *,
        clock_us: Callable[[], int] = wall_clock_us,
        directory: Callable[[Mirror], Directory] | None = None,
    ) -> None:
        settings.check()
        self.settings = settings
        self.clock_us = clock_us
        """The wall clock."""
        self.kv = kv
        self.keys = Keys(settings.prefix)
        self.commits = GroupCommit(kv, timeout_s=settings.store_timeout_s)
        self.sagas = SagaStore(kv, self.keys, self.commits, settings.name, clock_us)
        self.definitions = DefinitionStore(kv, self.keys)
        self.listing = SagaListing(kv, self.keys)
        self.live = Mirror(kv, self.keys.live)
        self.nodes = Mirror(kv, self.keys.nodes, check_s=settings.sweep_interval_s)
        self.drains = Mirror(kv, self.keys.drains, check_s=settings.sweep_interval_s)
        self.wishes = Mirror(kv, self.keys.wishes, check_s=settings.sweep_interval_s)
        self.registrations = Mirror(kv, self.keys.servers, check_s=settings.sweep_interval_s)
        self.directory = (
            directory(self.registrations)
            if directory is not None
            else Directory(
                self.registrations,
                settings.action_servers,
                action_server_credentials,
                settings.limits.payload_bytes,
                settings.bounds.calls,
            )
        )
        self.counts = OwnedCounts(self.keys, self.live)
        self.owner = Owner(settings, self.keys, self.sagas, self.definitions, self.directory, self.live, rng, self.counts, clock_us)
        self.rebalance = Rebalance(
            kv,
            self.keys,
            settings.name,
            self.nodes,
            self.wishes,
            lambda: {node: self.counts.of(node) for node in self.claimers()},
            self.owner.give_away,
            settings.sweep_interval_s,
        )
        self.retention = Retention(
            kv,
            self.keys,
            self.sagas,
            clock_us,
            keep_done_s=settings.keep_done_s,
            keep_undone_s=settings.keep_undone_s,
            at_least_s=settings.sweep_interval_s,
        )
        self.definition_sweep = DefinitionSweep(kv, self.keys, self.sagas)
        duties = (self.retention.run, self.definition_sweep.run, self.rebalance.run)
        self.leader = Leader(kv, self.keys, settings.name, self.owner.claim_now, settings.sweep_interval_s, duties)
        self.sweep = Sweep(kv, self.keys, self.live, self.owner, settings.sweep_interval_s)
        self.progress = Progress(settings.name, self.owner.drivers_now, self.commits, settings.stall_limit_s)
        self.store_probe = StoreProbe(settings.name, kv, self.keys.node(settings.name), self.commits, settings.store_timeout_s)
        self.door = Door(settings.name, settings.bounds, self._active, self.commits)
        self.peers = Peers(kv, self.keys, self.nodes, settings.name, lambda: self.lease, peer_credentials, self.owner.reports)
        self.address = settings.advertised
        """Where clients and the other SEC nodes reach it. The server says so when it has chosen the port itself."""
        self.session: Session | None = None
        self.lease: LeaseId = NO_LEASE
        """Of the session that it holds or is about to hold: set before anybody can see the session's key, and never set to an earlier one again."""
        self._name_was_taken = False
        self._started_us = clock_us()
        self._stopping = asyncio.Event()
        self._drain_changed = asyncio.Event()
        self.nodes.subscribe(self._nodes_changed)
        self.drains.subscribe(self._drains_changed)

    @property
    def stopping(self) -> bool:
        """It was told to stop."""
        return self._stopping.is_set()

    @property
    def draining(self) -> bool:
        """It takes no sagas: an operator wants that, or it is about to stop."""
        return self.stopping or self.keys.drain(self.settings.name) in self.drains.items

    @property
    def serving(self) -> bool:
        """It holds a session, takes sagas, and brings them forward."""
        return self.health.condition.serving

    @property
    def health(self) -> Health:
        """How it is now."""
        store = self.store_probe
        if self.stopping:
            return Health(Condition.STOPPING, "It is about to stop.")
        if self.draining:
            return Health(Condition.DRAINED, "It is drained.")
        if not store.condition.serving:
            return Health(store.condition, store.trouble)
        if not self.owner.may_dispatch():
            return Health(
                Condition.WITHOUT_SESSION, "It holds no session: etcd does not answer in time, or another SEC node has its name."
            )
        if self.progress.trouble:
            return Health(Condition.STALLED, " ".join(filter(None, (self.progress.trouble, store.trouble))))
        if store.condition is not Condition.WELL:
            return Health(store.condition, store.trouble)
        if overload := self.door.overload:
            return Health(Condition.OVERLOADED, overload)
        return Health(Condition.WELL)

    def _active(self) -> int:
        """How many active sagas it owns. A node that takes none leaves what is submitted to the others: then what the least of these owns, or all
        that there are while nobody takes any."""
        if self.owner.may_dispatch():
            return len(self.owner.drivers) + len(self.owner.unreadable)
        return min((self.counts.of(node) for node in self.claimers()), default=len(self.live.items))

    def stop(self) -> None:
        """Lets `run` hand everything over and return."""
        self._stopping.set()
        self._drain_changed.set()

    async def run(self) -> None:
        """Runs the node until `stop`. Then its sagas are handed over and its session is revoked, so that nobody waits for a lease.

        A background duty that fails for a reason nobody thought of ends the node, loudly: the others then take its sagas, which is
        better than a node that looks alive and has stopped working.
        """
        try:
            async with asyncio.TaskGroup() as group:
                mirrors = (self.live, self.nodes, self.drains, self.wishes, self.registrations)
                duties = [group.create_task(m.run(), name=f"mirror of {m.prefix.decode()}") for m in mirrors]
                duties.append(group.create_task(self.owner.run_claims(), name="claims"))
                if self.settings.revoke_on_refused:
                    duties.append(group.create_task(self.peers.run(), name="peers"))
                duties.append(group.create_task(self.progress.run(), name="progress"))
                duties.append(group.create_task(self.store_probe.run(), name="store probe"))
                duties.append(group.create_task(self.sweep.run(), name="sweep"))
                await self._take_part(mirrors)
                for duty in duties:
                    duty.cancel()
        finally:
            await self.directory.close()
            await self.commits.close()

    async def _take_part(self, mirrors: Sequence[Mirror]) -> None:
        """Joins the cluster, again and again, until the node is told to stop."""
        stopped = asyncio.create_task(self._stopping.wait())
        for mirror in mirrors:
            ready = asyncio.create_task(mirror.ready.wait())
            await asyncio.wait([ready, stopped], return_when=asyncio.FIRST_COMPLETED)
            await _cancel([ready])
        while not self.stopping:
            try:
                await self._one_session()
            except KvError as error:
                _log.warning('SEC node "%s" cannot join the cluster yet: %s', self.settings.name, error)
            if not self.stopping:
                await asyncio.wait([stopped], timeout=REJOIN_PAUSE_S)

    async def _one_session(self) -> None:
        """Joins the cluster and takes part until the session is lost or the node is told to stop."""
        name = self.settings.name
        async with Session.open(self.kv, ttl_s=self.settings.lease_ttl_s) as session:
            self.lease = session.lease
            if not await self._announce(session, fresh=True):
                say = _log.debug if self._name_was_taken else _log.warning  # once, not for every try
                self._name_was_taken = True
                say(
                    'Another SEC node called "%s" holds a session. If it is this one\'s last run, its lease ends soon; otherwise choose another name.',
                    name,
                )
                return
            self.session = session
            self._name_was_taken = False
            _log.info('SEC node "%s" has joined the cluster.', name)
            forget_detach = session.on_lost(self.owner.detach)
            try:
                while session.alive() and not self.stopping:
                    await self._until_drain_changes(session)
                if session.alive():
                    await self._announce(session, fresh=False)
                    await self.owner.hand_over()
                else:
                    _log.error('SEC node "%s" lost its session: %s It stops dispatching and rejoins.', name, session.lost_reason)
            finally:
                forget_detach()
                self.owner.detach()
                self.session = None
                self.lease = NO_LEASE

    async def _until_drain_changes(self, session: Session) -> None:
        """Takes part, drained or not, until that changes or the session is lost. A drained node does not lead: a leader must be able to claim."""
        self._drain_changed.clear()
        draining = self.draining
        await self._announce(session, fresh=False)
        lasting: list[asyncio.Task[Any]] = [asyncio.create_task(self._drain_changed.wait())]
        lasting.append(asyncio.create_task(session.lost.wait()))
        if draining:
            await self.owner.hand_over()
        else:
            self.owner.attach(session)
            lasting.append(asyncio.create_task(self.leader.run(session), name="leader"))
        try:
            done, _ = await asyncio.wait(lasting, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()  # a leader ends with the session, or with a fault of ours, which ends the node
        finally:
            await _cancel(lasting)

    async def _announce(self, session: Session, *, fresh: bool) -> bool:
        """Writes who we are, under the session. With `fresh` it answers False when the name is taken."""
        key = self.keys.node(self.settings.name)
        txn = Txn([absent(key)] if fresh else [], [Put(key, self._info().SerializeToString(), session.lease)])
        return (await self.kv.txn(txn, timeout_s=session.remaining_s())).succeeded

    def _info(self) -> coordinator_pb2.SecNode:
        return coordinator_pb2.SecNode(
            name=self.settings.name,
            address=self.address,
            version=__version__,
            draining=self.draining,
            started_us=self._started_us,
        )

    def known_nodes(self) -> list[coordinator_pb2.SecNode]:
        """The SEC nodes that hold a session, and this one, by name, with the number of sagas that each owns."""
        own_key = self.keys.node(self.settings.name)
        found = {key: item.value for key, item in self.nodes.items.items()} | {
            own_key: self._info().SerializeToString()  # also when it has lost its session: then above all it has to say how it is
        }
        nodes = []
        for _, value in sorted(found.items()):
            node = coordinator_pb2.SecNode.FromString(value)
            node.draining = node.draining or self.keys.drain(SecNodeName(node.name)) in self.drains.items
            node.owned_sagas = self.counts.of(SecNodeName(node.name))
            if node.name == self.settings.name:
                health = self.health
                node.trouble = health.trouble
                node.condition = coordinator_pb2.SecNodeCondition.Value(f"SEC_NODE_CONDITION_{health.condition.name}")
            nodes.append(node)
        return nodes

    def _nodes_changed(self, changes: Sequence[Change]) -> None:
        for change in changes:
            gone = change.old if change.new is None else None
            if self.session is not None and gone is not None and gone.lease == self.session.lease:
                self.session.lose(f"Its lease {self.session.lease:x} was revoked, as if this node had died.")
        self._set_claimers()

    def claimers(self) -> list[SecNodeName]:
        """The SEC nodes that take sagas now."""
        claimers = []
        for key, item in list(self.nodes.items.items()):  # a copy: metrics are read on another thread
            name = SecNodeName(last_segment(key))
            try:
                draining = coordinator_pb2.SecNode.FromString(item.value).draining
            except DecodeError:
                continue
            if not draining and self.keys.drain(name) not in self.drains.items:
                claimers.append(name)
        return claimers

    def _set_claimers(self) -> None:
        self.owner.set_claimers(self.claimers())

    def _drains_changed(self, changes: Sequence[Change]) -> None:
        self._set_claimers()
        if any(change.key == self.keys.drain(self.settings.name) for change in changes):
            self._drain_changed.set()


async def _cancel(tasks: Iterable["asyncio.Task[Any]"]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
