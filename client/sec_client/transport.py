"""Calls to a cluster that may be reached at several addresses: failover between them, time limits and TLS.

A call goes to the address that last answered. When that one cannot be reached, does not answer, or says that the call is worth sending
again, the next one is tried at once; after a round through all of them there is a pause that grows. It is as long at least as those asked for that
had no room. The budget of time of the call bounds it all.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import grpc
import grpc.aio
from sec_protos.v1 import coordinator_pb2_grpc

from sec_client.errors import ClusterUnavailable, Overloaded, SagaError, detail_of, from_rpc_error, is_too_large

if TYPE_CHECKING:
    from sec_protos.v1.coordinator_pb2_grpc import CoordinatorAsyncStub

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Of one message, either way. A cluster refuses far smaller ones; this bound keeps a mistake from filling the memory."""
DEFAULT_TIMEOUT_S = 15.0
"""For a call with all its repetitions: longer than a lease of the cluster lasts, so that a failover is no error."""
ATTEMPT_TIMEOUT_S = 5.0
"""For one try at one address when there are others: a node that hangs must not use up the whole budget."""
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
_SPREAD = 0.5
"""Those who were refused together come back spread over this part of the time that was asked for."""

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A node that was restarted is seen within a second, not within gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Two clients in one process must not share a connection that is backing off.
    ("grpc.use_local_subchannel_pool", 1),
)

Metadata = tuple[tuple[str, str], ...]
Req = TypeVar("Req")
Resp = TypeVar("Resp")


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM form. `ca` checks the other side (None: the system's roots); `cert` and `key` show who this side is."""

    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For connecting. Raises `SagaError` when a file cannot be read."""
        if (self.cert is None) != (self.key is None):
            raise SagaError("TLS needs both a certificate and its key, or neither.", code="bad_tls")
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.cert))

    def server_credentials(self) -> grpc.ServerCredentials:
        """For listening: `cert` and `key` are needed; with `ca`, callers must show a certificate that it signed."""
        key, cert, ca = _read(self.key), _read(self.cert), _read(self.ca)
        if key is None or cert is None:
            raise SagaError("A TLS server needs a certificate and its key.", code="bad_tls")
        return grpc.ssl_server_credentials([(key, cert)], root_certificates=ca, require_client_auth=ca is not None)


def _read(path: str | Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as e:
        raise SagaError(f'The TLS file "{path}" cannot be read: {e.strerror or e}.', code="bad_tls") from None


def parse_addresses(addresses: str | Sequence[str]) -> tuple[str, ...]:
    """Addresses from a list or from a text with commas between them. Raises `ValueError` for what is no "host:port"."""
    parts = addresses.split(",") if isinstance(addresses, str) else addresses
    found = tuple(dict.fromkeys(p.strip() for p in parts if p.strip()))
    if not found:
        raise ValueError("No address of an SEC node was given.")
    for address in found:
        host, _, port = address.rpartition(":")
        if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError(f'"{address}" is not an address: give it as host:port.')
    return found


class Endpoint:
    """One address, connected when it is first used."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None) -> None:
        self.address = address
        if credentials is None:
            self.channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        else:
            self.channel = grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS)
        self.stub: CoordinatorAsyncStub = coordinator_pb2_grpc.CoordinatorStub(self.channel)


class Pause:
    """Pauses that double up to a bound, each shortened by a random part. One that a node asked for is lengthened by one instead."""

    def __init__(self, first_s: float = _FIRST_PAUSE_S, longest_s: float = _LONGEST_PAUSE_S) -> None:
        self._first_s = self._next_s = first_s
        self._longest_s = longest_s

    def reset(self) -> None:
        self._next_s = self._first_s

    def next_s(self, asked_for_s: float = 0.0) -> float:
        pause_s = self._next_s * random.uniform(0.5, 1.0)
        self._next_s = min(self._next_s * 2, self._longest_s)
        return max(pause_s, asked_for_s * random.uniform(1.0, 1.0 + _SPREAD))


