"""Injects the faults of a plan into a cluster on this machine, and heals them."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sec_client import SagaError
from sec_client import aio as sec_aio

from sec.chaos.history import Fault, Writer, now_us
from sec.chaos.network import Network, both, ways
from sec.chaos.plan import ALL, CLIENT, ETCD, LEADER, ON_LINKS, OWNER, SERVERS, FaultKind, PlannedFault
from sec.core.records import SecNodeName
from sec.dev.cluster import DevCluster, NodeNotServing
from sec.dev.etcd import EtcdNotStarted
from sec.dev.processes import free_ports, is_free, launch, log_tail, pause
from sec.store.etcd import EtcdConfig, EtcdKv
from sec.store.etcd.versions import sound
from sec.store.keys import Keys
from sec.store.kv import Get, KvError

HEAL_S = 150.0
"""How long healing is tried again: a node may not come to serve while others are at fault too."""
REACH_S = 5.0
"""In which a node must come to a failpoint; otherwise there is no fault."""
_LEAVE_S = 15.0
"""From SIGTERM to SIGKILL for an action server, which answers its calls first."""
_RETRY_PAUSE_S = 0.5
_LOOK_S = 0.01


class CannotInject(Exception):
    """A fault cannot be injected here. The message says why and what to do."""


def check_etcd(faults: Iterable[FaultKind], version: str) -> None:
    """Raises `CannotInject` when members of etcd are to be killed whose version loses data then, whatever the SEC nodes do."""
    if FaultKind.ETCD in faults and not sound(version):
        raise CannotInject(
            f"etcd {version} can lose what it acknowledged when it is killed, so what a run finds would say nothing of the cluster. "
            "Leave etcd out of --faults, or name an etcd 3.4.22 or later, 3.5.6 or later, or 3.6 with --etcd-binary."
        )


class ActionServers:
    """The action servers of a run: processes of their own that share one store in `folder`, and call the SEC nodes at `addresses`."""

    def __init__(self, folder: Path, logs: Path, addresses: Sequence[str], network: Network) -> None:
        self._folder, self._logs, self._addresses, self._network = folder, logs, tuple(addresses), network
        self._ports = dict(zip(SERVERS, free_ports(len(SERVERS)), strict=True))
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        """Starts a server, or starts it again."""
        port = self._ports[name]
        front = self._network.front(name, port)
        command = [sys.executable, "-m", "sec.chaos.server", str(self._folder), name, str(port), str(front)]
        command.append(",".join(self._addresses))
        self._processes[name] = launch(command, self._logs / f"{name}.log")

    def start_again(self) -> None:
        """Has those that have ended listen on other ports, where somebody has taken theirs since they were chosen. Raises `CannotInject` for one that ended for another reason."""
        for name in [name for name in self._processes if self.ended(name) is not None]:
            if is_free(self._ports[name]):
                raise CannotInject(
                    f'The action server "{name}" has ended. The end of its log:\n{log_tail(self._logs / f"{name}.log")}'
                )
            (self._ports[name],) = free_ports(1)
            self.start(name)

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of those that run."""
        return {name: process.pid for name, process in self._processes.items() if process.poll() is None}

    def ended(self, name: str) -> int | None:
        """How the process ended; None while it runs."""
        return self._processes[name].poll()

    def kill(self, name: str) -> None:
        """SIGKILL, and waits for the process to be gone."""
        self._processes[name].kill()
        self._processes[name].wait()

    def pause(self, name: str) -> None:
        """SIGSTOP."""
        pause(self._processes[name])

    def resume(self, name: str) -> None:
        """SIGCONT."""
        self._processes[name].send_signal(signal.SIGCONT)

    async def terminate(self, name: str) -> None:
        """SIGTERM, and waits for the server to answer its calls and to end; SIGKILL when it does not."""
        process = self._processes[name]
        process.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_S):
                while process.poll() is None:  # noqa: ASYNC110 # a process that ends sets no event
                    await asyncio.sleep(0.05)
        self.kill(name)

    def stop(self) -> None:
        """Kills all that are left."""
        for name in self._processes:
            self.kill(name)


@dataclass(slots=True)
class Situation:
    """What the targets of faults depend on; kept up to date by the run."""

    leader: str = ""
    last_saga: str = ""


