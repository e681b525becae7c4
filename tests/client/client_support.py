"""What the tests of the client packages share: calls to an action server, a stand-in for an SEC node, and waiting without sleeping."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.rpc import code_pb2, status_pb2
from grpc_status import rpc_status
from sec_client.kit import ActionServer
from sec_model import Payload
from sec_model.codec import payload_to_proto
from sec_protos.v1 import action_server_pb2, action_server_pb2_grpc, common_pb2, coordinator_pb2_grpc

DEADLINE_S = 10.0


async def eventually(condition: Callable[[], bool]) -> None:
    """Waits until a condition holds; fails after a deadline."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 # the conditions are about what other tasks and processes do
            await asyncio.sleep(0.005)


class Actions:
    """Calls an action server as an SEC node would."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.stub: Any = action_server_pb2_grpc.ActionServerStub(channel)

    @staticmethod
    def about(action: str, key: str, epoch: int, uid: str) -> action_server_pb2.Call:
        return action_server_pb2.Call(
            saga_id="s1", saga_uid=uid, node="n1", action=action, idempotency_key=key, epoch=epoch, attempt=1, sec_node="sec-1"
        )

    def do(
        self,
        action: str,
        key: str = "k1",
        *,
        params: Any = None,
        inputs: dict[str, Any] | None = None,
        epoch: int = 1,
        uid: str = "u1",
    ) -> Any:
        message = action_server_pb2.DoRequest(
            call=self.about(action, key, epoch, uid),
            params=payload_to_proto(params if isinstance(params, Payload) else Payload.json(params)),
            inputs={k: payload_to_proto(Payload.json(v)) for k, v in (inputs or {}).items()},
        )
        return self.stub.Do(message, timeout=DEADLINE_S)

    def undo(self, action: str, key: str = "k1", *, output: Any = ..., epoch: int = 1, uid: str = "u1") -> Any:
        message = action_server_pb2.UndoRequest(call=self.about(action, key, epoch, uid))
        if output is not ...:
            message.output.CopyFrom(payload_to_proto(Payload.json(output)))
        return self.stub.Undo(message, timeout=DEADLINE_S)


class _BatchedStub:
    """`Do` and `Undo` by the stream of batches: like the stub of the contract in all that the tests look at."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = action_server_pb2_grpc.ActionServerStub(channel)
        self.Describe = self._stub.Describe
        self._stream: Any = None
        self._reading: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._writing = asyncio.Lock()

    def Do(self, message: Any, timeout: float) -> Any:  # noqa: N802
        return asyncio.ensure_future(self._call(timeout, do_request=message))

    def Undo(self, message: Any, timeout: float) -> Any:  # noqa: N802
        return asyncio.ensure_future(self._call(timeout, undo_request=message))

    async def _call(self, timeout: float, **request: Any) -> Any:
        if self._stream is None:
            self._stream = self._stub.Batch()
            self._reading = asyncio.create_task(self._read())
        number = len(self._waiting) + 1
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        call = action_server_pb2.BatchedCall(id=number, timeout_s=timeout, **request)
        async with self._writing:
            await self._stream.write(action_server_pb2.BatchRequest(calls=[call]))
        return await answer

    async def _read(self) -> None:
        async for response in self._stream:
            for answer in response.answers:
                kind, waiting = answer.WhichOneof("result"), self._waiting[answer.id]
                if waiting.done():
                    continue
                if kind == "status":
                    code = next(each for each in grpc.StatusCode if each.value[0] == answer.status.code)
                    nothing = grpc.aio.Metadata()
                    waiting.set_exception(grpc.aio.AioRpcError(code, nothing, nothing, answer.status.message))
                else:
                    waiting.set_result(getattr(answer, kind))

    async def close(self) -> None:
        if self._reading is not None:
            self._stream.cancel()
            await asyncio.wait([self._reading])


@asynccontextmanager
async def serving(server: ActionServer, *, batched: bool = False) -> AsyncIterator[Actions]:
    """The server on a real socket, and calls to it: each by itself, or in batches."""
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            actions = Actions(channel)
            if not batched:
                yield actions
                return
            stub = actions.stub = _BatchedStub(channel)
            try:
                yield actions
            finally:
                await stub.close()
    finally:
        await server.stop(1.0)


async def status_of(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    try:
        answer = await call
    except grpc.aio.AioRpcError as e:
        return e.code(), e.details() or ""
    raise AssertionError(f"answered {answer}")


def refusal(code: grpc.StatusCode, message: str, /, **detail: Any) -> status_pb2.Status:
    """A status with an ErrorDetail, as an SEC node answers it."""
    packed = any_pb2.Any()
    packed.Pack(common_pb2.ErrorDetail(**detail))
    return status_pb2.Status(code=code.value[0], message=message, details=[packed])


assert grpc.StatusCode.NOT_FOUND.value[0] == code_pb2.NOT_FOUND


class FakeNode(coordinator_pb2_grpc.CoordinatorServicer):
    """A stand-in for an SEC node. `answers` has, for each method, a function from the message to the answer or to a status; a stream's yields."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[Any], Any]] = {}
        self.calls: list[tuple[str, Any]] = []
        self.metadata: dict[str, Any] = {}
        self.server: grpc.aio.Server | None = None
        self.address = ""

    def count(self, method: str) -> int:
        return sum(name == method for name, _ in self.calls)

    async def start(self, address: str = "127.0.0.1:0") -> None:
        self.server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        coordinator_pb2_grpc.add_CoordinatorServicer_to_server(self, self.server)
        port = self.server.add_insecure_port(address)
        self.address = f"127.0.0.1:{port}"
        await self.server.start()

    async def die(self) -> None:
        if self.server is not None:
            server, self.server = self.server, None
            await server.stop(None)


def _unary(method: str) -> Any:
    async def serve(self: FakeNode, message: Any, context: Any) -> Any:
        self.calls.append((method, message))
        self.metadata = dict(context.invocation_metadata())
        answer = self.answers[method](message)
        if isinstance(answer, Awaitable):
            answer = await answer
        if isinstance(answer, status_pb2.Status):
            await context.abort_with_status(rpc_status.to_status(answer))
        return answer

    return serve


async def _watch(self: FakeNode, message: Any, context: Any) -> AsyncIterator[Any]:
    self.calls.append(("WatchSaga", message))
    async for answer in self.answers["WatchSaga"](message):
        if isinstance(answer, status_pb2.Status):
            await context.abort_with_status(rpc_status.to_status(answer))
        yield answer


for _method in (
    "SubmitSaga",
    "SubmitSagas",
    "StartSaga",
    "DeleteSaga",
    "CommandSaga",
    "GetSaga",
    "ListSagas",
    "WaitSaga",
    "GetSagaLog",
    "ListNodes",
    "DrainNode",
    "RegisterActionServer",
    "UnregisterActionServer",
    "ListActions",
):
    setattr(FakeNode, _method, _unary(_method))
FakeNode.WatchSaga = _watch  # type: ignore[method-assign,assignment]