class Cluster:
    """The addresses of a cluster and the connections to them. Belongs to one event loop. Raises `ValueError` for a bad address."""

    def __init__(
        self,
        addresses: str | Sequence[str],
        *,
        tls: Tls | None = None,
        metadata: Mapping[str, str] | Metadata = (),
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self.addresses = parse_addresses(addresses)
        self.timeout_s = timeout_s
        pairs = metadata.items() if isinstance(metadata, Mapping) else metadata
        self.metadata: Metadata = tuple((key.lower(), value) for key, value in pairs)
        self._credentials = tls.channel_credentials() if tls is not None else None
        self._endpoints: dict[str, Endpoint] = {}
        self._current = 0
        self._closed = False

    def current(self) -> Endpoint:
        """The connection to the address that last answered. Raises `SagaError` after `close`."""
        if self._closed:
            raise SagaError("The client is closed.", code="client_closed")
        address = self.addresses[self._current]
        if address not in self._endpoints:
            self._endpoints[address] = Endpoint(address, self._credentials)
        return self._endpoints[address]

    def leave(self, endpoint: Endpoint) -> None:
        """Goes on to the next address, unless another call has left this one already."""
        if endpoint.address == self.addresses[self._current]:
            self._current = (self._current + 1) % len(self.addresses)

    async def call(
        self,
        method: "Callable[[CoordinatorAsyncStub], grpc.aio.UnaryUnaryMultiCallable[Req, Resp]]",
        message: Req,
        *,
        saga_id: str = "",
        budget_s: float | None = None,
        attempt_s: float | None = None,
        metadata: Metadata = (),
    ) -> Resp:
        """Makes a call that may be sent more than once. Cancellation leaves it unknown whether it took effect.

        `budget_s` bounds all tries, `attempt_s` a single one; `metadata` goes with this call only. Raises `SagaError`; its `repeated` is true when an earlier try of this very
        call may have taken effect.
        """
        end = time.monotonic() + (self.timeout_s if budget_s is None else budget_s)
        if attempt_s is None and len(self.addresses) > 1:
            attempt_s = ATTEMPT_TIMEOUT_S
        pause, tries, repeated, asked_for_s = Pause(), 0, False, 0.0
        last: SagaError | None = None
        task = asyncio.current_task()
        cancelled = 0 if task is None else task.cancelling()
        while True:
            endpoint = self.current()
            left_s = max(0.001, end - time.monotonic())
            try:
                return await method(endpoint.stub)(
                    message,
                    timeout=left_s if attempt_s is None else min(left_s, attempt_s),
                    metadata=(*self.metadata, *metadata),
                )
            except grpc.aio.AioRpcError as e:
                if task is not None and task.cancelling() > cancelled:  # gRPC tells the status that came at the same moment
                    raise asyncio.CancelledError from None
                error = from_rpc_error(e, address=endpoint.address, saga_id=saga_id)
                error.repeated = repeated
                if not worth_repeating(e):
                    raise error from None
                repeated = repeated or not error.definite
                asked_for_s = max(asked_for_s, error.retry_after_s)
                if last is None or _says_more(error, last, first_of_round=tries % len(self.addresses) == 0):
                    last = error
            self.leave(endpoint)
            tries += 1
            pause_s = 0.0
            if tries % len(self.addresses) == 0:
                pause_s, asked_for_s = pause.next_s(asked_for_s), 0.0
            if time.monotonic() + pause_s >= end:
                last.definite = not repeated
                raise self._gave_up(last)
            await asyncio.sleep(pause_s)

    def _gave_up(self, last: SagaError) -> SagaError:
        if isinstance(last, Overloaded) and len(self.addresses) > 1:
            last.message = f"No SEC node at {', '.join(self.addresses)} has room; the last answer was: {last.message}"
            last.args = (last.message,)
        if last.status not in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"):
            return last
        listed = ", ".join(self.addresses)
        return ClusterUnavailable(
            f"No SEC node at {listed} could do the call in time; the last answer was: {last.message}",
            code=last.code,
            saga_id=last.saga_id,
            sec_node=last.sec_node,
            hint=last.hint,
            retryable=True,
            definite=last.definite,
            status=last.status,
        )

    async def close(self) -> None:
        """Closes every connection; calls under way end in an error. May be repeated."""
        self._closed = True
        endpoints, self._endpoints = list(self._endpoints.values()), {}
        for endpoint in endpoints:
            await endpoint.channel.close()


def _says_more(error: SagaError, last: SagaError, *, first_of_round: bool) -> bool:
    """Whether an error is to be told rather than the last one: a try that only ran out of time says less than a node that answered before it, and
    within a round a node that has no room says more than those that cannot be reached."""
    if error.status == "DEADLINE_EXCEEDED":
        return False
    return first_of_round or isinstance(error, Overloaded) or not isinstance(last, Overloaded)


def worth_repeating(error: grpc.aio.AioRpcError) -> bool:
    """Whether the same call may succeed when it is sent again, here or elsewhere. Every call of the contract can be repeated."""
    code, detail = error.code(), detail_of(error)
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        return True
    if detail is not None:
        return detail.retryable
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return not is_too_large(error)
    # A connection that breaks in the middle of a call shows as one of these, said by gRPC itself.
    text = (error.details() or "").lower()
    return code is grpc.StatusCode.CANCELLED or any(word in text for word in ("rst_stream", "stream removed", "goaway"))
