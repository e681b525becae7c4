"""A program that is told to stop stops, though a node answers or dies at that very moment."""

import asyncio

import grpc
import grpc.aio
import pytest
from sec_client import aio as sec_aio
from sec_protos.v1 import coordinator_pb2 as pb

DEAD = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "Socket closed")
RECORD = pb.WatchSagaResponse(record=pb.SequencedRecord(sequence=1), state=pb.SAGA_STATE_RUNNING)


class Stream:
    """A watch whose next answer is a future of the test's."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[pb.WatchSagaResponse] = asyncio.get_running_loop().create_future()
        self.asked = asyncio.Event()

    async def read(self) -> pb.WatchSagaResponse:
        self.asked.set()
        return await self.answer

    def cancel(self) -> None:
        pass


@pytest.mark.parametrize("outcome", [RECORD, DEAD], ids=["a record comes", "the node dies"])
async def test_a_watch_is_cancelled_while(
    outcome: pb.WatchSagaResponse | grpc.aio.AioRpcError, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sec_aio.Client("127.0.0.1:1") as client:
        stream = Stream()
        endpoint = client._cluster.current()  # noqa: SLF001
        monkeypatch.setattr(endpoint.stub, "WatchSaga", lambda request, metadata: stream)

        async def watch() -> None:
            async for _ in client.watch("s"):
                await asyncio.sleep(60)

        watching = asyncio.create_task(watch())
        await stream.asked.wait()
        if isinstance(outcome, Exception):
            stream.answer.set_exception(outcome)
        else:
            stream.answer.set_result(outcome)
        watching.cancel()
        await asyncio.wait([watching], timeout=10)
        assert watching.cancelled()
