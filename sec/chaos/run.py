"""A chaos run from start to verdict, and the folder that it leaves.

run.json          the options, and the command that repeats the run
history.jsonl     what clients did and saw, and the faults as they were injected (`sec.chaos.history`)
logs/             the logs of all sagas, as `secctl saga log --export` writes them: for `sec debug recover`
servers/          the journals of the action servers, and world.db with the effects
cluster/          the logs of all processes, and the data of etcd
failpoints/       empty: by its files nodes are told of failpoints
violations.txt    what the check found; empty: nothing
report.html       all of it for a person
"""

import asyncio
import json
import shlex
import socket
import sqlite3
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from sec_client import SagaError, SagaNotFound
from sec_client import aio as sec_aio
from secctl.export import read_log, write_log
from secctl.settings import Settings

from sec import __version__
from sec.chaos import report
from sec.chaos.check import Evidence, Had, Violation, check
from sec.chaos.faults import ActionServers, CannotInject, Injector, Situation, check_etcd, pids
from sec.chaos.history import Cluster, DamagedHistory, Fault, Milestone, Writer, now_us, read_deliveries, read_events
from sec.chaos.network import Network
from sec.chaos.plan import ETCD_MEMBERS, KINDS, SERVERS, FaultKind, Options, Plan, make_plan
from sec.chaos.server import DATABASE
from sec.chaos.workload import Workload
from sec.debug import CannotRecover, ExportedLog, read_export
from sec.dev.cluster import DevCluster, NodeNotServing
from sec.dev.etcd import EtcdBinary, EtcdNotStarted, find_etcd
from sec.node.failpoints import ENVIRONMENT
from sec.store.etcd.versions import sound

LOOK_EVERY_S = 0.5
"""How often the cluster is asked who leads."""
READY_S = 30.0
"""In which the action servers must be known to every SEC node at the start."""
EXPORTS_AT_ONCE = 8


class CannotRun(Exception):
    """A run cannot be made, or its folder cannot be read. The message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run came to. `summary` are sentences for a person; `faults` says how many of each were injected, `ends` of the sagas."""

    violations: tuple[Violation, ...]
    summary: tuple[str, ...]
    faults: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    takeovers: int = 0


def possible(members: int, etcd_binary: str | None = None) -> tuple[FaultKind, ...]:
    """All kinds of faults that can be injected with so many members of this etcd. Raises `CannotRun`."""
    try:
        killable = members >= ETCD_MEMBERS and sound(find_etcd(etcd_binary).version)
    except EtcdNotStarted as error:
        raise CannotRun(str(error)) from error
    return tuple(kind for kind in KINDS if kind is not FaultKind.ETCD or killable)


