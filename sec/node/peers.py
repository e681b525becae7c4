"""Sees that another SEC node has died, without waiting for its lease: a stream to each node that holds a session, and the revocation of dead sessions.

A stream that breaks, behind which a connection is *refused* (twice), says that the process is gone, as opposed to slow or cut off. So does a
process that answers under the node's name and holds another session. Nothing else proves a death: a node that hangs is left to its lease. A wrong
suspicion costs a takeover and never safety, because of the epoch: the node that was suspected is fenced, sees that its session is gone, and rejoins.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from sec_protos.internal.v1 import peers_pb2, peers_pb2_grpc
from sec_protos.v1 import coordinator_pb2

from sec.core.records import SecNodeName
from sec.node.claims import in_turn
from sec.node.reports import Reports, told_from_proto
from sec.store.keys import Keys, last_segment
from sec.store.kv import Get, KeyValue, Kv, KvError, LeaseId, LeaseNotFound, Revision
from sec.store.mirror import Mirror

_log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 2.0
"""How long the first message of a stream may take. A node that hangs accepts the connection and says nothing."""
CONNECT_TIMEOUT_S = 1.0
AGAIN_S = 0.01
"""Between the two connections that must be refused: a process that ends closes its sockets one after the other."""
FALLBACK_S = 0.1
"""How long the next node in line waits for the one that should revoke a dead session. A revocation takes some milliseconds."""
MIN_PAUSE_S, MAX_PAUSE_S = 0.05, 1.0
"""Between streams that do not come up."""

CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own: each try is to say how it is now
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True, slots=True)
class Peer:
    """An SEC node in one of its sessions."""

    name: SecNodeName
    address: str
    lease: LeaseId
    created: Revision
    """The create revision of its key."""


class Heard(Enum):
    """What a stream has brought."""

    NOTHING = "nothing"
    ITSELF = "itself"
    """The peer answered. Then the stream broke."""
    ANOTHER = "another"
    """A process of the peer's name answered that does not hold the peer's session."""


class Connection(Enum):
    """What came of connecting."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    """By every address that the host name has: the machine is there, and nobody listens."""
    UNCLEAR = "unclear"


class Peers:
    """Attends the SEC nodes that hold a session, but for `own_lease`, and revokes the sessions of those that are dead.

    What the actions of the others' sagas report comes by the same streams, and goes into `reports`.

    A refusal only counts where the peer was heard before: of an address at which it never answered to us, a refusal says nothing.
    """

    def __init__(
        self,
        kv: Kv,
        keys: Keys,
        nodes: Mirror,
        sec_node: SecNodeName,
        own_lease: Callable[[], LeaseId],
        credentials: grpc.ChannelCredentials | None,
        reports: Reports,
    ) -> None:
        self.heard: set[Peer] = set()
        """Those to which a stream is up."""
        self._kv = kv
        self._keys = keys
        self._nodes = nodes
        self._sec_node = sec_node
        self._own_lease = own_lease
        self._credentials = credentials
        self._reports = reports

    async def run(self) -> None:
        """Attends until it is cancelled."""
        changed = asyncio.Event()
        unsubscribe = self._nodes.subscribe(lambda _: changed.set())
        attending: dict[Peer, asyncio.Task[None]] = {}
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    changed.clear()
                    present = self._present()
                    for peer in attending.keys() - present:
                        attending.pop(peer).cancel()
                    for peer in present - attending.keys():
                        attending[peer] = group.create_task(self._attend(peer), name=f"peer {peer.name}")
                    await changed.wait()
        finally:
            unsubscribe()

    def _present(self) -> set[Peer]:
        peers = (_peer(key, item) for key, item in self._nodes.items.items())
        return {p for p in peers if p is not None and p.lease != self._own_lease()}

    async def _attend(self, peer: Peer) -> None:
        """Until it is cancelled, since the peer's key is gone."""
        known, pause_s = False, MIN_PAUSE_S
        while True:
            heard = await self._follow(peer)
            if heard is Heard.ITSELF:
                known, pause_s = True, MIN_PAUSE_S
            if heard is Heard.ANOTHER:
                await self._revoke(peer, "another process answers under its name")
            elif known and await refuses(peer.address):
                await self._revoke(peer, f"connections to {peer.address} are refused")
            await asyncio.sleep(pause_s)
            pause_s = min(MAX_PAUSE_S, pause_s * 2)

    async def _follow(self, peer: Peer) -> Heard:
        """Holds a stream until it breaks or does not come up."""
        async with self._channel(peer.address) as channel:
            stream = peers_pb2_grpc.PeersStub(channel).Attend(peers_pb2.AttendRequest(name=self._sec_node))
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    answer = await stream.read()
                if not isinstance(answer, peers_pb2.AttendResponse):
                    return Heard.NOTHING
                if answer.lease_id != peer.lease:
                    return Heard.ANOTHER if answer.name == peer.name else Heard.NOTHING
            except (grpc.aio.AioRpcError, TimeoutError) as error:
                _log.debug('SEC node "%s" at %s does not answer: %s', peer.name, peer.address, error)
                return Heard.NOTHING
            _log.debug('SEC node "%s" attends SEC node "%s" at %s.', self._sec_node, peer.name, peer.address)
            self.heard.add(peer)
            try:
                while isinstance(answer := await stream.read(), peers_pb2.AttendResponse):
                    self._reports.heard(peer, told_from_proto(answer.reports))
            except grpc.aio.AioRpcError as error:
                _log.debug('The stream to SEC node "%s" broke: %s', peer.name, error)
            finally:
                self.heard.discard(peer)
                self._reports.lost(peer)
            return Heard.ITSELF

    def _channel(self, address: str) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(address, self._credentials, options=CHANNEL_OPTIONS)

    async def _revoke(self, peer: Peer, reason: str) -> None:
        """Ends a dead session, when it is our turn and nobody has: all that see the death see it at the same time."""
        names = {SecNodeName(last_segment(key)) for key in self._nodes.items} - {peer.name} | {self._sec_node}
        await asyncio.sleep(FALLBACK_S * in_turn(peer.name, names).index(self._sec_node))
        key = self._keys.node(peer.name)
        try:
            found = await self._kv.get(Get(key))
            if not any(_peer(item.key, item) == peer for item in found.items):
                return  # gone, or a later session
            # Said before: this ends as soon as the mirror sees the key go, and that may be before the answer comes.
            _log.warning(
                'SEC node "%s" is gone: %s. Its session is revoked, so that nobody waits for its lease.', peer.name, reason
            )
            await self._kv.lease_revoke(peer.lease)
        except LeaseNotFound:
            pass
        except KvError as error:
            _log.warning('The session of SEC node "%s", which is gone, could not be revoked: %s', peer.name, error)


