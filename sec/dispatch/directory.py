"""Which action servers there are, and which one gets a call.

A server is known because it registered itself (a leased key that all SEC nodes mirror) or because the configuration lists it. It
gets calls while its connection is up and its health is SERVING; among several the one with the fewest calls under way, in turns.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import grpc
from google.protobuf.message import DecodeError
from sec_model.schemas import ActionSchemas
from sec_protos.v1 import coordinator_pb2

from sec.dispatch.calls import Busy, Call, Heard, NotOffered, Pending, Report, Tell
from sec.dispatch.endpoint import Endpoint
from sec.store.mirror import Change, Mirror

Registration = coordinator_pb2.RegisterActionServerRequest

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Server:
    endpoint: Endpoint
    configured: bool
    registrations: dict[str, Registration] = field(default_factory=dict)


class Directory:
    """The action servers of a cluster, as one SEC node sees them. `offered` are the actions that can be called now.

    `schemas` has those of them that some server describes, each with every way in which it is described; a server that says nothing is one of
    them. It is another mapping when anything of it has changed.
    """

    def __init__(
        self,
        registrations: Mirror,
        configured: Iterable[str],
        credentials: grpc.ChannelCredentials | None,
        max_output_bytes: int,
        max_calls: int,
    ) -> None:
        """`max_calls`: in progress at one server; beyond them it counts as busy."""
        self.offered: frozenset[str] = frozenset()
        self.schemas: Mapping[str, tuple[ActionSchemas, ...]] = {}
        self.heard: Heard = lambda call, report: None
        """Takes what calls under way report."""
        self._credentials = credentials
        self._max_output_bytes = max_output_bytes
        self._max_calls = max_calls
        self._servers: dict[str, _Server] = {}
        self._by_action: dict[str, list[Endpoint]] = {}
        self._turns = itertools.count()
        self._listeners: list[Callable[[], None]] = []
        self._closing: set[asyncio.Task[None]] = set()
        for address in configured:
            self._servers[address] = _Server(self._connect(address), configured=True)
        self._unsubscribe = registrations.subscribe(self._registrations_changed)
        self._registrations_changed([Change(key, None, item) for key, item in registrations.items.items()])

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Calls the listener after `offered` has changed."""
        self._listeners.append(listener)

    def call(self, call: Call, tell: Tell) -> Pending:
        """Makes a call of an action at one of the servers that offer it, and tells its answer unless that is cancelled."""
        endpoint = self._choose(call.action)
        if endpoint is not None and endpoint.in_flight < self._max_calls:
            return endpoint.call(call, tell)
        return asyncio.get_running_loop().call_soon(tell, NotOffered() if endpoint is None else Busy())

    def cancel(self, idempotency_key: str) -> None:
        """Tells whichever server has it that nobody wants the effect of a do under way any more."""
        for server in self._servers.values():
            server.endpoint.cancel(idempotency_key)

    @property
    def calls(self) -> int:
        """Calls in progress, of all servers."""
        return sum(server.endpoint.in_flight for server in list(self._servers.values()))

    def servers(self) -> list[tuple[Endpoint, bool, Sequence[Registration]]]:
        """Each server with whether the configuration lists it, and its registrations."""
        return [(s.endpoint, s.configured, tuple(s.registrations.values())) for s in self._servers.values()]

    async def close(self) -> None:
        """Ends all connections."""
        self._unsubscribe()
        await asyncio.gather(*(s.endpoint.close() for s in self._servers.values()), *self._closing)
        self._servers.clear()

    def _choose(self, action: str) -> Endpoint | None:
        endpoints = self._by_action.get(action)
        if not endpoints:
            return None
        if len(endpoints) == 1:
            return endpoints[0]
        first = next(self._turns) % len(endpoints)
        return min(endpoints[first:] + endpoints[:first], key=lambda e: e.in_flight)

    def _connect(self, address: str) -> Endpoint:
        return Endpoint(address, self._credentials, self._max_output_bytes, self._endpoint_changed, self._call_reported)

    def _call_reported(self, call: Call, report: Report) -> None:
        self.heard(call, report)

    def _registrations_changed(self, changes: Sequence[Change]) -> None:
        for change in changes:
            instance = change.key.decode().rsplit("/", 1)[-1]
            for server in self._servers.values():
                server.registrations.pop(instance, None)
            if change.new is None:
                continue
            try:
                registration = Registration.FromString(change.new.value)
            except DecodeError:
                _log.error("The registration of action server %s cannot be read and is left out.", instance)
                continue
            address = registration.address
            if address not in self._servers:
                self._servers[address] = _Server(self._connect(address), configured=False)
            self._servers[address].registrations[instance] = registration
        for address in [a for a, s in self._servers.items() if not s.configured and not s.registrations]:
            task = asyncio.get_running_loop().create_task(self._servers.pop(address).endpoint.close_when_idle())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        self._endpoint_changed()

    def _endpoint_changed(self) -> None:
        by_action: dict[str, list[Endpoint]] = {}
        for server in self._servers.values():
            if server.endpoint.up:
                for action in server.endpoint.actions:
                    by_action.setdefault(action, []).append(server.endpoint)
        self._by_action = by_action
        schemas = {name: ways for name, endpoints in by_action.items() if any(ways := _ways(name, endpoints))}
        if schemas != self.schemas:
            self.schemas = schemas
        offered = frozenset(by_action)
        if offered != self.offered:
            self.offered = offered
            for listener in self._listeners:
                listener()


def _ways(action: str, endpoints: Sequence[Endpoint]) -> tuple[ActionSchemas, ...]:
    """How these servers describe an action, each description once."""
    found: list[ActionSchemas] = []
    for endpoint in endpoints:
        if (schemas := endpoint.actions[action].schemas) not in found:
            found.append(schemas)
    return tuple(found)
