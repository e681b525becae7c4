"""The connection to one action server: kept up, asked what it offers, and followed by the standard health service."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sec_protos.v1 import action_server_pb2, action_server_pb2_grpc

from sec.dispatch.calls import Answer, Call, Heard, NotOffered, Pending, Tell, send
from sec.dispatch.descriptions import Descriptions, OfferedAction
from sec.dispatch.stream import MAX_BYTES, CallStream, payload_bytes

HEALTH_SERVICE = "sec.v1.ActionServer"
DESCRIBE_TIMEOUT_S = 5.0
MIN_PAUSE_S = 0.1
MAX_PAUSE_S = 2.0
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Bound of one call's inputs together; each of them is bounded by the payload limit."""

CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)

_SERVING = (health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)

_log = logging.getLogger(__name__)


class Endpoint:
    """An action server at an address. `up` says that it can be called now; `actions` what it offered when it was last asked."""

    def __init__(
        self,
        address: str,
        credentials: grpc.ChannelCredentials | None,
        max_output_bytes: int,
        on_change: Callable[[], None],
        heard: Heard = lambda call, report: None,
    ) -> None:
        """`heard` gets what calls under way report."""
        self.address = address
        self.server_name = ""
        self.up = False
        self.actions: dict[str, OfferedAction] = {}
        self._batches = False
        """The server takes calls by a stream of batches, as far as we know."""
        self._stream: CallStream | None = None
        self._descriptions = Descriptions(address)
        self._alone: set[asyncio.Task[Answer]] = set()
        """Calls that are made by themselves."""
        self._max_output_bytes = max_output_bytes
        self._on_change = on_change
        self._heard = heard
        self._ask_again = asyncio.Event()
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS)
        self._stub = action_server_pb2_grpc.ActionServerStub(self._channel)
        self._task = asyncio.get_running_loop().create_task(self._keep(), name=f"action server {address}")

    @property
    def in_flight(self) -> int:
        """How many calls are in progress."""
        return len(self._alone) + (0 if self._stream is None else len(self._stream))

    def call(self, call: Call, tell: Tell) -> Pending:
        """Makes one call, and tells its answer unless that is cancelled."""
        if self._batches and (call.heartbeat_timeout_s or payload_bytes(call) <= MAX_BYTES):  # only a stream brings reports
            stream = self._stream
            if stream is None or (stream.ended and stream.fit):
                stream = self._stream = CallStream(
                    self._stub, self.address, self._max_output_bytes, self._call_alone, self._not_offered, self._heard
                )
            if not stream.ended:
                return stream.call(call, tell)
        return self._call_alone(call, tell)

    def _call_alone(self, call: Call, tell: Tell) -> Pending:
        task = asyncio.get_running_loop().create_task(send(self._stub, self.address, call, self._max_output_bytes))
        self._alone.add(task)
        task.add_done_callback(partial(self._answered_alone, call.action, tell))
        return task

    def _answered_alone(self, action: str, tell: Tell, task: "asyncio.Task[Answer]") -> None:
        self._alone.discard(task)
        if not task.cancelled():
            if isinstance(task.result(), NotOffered):
                self._not_offered(action)
            tell(task.result())

    def _not_offered(self, action: str) -> None:
        """The server has turned down a call of an action that it offered before."""
        self.actions.pop(action, None)
        self._ask_again.set()
        self._on_change()

    def cancel(self, idempotency_key: str) -> None:
        """Tells the server that nobody wants the effect of a do under way any more, if it can be told. Changes nothing about the call."""
        if self._stream is not None:
            self._stream.cancel(idempotency_key)

    async def close_when_idle(self) -> None:
        """Ends the connection when the last call is done: an action server that unregistered still answers those it has."""
        while self.in_flight:
            if self._stream is not None:
                await self._stream.idle()
            if self._alone:
                await asyncio.wait(self._alone)
        await self.close()

    async def close(self) -> None:
        """Ends the connection. Calls under way lose their answers."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._set_up(False)
        await self._end_stream()
        await self._channel.close()

    async def _end_stream(self) -> None:
        """The next call begins another one."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.close()

    async def _keep(self) -> None:
        pause_s = MIN_PAUSE_S
        reported = False
        while True:
            try:
                await self._describe()
                pause_s, reported = MIN_PAUSE_S, False
                await self._follow()
            except grpc.aio.AioRpcError as error:
                if not reported:  # once, not for every try
                    _log.warning(
                        "The action server at %s cannot be reached: %s %s", self.address, error.code().name, error.details()
                    )
                    reported = True
            self._set_up(False)
            await self._end_stream()
            await asyncio.sleep(pause_s)
            pause_s = min(MAX_PAUSE_S, pause_s * 2)

    async def _describe(self) -> None:
        answer = await self._stub.Describe(action_server_pb2.DescribeRequest(), timeout=DESCRIBE_TIMEOUT_S)
        self.server_name = answer.server_name
        self.actions = await self._descriptions.read(answer.actions)
        self._batches = answer.batches
        self._ask_again.clear()

    async def _follow(self) -> None:
        """Keeps `up` true for as long as the server is healthy. Returns, or raises `AioRpcError`, when the connection is gone."""
        stub = health_pb2_grpc.HealthStub(self._channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=HEALTH_SERVICE))  # type: ignore[attr-defined] # missing in the stubs
        again = asyncio.get_running_loop().create_task(self._describe_again())
        try:
            async for answer in watch:
                self._set_up(answer.status in _SERVING)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise
            self._set_up(True)  # no health service: it is well for as long as it is connected
            while (state := self._channel.get_state()) is grpc.ChannelConnectivity.READY:
                await self._channel.wait_for_state_change(state)
        finally:
            watch.cancel()
            again.cancel()
            await asyncio.gather(again, return_exceptions=True)

    async def _describe_again(self) -> None:
        """Asks anew, not at once, when the server turned a call down because it does not offer the action."""
        while True:
            await self._ask_again.wait()
            await asyncio.sleep(MAX_PAUSE_S)
            await self._describe()
            self._on_change()

    def _set_up(self, up: bool) -> None:
        if up != self.up:
            self.up = up
            _log.info(
                "The action server at %s is %s; it offers %s.",
                self.address,
                "up" if up else "down",
                ", ".join(self.actions) or "nothing",
            )
            self._on_change()
