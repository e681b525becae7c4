"""A whole cluster on one machine: an etcd and several `sec node`, each a process of its own, that can be killed, hung and started again.

Like the embedded etcd it is synchronous at heart, and its `..._async` methods wait without blocking the event loop. Everything that was
started dies with us.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2

from sec.dev.etcd import EmbeddedEtcd, EtcdBinary, Front, direct, find_etcd
from sec.dev.processes import free_ports, has_stopped, is_free, launch, log_tail, pace, pause, wait

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
"""From SIGTERM to SIGKILL. A node answers the calls under way for 5 s."""
PORT_ATTEMPTS = 8
"""How often a node is started elsewhere when another process took its port between our choice and its bind."""
_PROBE_S = 0.5
_CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own: what was learnt of a node that is gone does not count
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 100),
)


class NodeNotServing(Exception):
    """An SEC node ended at its start, or did not come to serve in time. The message says why, with the end of its log."""


@dataclass(slots=True)
class _Node:
    name: str
    port: int
    log: Path
    process: subprocess.Popen[bytes] | None = None
    log_start: int = 0
    """Where the log of the present process begins."""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def send(self, signum: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signum)

    def kill(self) -> None:
        if self.process is not None:
            self.send(signal.SIGKILL)
            self.process.wait()


class DevCluster:
    """An etcd and `nodes` SEC nodes, called "sec-1", "sec-2", …, on loopback ports, with data and logs below `directory`.

        with DevCluster(tmp_path, lease_ttl_s=2) as cluster:          # or async with, or start and stop
            client = Client(cluster.addresses)
            cluster.kill("sec-1")

    Inside, all nodes hold a session and serve. A node keeps its name and port when it is started again. To be started in a thread that
    outlives it, best the main one: the processes are killed when the thread that started them ends.

    - `etcd_endpoints`: an etcd that runs elsewhere, used instead of an embedded one. Give a `prefix` of its own then.
    - `etcd_binary`, `etcd_size`, `unsafe_no_fsync`: of the embedded one, see `EmbeddedEtcd`.
    - `first_port`: the nodes listen on this port and those that follow; by default on free ones.
    - `lease_ttl_s`, `prefix` and `extra` (further arguments for each node, as of `sec node --help`) are the nodes' options.
    - `environment`: further variables for each node.
    - `front`: the ports at which nodes and members of the embedded etcd reach each other, where something stands between them.

    Raises `ValueError` for no nodes at all.
    """

    def __init__(
        self,
        directory: Path,
        *,
        nodes: int = 3,
        etcd_endpoints: Sequence[str] = (),
        etcd_binary: EtcdBinary | None = None,
        etcd_size: int = 1,
        unsafe_no_fsync: bool = False,
        first_port: int | None = None,
        lease_ttl_s: int = 5,
        prefix: str = "/sec",
        extra: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        front: Front = direct,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        if nodes < 1:
            raise ValueError(f"A cluster has at least one node, not {nodes}.")
        self.directory = directory
        self.etcd: EmbeddedEtcd | None = None
        """The embedded etcd, to be killed and hung too; None with `etcd_endpoints`."""
        if not etcd_endpoints:
            binary = etcd_binary or find_etcd()
            self.etcd = EmbeddedEtcd(
                directory / "etcd", size=etcd_size, binary=binary, unsafe_no_fsync=unsafe_no_fsync, front=front
            )
        self._etcd_endpoints = tuple(etcd_endpoints)
        self._ports_are_given = first_port is not None
        self._lease_ttl_s = lease_ttl_s
        self._prefix = prefix
        self._extra = tuple(extra)
        self._environment = dict(environment or {})
        self._front = front
        self._start_timeout_s = start_timeout_s
        self._logs = directory / "logs"
        self._nodes: dict[str, _Node] = {}
        for index in range(nodes):
            name = f"sec-{index + 1}"
            port = 0 if first_port is None else first_port + index
            self._nodes[name] = _Node(name, port, self._logs / f"{name}.log")

    # what it is

    @property
    def names(self) -> tuple[str, ...]:
        """The nodes, running or not."""
        return tuple(self._nodes)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where the nodes serve, running or not, in the order of their names: what clients and action servers want."""
        return tuple(node.address for node in self._nodes.values())

    @property
    def advertised(self) -> tuple[str, ...]:
        """Where others reach the nodes: `addresses`, or what the `front` says."""
        return tuple(self._advertised(node) for node in self._nodes.values())

    @property
    def etcd_endpoints(self) -> tuple[str, ...]:
        """The client URLs of etcd that the nodes are given."""
        return self._etcd_endpoints if self.etcd is None else self.etcd.advertised

    def address(self, name: str) -> str:
        """Where this node serves. This and all that follow raise `KeyError` for a name that is not in the cluster."""
        return self._nodes[name].address

    def log(self, name: str) -> Path:
        """The file with this node's log, that of its former runs included."""
        return self._nodes[name].log

    def pid(self, name: str) -> int | None:
        """The process id of this node while it runs, else None."""
        node = self._nodes[name]
        return node.process.pid if node.process is not None and node.alive else None

    def exit_status(self, name: str) -> int | None:
        """How this node ended, negative for a signal; None while it runs or when it was never started."""
        process = self._nodes[name].process
        return None if process is None else process.poll()

    def hangs(self, name: str) -> bool:
        """Whether this node has been stopped, by `pause` or by itself, and has not gone on since."""
        process = self._nodes[name].process
        return process is not None and has_stopped(process)

    # its life

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await self.start_async()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop_async()

    def start(self) -> None:
        """Starts everything, and returns when all nodes serve. Raises `EtcdNotStarted` or `NodeNotServing`, with nothing left running."""
        self._prepare()
        try:
            if self.etcd is not None:
                self.etcd.start()
            wait(self._starting(self._nodes.values()))
        except BaseException:
            self._kill_all()
            raise

    async def start_async(self) -> None:
        """`start` that does not block the event loop. When it is cancelled nothing is left running."""
        self._prepare()
        try:
            if self.etcd is not None:
                await self.etcd.__aenter__()
            await pace(self._starting(self._nodes.values()))
        except BaseException:
            self._kill_all()
            raise

    def stop(self) -> None:
        """SIGTERM to the nodes, to etcd when they are gone, and SIGKILL to what does not go in time. Data and logs stay. May be repeated."""
        try:
            wait(self._terminating(self._nodes.values()))
        finally:
            self._kill_all()

    async def stop_async(self) -> None:
        """`stop` that does not block the event loop."""
        try:
            await pace(self._terminating(self._nodes.values()))
            if self.etcd is not None:
                await self.etcd.__aexit__()
        finally:
            self._kill_all()

    # what can happen to a node

    def kill(self, name: str) -> None:
        """SIGKILL, and waits for the process to be gone. The other nodes see it, and take its sagas over."""
        self._nodes[name].kill()

    def pause(self, name: str) -> None:
        """SIGSTOP: the node hangs, its connections stay. Returns when it has stopped; no call that comes later is answered."""
        process = self._nodes[name].process
        if process is not None:
            pause(process)

    def resume(self, name: str) -> None:
        """SIGCONT."""
        self._nodes[name].send(signal.SIGCONT)

    def send(self, name: str, signum: int) -> None:
        """A signal to the node, when it runs."""
        self._nodes[name].send(signum)

    def terminate(self, name: str) -> None:
        """SIGTERM, and waits for the node to hand its sagas over and to end. SIGKILL when it does not in 10 s."""
        wait(self._terminating([self._nodes[name]]))

    async def terminate_async(self, name: str) -> None:
        """`terminate` that does not block the event loop."""
        await pace(self._terminating([self._nodes[name]]))

    def restart(self, name: str) -> None:
        """Starts a node again (kills it first when it runs), and returns when it serves. Raises `NodeNotServing`; the process may be running then.

        The session of its last run is ended by the others, or by the node itself.
        """
        wait(self._restarting(self._nodes[name]))

    async def restart_async(self, name: str) -> None:
        """`restart` that does not block the event loop."""
        await pace(self._restarting(self._nodes[name]))

    def launch(self, name: str) -> None:
        """`restart` that does not wait. Raises `NodeNotServing` when another process has taken the node's port."""
        node = self._nodes[name]
        node.kill()
        self._launch(node)

    def wait_serving(self, *names: str) -> None:
        """Returns when these nodes (none named: all) hold a session and take sagas. Raises `NodeNotServing`."""
        wait(self._until_serving([self._nodes[name] for name in names or self.names]))

    async def wait_serving_async(self, *names: str) -> None:
        """`wait_serving` that does not block the event loop."""
        await pace(self._until_serving([self._nodes[name] for name in names or self.names]))

    # how

    def _prepare(self) -> None:
        if any(node.alive for node in self._nodes.values()):
            raise NodeNotServing(f"The cluster in {self.directory} runs already.")
        self._logs.mkdir(parents=True, exist_ok=True)
        without = [node for node in self._nodes.values() if not node.port]
        for node, port in zip(without, free_ports(len(without)), strict=True):
            node.port = port

    def _starting(self, nodes: Collection[_Node]) -> Iterator[None]:
        for attempt in range(PORT_ATTEMPTS):
            try:
                for node in nodes:
                    if not node.alive:
                        self._launch(node)
                yield from self._until_serving(nodes)
                return
            except _CannotListen as error:
                if self._ports_are_given or attempt == PORT_ATTEMPTS - 1:
                    raise
                (error.node.port,) = free_ports(1)

    def _advertised(self, node: _Node) -> str:
        return f"127.0.0.1:{self._front(node.name, node.port)}"

    def _restarting(self, node: _Node) -> Iterator[None]:
        node.kill()
        self._launch(node)
        yield from self._until_serving([node])

    def _launch(self, node: _Node) -> None:
        if not is_free(node.port):  # looked at here too: we would ask whoever has it whether it serves
            raise _CannotListen(f"SEC node {node.name} cannot listen on {node.address}: another process does.", node)
        command = [
            sys.executable,
            *("-m", "sec", "node"),
            f"--name={node.name}",
            f"--listen={node.address}",
            f"--advertise={self._advertised(node)}",
            f"--etcd={','.join(self.etcd_endpoints)}",
            f"--prefix={self._prefix}",
            f"--lease-ttl={self._lease_ttl_s}",
            *self._extra,
        ]
        # Options meant for a node that the user runs himself are not meant for these.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SEC_NODE_")}
        node.log_start = node.log.stat().st_size if node.log.exists() else 0
        node.process = launch(command, node.log, environment={**environment, **self._environment})

    def _until_serving(self, nodes: Collection[_Node]) -> Iterator[None]:
        deadline = time.monotonic() + self._start_timeout_s
        with contextlib.ExitStack() as stack:
            waiting = {node.name: (node, stack.enter_context(_Probe(node.address))) for node in nodes}
            while True:
                for node, _ in waiting.values():
                    if not node.alive:
                        tail = log_tail(node.log, node.log_start)
                        message = f"SEC node {node.name} ended at its start. The end of {node.log}:\n{tail}"
                        raise _CannotListen(message, node) if "cannot listen on" in tail else NodeNotServing(message)
                waiting = {name: pair for name, pair in waiting.items() if not pair[1].serving()}
                if not waiting:
                    return
                if time.monotonic() > deadline:
                    node, _ = next(iter(waiting.values()))
                    raise NodeNotServing(
                        f"SEC node {node.name} does not serve after {self._start_timeout_s:g} s. "
                        f"The end of {node.log}:\n{log_tail(node.log, node.log_start)}"
                    )
                yield

    @staticmethod
    def _terminating(nodes: Collection[_Node]) -> Iterator[None]:
        for node in nodes:
            node.send(signal.SIGTERM)
            node.send(signal.SIGCONT)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while any(node.alive for node in nodes) and time.monotonic() < deadline:
            yield
        for node in nodes:
            node.kill()

    def _kill_all(self) -> None:
        for node in self._nodes.values():
            node.kill()
        if self.etcd is not None:
            self.etcd.stop()


class _CannotListen(NodeNotServing):
    def __init__(self, message: str, node: _Node) -> None:
        super().__init__(message)
        self.node = node


class _Probe:
    """Asks the health service of a node again and again, and never blocks."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self._check = self._channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        self._question: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def serving(self) -> bool:
        """The latest answer. Without one that has come in since the last time: False."""
        if self._question is None:
            self._question = self._check.future(health_pb2.HealthCheckRequest(), timeout=_PROBE_S)
        if not self._question.done():
            return False
        question, self._question = self._question, None
        return question.code() is grpc.StatusCode.OK and question.result().status == health_pb2.HealthCheckResponse.SERVING
