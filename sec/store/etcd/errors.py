"""What every error of etcd and of gRPC means for a call: the only place that knows their texts and codes.

The question that matters is whether the call may have had its effect. Where that is not certain the answer is `Kind.UNKNOWN`.

Source of the texts: etcd's api/v3/v3rpc/rpctypes/error.go (3.4 to 3.6), and for calls that never left us gRPC core's resolver and
load-balancing policies, which fail a call before it is given to any connection.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

import grpc

from sec.store.kv import Compacted, KvError, KvRefused, LeaseNotFound, NoQuorum, StoreFull


class Kind(Enum):
    """What to do about a failed attempt."""

    FINAL = "final"
    """The store answered, and said no: raise the verdict's error. The call had no effect."""
    NOT_DONE = "not done"
    """The call had no effect, for certain; it may be sent again, best to another endpoint."""
    TOKEN = "token"
    """The call had no effect because our authentication token is not valid (any more): get another one."""
    UNKNOWN = "unknown"
    """The call may have had its effect."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`message` says what failed and where. `error` is what to raise: set for FINAL; for NOT_DONE when it says more than that."""

    kind: Kind
    message: str
    error: KvError | None = None


_NEVER_SENT = ("failed to connect to all addresses", "dns resolution failed", "name resolution failure", "empty address list")
"""How gRPC's own status begins when a call found no connection to be sent on. (Transparent retries keep this true: they are only
made of calls that no server has seen.)"""

_NO_LEADER = "etcdserver: no leader"
_TURNED_AWAY = ("etcdserver: too many requests", "etcdserver: not capable", "not supported for learner")
"""etcd says this and these before it proposes anything to its cluster."""

_BAD_TOKEN = (
    "invalid auth token",
    "user name is empty",
    "revision of auth store is old",
    "revision in header is old",
)

_FULL = "database space exceeded"
_TOO_LARGE = ("request is too large", "larger than max")
_FULL_ALARM = "alarm:nospace"

_REFUSALS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)


def judge(error: grpc.aio.AioRpcError, what: str, target: str) -> Verdict:
    """The verdict on a call that failed; `what` was being done ("carry out a transaction") on the endpoint `target`."""
    code, details = error.code(), error.details() or ""
    message = f"Could not {what} on etcd at {target}: {details or 'no details'} ({code.name})."
    text = details.lower()
    if code is grpc.StatusCode.UNAVAILABLE and text.startswith(_NEVER_SENT):
        return Verdict(Kind.NOT_DONE, message)
    if _NO_LEADER in text:
        return Verdict(Kind.NOT_DONE, message, NoQuorum(message))
    if _holds(text, _TURNED_AWAY):
        return Verdict(Kind.NOT_DONE, message)
    if code is grpc.StatusCode.UNAUTHENTICATED or _holds(text, _BAD_TOKEN):
        return Verdict(Kind.TOKEN, message)
    if (final := _final(code, text, message)) is not None:
        return Verdict(Kind.FINAL, message, final)
    return Verdict(Kind.UNKNOWN, message)


def _final(code: grpc.StatusCode, text: str, message: str) -> KvError | None:
    if "requested lease not found" in text:
        return LeaseNotFound(message)
    if "required revision has been compacted" in text:
        return Compacted(message)
    if code in _REFUSALS:
        return KvRefused(message)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _FULL in text:
        return StoreFull(message)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _holds(text, _TOO_LARGE):
        return KvRefused(message)
    if code is grpc.StatusCode.DATA_LOSS and "corrupt cluster" in text:
        return KvRefused(message)
    return None


def judge_cancelled_watch(reason: str, what: str, target: str) -> Verdict:
    """The verdict on a watch that the server ended, from the reason it gives (which carries the text of a gRPC error)."""
    message = f"Could not {what} on etcd at {target}: {reason or 'the server ended the watch and gave no reason'}."
    text = reason.lower()
    if _holds(text, _BAD_TOKEN):
        return Verdict(Kind.TOKEN, message)
    if "permission denied" in text or "duplicate" in text or "empty watcher range" in text:
        return Verdict(Kind.FINAL, message, KvRefused(message))
    if "compacted" in text:
        return Verdict(Kind.FINAL, message, Compacted(message))
    return Verdict(Kind.NOT_DONE, message)


def says_full(errors: Iterable[str]) -> bool:
    """Whether a member that gives its status lists the alarm that etcd is out of space."""
    return any(_FULL_ALARM in error.lower() for error in errors)


def authentication_is_off(error: grpc.aio.AioRpcError) -> bool:
    """Whether a try to authenticate failed because the cluster has authentication switched off: then no token is needed."""
    return "authentication is not enabled" in (error.details() or "").lower()


def _holds(text: str, parts: tuple[str, ...]) -> bool:
    return any(part in text for part in parts)
