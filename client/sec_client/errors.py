"""Every error that the client raises, and how they are read from the status that an SEC node answers.

A caller never sees an error of gRPC itself: each call ends with its value or with a `SagaError`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import grpc
from grpc_status import rpc_status
from sec_protos.v1 import common_pb2

if TYPE_CHECKING:
    from sec_client.views import SagaResult


class SagaError(Exception):
    """An SEC node refused or could not do what was asked. The message is a sentence for people.

    `code` is a stable word to branch on; `saga_id`, `node` (full path) and `sec_node` are empty where they do not apply; `hint` says what
    to do next. `retryable`: the same call can succeed later without anything else being changed. `definite`: false when the call
    may have taken effect although it ended in this error. `problems`: every problem found, for a definition. `retry_after_s`: how many seconds
    to leave that SEC node in peace before the same call; 0: it does not say.
    """

    default_code: ClassVar[str] = "error"

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        saga_id: str = "",
        node: str = "",
        sec_node: str = "",
        hint: str = "",
        retryable: bool = False,
        definite: bool = True,
        problems: Sequence[str] = (),
        status: str = "",
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.saga_id = saga_id
        self.node = node
        self.sec_node = sec_node
        self.hint = hint
        self.retryable = retryable
        self.definite = definite
        self.problems = tuple(problems)
        self.retry_after_s = retry_after_s
        self.status = status
        """The name of the gRPC status, "NOT_FOUND"; empty when the error did not come over the wire."""
        self.repeated = False
        """An earlier try of the same call, made by the client itself, may have taken effect."""


class SagaNotFound(SagaError):
    """There is no saga with this id: it was never submitted, was deleted, or was removed after its retention time."""

    default_code = "saga_not_found"


class SagaExists(SagaError):
    """Another saga, with other content, has this id."""

    default_code = "saga_exists"


class InvalidArgument(SagaError):
    """Something that was sent breaks a rule of the contract."""

    default_code = "invalid_argument"


class InvalidDefinition(InvalidArgument):
    """The definition breaks rules: `problems` has every one."""

    default_code = "invalid_definition"


class TooLarge(InvalidArgument):
    """A payload or a definition is larger than the cluster takes."""

    default_code = "payload_too_large"


class WrongState(SagaError):
    """The saga is not in a state in which this can be done: it has been started already, or has ended."""

    default_code = "wrong_state"


class ActionNotOffered(SagaError):
    """The saga needs an action that no action server offers now, and the submit asked that this be an error."""

    default_code = "action_not_offered"


class NodeNotFound(SagaError):
    """No SEC node has this name."""

    default_code = "node_not_found"


class PageExpired(SagaError):
    """The listing is too old to be continued: start again."""

    default_code = "page_token_expired"


class SagaCorrupt(SagaError):
    """The log of the saga cannot be read."""

    default_code = "saga_corrupt"


class StoreRefused(SagaError):
    """The store behind the cluster refused the SEC node: its credentials, its quota or its settings."""

    default_code = "store_refused"


class StoreFull(StoreRefused):
    """The store behind the cluster is out of space: an operator has to make some. What was accepted before waits until then."""

    default_code = "store_full"


class Overloaded(SagaError):
    """The SEC node has as much as it may hold, and did nothing. `retry_after_s` says when it may be asked again. The client does so by itself, other
    nodes first, for as long as its time lasts; then it raises this."""

    default_code = "overloaded"


class OutcomeIndeterminate(SagaError):
    """Nobody knows whether the call took effect. Repeat it, or read the saga."""

    default_code = "outcome_indeterminate"


class ClusterUnavailable(SagaError):
    """No SEC node could do the call in the time given: none was reached, or their store is away."""

    default_code = "cluster_unavailable"


class PermissionRefused(SagaError):
    """The SEC node does not accept these credentials, or does not allow them this call."""

    default_code = "permission_refused"


class WaitTimeout(SagaError, TimeoutError):
    """The saga had not settled when the time given to the wait was over. It goes on."""

    default_code = "wait_timeout"


class SagaUnsuccessful(SagaError):
    """A saga settled without its effects. `result` has all of it."""

    def __init__(self, message: str, result: "SagaResult", **details: Any) -> None:
        super().__init__(message, saga_id=result.saga_id, **details)
        self.result = result


class SagaFailed(SagaUnsuccessful):
    """The saga ended undone: no effect is left. `result.errors` has every failure, the first by time first."""

    default_code = "saga_failed"


class SagaStuck(SagaUnsuccessful):
    """An undo action failed for good: effects are left and an operator must decide. `result.errors` says which."""

    default_code = "saga_stuck"


_BY_CODE: Mapping[str, type[SagaError]] = {
    "saga_not_found": SagaNotFound,
    "saga_exists": SagaExists,
    "invalid_definition": InvalidDefinition,
    "invalid_argument": InvalidArgument,
    "payload_too_large": TooLarge,
    "definition_too_large": TooLarge,
    "wrong_state": WrongState,
    "action_not_offered": ActionNotOffered,
    "node_not_found": NodeNotFound,
    "page_token_expired": PageExpired,
    "store_unavailable": ClusterUnavailable,
    "store_refused": StoreRefused,
    "store_full": StoreFull,
    "overloaded": Overloaded,
    "outcome_indeterminate": OutcomeIndeterminate,
    "saga_corrupt": SagaCorrupt,
}

# For an answer without an ErrorDetail: from a proxy on the way, from gRPC itself, or from something that is no SEC node.
_BY_STATUS: Mapping[grpc.StatusCode, tuple[type[SagaError], str, str]] = {
    grpc.StatusCode.UNAVAILABLE: (ClusterUnavailable, "", "Check the addresses and that the SEC nodes run."),
    grpc.StatusCode.DEADLINE_EXCEEDED: (ClusterUnavailable, "no_answer", "Read the saga to see whether the call took effect."),
    grpc.StatusCode.CANCELLED: (ClusterUnavailable, "connection_lost", "Repeat the call."),
    grpc.StatusCode.INVALID_ARGUMENT: (InvalidArgument, "", ""),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (Overloaded, "", "Repeat the call after a while."),
    grpc.StatusCode.UNAUTHENTICATED: (PermissionRefused, "unauthenticated", "Give the credentials that the cluster asks for."),
    grpc.StatusCode.PERMISSION_DENIED: (PermissionRefused, "", ""),
    grpc.StatusCode.UNIMPLEMENTED: (
        SagaError,
        "unimplemented",
        "Check that the address is that of an SEC node, and that it is not older than this client.",
    ),
}


_TOO_LARGE = (TooLarge, "message_too_large", "Send less at once.")
_RETRY_AFTER_S = 1.0
"""When somebody who is overloaded does not say."""


def is_too_large(error: grpc.aio.AioRpcError) -> bool:
    """Whether gRPC itself refused a message for its size, with the status of one who is overloaded."""
    return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in (error.details() or "")


def detail_of(error: grpc.RpcError) -> common_pb2.ErrorDetail | None:
    """The ErrorDetail that an SEC node attached to a status; None when there is none that can be read."""
    try:
        status = rpc_status.from_call(cast("grpc.Call", error))
        if status is not None:
            detail = common_pb2.ErrorDetail()
            for packed in status.details:
                if packed.Unpack(detail):
                    return detail
    except Exception:  # what a foreign server puts there must not hide its status
        return None
    return None


def damaged_log(saga_id: str, problem: str) -> SagaCorrupt:
    """The error of a log that cannot be read any further; `problem` is the sentence of the SEC node."""
    return SagaCorrupt(problem, saga_id=saga_id, hint="Keep its keys in etcd and call for help: no other saga is touched.")


def from_detail(status: str, message: str, detail: common_pb2.ErrorDetail, *, address: str = "", saga_id: str = "") -> SagaError:
    """The `SagaError` of an SEC node's own answer. `status` is the name of the gRPC status."""
    kind = _BY_CODE.get(detail.code, SagaError)
    return kind(
        message or f'The SEC node answered "{detail.code}".',
        code=detail.code,
        saga_id=detail.saga_id or saga_id,
        node=detail.node,
        sec_node=detail.sec_node or address,
        hint=detail.hint,
        retryable=detail.retryable,
        definite=detail.definite,
        problems=detail.problems,
        status=status,
        retry_after_s=detail.retry_after_s,
    )


