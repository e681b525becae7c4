"""The calls of the Coordinator service that are about the cluster: SEC nodes and action servers."""

import asyncio

import grpc
from sec_model.schemas_codec import schemas_to_proto
from sec_protos.v1 import coordinator_pb2 as pb
from sec_protos.v1 import coordinator_pb2_grpc
from sec_protos.v1.action_server_pb2 import ActionSchemas

from sec.api import requests
from sec.api.answering import Context, answered, subject
from sec.api.errors import ApiError
from sec.core.records import SecNodeName
from sec.node.door import Bound, Door
from sec.node.node import SecNode
from sec.store.election import current_leader
from sec.store.kv import Delete, KvError, Put, Txn, exists
from sec.store.registrations import ActionServerRegistry

MAX_ACTION_SERVERS = 1_000
"""Registered at once: every SEC node holds a connection to each."""


class ClusterCalls(coordinator_pb2_grpc.CoordinatorServicer):
    """Answers for one SEC node."""

    def __init__(self, node: SecNode) -> None:
        self._node = node
        self._registry = ActionServerRegistry(node.kv, node.keys, node.settings.registration_ttl_s)

    @property
    def sec_node(self) -> SecNodeName:
        """Who answers."""
        return self._node.settings.name

    @property
    def door(self) -> Door:
        """Where calls come in."""
        return self._node.door

    @answered
    async def ListNodes(self, request: pb.ListNodesRequest, context: Context) -> pb.ListNodesResponse:  # noqa: N802 # the contract's name
        try:
            leader = await current_leader(self._node.kv, self._node.keys.election)
        except KvError:  # this call is to say what is wrong, then above all
            leader = None
        nodes = self._node.known_nodes()
        for node in nodes:
            node.leader = leader is not None and node.name == leader.decode()
        return pb.ListNodesResponse(nodes=nodes, answered_by=self.sec_node)

    @answered
    async def DrainNode(self, request: pb.DrainNodeRequest, context: Context) -> pb.DrainNodeResponse:  # noqa: N802
        name = SecNodeName(request.name)
        keys = self._node.keys
        if request.undrain:
            await self._node.kv.txn(Txn(then=[Delete(keys.drain(name))]))
            return pb.DrainNodeResponse()
        result = await self._node.kv.txn(Txn([exists(keys.node(name))], [Put(keys.drain(name), b"")]))
        if not result.succeeded:
            raise ApiError(
                grpc.StatusCode.NOT_FOUND,
                "node_not_found",
                f'No SEC node called "{request.name[:200]}" holds a session.',
                hint='"secctl node list" shows those that do.',
            )
        return pb.DrainNodeResponse()

    @answered
    async def RegisterActionServer(  # noqa: N802
        self, request: pb.RegisterActionServerRequest, context: Context
    ) -> pb.RegisterActionServerResponse:
        requests.registration(request)
        registered = self._node.registrations.items
        if len(registered) >= MAX_ACTION_SERVERS and self._node.keys.server(request.instance_id) not in registered:
            because = f"knows {len(registered)} action servers"
            raise self.door.refuse(Bound.ACTION_SERVERS, subject("registration", request), because)
        # What is registered like this already was checked then, and schemas take a while.
        stored = registered.get(self._node.keys.server(request.instance_id))
        if stored is None or stored.value != request.SerializeToString(deterministic=True):
            await asyncio.to_thread(requests.descriptions, request)
        await self._registry.register(request)
        return pb.RegisterActionServerResponse(ttl_s=self._registry.ttl_s)

    @answered
    async def UnregisterActionServer(  # noqa: N802
        self, request: pb.UnregisterActionServerRequest, context: Context
    ) -> pb.UnregisterActionServerResponse:
        await self._registry.unregister(requests.instance_id(request.instance_id))
        return pb.UnregisterActionServerResponse()

    @answered
    async def ListActions(self, request: pb.ListActionsRequest, context: Context) -> pb.ListActionsResponse:  # noqa: N802
        listed: dict[str, pb.OfferedAction] = {}
        ways: dict[tuple[str, bool], list[ActionSchemas]] = {}
        for endpoint, configured, registrations in self._node.directory.servers():
            described = {name: (a.summary, schemas_to_proto(a.schemas)) for name, a in endpoint.actions.items()}
            for registration in registrations:
                for action in registration.actions:
                    described.setdefault(action.name, (action.summary, action.schemas))
            for name, (summary, schemas) in described.items():
                entry = listed.setdefault(name, pb.OfferedAction(name=name, summary=summary))
                status = pb.ActionServerStatus(
                    server_name=endpoint.server_name, address=endpoint.address, reachable=endpoint.up, configured=configured
                )
                for registration in registrations:
                    status.instance_id = registration.instance_id
                    status.server_name = status.server_name or registration.server_name
                entry.servers.append(status)
                known = ways.setdefault((name, endpoint.up), [])
                if schemas not in known:
                    known.append(schemas)
        for name, entry in listed.items():
            found = ways.get((name, True)) or ways[name, False]
            if any(schemas.ByteSize() for schemas in found):
                entry.schemas.extend(found)
        return pb.ListActionsResponse(actions=[listed[name] for name in sorted(listed)])
