"""One call of an action server: what is sent, and what its answer or its silence says. The meaning of each status is the contract's
(protos/sec/v1/action_server.proto)."""

from collections.abc import Mapping
from dataclasses import dataclass

import grpc
import grpc.aio
from sec_model import Payload
from sec_model.codec import payload_from_proto, payload_to_proto
from sec_protos.v1 import action_server_pb2, action_server_pb2_grpc

from sec.codec import fault_from_proto
from sec.core.records import Epoch, Fault, NodePath, Phase, SagaId, SecNodeName

_STALE = grpc.StatusCode.FAILED_PRECONDITION
_NOT_OFFERED = grpc.StatusCode.UNIMPLEMENTED
_BUSY = grpc.StatusCode.RESOURCE_EXHAUSTED
_TOO_LARGE = ("larger than max", "exceeds maximum size")
"""What gRPC itself says (its C core and Go, Java), with the status of a busy server, of a message beyond a limit. Making the call again does not help
that."""


@dataclass(frozen=True, slots=True)
class Call:
    """A do or an undo. `inputs` are the outputs that the node reads, by the names it gave them; `output` is the do's, for an undo that knows it.
    `timeout_s` bounds the call."""

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


@dataclass(frozen=True, slots=True)
class Answered:
    """The action server answered: an output or a fault to a do; None (the effect is gone) or a fault to an undo."""

    result: Payload | Fault | None


@dataclass(frozen=True, slots=True)
class Unanswered:
    """The call says nothing about the effect."""

    error: Fault


@dataclass(frozen=True, slots=True)
class StaleEpoch:
    """The action server has seen a higher epoch for this saga, and had no effect."""

    message: str


@dataclass(frozen=True, slots=True)
class NotOffered:
    """The action server does not offer the action, and had no effect."""


@dataclass(frozen=True, slots=True)
class Busy:
    """The action server has no room for the call now, and has not begun with it."""


Answer = Answered | Unanswered | StaleEpoch | NotOffered | Busy


async def send(stub: "action_server_pb2_grpc.ActionServerAsyncStub", server: str, call: Call, max_output_bytes: int) -> Answer:
    """Makes one call. Raises nothing but `asyncio.CancelledError`; `server` names the action server in errors."""
    header = action_server_pb2.Call(
        saga_id=call.saga_id,
        saga_uid=call.saga_uid,
        node=call.node,
        action=call.action,
        idempotency_key=call.idempotency_key,
        epoch=call.epoch,
        attempt=call.attempt,
        sec_node=call.sec_node,
    )
    params = payload_to_proto(call.params)
    inputs = {name: payload_to_proto(value) for name, value in call.inputs.items()}
    try:
        if call.phase is Phase.DO:
            do = action_server_pb2.DoRequest(call=header, params=params, inputs=inputs)
            return _do_answer(await stub.Do(do, timeout=call.timeout_s), server, call, max_output_bytes)
        output = None if call.output is None else payload_to_proto(call.output)
        undo = action_server_pb2.UndoRequest(call=header, params=params, inputs=inputs, output=output)
        response = await stub.Undo(undo, timeout=call.timeout_s)
        return Answered(fault_from_proto(response.failure) if response.HasField("failure") else None)
    except grpc.aio.AioRpcError as error:
        return _status_answer(error, server, call)


def _do_answer(response: action_server_pb2.DoResponse, server: str, call: Call, max_output_bytes: int) -> Answer:
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


def _status_answer(error: grpc.aio.AioRpcError, server: str, call: Call) -> Answer:
    status = error.code()
    details = error.details() or ""
    if status is _STALE:
        return StaleEpoch(details)
    if status is _NOT_OFFERED:
        return NotOffered()
    if status is _BUSY and not any(said in details for said in _TOO_LARGE):
        return Busy()
    half = "action" if call.phase is Phase.DO else "undo action"
    return Unanswered(Fault(f'The {half} of "{call.action}" at {server} ended with {status.name}: {details}', status.name.lower()))
