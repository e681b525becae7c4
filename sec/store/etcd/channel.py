"""Channels to the endpoints of one etcd cluster: which one is used, what a failed call does next, the authentication token.

The rule for a call that may have an effect: it is only sent on a connection that stands, so that "never sent" is known and not
guessed. An endpoint that failed goes behind the others and stays there until those have failed too.
"""

import asyncio
from collections.abc import Awaitable, Callable
from enum import Enum
from itertools import count
from typing import Any, TypeVar

import grpc
import grpc.aio
from aetcd import rpc

from sec.store.etcd.config import Endpoint, EtcdConfig
from sec.store.etcd.errors import Kind, Verdict, authentication_is_off, judge
from sec.store.kv import Indeterminate, KvError, KvRefused, KvUnavailable

T = TypeVar("T")
Metadata = tuple[tuple[str, str], ...]

FIRST_PAUSE_S = 0.05
LAST_PAUSE_S = 0.5
"""Between two rounds over all endpoints, doubling from the first to the last."""

MAX_TOKENS = 2
"""How often one call gets a new token: once for one that has expired, once for one that expired meanwhile."""


class Repeat(Enum):
    """May a call be sent again whose answer was lost?"""

    READ = "read"
    """Yes: it changes nothing."""
    IDEMPOTENT = "idempotent"
    """Yes: twice is as good as once. When every answer was lost the outcome is still unknown."""
    NEVER = "never"


