"""The gRPC server of an SEC node: the Coordinator, what the other SEC nodes call, the standard health service, and reflection."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from sec_protos.internal.v1 import peers_pb2_grpc
from sec_protos.v1 import coordinator_pb2, coordinator_pb2_grpc

from sec.api.coordinator import Coordinator
from sec.api.peers import PeerCalls
from sec.node.node import SecNode

COORDINATOR_SERVICE = coordinator_pb2.DESCRIPTOR.services_by_name["Coordinator"].full_name
MAX_SENT_BYTES = 64 * 1024 * 1024
"""Bound of one message: a saga with all the outputs of its nodes comes in one."""
MAX_RECEIVED_BYTES = 8 * 1024 * 1024
"""Far more than any call may bring in, so that who sends too much is told by us what is too large."""
OTHER_CALLS = 1_000
"""Room for calls beside submits and reads, those too that are just being refused: beyond it gRPC itself refuses, without a word of ours."""
HEALTH_INTERVAL_S = 0.2


class CannotListen(Exception):
    """The address cannot be listened on."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. With `ca` the other side must show a certificate signed by it."""

    cert: Path
    key: Path
    ca: Path | None = None

    def server_credentials(self) -> grpc.ServerCredentials:
        ca = None if self.ca is None else self.ca.read_bytes()
        return grpc.ssl_server_credentials(
            [(self.key.read_bytes(), self.cert.read_bytes())], ca, require_client_auth=ca is not None
        )


class ApiServer:
    """Serves for one SEC node."""

    def __init__(self, node: SecNode, tls: TlsFiles | None) -> None:
        self._node = node
        options = [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", MAX_RECEIVED_BYTES),
            ("grpc.max_send_message_length", MAX_SENT_BYTES),
        ]
        bounds = node.settings.bounds
        at_once = bounds.submits + bounds.reads + OTHER_CALLS
        self._server = grpc.aio.server(options=options, maximum_concurrent_rpcs=at_once)
        self._health = health.aio.HealthServicer()
        self._coordinator = Coordinator(node)
        coordinator_pb2_grpc.add_CoordinatorServicer_to_server(self._coordinator, self._server)
        self._peers = PeerCalls(node)
        peers_pb2_grpc.add_PeersServicer_to_server(self._peers, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (COORDINATOR_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        listen = node.settings.listen
        try:
            if tls is None:
                self.port = self._server.add_insecure_port(listen)
            else:
                self.port = self._server.add_secure_port(listen, tls.server_credentials())
        except RuntimeError as error:
            raise CannotListen(
                f'SEC node "{node.settings.name}" cannot listen on {listen}: {error}. Is another one running there?'
            ) from error
        if node.address.endswith(":0"):
            node.address = f"{node.address.removesuffix(':0')}:{self.port}"

    async def start(self) -> None:
        """Begins to answer calls."""
        await self._server.start()

    async def run_health(self) -> None:
        """Keeps the health service in step with the node, until it is cancelled: SERVING while it holds a session, takes sagas, and brings
        them forward.

        It looks instead of being told: what it says must be right also when the node is not.
        """
        shown: int | None = None
        while True:
            serving = health_pb2.HealthCheckResponse.SERVING if self._node.serving else health_pb2.HealthCheckResponse.NOT_SERVING
            if serving != shown:
                for service in ("", COORDINATOR_SERVICE):
                    await self._health.set(service, serving)
                shown = serving
            await asyncio.sleep(HEALTH_INTERVAL_S)

    async def stop(self, grace_s: float) -> None:
        """Takes no more calls and lets those under way finish within `grace_s`."""
        await self._health.enter_graceful_shutdown()
        self._coordinator.stop_waiting()
        self._peers.stop_waiting()
        await self._server.stop(grace_s)
