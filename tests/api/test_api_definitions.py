"""Definitions as clients in other languages send them: equal content is equal, however it is written."""

import grpc.aio
from inprocess_support import cluster
from sec_protos.v1 import common_pb2, coordinator_pb2_grpc
from sec_protos.v1 import coordinator_pb2 as pb
from sec_protos.v1 import definition_pb2 as dp

NUMBERS = {
    "initial_backoff_s": 0.1,
    "max_backoff_s": 30.0,
    "multiplier": 2.0,
    "jitter": 0.5,
    "attempt_timeout_s": 30.0,
}
RETRY = common_pb2.RetryPolicy(max_attempts=8, **NUMBERS)
UNDO_RETRY = common_pb2.RetryPolicy(max_attempts=20, **NUMBERS)


def submit(saga_id: str, action: dp.ActionNode) -> pb.SubmitSagaRequest:
    definition = dp.SagaDefinition(name="s", nodes=[dp.NodeDefinition(name="a", action=action)])
    return pb.SubmitSagaRequest(saga_id=saga_id, definition=definition, start_later=True)


async def test_policies_that_are_the_default_and_none_are_the_same_content() -> None:
    written_out = dp.ActionNode(action="step", retry=RETRY, undo_retry=UNDO_RETRY)
    in_part = dp.ActionNode(action="step", retry=common_pb2.RetryPolicy(max_attempts=8), undo_retry=common_pb2.RetryPolicy())
    left_out = dp.ActionNode(action="step")
    other = dp.ActionNode(action="step", retry=UNDO_RETRY)
    async with cluster("n1") as c, grpc.aio.insecure_channel(c.members["n1"].address) as channel:
        stub = coordinator_pb2_grpc.CoordinatorStub(channel)
        hashes = {}
        for name, action in {"out": written_out, "part": in_part, "none": left_out, "other": other}.items():
            assert (await stub.SubmitSaga(submit(name, action), timeout=10)).created
            hashes[name] = (await stub.GetSaga(pb.GetSagaRequest(saga_id=name), timeout=10)).saga.definition_hash
        assert hashes["out"] == hashes["part"] == hashes["none"] != hashes["other"]
        for action in (written_out, in_part, left_out):
            assert not (await stub.SubmitSaga(submit("out", action), timeout=10)).created, "it is the one saga"