class Injector:
    """Injects faults; each is healed when its time is over or `calm` is called, whichever comes first. `close` it in the end.

    `client` reaches the SEC nodes whatever is done to the network. `failpoints` is the folder that `sec.node.failpoints` asks for.
    """

    def __init__(
        self,
        cluster: DevCluster,
        servers: ActionServers,
        network: Network,
        client: sec_aio.Client,
        situation: Situation,
        history: Writer,
        failpoints: Path,
    ) -> None:
        assert cluster.etcd is not None, "a run has an embedded etcd"
        self._cluster, self._etcd, self._servers, self._network = cluster, cluster.etcd, servers, network
        self._client, self._situation, self._history, self._failpoints = client, situation, history, failpoints
        self._kv = EtcdKv(EtcdConfig(self._etcd.endpoints))
        self._at_fault: set[str] = set()
        self._calm = asyncio.Event()

    def calm(self) -> None:
        """Ends all faults."""
        self._calm.set()

    async def close(self) -> None:
        """Closes the connections."""
        await self._kv.aclose()

    async def inject(self, planned: PlannedFault) -> None:
        """Returns when the fault is healed. It is left out when there is nothing that it could be done to.

        Raises `CannotInject` when it cannot be healed.
        """
        if planned.kind in ON_LINKS:
            await self._inject_between(planned)
            return
        target = await self._target(planned)
        if target is None or self._calm.is_set():
            return
        self._at_fault.add(target)
        start_us = now_us()
        try:
            if not await self._begin(planned, target):
                return
            if planned.kind is FaultKind.FAILPOINT:
                start_us = now_us()  # until now it was on its way there
            await self._lasting(planned.lasts_s)
            await self._heal(planned.how, target)
            why = planned.target if planned.target in (LEADER, OWNER) else ""
            self._history.write(Fault(planned.kind, planned.how, target, start_us, now_us(), why, point=planned.point))
        finally:
            self._at_fault.discard(target)

    async def _lasting(self, lasts_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(lasts_s):
                await self._calm.wait()

    # between processes

    async def _inject_between(self, planned: PlannedFault) -> None:
        ones, others = await self._ends(planned.target), await self._ends(planned.other)
        links = ways(ones, others)
        if self._calm.is_set() or not self._network.between(links):
            return
        start_us = now_us()
        doing: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        match planned.how:
            case FaultKind.PARTITION:
                doing = self._network.held(both(links))
            case FaultKind.ONEWAY:
                doing = self._network.held(links)
            case FaultKind.DELAY:
                doing = self._network.delayed(both(links), planned.delay_s)
            case _:
                self._network.reset(links)
        with doing:
            await self._lasting(planned.lasts_s)
        ends = [",".join(sorted({way[end] for way in links})) for end in (0, 1)]
        self._history.write(Fault(planned.kind, planned.how, ends[0], start_us, now_us(), other=ends[1]))

    async def _ends(self, end: str) -> list[str]:
        members = [f"etcd-{index + 1}" for index in range(self._etcd.size)]
        if end == ALL:
            return [CLIENT, *members, *self._cluster.names, *SERVERS]
        if end == ETCD:
            return members
        name = await self._meant(end)
        return [name] if name else []

    # of processes

    async def _meant(self, target: str) -> str:
        """The name of the process; empty when nobody leads, or owns."""
        if target == LEADER:
            return self._situation.leader
        if target == OWNER:
            with contextlib.suppress(SagaError):
                if self._situation.last_saga:
                    return (await self._client.get(self._situation.last_saga, outputs=False)).summary.owner
            return ""
        return target

    async def _target(self, planned: PlannedFault) -> str | None:
        """The one that is meant, or another of its kind when something is being done to that one already."""
        wanted, group = await self._meant(planned.target), self._cluster.names
        match planned.kind:
            case FaultKind.SERVERS:
                group = SERVERS
            case FaultKind.ETCD:
                group = ()
        candidates = [wanted] if not group or wanted in group else []
        return next((name for name in (*candidates, *group) if name not in self._at_fault), None)

    async def _begin(self, planned: PlannedFault, target: str) -> bool:
        """Whether it could be done."""
        match planned.kind:
            case FaultKind.DRAIN:
                try:
                    await self._client.drain(target)
                except SagaError as error:
                    if not error.definite:
                        await self._heal(FaultKind.DRAIN, target)  # it may be drained all the same, and would stay so
                    return False
                return True
            case FaultKind.LEASE:
                return await self._revoke(target)
            case FaultKind.FAILPOINT:
                return await self._reaches(target, f"{planned.point} SIG{planned.how.upper()} {planned.nth}")
            case _:
                await self._doings(target)[planned.how]()
                return True

    async def _heal(self, how: FaultKind, target: str) -> None:
        doing: Callable[[], Awaitable[None]]
        match how:
            case FaultKind.LEASE:
                return None
            case FaultKind.DRAIN:
                doing = self._undrain(target)
            case FaultKind.STOP:
                doing = self._resuming(target)
            case FaultKind.REPLACE:
                doing = self._replacing(target)
            case _:
                doing = self._starting(target)
        loop = asyncio.get_running_loop()
        end = loop.time() + HEAL_S
        while True:
            try:
                return await doing()
            except (SagaError, NodeNotServing, EtcdNotStarted) as error:
                if loop.time() > end:
                    raise CannotInject(f'"{target}" does not come back: {error}') from error
                await asyncio.sleep(_RETRY_PAUSE_S)

    async def _revoke(self, target: str) -> bool:
        """Ends the session of a node that lives, as if it had died."""
        try:
            found = await self._kv.get(Get(Keys().node(SecNodeName(target))))
            for item in found.items:
                await self._kv.lease_revoke(item.lease)
        except KvError:
            return False
        return bool(found.items)

    async def _reaches(self, target: str, order: str) -> bool:
        """Has a node die or hang at a point, if it comes there in time."""
        if not await self._order(target, order):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REACH_S):
                    while not self._is_down(target) and not self._calm.is_set():  # noqa: ASYNC110 # another process sets no event
                        await asyncio.sleep(_LOOK_S)
        return await self._order(target, "")

    async def _order(self, target: str, order: str) -> bool:
        """Tells a node of a failpoint, and waits until it knows. Whether it has come to one before."""
        file = self._failpoints / target
        file.write_text(order, encoding="ascii")
        if not self._is_down(target):
            self._cluster.send(target, signal.SIGUSR1)
        while file.exists() and not self._is_down(target):  # noqa: ASYNC110 # another process sets no event
            await asyncio.sleep(_LOOK_S)
        file.unlink(missing_ok=True)
        return self._is_down(target)

    def _is_down(self, target: str) -> bool:
        return self._cluster.pid(target) is None or self._cluster.hangs(target)

    def _doings(self, target: str) -> dict[FaultKind, Callable[[], Awaitable[None]]]:
        etcd = self._etcd
        if target in SERVERS:
            servers = self._servers
            return {
                FaultKind.KILL: _at_once(lambda: servers.kill(target)),
                FaultKind.STOP: _at_once(lambda: servers.pause(target)),
                FaultKind.RESTART: lambda: servers.terminate(target),
            }
        if target in self._cluster.names:
            return {
                FaultKind.KILL: _at_once(lambda: self._cluster.kill(target)),
                FaultKind.STOP: _at_once(lambda: self._cluster.pause(target)),
                FaultKind.RESTART: lambda: self._cluster.terminate_async(target),
            }
        return {
            FaultKind.KILL: _at_once(lambda: etcd.kill(_member(target))),
            FaultKind.REPLACE: _at_once(lambda: etcd.kill(_member(target))),
            FaultKind.STOP: _at_once(lambda: etcd.pause(_member(target))),
            FaultKind.RESTART: lambda: etcd.terminate_async(_member(target)),
        }

    def _resuming(self, target: str) -> Callable[[], Awaitable[None]]:
        if target in SERVERS:
            return _at_once(lambda: self._servers.resume(target))
        if target in self._cluster.names:
            return _at_once(lambda: self._cluster.resume(target))
        return _at_once(lambda: self._etcd.resume(_member(target)))

    def _starting(self, target: str) -> Callable[[], Awaitable[None]]:
        if target in SERVERS:
            return _at_once(lambda: self._servers.start(target))
        if target in self._cluster.names:
            return lambda: self._serving_again(target)
        return lambda: self._etcd.restart_async(_member(target), wait=False)  # it needs a majority, and others may be at fault

    def _replacing(self, target: str) -> Callable[[], Awaitable[None]]:
        return lambda: self._etcd.replace_async(_member(target))

    async def _serving_again(self, target: str) -> None:
        try:
            await self._cluster.restart_async(target)
        except NodeNotServing:
            with contextlib.suppress(SagaError):  # an order to drain it, long given up, may have come late
                await self._undrain(target)()
            raise

    def _undrain(self, target: str) -> Callable[[], Awaitable[None]]:
        return lambda: self._client.drain(target, undo=True)


def pids(cluster: DevCluster, servers: Mapping[str, int]) -> dict[str, int]:
    """The processes of a run that are there now, by their names. `servers` are the action servers."""
    found = {CLIENT: os.getpid(), **servers}
    found.update({name: pid for name in cluster.names if (pid := cluster.pid(name)) is not None})
    if cluster.etcd is not None:
        members = range(len(cluster.etcd.endpoints))
        found.update({f"etcd-{index + 1}": pid for index in members if (pid := cluster.etcd.pid(index)) is not None})
    return found


def _member(target: str) -> int:
    return int(target.removeprefix("etcd-")) - 1


def _at_once(doing: Callable[[], None]) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        doing()

    return run