class Member:
    """The channel to one endpoint and etcd's services on it."""

    def __init__(self, endpoint: Endpoint, config: EtcdConfig) -> None:
        self.target = endpoint.target
        self.channel = _open_channel(endpoint, config)
        self.kv = rpc.KVStub(self.channel)
        self.txn: grpc.aio.UnaryUnaryMultiCallable[bytes, Any] = self.channel.unary_unary(
            "/etcdserverpb.KV/Txn", response_deserializer=rpc.TxnResponse.FromString
        )
        """Takes a transaction as bytes."""
        self.lease = rpc.LeaseStub(self.channel)
        self.watch = rpc.WatchStub(self.channel)
        self.maintenance = rpc.MaintenanceStub(self.channel)
        self.auth = rpc.AuthStub(self.channel)
        self._change: asyncio.Task[None] | None = None

    async def ready(self, timeout_s: float) -> bool:
        """Whether a connection stands; waits for one that is being made, not for a new try after one that failed."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while True:
            match self.channel.get_state(try_to_connect=True):
                case grpc.ChannelConnectivity.READY:
                    return True
                case grpc.ChannelConnectivity.TRANSIENT_FAILURE | grpc.ChannelConnectivity.SHUTDOWN:
                    return False
                case state:
                    # One task for all who wait, kept when they give up: gRPC's own wait is better not cancelled.
                    if self._change is None or self._change.done():
                        self._change = loop.create_task(self._state_leaves(state))
            remaining = deadline - loop.time()
            if remaining <= 0 or not (await asyncio.wait((self._change,), timeout=remaining))[0]:
                return False

    async def _state_leaves(self, state: grpc.ChannelConnectivity) -> None:
        try:
            await self.channel.wait_for_state_change(state)
        except grpc.aio.UsageError:
            return  # the channel was closed

    async def aclose(self) -> None:
        await self.channel.close()
        if self._change is not None:
            self._change.cancel()
            await asyncio.wait((self._change,))


class Pool:
    """The endpoints of one cluster, best first. To be made inside a running event loop."""

    def __init__(self, config: EtcdConfig) -> None:
        self._config = config
        self._members = [Member(endpoint, config) for endpoint in config.addresses()]
        self._listeners: list[Callable[[Member], None]] = []
        self._token: str | None = None
        self._token_lock = asyncio.Lock()
        self._closed = False

    @property
    def size(self) -> int:
        return len(self._members)

    @property
    def authenticates(self) -> bool:
        return self._config.username is not None

    def on_suspicion(self, listener: Callable[[Member], None]) -> None:
        """`listener` is called with each member whose calls are failing."""
        self._listeners.append(listener)

    def suspect(self, member: Member) -> None:
        """Puts a member behind the others."""
        self._members.remove(member)
        self._members.append(member)
        for listener in self._listeners:
            listener(member)

    async def aclose(self) -> None:
        self._closed = True
        await asyncio.gather(*(member.aclose() for member in self._members))

    async def connected(self) -> Member:
        """The best member with a connection that stands; waits without end for one."""
        for failures in count():
            member = self._members[0]
            if await member.ready(self._config.connect_timeout_s):
                return member
            self.suspect(member)
            await self._pause(failures + 1, self._config.connect_timeout_s)
        raise AssertionError("count() does not end")

    async def metadata(self, member: Member, timeout_s: float) -> Metadata:
        """What goes with each call: our token, and that a member without a leader shall say so and not keep us waiting.

        Raises `KvRefused` when our name or password is not right, `KvUnavailable` when the member does not answer.
        """
        needs_leader = ("hasleader", "true")
        if self._config.username is None:
            return (needs_leader,)
        async with self._token_lock:
            if self._token is None:
                self._token = await self._authenticate(member, timeout_s)
        return (needs_leader, ("token", self._token)) if self._token else (needs_leader,)

    def forget_token(self) -> None:
        self._token = None

    async def _authenticate(self, member: Member, timeout_s: float) -> str:
        # "" stands for: the cluster wants no token. A call that is refused for the lack of one comes back here.
        message = rpc.AuthenticateRequest(name=self._config.username, password=self._config.password)
        try:
            answer = await member.auth.Authenticate(message, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            if authentication_is_off(error):
                return ""
            verdict = judge(error, f'authenticate as "{self._config.username}"', member.target)
            raise verdict.error or KvUnavailable(verdict.message) from error
        return str(answer.token)

    async def call(
        self,
        what: str,
        send: Callable[[Member, Metadata, float], Awaitable[T]],
        *,
        repeat: Repeat,
        timeout_s: float | None,
    ) -> T:
        """Makes a call: `send(member, metadata, timeout_s)` on one member after another, as far as `repeat` allows.

        Raises the errors of `sec.store.kv`. `what` is for their messages: "carry out a transaction".
        """
        loop = asyncio.get_running_loop()
        budget_s = self._config.timeout_s if timeout_s is None else timeout_s
        deadline = loop.time() + budget_s
        problem = f"Could not {what} on etcd within {budget_s:g} s."
        known: KvError | None = None
        perhaps_done = False
        failures = tokens = 0
        while (remaining := deadline - loop.time()) > 0:
            if self._closed:
                problem = f"Could not {what}: this client of etcd is closed."
                break
            member = self._members[0]
            share_s = remaining / (self.size - failures % self.size)
            try:
                verdict: Verdict | None = None
                if not await member.ready(min(share_s, self._config.connect_timeout_s)):
                    problem = f"Could not {what}: no connection to etcd at {member.target}."
                else:
                    metadata = await self.metadata(member, share_s)
                    remaining = deadline - loop.time()
                    attempt_s = remaining if repeat is Repeat.NEVER else min(share_s, remaining)
                    if attempt_s <= 0:
                        break  # before anything was sent
                    return await self._attempt(what, member, send(member, metadata, attempt_s))
            except KvUnavailable as error:
                problem = str(error)
            except grpc.aio.AioRpcError as error:
                verdict = judge(error, what, member.target)
                problem = verdict.message
            if verdict is not None:
                if verdict.kind is Kind.TOKEN and self._config.username is not None and tokens < MAX_TOKENS:
                    tokens += 1
                    self.forget_token()
                    continue
                if verdict.kind in (Kind.FINAL, Kind.TOKEN):
                    raise verdict.error or KvRefused(verdict.message)
                perhaps_done = perhaps_done or verdict.kind is Kind.UNKNOWN
                known = verdict.error or known
            self.suspect(member)
            if perhaps_done and repeat is Repeat.NEVER:
                break
            failures += 1
            await self._pause(failures, deadline - loop.time())
        if perhaps_done and repeat is not Repeat.READ:
            raise Indeterminate(f"{problem} It may have been carried out all the same.")
        raise known or KvUnavailable(problem)

    async def _attempt(self, what: str, member: Member, answer: Awaitable[T]) -> T:
        task = asyncio.current_task()
        cancelled = 0 if task is None else task.cancelling()
        try:
            return await answer
        except grpc.aio.AioRpcError:
            if task is not None and task.cancelling() > cancelled:  # gRPC tells the status that came at the same moment
                raise asyncio.CancelledError from None
            raise
        except asyncio.CancelledError:
            if not self._closed or (task is not None and task.cancelling()):
                raise
            # Closing a channel cancels the calls on it: not our task, which must not believe it was told to stop.
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.CANCELLED, grpc.aio.Metadata(), grpc.aio.Metadata(), "this client of etcd was closed meanwhile"
            ) from None

    async def _pause(self, failures: int, at_most_s: float) -> None:
        rounds, rest = divmod(failures, self.size)
        if rest == 0:
            await asyncio.sleep(max(0.0, min(FIRST_PAUSE_S * 2 ** min(rounds - 1, 10), LAST_PAUSE_S, at_most_s)))


def _open_channel(endpoint: Endpoint, config: EtcdConfig) -> grpc.aio.Channel:
    options: list[tuple[str, Any]] = [
        # A batch of a watch, or a range, is as large as it is: a bound here would cut a watch off for good.
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", int(config.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(config.keepalive_timeout_s * 1000)),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.min_reconnect_backoff_ms", int(config.connect_timeout_s * 1000)),  # gRPC's name for its connection timeout
        # Nobody but us repeats a call: no policy may come from DNS.
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if not endpoint.tls:
        return grpc.aio.insecure_channel(endpoint.target, options=options)
    if config.server_name is not None:
        options.append(("grpc.ssl_target_name_override", config.server_name))
    credentials = grpc.ssl_channel_credentials(
        root_certificates=config.ca_path.read_bytes() if config.ca_path else None,
        private_key=config.key_path.read_bytes() if config.key_path else None,
        certificate_chain=config.cert_path.read_bytes() if config.cert_path else None,
    )
    return grpc.aio.secure_channel(endpoint.target, credentials, options=options)
