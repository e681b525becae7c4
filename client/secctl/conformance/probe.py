"""Calls an action server as SEC nodes do, and tells what came of it. What the answers should be is not known here."""

import asyncio
import itertools
import json
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sec_client.transport import CHANNEL_OPTIONS, Tls
from sec_protos.v1 import action_server_pb2 as pb
from sec_protos.v1 import action_server_pb2_grpc, common_pb2

if TYPE_CHECKING:
    from sec_protos.v1.action_server_pb2_grpc import ActionServerAsyncStub

ADD, BALANCE, ECHO = "conformance.add", "conformance.balance", "conformance.echo"
"""The actions that a server has to offer to be checked; docs/action-servers.md specifies them."""
SERVICE = "sec.v1.ActionServer"
PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED, grpc.StatusCode.DEADLINE_EXCEEDED)
"""What a call may end with for no reason that concerns the contract; an SEC node makes it again."""
_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.5


class Breach(Exception):
    """The server does not do what the contract says. The message is a sentence."""


@dataclass(frozen=True, slots=True)
class Output:
    """The action took effect. `raw` is the whole answer."""

    payload: common_pb2.Payload
    raw: bytes

    def __str__(self) -> str:
        return f"the output {_shown(self.payload.data)}"


@dataclass(frozen=True, slots=True)
class Failure:
    """The action, or its undo, failed."""

    error: common_pb2.Error
    raw: bytes

    def __str__(self) -> str:
        return f"the failure {self.error.message!r}"


@dataclass(frozen=True, slots=True)
class Undone:
    """The undo is done."""

    def __str__(self) -> str:
        return "OK"


@dataclass(frozen=True, slots=True)
class Neither:
    """A do that ended with OK and says nothing."""

    def __str__(self) -> str:
        return "neither an output nor a failure"


@dataclass(frozen=True, slots=True)
class Status:
    """The call ended with an error."""

    code: grpc.StatusCode
    details: str

    def __str__(self) -> str:
        return f"the status {self.code.name} ({self.details})"


Answer = Output | Failure | Undone | Neither | Status
Message = pb.DoRequest | pb.UndoRequest
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def json_payload(value: Any) -> common_pb2.Payload:
    """A value as SEC nodes send it."""
    return common_pb2.Payload(content_type="application/json", data=json.dumps(value, ensure_ascii=False).encode())


class Server:
    """A connection to the action server. `patience_s` bounds a call with all of its repetitions."""

    def __init__(self, channel: grpc.aio.Channel, patience_s: float) -> None:
        self.channel = channel
        self.patience_s = patience_s
        self.stub: ActionServerAsyncStub = action_server_pb2_grpc.ActionServerStub(channel)
        self._health = health_pb2_grpc.HealthStub(channel)

    async def describe(self) -> pb.DescribeResponse:
        """Raises `grpc.aio.AioRpcError`."""
        return await self.stub.Describe(pb.DescribeRequest(), timeout=self.patience_s)

    async def caught_up(self) -> None:
        """Returns once the calls have arrived that were begun before. Raises `grpc.aio.AioRpcError`."""
        await self.describe()  # meanwhile they are sent
        await self.describe()  # sent behind them on the same connection, and answered

    async def health(self) -> int:
        """The status of the actions, as the health service has it. Raises `grpc.aio.AioRpcError`."""
        answer = await self._health.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=self.patience_s)  # type: ignore[attr-defined] # missing in the stubs
        return int(answer.status)

    async def send(self, message: Message, timeout_s: float | None = None) -> Answer:
        """Makes one call, once more for as long as the server is too busy for it. Raises nothing but `asyncio.CancelledError`."""
        bound_s = self.patience_s if timeout_s is None else timeout_s
        waits = pauses()
        end = asyncio.get_running_loop().time() + self.patience_s
        while True:
            answer = await self._send(message, bound_s)
            busy = isinstance(answer, Status) and answer.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            if not busy or asyncio.get_running_loop().time() > end or "larger" in str(answer) or "exceeds" in str(answer):
                return answer
            await asyncio.sleep(next(waits))

    async def settle(self, message: Message) -> Answer:
        """Makes a call as an SEC node would: again, for as long as it ends in a way that says nothing."""
        waits = pauses()
        end = asyncio.get_running_loop().time() + self.patience_s
        while True:
            answer = await self.send(message)
            if not isinstance(answer, Status) or answer.code not in PASSING or asyncio.get_running_loop().time() > end:
                return answer
            await asyncio.sleep(next(waits))

    async def _send(self, message: Message, timeout_s: float) -> Answer:
        trace = (("traceparent", TRACEPARENT),)
        try:
            if isinstance(message, pb.UndoRequest):
                return undone_answer(await self.stub.Undo(message, timeout=timeout_s, metadata=trace))
            return done_answer(await self.stub.Do(message, timeout=timeout_s, metadata=trace))
        except grpc.aio.AioRpcError as e:
            return Status(e.code(), e.details() or "")


