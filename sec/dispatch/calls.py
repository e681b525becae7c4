"""One call of an action server: what is sent, and what its answer or its silence says. The meaning of each status is the contract's
(protos/sec/v1/action_server.proto)."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

import grpc
import grpc.aio
from msgspec import Struct
from sec_model import Payload
from sec_model.codec import payload_from_proto
from sec_protos.v1 import action_server_pb2, action_server_pb2_grpc, common_pb2

from sec.codec import fault_from_proto
from sec.core.records import Epoch, Fault, NodePath, Phase, SagaId, SecNodeName

_STALE = grpc.StatusCode.FAILED_PRECONDITION
_NOT_OFFERED = grpc.StatusCode.UNIMPLEMENTED
_BUSY = grpc.StatusCode.RESOURCE_EXHAUSTED
TRACEPARENT = "traceparent"
"""The W3C trace context, among the metadata of a call."""
_TOO_LARGE = ("larger than max", "exceeds maximum size")
"""What gRPC itself says (its C core and Go, Java), with the status of a busy server, of a message beyond a limit. Making the call again does not help
that."""


class Report(Struct, frozen=True, gc=False):
    """How far a call is, as the action server says: from 0 to 1 (None: it does not say), and a line for people."""

    fraction: float | None
    message: str


class Call(Struct, frozen=True, gc=False):
    """A do or an undo. `inputs` are the outputs that the node reads, by the names it gave them; `output` is the do's, for an undo that knows it.
    `timeout_s` bounds the call, and `heartbeat_timeout_s`, unless it is 0, the time for which it may bring neither an answer nor a report."""

    saga_id: SagaId
    saga_uid: str
    node: NodePath
    action: str
    phase: Phase
    idempotency_key: str
    epoch: Epoch
    attempt: int
    sec_node: SecNodeName
    params: Payload
    inputs: Mapping[str, Payload]
    output: Payload | None
    timeout_s: float
    cancelled: bool = False
    """Of a do: the saga unwinds already."""
    traceparent: str = ""
    heartbeat_timeout_s: float = 0.0

    @property
    def timeout_alone_s(self) -> float:
        """When it is made by itself: then there are no reports."""
        return min(self.timeout_s, self.heartbeat_timeout_s or self.timeout_s)


class Answered(Struct, frozen=True, gc=False):
    """The action server answered: an output or a fault to a do; None (the effect is gone) or a fault to an undo."""

    result: Payload | Fault | None


class Unanswered(Struct, frozen=True, gc=False):
    """The call says nothing about the effect."""

    error: Fault


class StaleEpoch(Struct, frozen=True, gc=False):
    """The action server has seen a higher epoch for this saga, and had no effect."""

    message: str


class NotOffered(Struct, frozen=True, gc=False):
    """The action server does not offer the action, and had no effect."""


class Busy(Struct, frozen=True, gc=False):
    """The action server has no room for the call now, and has not begun with it."""


Answer = Answered | Unanswered | StaleEpoch | NotOffered | Busy

Tell = Callable[[Answer], None]
"""Takes the answer of a call: once, and not before the call was made."""
Heard = Callable[[Call, Report], None]
"""Takes what a call under way reports."""


class Pending(Protocol):
    """Something that is waited for."""

    def cancel(self) -> object:
        """It is not waited for any longer: nothing will be told of it."""
        ...


def told(making: "asyncio.Task[Answer]", tell: Tell) -> Pending:
    """A call that a task makes: its answer is told unless the task is cancelled."""
    making.add_done_callback(lambda _: None if making.cancelled() else tell(making.result()))
    return making


async def send(stub: "action_server_pb2_grpc.ActionServerAsyncStub", server: str, call: Call, max_output_bytes: int) -> Answer:
    """Makes one call by itself. Raises nothing but `asyncio.CancelledError`; `server` names the action server in errors."""
    metadata = ((TRACEPARENT, call.traceparent),) if call.traceparent else ()
    try:
        if call.phase is Phase.DO:
            do = action_server_pb2.DoRequest()
            fill_request(do, call)
            return do_answer(await stub.Do(do, timeout=call.timeout_alone_s, metadata=metadata), server, call, max_output_bytes)
        undo = action_server_pb2.UndoRequest()
        fill_request(undo, call)
        return undo_answer(await stub.Undo(undo, timeout=call.timeout_alone_s, metadata=metadata))
    except grpc.aio.AioRpcError as error:
        return status_answer(error.code(), error.details() or "", server, call)


def fill_request(message: action_server_pb2.DoRequest | action_server_pb2.UndoRequest, call: Call) -> None:
    """Writes a call into an empty message. In place: a message made of messages would copy each of them."""
    header = message.call
    header.saga_id = call.saga_id
    header.saga_uid = call.saga_uid
    header.node = call.node
    header.action = call.action
    header.idempotency_key = call.idempotency_key
    header.epoch = call.epoch
    header.attempt = call.attempt
    header.sec_node = call.sec_node
    if call.cancelled:
        header.cancelled = True
    _fill_payload(message.params, call.params)
    for name, value in call.inputs.items():
        _fill_payload(message.inputs[name], value)
    if call.output is not None and isinstance(message, action_server_pb2.UndoRequest):
        message.output.SetInParent()
        _fill_payload(message.output, call.output)


def _fill_payload(message: common_pb2.Payload, payload: Payload) -> None:
    message.content_type = payload.content_type
    message.data = payload.data


def undo_answer(response: action_server_pb2.UndoResponse) -> Answer:
    return Answered(fault_from_proto(response.failure) if response.HasField("failure") else None)


def do_answer(response: action_server_pb2.DoResponse, server: str, call: Call, max_output_bytes: int) -> Answer:
    match response.WhichOneof("result"):
        case "output":
            size = len(response.output.data)
            if size > max_output_bytes:
                # It took effect, but the log cannot keep the output: not a failure, which would assert that there is no effect.
                return Unanswered(
                    Fault(
                        f'Action "{call.action}" at {server} answered an output of {size} bytes; at most {max_output_bytes} are kept. '
                        "Let it store the data elsewhere and answer a reference.",
                        "output_too_large",
                    )
                )
            return Answered(payload_from_proto(response.output))
        case "failure":
            return Answered(fault_from_proto(response.failure))
        case _:
            return Unanswered(
                Fault(f'Action "{call.action}" at {server} answered neither an output nor a failure.', "empty_answer")
            )


def status_answer(status: grpc.StatusCode, details: str, server: str, call: Call) -> Answer:
    """What it says that a call ended with a status."""
    if status is _STALE:
        return StaleEpoch(details)
    if status is _NOT_OFFERED:
        return NotOffered()
    if status is _BUSY and not any(said in details for said in _TOO_LARGE):
        return Busy()
    half = "action" if call.phase is Phase.DO else "undo action"
    return Unanswered(Fault(f'The {half} of "{call.action}" at {server} ended with {status.name}: {details}', status.name.lower()))