def _peer(key: bytes, item: KeyValue) -> Peer | None:
    """None for a key that this version cannot read, and for an address that says nothing to anybody else."""
    try:
        address = coordinator_pb2.SecNode.FromString(item.value).address
    except DecodeError:
        return None
    host, port = split(address)
    if port == 0 or host in ("", "0.0.0.0", "::"):
        return None
    return Peer(SecNodeName(last_segment(key)), address, item.lease, item.create_revision)


def split(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT or [HOST]:PORT; port 0 when it has none."""
    host, _, port = address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port) if port.isdecimal() else 0


async def refuses(address: str) -> bool:
    """Whether nobody listens at an address: two connections, one after the other, are refused."""
    if await connect(address) is not Connection.REFUSED:
        return False
    await asyncio.sleep(AGAIN_S)
    return await connect(address) is Connection.REFUSED


async def connect(address: str) -> Connection:
    """Connects to every address that a host name has, until one accepts, and hangs up. Never raises, but when cancelled."""
    loop = asyncio.get_running_loop()
    host, port = split(address)
    refused = 0
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            for family, kind, protocol, _, target in found:
                with socket.socket(family, kind, protocol) as probe:
                    probe.setblocking(False)
                    try:
                        await loop.sock_connect(probe, target)
                    except ConnectionRefusedError:
                        refused += 1
                    else:
                        return Connection.ACCEPTED
    except OSError:  # a timeout and a name that is not known too
        return Connection.UNCLEAR
    return Connection.REFUSED if found and refused == len(found) else Connection.UNCLEAR