def done_answer(done: pb.DoResponse) -> Answer:
    """What a do that ended with OK says."""
    match done.WhichOneof("result"):
        case "output":
            return Output(done.output, done.SerializeToString(deterministic=True))
        case "failure":
            return Failure(done.failure, done.SerializeToString(deterministic=True))
        case _:
            return Neither()


def undone_answer(undone: pb.UndoResponse) -> Answer:
    """What an undo that ended with OK says."""
    return Failure(undone.failure, undone.SerializeToString()) if undone.HasField("failure") else Undone()


@asynccontextmanager
async def connected(address: str, tls: Tls | None, patience_s: float) -> AsyncIterator[Server]:
    """A connection of its own. Raises `SagaError` for TLS files that cannot be read."""
    if tls is None:
        channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    else:
        channel = grpc.aio.secure_channel(address, tls.channel_credentials(), options=CHANNEL_OPTIONS)
    async with channel:
        yield Server(channel, patience_s)


class Trial:
    """A saga that no cluster knows of, to call a server for. Each has a uid of its own, so that trials do not disturb each other.

    `epoch` is that of its owner: what calls carry that do not say otherwise.
    """

    def __init__(self, server: Server, uid: str | None = None, epoch: int = 1) -> None:
        self.server = server
        self.uid = uid or f"conformance-{uuid.uuid4()}"
        self.epoch = epoch
        self._reads = itertools.count(1)

    def about(self, action: str, key: str, epoch: int | None, attempt: int) -> pb.Call:
        return pb.Call(
            saga_id="conformance",
            saga_uid=self.uid,
            node=key[:64],
            action=action,
            idempotency_key=f"{self.uid}/{key}",
            epoch=self.epoch if epoch is None else epoch,
            attempt=attempt,
            sec_node=f"sec-{attempt}",
        )

    def do_message(
        self,
        key: str = "a",
        *,
        action: str = ADD,
        epoch: int | None = None,
        attempt: int = 1,
        inputs: Mapping[str, common_pb2.Payload] | None = None,
        **params: Any,
    ) -> pb.DoRequest:
        """A do, by default one that adds `amount`."""
        return pb.DoRequest(call=self.about(action, key, epoch, attempt), params=json_payload(params), inputs=inputs)

    def undo_message(
        self,
        key: str = "a",
        *,
        action: str = ADD,
        epoch: int | None = None,
        attempt: int = 1,
        output: common_pb2.Payload | None = None,
        **params: Any,
    ) -> pb.UndoRequest:
        """The undo of such a do; `params` are those of the do."""
        return pb.UndoRequest(call=self.about(action, key, epoch, attempt), params=json_payload(params), output=output)

    async def do(self, key: str = "a", **options: Any) -> Answer:
        """A do, made until it is answered."""
        return await self.server.settle(self.do_message(key, **options))

    async def undo(self, key: str = "a", **options: Any) -> Answer:
        """An undo, made until it is answered."""
        return await self.server.settle(self.undo_message(key, **options))

    async def has_effect(self, key: str = "a", **options: Any) -> Output:
        """A do that has to answer an output."""
        return output_of(await self.do(key, **options), "A do")

    async def is_undone(self, key: str = "a", **options: Any) -> None:
        """An undo that has to succeed."""
        answer = await self.undo(key, **options)
        if not isinstance(answer, Undone):
            raise Breach(f"An undo answered {answer}, and not OK.")

    async def balance(self) -> int:
        """What the effects of this saga add up to. Raises `Breach` for an answer that is no number."""
        answer = output_of(await self.do(f"read {next(self._reads)}", action=BALANCE), f'A do of "{BALANCE}"')
        return number_in(answer, f'the output of "{BALANCE}"')

    async def adds_up_to(self, expected: int, when: str) -> None:
        """Raises `Breach` when the balance is another."""
        found = await self.balance()
        if found != expected:
            raise Breach(f"The balance is {found} {when}; it must be {expected}.")


def output_of(answer: Answer, what: str) -> Output:
    """Raises `Breach` for any other answer."""
    if not isinstance(answer, Output):
        raise Breach(f"{what} answered {answer}, and not an output.")
    return answer


def number_in(answer: Output, what: str) -> int:
    """The JSON integer of an output. Raises `Breach`."""
    try:
        value = json.loads(answer.payload.data)
    except ValueError:
        value = None
    if not isinstance(value, int) or isinstance(value, bool):
        raise Breach(f"{what[0].upper()}{what[1:]} is {_shown(answer.payload.data)}, and not a JSON integer.")
    return value


def pauses() -> Iterator[float]:
    """Seconds between the tries of a call."""
    pause_s = _PAUSE_S
    while True:
        yield pause_s
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


def _shown(data: bytes) -> str:
    return repr(data) if len(data) <= 80 else f"{data[:60]!r}… of {len(data)} bytes"
