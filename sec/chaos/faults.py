"""Injects the faults of a plan into a cluster on this machine, and heals them."""

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sec_client import SagaError
from sec_client import aio as sec_aio

from sec.chaos.history import Fault, Writer, now_us
from sec.chaos.plan import LEADER, OWNER, SERVERS, FaultKind, PlannedFault
from sec.dev.cluster import DevCluster, NodeNotServing
from sec.dev.processes import launch, pause
from sec.store.etcd.versions import sound

HEAL_TRIES = 10
"""How often healing is tried again: a node may not come to serve while others are at fault too."""
_LEAVE_S = 15.0
"""From SIGTERM to SIGKILL for an action server, which answers its calls first."""
_RETRY_PAUSE_S = 0.5


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
    """The action servers of a run: processes of their own that share one store in `folder`."""

    def __init__(self, folder: Path, logs: Path, addresses: Sequence[str]) -> None:
        self._folder, self._logs, self._addresses = folder, logs, tuple(addresses)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        """Starts a server, or starts it again."""
        command = [sys.executable, "-m", "sec.chaos.server", str(self._folder), name, ",".join(self._addresses)]
        self._processes[name] = launch(command, self._logs / f"{name}.log")

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
    """Injects faults; each is healed when its time is over or `calm` is called, whichever comes first."""

    def __init__(
        self, cluster: DevCluster, servers: ActionServers, client: sec_aio.Client, situation: Situation, history: Writer
    ) -> None:
        self._cluster, self._servers, self._client = cluster, servers, client
        self._situation, self._history = situation, history
        self._at_fault: set[str] = set()
        self._calm = asyncio.Event()

    @property
    def at_fault(self) -> frozenset[str]:
        """The processes that something is being done to."""
        return frozenset(self._at_fault)

    def calm(self) -> None:
        """Ends all faults."""
        self._calm.set()

    async def inject(self, planned: PlannedFault) -> None:
        """Returns when the fault is healed. It is left out when there is nothing left that it could be done to.

        Raises `CannotInject` when it cannot be healed.
        """
        target = await self._target(planned)
        if target is None or self._calm.is_set():
            return
        self._at_fault.add(target)
        start_us = now_us()
        try:
            if not await self._begin(planned.how, target):
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._calm.wait(), planned.lasts_s)
            await self._heal(planned.how, target)
            why = planned.target if planned.target in (LEADER, OWNER) else ""
            self._history.write(Fault(planned.kind, planned.how, target, start_us, now_us(), why))
        finally:
            self._at_fault.discard(target)

    async def _target(self, planned: PlannedFault) -> str | None:
        """The one that is meant, or another of its kind when something is being done to that one already."""
        wanted, group = planned.target, self._cluster.names
        match planned.kind:
            case FaultKind.SERVERS:
                group = SERVERS
            case FaultKind.ETCD:
                group = ()
        if wanted == LEADER:
            wanted = self._situation.leader
        elif wanted == OWNER:
            with contextlib.suppress(SagaError):
                if self._situation.last_saga:
                    wanted = (await self._client.get(self._situation.last_saga, outputs=False)).summary.owner
        candidates = [wanted] if not group or wanted in group else []
        return next((name for name in (*candidates, *group) if name not in self._at_fault), None)

    async def _begin(self, how: FaultKind, target: str) -> bool:
        """Whether it could be done."""
        if how is FaultKind.DRAIN:
            try:
                await self._client.drain(target)
            except SagaError:
                return False
            return True
        await self._doings(target)[how]()
        return True

    async def _heal(self, how: FaultKind, target: str) -> None:
        doing: Callable[[], Awaitable[None]]
        if how is FaultKind.DRAIN:
            doing = self._undrain(target)
        elif how is FaultKind.STOP:
            doing = self._resuming(target)
        else:
            doing = self._starting(target)
        for left in reversed(range(HEAL_TRIES)):
            try:
                return await doing()
            except (SagaError, NodeNotServing) as error:
                if not left:
                    raise CannotInject(f'"{target}" does not come back: {error}') from error
                await asyncio.sleep(_RETRY_PAUSE_S)
        return None

    def _doings(self, target: str) -> dict[FaultKind, Callable[[], Awaitable[None]]]:
        etcd = self._cluster.etcd
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
        assert etcd is not None, "a run has an embedded etcd"
        return {
            FaultKind.KILL: _at_once(lambda: etcd.kill(_member(target))),
            FaultKind.STOP: _at_once(lambda: etcd.pause(_member(target))),
        }

    def _resuming(self, target: str) -> Callable[[], Awaitable[None]]:
        etcd = self._cluster.etcd
        if target in SERVERS:
            return _at_once(lambda: self._servers.resume(target))
        if target in self._cluster.names:
            return _at_once(lambda: self._cluster.resume(target))
        assert etcd is not None, "a run has an embedded etcd"
        return _at_once(lambda: etcd.resume(_member(target)))

    def _starting(self, target: str) -> Callable[[], Awaitable[None]]:
        etcd = self._cluster.etcd
        if target in SERVERS:
            return _at_once(lambda: self._servers.start(target))
        if target in self._cluster.names:
            return lambda: self._cluster.restart_async(target)
        assert etcd is not None, "a run has an embedded etcd"
        return lambda: etcd.restart_async(_member(target))

    def _undrain(self, target: str) -> Callable[[], Awaitable[None]]:
        return lambda: self._client.drain(target, undo=True)


def _member(target: str) -> int:
    return int(target.removeprefix("etcd-")) - 1


def _at_once(doing: Callable[[], None]) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        doing()

    return run
