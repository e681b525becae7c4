"""Errors as gRPC statuses: the one place where they are mapped. Every status carries an `ErrorDetail` of the contract."""

import logging
from collections.abc import MutableSequence, Sequence
from typing import NoReturn

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.rpc import status_pb2
from grpc_status import rpc_status
from sec_model import DefinitionError
from sec_protos.v1 import common_pb2, coordinator_pb2

from sec.core.errors import CorruptLog, IllegalTransition
from sec.node.door import Overloaded
from sec.store.errors import Fenced, InvalidPageToken, PageTokenExpired, SagaExists, SagaNotFound, WrongState
from sec.store.kv import Indeterminate, KvError, KvRefused, StoreFull

_log = logging.getLogger(__name__)

Code = grpc.StatusCode

MAX_MESSAGE_BYTES = 800
MAX_PROBLEMS_BYTES = 2_600
"""A status travels in HTTP/2 headers, of which gRPC takes 8 KiB: the message twice (one of them with three characters for each byte that is not
ASCII), and what is in the details by a third longer."""


class ApiError(Exception):
    """A call that cannot be answered. `message` is a whole sentence; `hint` says what to do next."""

    def __init__(
        self,
        status: grpc.StatusCode,
        code: str,
        message: str,
        *,
        saga_id: str = "",
        node: str = "",
        hint: str = "",
        retryable: bool = False,
        definite: bool = True,
        problems: Sequence[str] = (),
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.detail = common_pb2.ErrorDetail(
            code=code,
            saga_id=saga_id,
            node=node,
            hint=hint,
            retryable=retryable,
            definite=definite,
            problems=problems,
            retry_after_s=retry_after_s,
        )


def invalid(message: str, *, saga_id: str = "", code: str = "invalid_argument", hint: str = "") -> ApiError:
    """What was sent breaks a rule of the contract."""
    return ApiError(Code.INVALID_ARGUMENT, code, message, saga_id=saga_id, hint=hint)


def does_not_fit(saga_id: str, problems: Sequence[str]) -> ApiError:
    """What a saga reads is not what its actions want."""
    return ApiError(
        Code.INVALID_ARGUMENT,
        "invalid_definition",
        f'Saga "{saga_id}" does not fit the actions that it calls; {len(problems)} problem(s): {" ".join(problems)}',
        saga_id=saga_id,
        hint='Nothing was stored. "secctl action show NAME" prints what an action takes and answers.',
        problems=problems,
    )


def to_api_error(error: Exception, saga_id: str = "") -> ApiError:
    """What a caller is told of an error."""
    text = str(error)
    match error:
        case ApiError():
            return error
        case DefinitionError(problems=problems):
            hint = "Mend the definition; nothing was stored."
            return ApiError(
                Code.INVALID_ARGUMENT,
                "invalid_definition",
                f"The definition has {len(problems)} problem(s): {text}",
                saga_id=saga_id,
                hint=hint,
                problems=problems,
            )
        case SagaNotFound():
            return ApiError(
                Code.NOT_FOUND, "saga_not_found", text, saga_id=saga_id, hint='"secctl saga list" shows the sagas there are.'
            )
        case SagaExists():
            return ApiError(
                Code.ALREADY_EXISTS, "saga_exists", text, saga_id=saga_id, hint="Choose another id, or look at the saga there is."
            )
        case WrongState():
            return ApiError(
                Code.FAILED_PRECONDITION, "wrong_state", text, saga_id=saga_id, hint='Look at it with "secctl saga get".'
            )
        case PageTokenExpired():
            return ApiError(Code.OUT_OF_RANGE, "page_token_expired", text, hint="Begin the listing again.")
        case InvalidPageToken():
            return ApiError(Code.INVALID_ARGUMENT, "invalid_argument", text)
        case CorruptLog() | IllegalTransition():
            hint = "Keep its keys in etcd and call for help: no other saga is touched."
            return ApiError(Code.DATA_LOSS, "saga_corrupt", text, saga_id=saga_id, hint=hint)
        case Indeterminate():
            hint = "Do the same again with the same id: it takes effect once."
            message = f"The store did not answer in time, so it is not known whether this was done. {text}"
            return ApiError(
                Code.UNAVAILABLE, "outcome_indeterminate", message, saga_id=saga_id, hint=hint, retryable=True, definite=False
            )
        case Overloaded(retry_after_s=retry_after_s):
            return ApiError(
                Code.RESOURCE_EXHAUSTED,
                "overloaded",
                text,
                saga_id=saga_id,
                hint=f"Nothing was done. Ask another SEC node, or this one again after {retry_after_s:g} s.",
                retryable=True,
                retry_after_s=retry_after_s,
            )
        case StoreFull():
            hint = "Nothing was done. Make space in etcd: compact it, defragment it, and disarm its alarm. What was accepted waits until then."
            return ApiError(Code.RESOURCE_EXHAUSTED, "store_full", f"The store is out of space. {text}", saga_id=saga_id, hint=hint)
        case KvRefused():
            hint = "See the log of the SEC node and the health of etcd: it may be short of permissions, or its limits too low."
            return ApiError(
                Code.FAILED_PRECONDITION, "store_refused", f"The store refused this. {text}", saga_id=saga_id, hint=hint
            )
        case KvError() | Fenced():
            hint = "Try again; if it lasts, look at the health of etcd."
            return ApiError(
                Code.UNAVAILABLE,
                "store_unavailable",
                f"The store cannot be reached. {text}",
                saga_id=saga_id,
                hint=hint,
                retryable=True,
            )
        case _:
            _log.error("A call failed for a reason that nobody thought of.", exc_info=error)
            hint = "This is a fault of the SEC node; its log has the traceback."
            return ApiError(
                Code.INTERNAL, "internal", f"The SEC node failed: {error!r}", saga_id=saga_id, hint=hint, definite=False
            )


async def abort(context: grpc.aio.ServicerContext[object, object], error: ApiError, sec_node: str) -> NoReturn:
    """Ends a call with an error's status and detail."""
    message, detail = _told(error, sec_node)
    packed = any_pb2.Any()
    packed.Pack(detail)
    status = rpc_status.to_status(status_pb2.Status(code=error.status.value[0], message=message, details=[packed]))
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError("abort raises")


def refusal(error: ApiError, sec_node: str, saga_id: str) -> coordinator_pb2.Refusal:
    """The same for one of several things that a call asks for, this saga."""
    message, detail = _told(error, sec_node)
    detail.saga_id = saga_id[:200]
    return coordinator_pb2.Refusal(status=error.status.value[0], message=message, detail=detail)


def _told(error: ApiError, sec_node: str) -> tuple[str, common_pb2.ErrorDetail]:
    """What is told of an error, as much as there is room for: its message and its detail."""
    error.detail.sec_node = sec_node
    _shorten(error.detail.problems)
    return _clipped(error.message, MAX_MESSAGE_BYTES), error.detail


def _shorten(problems: MutableSequence[str]) -> None:
    """Leaves as many problems as there is room for, the first at any rate, and says how many there were more."""
    room, kept = MAX_PROBLEMS_BYTES, 0
    for problem in problems:
        room -= len(problem.encode()) + 3
        if room < 0:
            break
        kept += 1
    if kept < len(problems):
        kept = max(kept, 1)
        left = len(problems) - kept
        problems[:] = [_clipped(p, MAX_PROBLEMS_BYTES) for p in problems[:kept]] + (
            [f"There are {left} more problems."] if left else []
        )


def _clipped(text: str, size: int) -> str:
    data = text.encode()
    return text if len(data) <= size else data[: size - 3].decode(errors="ignore") + "…"