def from_rpc_error(error: grpc.aio.AioRpcError, *, address: str = "", saga_id: str = "") -> SagaError:
    """The `SagaError` for a status. `address` and `saga_id` say what was called, where the answer does not."""
    code, message = error.code(), (error.details() or "").strip()
    detail = detail_of(error)
    if detail is not None:
        return from_detail(code.name, message, detail, address=address, saga_id=saga_id)
    kind, word, hint = _TOO_LARGE if is_too_large(error) else _BY_STATUS.get(code, (SagaError, code.name.lower(), ""))
    overloaded = kind is Overloaded
    unsure = code in _UNSURE
    what = _WITHOUT_ANSWER.get(code, f"answered {code.name}")
    return kind(
        f"The SEC node at {address} {what}: {message or 'no reason given'}",
        code=word,
        saga_id=saga_id,
        sec_node=address,
        hint=hint,
        retryable=unsure or overloaded,
        definite=not unsure,
        status=code.name,
        retry_after_s=_RETRY_AFTER_S if overloaded else 0.0,
    )


_WITHOUT_ANSWER: Mapping[grpc.StatusCode, str] = {
    grpc.StatusCode.UNAVAILABLE: "cannot be reached",
    grpc.StatusCode.DEADLINE_EXCEEDED: "did not answer in time",
    grpc.StatusCode.CANCELLED: "broke off the call",
}
_UNSURE = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
)