def run(options: Options, directory: Path, *, settle_s: float, etcd_binary: str | None = None) -> Verdict:
    """Runs a plan against a cluster of its own, and checks what came of it. To be called in the main thread.

    Raises `CannotRun`; no process is left in any case.
    """
    if directory.exists() and any(directory.iterdir()):
        raise CannotRun(f'The folder "{directory}" is not empty: choose another with --directory.')
    if not hasattr(socket, "AF_NETLINK"):
        raise CannotRun("A chaos run needs Linux: it asks the kernel which process has made a connection.")
    try:
        plan = make_plan(options)
        binary = find_etcd(etcd_binary)
        check_etcd(options.faults, binary.version)
    except (ValueError, EtcdNotStarted, CannotInject) as error:
        raise CannotRun(str(error)) from error
    directory = directory.resolve()
    for folder in ("logs", "servers", "failpoints"):
        (directory / folder).mkdir(parents=True)
    about = {
        "command": _command(options, settle_s),
        "version": __version__,
        "etcd_version": binary.version,
        "nodes": [f"sec-{index + 1}" for index in range(options.nodes)],
    }
    (directory / "run.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    try:
        uvloop.run(_run(options, plan, directory, binary, settle_s))
    except (EtcdNotStarted, NodeNotServing, CannotInject) as error:
        raise CannotRun(f"{error} What there is of the run is in {directory}.") from error
    return check_directory(directory)


async def _run(options: Options, plan: Plan, directory: Path, binary: EtcdBinary, settle_s: float) -> None:
    servers: ActionServers | None = None
    network = Network(lambda: pids(cluster, {} if servers is None else servers.pids))
    cluster = DevCluster(
        directory / "cluster",
        nodes=options.nodes,
        etcd_binary=binary,
        etcd_size=options.etcd,
        lease_ttl_s=options.lease_ttl_s,
        environment={ENVIRONMENT: str(directory / "failpoints")},
        front=network.front,
    )
    try:
        async with cluster:
            servers = ActionServers(directory / "servers", directory / "cluster" / "logs", cluster.advertised, network)
            await _Run(options, plan, directory, cluster, servers, network, settle_s).run()
    finally:
        await network.close()


def check_directory(directory: Path) -> Verdict:
    """Checks what a run left in its folder, and writes its report anew. Raises `CannotRun`."""
    try:
        told = json.loads((directory / "run.json").read_text(encoding="utf-8"))
        about = report.About(told["command"], told["version"], told["etcd_version"], tuple(told["nodes"]))
        evidence = load(directory)
    except (OSError, ValueError, KeyError, DamagedHistory, sqlite3.Error) as error:
        raise CannotRun(f'"{directory}" is not the folder of a chaos run that can be read: {error}') from error
    violations = check(evidence)
    (directory / "violations.txt").write_text("".join(f"{violation}\n" for violation in violations), encoding="utf-8")
    page = directory / "report.html"
    page.write_text(report.html(about, evidence, violations), encoding="utf-8")
    return Verdict(
        tuple(violations),
        tuple(_summary(about, evidence, violations, page)),
        report.faults_injected(evidence),
        report.ends(evidence.logs),
        report.takeovers(evidence.logs),
    )


def load(directory: Path) -> Evidence:
    """What a run left in its folder. Raises `OSError`, `DamagedHistory` and `sqlite3.Error`."""
    logs: dict[str, ExportedLog] = {}
    problems = []
    for path in sorted((directory / "logs").glob("*.jsonl")):
        try:
            log = read_export(path.read_text(encoding="utf-8"))
        except CannotRecover as error:
            problems.append(f"{path.name} cannot be read: {error}")
        else:
            logs[log.head.saga_id] = log
    folder = directory / "servers"
    deliveries = [delivery for path in sorted(folder.glob("*.journal.jsonl")) for delivery in read_deliveries(path)]
    deliveries.sort(key=lambda delivery: delivery.at_us)
    had: list[Had] = []
    inventory: list[tuple[str, str]] = []
    database = folder / DATABASE
    if database.exists():
        db = sqlite3.connect(database)
        try:
            if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'inventory'").fetchall():  # nothing before the first effect
                columns = "key, phase, saga_id, node, epoch, at_us"
                had = [Had(*row) for row in db.execute(f"SELECT {columns} FROM had ORDER BY rowid")]
                inventory = list(db.execute("SELECT saga_id, node FROM inventory ORDER BY saga_id, node"))
        finally:
            db.close()
    return Evidence(read_events(directory / "history.jsonl"), logs, deliveries, had, inventory, problems)


class _Run:
    """One run, against a cluster that is up."""

    def __init__(
        self,
        options: Options,
        plan: Plan,
        directory: Path,
        cluster: DevCluster,
        servers: ActionServers,
        network: Network,
        settle_s: float,
    ) -> None:
        self._options, self._plan, self._directory, self._cluster = options, plan, directory, cluster
        self._servers, self._settle_s = servers, settle_s
        self._history = Writer(directory / "history.jsonl")
        self._situation = Situation()
        self._direct = sec_aio.Client(cluster.addresses)
        addresses = cluster.advertised
        self._clients = [sec_aio.Client(addresses[n:] + addresses[:n]) for n in range(len(addresses))]
        self._workload = Workload(self._clients, self._situation, self._history)
        self._injector = Injector(cluster, servers, network, self._direct, self._situation, self._history, directory / "failpoints")

    async def run(self) -> None:
        looking = None
        try:
            for name in SERVERS:
                self._servers.start(name)
            await self._until_offered()
            looking = asyncio.create_task(self._look())
            await self._chaos()
            await self._settle()
            # A stuck saga may still get another owner: what is seen is to be in the logs that are read now.
            await self._workload.close()
            await self._export()
        finally:
            if looking is not None:
                looking.cancel()
                await asyncio.gather(looking, return_exceptions=True)
            await self._workload.close()
            await self._injector.close()
            for client in (self._direct, *self._clients):
                await client.close()
            self._servers.stop()
            self._history.close()

    async def _until_offered(self) -> None:
        address, known = "", ""
        try:
            async with asyncio.timeout(READY_S):
                for address in self._cluster.addresses:  # told when the time is up
                    async with sec_aio.Client([address]) as client:
                        while (known := await _known(client)).count("reachable") < len(SERVERS):
                            self._servers.start_again()
                            await asyncio.sleep(0.05)
        except (TimeoutError, SagaError) as error:
            told = f"The action servers are not known to the SEC node at {address} after {READY_S:g} s; it knows {known or 'none'}."
            raise CannotInject(told) from error

    async def _chaos(self) -> None:
        """The plan; in the end all faults are healed and all commands are given."""
        start_s = asyncio.get_running_loop().time()
        self._history.write(Milestone("start", now_us()))
        try:
            async with asyncio.TaskGroup() as group:
                for saga in self._plan.sagas:
                    group.create_task(_at(start_s + saga.at_s, self._workload.run(saga)))
                for fault in self._plan.faults:
                    group.create_task(_at(start_s + fault.at_s, self._injector.inject(fault)))
                group.create_task(self._calm(start_s + self._options.duration_s))
        except* CannotInject as errors:
            raise CannotInject(str(errors.exceptions[0])) from errors
        self._history.write(Milestone("healed", now_us()))

    async def _calm(self, at_s: float) -> None:
        await asyncio.sleep(at_s - asyncio.get_running_loop().time())
        self._injector.calm()

    async def _settle(self) -> None:
        """Waits until all sagas have settled, but not for ever."""
        try:
            async with asyncio.timeout(self._settle_s):
                await self._workload.settle()
        except TimeoutError:
            self._history.write(Milestone("gave up", now_us()))
        else:
            self._history.write(Milestone("settled", now_us()))
        for name in self._cluster.names:
            if self._cluster.pid(name) is None:
                self._died(name, self._cluster.exit_status(name))
        for name in SERVERS:
            if (status := self._servers.ended(name)) is not None:
                self._died(name, status)

    def _died(self, name: str, status: int | None) -> None:
        """A process that nothing is done to any more, and that is not there."""
        self._history.write(Fault("process", "died", name, now_us(), now_us(), f"with status {status}"))

    async def _export(self) -> None:
        settings = Settings(sec=",".join(self._cluster.addresses))
        limit = asyncio.Semaphore(EXPORTS_AT_ONCE)

        async def export(saga_id: str) -> None:
            async with limit:
                with suppress(SagaNotFound):  # a submit of unknown outcome that had none
                    write_log((await read_log(settings, saga_id)).lines, str(self._directory / "logs" / f"{saga_id}.jsonl"))

        try:
            async with asyncio.TaskGroup() as group:
                for saga_id in self._workload.saga_ids:
                    group.create_task(export(saga_id))
        except* SagaError as errors:
            raise CannotInject(f"The logs cannot be read in the end: {errors.exceptions[0]}") from errors

    async def _look(self) -> None:
        while True:
            with suppress(SagaError):
                nodes = (await self._direct.nodes()).nodes
                self._situation.leader = next((node.name for node in nodes if node.leader), "")
                self._history.write(Cluster(now_us(), self._situation.leader, tuple(node.name for node in nodes)))
            await asyncio.sleep(LOOK_EVERY_S)


async def _known(client: sec_aio.Client) -> str:
    """The action servers that a node knows, and how they are."""
    servers = [server for offered in await client.actions() for server in offered.servers]
    return ", ".join(f"{server.address} ({'reachable' if server.reachable else 'away'})" for server in servers)


async def _at(at_s: float, doing: Coroutine[Any, Any, None]) -> None:
    """Does something at a time of the event loop."""
    try:
        await asyncio.sleep(at_s - asyncio.get_running_loop().time())
    except asyncio.CancelledError:
        doing.close()
        raise
    await doing


def _command(options: Options, settle_s: float) -> str:
    words = ["sec", "chaos", "run", "--seed", str(options.seed), "--duration", f"{options.duration_s:g}"]
    words += ["--nodes", str(options.nodes), "--etcd", str(options.etcd), "--rate", f"{options.rate_per_s:g}"]
    words += ["--lease-ttl", str(options.lease_ttl_s), "--settle", f"{settle_s:g}"]
    words += ["--faults", ",".join(options.faults)]
    return shlex.join(words)


def _summary(about: report.About, evidence: Evidence, violations: Sequence[Violation], page: Path) -> list[str]:
    ends = report.ends(evidence.logs)
    faults = report.faults_injected(evidence)
    shown = ", ".join(f"{count} {end}" for end, count in sorted(ends.items())) or "none"
    done = ", ".join(f"{count} {what}" for what, count in sorted(faults.items())) or "none"
    lines = [
        f"{sum(ends.values())} sagas: {shown}.",
        f"Faults: {done}.",
        f"{report.takeovers(evidence.logs)} takeovers of sagas.",
        f"{len(evidence.deliveries)} deliveries, {len(evidence.had)} effects had or taken back.",
        *(str(violation) for violation in violations[:20]),
    ]
    if len(violations) > 20:
        lines.append(f"… and {len(violations) - 20} more, in {page.with_name('violations.txt')}.")
    lines.append("Every invariant holds." if not violations else f"{len(violations)} violations.")
    return [*lines, f"Report: {page}", f"Repeat it: {about.command}"]
