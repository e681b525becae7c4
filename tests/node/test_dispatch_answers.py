"""What an SEC node makes of the statuses of an action server."""

import grpc
import grpc.aio
import pytest
from sec_model import Payload
from sec_protos.v1 import action_server_pb2 as pb
from sec_protos.v1 import action_server_pb2_grpc

from sec.core.records import Epoch, NodePath, Phase, SagaId, SecNodeName
from sec.dispatch.calls import Answer, Busy, Call, NotOffered, StaleEpoch, Unanswered, send

EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


class Refuses(action_server_pb2_grpc.ActionServerServicer):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self.answer = code, details

    async def Do(self, message: pb.DoRequest, context: grpc.aio.ServicerContext) -> None:  # type: ignore[type-arg] # gRPC's name  # noqa: N802
        await context.abort(*self.answer)


async def answer_to(code: grpc.StatusCode, details: str) -> Answer:
    server = grpc.aio.server()
    action_server_pb2_grpc.add_ActionServerServicer_to_server(Refuses(code, details), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    call = Call(
        SagaId("s"),
        "uid",
        NodePath("n"),
        "step",
        Phase.DO,
        "key",
        Epoch(1),
        1,
        SecNodeName("sec-1"),
        Payload.json(1),
        {},
        None,
        30.0,
    )
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            return await send(action_server_pb2_grpc.ActionServerStub(channel), "here", call, 1000)
    finally:
        await server.stop(None)


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        (EXHAUSTED, "The server has 64 calls in hand.", Busy),
        (EXHAUSTED, "SERVER: Received message larger than max (5244049 vs. 4194304)", Unanswered),
        (EXHAUSTED, "grpc: received message larger than max (5244049 vs. 4194304)", Unanswered),
        (EXHAUSTED, "gRPC message exceeds maximum size 4194304: 5244049", Unanswered),
        (grpc.StatusCode.FAILED_PRECONDITION, "The epoch is stale.", StaleEpoch),
        (grpc.StatusCode.UNIMPLEMENTED, "", NotOffered),
        (grpc.StatusCode.UNAVAILABLE, "Later.", Unanswered),
    ],
)
async def test_a_status_means_what_the_contract_says(code: grpc.StatusCode, details: str, kind: type[Answer]) -> None:
    assert isinstance(await answer_to(code, details), kind)
