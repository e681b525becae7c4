"""An action server: its life from start to stop. What a delivery does stands in `sec_client.kit.service`."""

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from sec_protos.v1 import action_server_pb2_grpc

from sec_client.kit.actions import MISSING, Action, Actions, Handler, JsonSchema, Missing
from sec_client.kit.call import REAL_TIME, Clock
from sec_client.kit.registration import Registration
from sec_client.kit.service import ActionService, Around, Middleware, nothing_around
from sec_client.kit.sqlite import SqliteStore
from sec_client.kit.store import Store
from sec_client.transport import MAX_MESSAGE_BYTES, Metadata, Tls, parse_addresses

SERVICE = "sec.v1.ActionServer"
"""The name under which the health service answers for the actions."""
DEFAULT_MAX_CONCURRENCY = 64
DEFAULT_MAX_OUTPUT_BYTES = 256 * 1024
"""The payload limit of a cluster that is not configured otherwise: more would be refused there, after the effect was had."""
_CALLS_BESIDE = 32
"""Calls beyond `max_concurrency` that gRPC takes at once: health, descriptions, and those that are refused."""

_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),
)


class ActionServer:
    """Serves actions to the cluster, and keeps the three obligations of the contract for them.

        server = ActionServer("inventory")

        @server.action("create_ip", summary="Takes a free address")
        def create_ip(call: Call) -> str: ...

        @create_ip.undo
        def release_ip(call: Call) -> None: ...

        server.run("0.0.0.0:7070", sec="10.0.0.1:7450,10.0.0.2:7450")

    Plain functions run on threads, async ones on the event loop. `max_concurrency` bounds the calls in hand: one more is refused with
    RESOURCE_EXHAUSTED, and the cluster repeats it later. Two servers that offer the same action must share one store.

    `middleware` is called around each delivery, before anything is checked: for authentication, traces or tests. `interceptors` of gRPC see calls of gRPC,
    so with them each delivery is one; otherwise the cluster sends many in a message (`Batch` of the contract), which costs much less.

    A handler is called again, with the same key, whenever the outcome of an earlier call is not known; an effect in `call.db` is had
    exactly once, for any other see `Call.db`.
    """

    def __init__(
        self,
        name: str,
        *,
        store: Store | None = None,
        max_concurrency: int = DEFAULT_MAX_CONCURRENCY,
        max_output_bytes: int = DEFAULT_MAX_OUTPUT_BYTES,
        middleware: Middleware | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    ) -> None:
        if max_concurrency < 1:
            raise ValueError(f"max_concurrency is {max_concurrency}; it must be at least 1.")
        self.name = name
        self.store: Store = SqliteStore() if store is None else store
        self.actions = Actions()
        self.port = 0
        """The port it listens on, once it is started."""
        self._max_concurrency = max_concurrency
        self._max_output_bytes = max_output_bytes
        self._middleware = middleware
        self._interceptors = tuple(interceptors)
        self._logger = logging.getLogger(f"sec_client.kit.{name}")
        self._server: grpc.aio.Server | None = None
        self._service: ActionService | None = None
        self._health = health.aio.HealthServicer()
        self._registration: Registration | None = None

    def action(
        self,
        name: str | None = None,
        *,
        summary: str = "",
        undo: Handler | Missing | None = MISSING,
        params_schema: JsonSchema | None = None,
        input_schemas: Mapping[str, JsonSchema] | None = None,
        optional_inputs: Collection[str] = (),
        output_schema: JsonSchema | None = None,
    ) -> Callable[[Handler], Action]:
        """Decorates a function as an action; see `Actions.action`."""
        return self.actions.action(
            name,
            summary=summary,
            undo=undo,
            params_schema=params_schema,
            input_schemas=input_schemas,
            optional_inputs=optional_inputs,
            output_schema=output_schema,
        )

    async def start(
        self,
        listen: str = "127.0.0.1:0",
        *,
        sec: str | Sequence[str] = (),
        advertise: str | None = None,
        tls: Tls | None = None,
        sec_tls: Tls | None = None,
        metadata: Mapping[str, str] | Metadata = (),
    ) -> None:
        """Opens the store, listens, and registers with the SEC nodes at `sec` (none: they have the address in their configuration).

        Returns when it can be called; the registration goes on in the background (`wait_registered`). `advertise` is the host, or
        host and port, under which the SEC nodes reach it; by default the address it listens on or, when that is any, the one that faces
        the first SEC node. `tls` is for listening, `sec_tls` and `metadata` for the calls to the SEC nodes.

        Raises `ValueError` for a bad address or actions without a declared undo or that cannot be called as they are declared, `StoreError`, `OSError` when it cannot listen,
        `SagaError` for TLS files that cannot be read; nothing is left open then.
        """
        if self._server is not None:
            raise ValueError(f'The action server "{self.name}" has been started already.')
        self.actions.check()
        sec_addresses = parse_addresses(sec) if sec else ()
        credentials = tls.server_credentials() if tls is not None else None
        await self.store.open(self.name)
        try:
            await self._serve(listen, credentials)
            if sec_addresses:
                self._register(_advertised(listen, self.port, advertise, sec_addresses[0]), sec_addresses, sec_tls, metadata)
        except BaseException:
            await self._give_up()
            raise

    def service(self, store: Store, *, clock: Clock = REAL_TIME, around: Around = nothing_around) -> ActionService:
        """What delivers calls to the actions, over a store that is open, and by itself: it listens nowhere, and this server knows nothing of it.

        For tests in one process: with a clock of theirs, and with something `around` each handler. End it with `finish`, and close the store then. Raises `ValueError` as `start` does.
        """
        self.actions.check()
        return ActionService(
            self.name,
            self.actions,
            store,
            max_concurrency=self._max_concurrency,
            max_output_bytes=self._max_output_bytes,
            batches=not self._interceptors,
            middleware=self._middleware,
            clock=clock,
            around=around,
            logger=self._logger,
        )

    async def _serve(self, listen: str, credentials: grpc.ServerCredentials | None) -> None:
        self._service = self.service(self.store)
        self._server = grpc.aio.server(
            interceptors=self._interceptors, options=_OPTIONS, maximum_concurrent_rpcs=self._max_concurrency + _CALLS_BESIDE
        )
        action_server_pb2_grpc.add_ActionServerServicer_to_server(self._service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        try:
            if credentials is None:
                self.port = self._server.add_insecure_port(listen)
            else:
                self.port = self._server.add_secure_port(listen, credentials)
        except RuntimeError:
            raise OSError(f'The action server "{self.name}" cannot listen on "{listen}": is the address taken?') from None
        await self._server.start()
        for service in ("", SERVICE):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        self._logger.info("action server %s listens on %s", self.name, _with_port(listen.rpartition(":")[0], self.port))

    def _register(self, address: str, sec: Sequence[str], tls: Tls | None, metadata: Mapping[str, str] | Metadata) -> None:
        assert self._service is not None
        self._registration = Registration(
            sec,
            server_name=self.name,
            address=address,
            actions=self._service.descriptions(),
            tls=tls,
            metadata=metadata,
            logger=self._logger,
        )
        self._registration.start()

    async def wait_registered(self) -> None:
        """Returns once the cluster knows this server; at once when it does not register itself."""
        if self._registration is not None:
            await self._registration.wait_registered()

    async def stop(self, grace_s: float = 10.0) -> None:
        """Leaves the cluster, takes no new calls, and gives those in hand `grace_s` to finish. May be repeated.

        A call that is cut off has an unknown outcome: the cluster repeats it, and this server, when started on the same store, takes it up.
        """
        server, service = self._server, self._service
        if server is None or service is None:
            return
        self._server = None
        end = time.monotonic() + grace_s
        for name in ("", SERVICE):
            await self._health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
        if self._registration is not None:
            await self._registration.stop()
        service.end_streams()
        await server.stop(max(0.0, end - time.monotonic()))
        left = await service.finish(end - time.monotonic())
        if left:
            self._logger.warning("%d calls were cut off after %g s", left, grace_s)
        await self.store.close()

    def run(
        self,
        listen: str,
        *,
        sec: str | Sequence[str] = (),
        advertise: str | None = None,
        tls: Tls | None = None,
        sec_tls: Tls | None = None,
        metadata: Mapping[str, str] | Metadata = (),
        grace_s: float = 10.0,
    ) -> None:
        """Serves until SIGTERM or SIGINT, then stops gracefully; a second signal ends the process at once. Otherwise as `start`."""

        async def serve() -> None:
            loop, stop = asyncio.get_running_loop(), asyncio.Event()
            signals = (signal.SIGTERM, signal.SIGINT)
            for number in signals:
                loop.add_signal_handler(number, stop.set)
            await self.start(listen, sec=sec, advertise=advertise, tls=tls, sec_tls=sec_tls, metadata=metadata)
            await stop.wait()
            for number in signals:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL)
            await self.stop(grace_s)

        asyncio.run(serve())

    async def _give_up(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.stop(None)
        await self.store.close()


def _advertised(listen: str, port: int, advertise: str | None, sec_address: str) -> str:
    """The address that is registered."""
    if advertise:
        host, _, given = advertise.rpartition(":")
        return advertise if host and given.isdigit() else _with_port(advertise, port)
    host = listen.rpartition(":")[0]
    return _with_port(_own_address_towards(sec_address) if host in ("", "0.0.0.0", "[::]", "*") else host, port)


def _own_address_towards(sec_address: str) -> str:
    """The address of this machine that faces another. Connecting a UDP socket sends nothing."""
    host, _, port = sec_address.rpartition(":")
    try:
        family, kind, _, _, target = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(target)
            own = str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()
    return f"[{own}]" if ":" in own else own


def _with_port(host: str, port: int) -> str:
    return f"{host or '0.0.0.0'}:{port}"
