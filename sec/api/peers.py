"""What the other SEC nodes call: who is here, for as long as it is, and what the actions of its sagas report meanwhile."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from sec_protos.internal.v1 import peers_pb2 as pb
from sec_protos.internal.v1 import peers_pb2_grpc

from sec.api.answering import Context
from sec.node.node import SecNode
from sec.node.reports import told_to_proto


class PeerCalls(peers_pb2_grpc.PeersServicer):
    """Answers for one SEC node."""

    def __init__(self, node: SecNode) -> None:
        self._node = node

    def stop_waiting(self) -> None:
        """Ends the streams: the server stops, and the session has been revoked."""
        self._node.owner.reports.end()

    async def Attend(self, request: pb.AttendRequest, context: Context) -> AsyncIterator[pb.AttendResponse]:  # noqa: N802 # the proto's name
        yield pb.AttendResponse(name=self._node.settings.name, lease_id=self._node.lease)
        async with aclosing(self._node.owner.reports.follow()) as changes:
            async for told in changes:
                yield told_to_proto(told)
