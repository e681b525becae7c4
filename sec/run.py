"""Puts an SEC node together and runs it: the composition root."""

import asyncio
import gc
import logging
import os
import random
import signal
from dataclasses import dataclass
from pathlib import Path

import grpc

from sec import __version__
from sec.api.metrics import Metrics
from sec.api.server import ApiServer, TlsFiles
from sec.node import failpoints
from sec.node.node import SecNode
from sec.node.settings import Settings
from sec.store.etcd import EtcdConfig, EtcdKv, known_defect
from sec.store.kv import KvError

GC_THRESHOLDS = (100_000, 20, 50)
"""Of Python's cyclic garbage collector. What a node makes and drops all the time has no cycles, and looking for some in it, at Python's own
thresholds, takes a fifth of the time of a busy node. The little garbage with cycles (of exceptions and calls, most of it) waits longer, some megabytes of it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """All that a process needs to be an SEC node."""

    settings: Settings
    etcd: EtcdConfig
    tls: TlsFiles | None = None
    peer_ca: Path | None = None
    """What the certificates of the other SEC nodes are signed by; None: what those of clients are signed by."""
    action_server_ca: Path | None = None
    """With it action servers are called over TLS, and must show a certificate signed by it."""
    action_server_cert: TlsFiles | None = None
    """Our certificate, where action servers ask for one."""
    metrics: tuple[str, int] | None = None
    """Host and port to serve metrics at."""

    def action_server_credentials(self) -> grpc.ChannelCredentials | None:
        if self.action_server_ca is None:
            return None
        ours = self.action_server_cert
        key, cert = (ours.key.read_bytes(), ours.cert.read_bytes()) if ours is not None else (None, None)
        return grpc.ssl_channel_credentials(self.action_server_ca.read_bytes(), key, cert)

    def peer_credentials(self) -> grpc.ChannelCredentials | None:
        """With which this node calls the others: over TLS when it serves over TLS, and with the same certificate."""
        if self.tls is None:
            return None
        ca = self.peer_ca or self.tls.ca
        return grpc.ssl_channel_credentials(
            None if ca is None else ca.read_bytes(), self.tls.key.read_bytes(), self.tls.cert.read_bytes()
        )


async def run_node(config: NodeConfig) -> None:
    """Runs an SEC node until SIGTERM or SIGINT, then hands its sagas over. Raises `CannotListen` and `InvalidSettings`."""
    gc.freeze()  # the modules stay anyway
    gc.set_threshold(*GC_THRESHOLDS)
    kv = EtcdKv(config.etcd)
    try:
        node = SecNode(config.settings, kv, random.Random(), config.action_server_credentials(), config.peer_credentials())
        server = ApiServer(node, config.tls)
        metrics = None if config.metrics is None else Metrics(node, *config.metrics)
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, node.stop)
        if folder := os.environ.get(failpoints.ENVIRONMENT):
            loop.add_signal_handler(signal.SIGUSR1, failpoints.arm, Path(folder, config.settings.name))
        await server.start()
        _log.info('SEC node "%s" %s serves on %s.', config.settings.name, __version__, node.address)
        background = [asyncio.create_task(server.run_health()), asyncio.create_task(_warn_of_defects(kv))]
        try:
            await node.run()
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await server.stop(config.settings.stop_grace_s)
            if metrics is not None:
                await asyncio.to_thread(metrics.close)
        _log.info('SEC node "%s" has stopped.', config.settings.name)
    finally:
        await kv.aclose()


async def _warn_of_defects(kv: EtcdKv) -> None:
    """Says so when etcd is of a version that can lose data."""
    while True:
        try:
            version = (await kv.status()).version
        except KvError as error:
            _log.warning("etcd cannot be reached: %s", error)
            await asyncio.sleep(2.0)
            continue
        defect = known_defect(version)
        if defect is not None:
            _log.warning(defect)
        return
