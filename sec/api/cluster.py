"""The calls of the Coordinator service that are about the cluster: SEC nodes and action servers."""

import grpc
from sec_protos.v1 import coordinator_pb2 as pb
from sec_protos.v1 import coordinator_pb2_grpc

from sec.api import requests
from sec.api.answering import Context, answered
from sec.api.errors import ApiError
from sec.core.records import SecNodeName
from sec.node.node import SecNode
from sec.store.election import current_leader
from sec.store.kv import Delete, Put, Txn, exists
from sec.store.registrations import ActionServerRegistry


class ClusterCalls(coordinator_pb2_grpc.CoordinatorServicer):
    """Answers for one SEC node."""

    def __init__(self, node: SecNode) -> None:
        self._node = node
        self._registry = ActionServerRegistry(node.kv, node.keys, node.settings.registration_ttl_s)

    @property
    def sec_node(self) -> SecNodeName:
        """Who answers."""
        return self._node.settings.name

    @answered
    async def ListNodes(self, request: pb.ListNodesRequest, context: Context) -> pb.ListNodesResponse:  # noqa: N802 # the contract's name
        leader = await current_leader(self._node.kv, self._node.keys.election)
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
        offered: dict[str, pb.OfferedAction] = {}
        for endpoint, configured, registrations in self._node.directory.servers():
            described = {name: action.summary for name, action in endpoint.actions.items()}
            for registration in registrations:
                for action in registration.actions:
                    described.setdefault(action.name, action.summary)
            for name, summary in described.items():
                entry = offered.setdefault(name, pb.OfferedAction(name=name, summary=summary))
                status = pb.ActionServerStatus(
                    server_name=endpoint.server_name, address=endpoint.address, reachable=endpoint.up, configured=configured
                )
                for registration in registrations:
                    status.instance_id = registration.instance_id
                    status.server_name = status.server_name or registration.server_name
                entry.servers.append(status)
        return pb.ListActionsResponse(actions=[offered[name] for name in sorted(offered)])
