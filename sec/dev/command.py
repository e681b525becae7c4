"""What `sec dev` does: runs a `DevCluster`, tells how to use it and what happens in it, and looks after nodes that die."""

import asyncio
import contextlib
import fcntl
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sec import __version__
from sec.dev.cluster import DevCluster, NodeNotServing
from sec.dev.etcd import EtcdBinary, EtcdNotStarted, find_etcd
from sec.dev.processes import is_free
from sec.store.etcd import known_defect

LOOK_S = 0.2
"""How often logs and processes are looked at."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
"""Before a node that died is started again: longer with each time that it did not live for `LONGEST_PAUSE_S`."""
LOG_CHUNK_BYTES = 256 * 1024
"""Of a log that is read at once: a node that floods its log must not hold up everything else."""
OWN_ENTRIES = ("etcd", "logs")
"""What is ours in the data folder, and removed by `fresh`."""
_LEVEL_STYLES = {"WARNING": "yellow", "ERROR": "bold red", "CRITICAL": "bold red"}
_TOLD_LOGGERS = ("sec.node.",)
"""Loggers whose ordinary news are told too: joining, leading, taking over, handing over."""


class CannotRun(Exception):
    """The cluster cannot be run with these options. The message says why and what to do."""


@dataclass(frozen=True, slots=True)
class DevOptions:
    """The options of `sec dev`."""

    nodes: int = 3
    data: Path = Path("sec-dev-data")
    etcd_binary: str | None = None
    port: int = 7450
    lease_ttl_s: int = 5
    fresh: bool = False
    restart: bool = True


async def run_dev(options: DevOptions, console: Console) -> None:
    """Runs a cluster until SIGINT, SIGTERM or SIGHUP, and leaves no process behind. Raises `CannotRun`."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(signum, stop.set)
    taken = [str(port) for port in range(options.port, options.port + options.nodes) if not is_free(port)]
    if taken:
        raise CannotRun(f"Port {', '.join(taken)} of 127.0.0.1 is taken, by another cluster perhaps. Choose others with --port.")
    with _data_folder(options.data, fresh=options.fresh):
        try:
            binary = find_etcd(options.etcd_binary)
            cluster = DevCluster(
                options.data.resolve(),
                nodes=options.nodes,
                etcd_binary=binary,
                first_port=options.port,
                lease_ttl_s=options.lease_ttl_s,
            )
            console.print(f"Starting etcd and {options.nodes} SEC nodes …", style="dim")
            starting = asyncio.create_task(cluster.start_async())
            if not await _unless(stop, starting):
                console.print("Interrupted at the start; nothing is left running.")
                return
        except (EtcdNotStarted, NodeNotServing) as error:
            raise CannotRun(str(error)) from error
        try:
            _tell_how_to_use(console, cluster, options.data, binary)
            keeping = asyncio.create_task(_Keeper(cluster, console, etcd_version=binary.version, restart=options.restart).run())
            await _unless(stop, keeping)
        finally:
            try:
                console.print("Stopping …", style="dim")
            finally:
                await cluster.stop_async()
        _print(console, f"Everything has stopped. The data is in {options.data}; --fresh begins anew.")


async def _unless(stop: asyncio.Event, task: "asyncio.Task[None]") -> bool:
    """Waits for a task, or for `stop`, which cancels it. Whether the task has ended by itself; raises what it raised."""
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([task, stopped], return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not task.done():
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return False
    task.result()
    return True


@contextlib.contextmanager
def _data_folder(path: Path, *, fresh: bool) -> Iterator[None]:
    """Holds the folder for ourselves, and empties it of what is ours if that is wanted."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / "lock").open("w")
    except OSError as error:
        raise CannotRun(f"The folder {path} cannot be used: {error.strerror or error}. Choose another with --data.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CannotRun(f'Another "sec dev" uses the folder {path}. Stop it, or choose another folder with --data.') from None
        if fresh:
            for name in OWN_ENTRIES:
                shutil.rmtree(path / name, ignore_errors=True)
        yield


def _tell_how_to_use(console: Console, cluster: DevCluster, data: Path, binary: EtcdBinary) -> None:
    table = Table(title=f"SEC cluster {__version__}", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in ("NODE", "ADDRESS", "LOG"):
        table.add_column(column, no_wrap=True, overflow="ignore")
    for name in cluster.names:
        table.add_row(name, cluster.address(name), f"{data}/{cluster.log(name).relative_to(cluster.directory)}")
    etcd = cluster.etcd
    if etcd is not None:
        table.add_row("etcd", etcd.endpoints[0].removeprefix("http://"), f"{data}/{etcd.log().relative_to(cluster.directory)}")
    _print(console, table)
    _print(console, f"etcd {binary.version}, from {binary.source} ({binary.path}). Data folder: {data.resolve()}")
    defect = known_defect(binary.version)
    if defect is not None:
        _print(console, Text(f"Warning: {defect} For development it will do.", "yellow"))
    _print(console, "")
    _print(console, Text("In other terminals:", "bold"))
    for command, what in _commands(cluster):
        _print(console, Text(f"  {command}").append(f"   # {what}" if what else "", "dim"))
    _print(console, "")
    _print(console, "Ctrl-C stops everything. What happens in the cluster:")


def _commands(cluster: DevCluster) -> Iterator[tuple[str, str]]:
    """Commands that work as they stand, with what they are for."""
    scripts = Path(sys.executable).parent
    on_path = shutil.which("secctl")
    secctl = "secctl" if on_path is not None and Path(on_path).parent == scripts else _brief(scripts / "secctl")
    yield f"export SEC_ADDRESSES={','.join(cluster.addresses)}", ""
    yield f"{secctl} node list", ""
    example = Path("examples/demo_provision")
    if (example / "saga.yaml").exists():
        python = "python" if secctl == "secctl" else _brief(Path(sys.executable))
        yield f"{python} -m examples.demo_provision.action_server", "offers the actions of an example; runs until Ctrl-C"
        yield f"""{secctl} saga submit {example}/saga.yaml --params '{{"delay_s": 1}}' --id demo-1""", ""
        yield f"{secctl} saga watch demo-1", ""
    else:
        yield f"{secctl} saga submit SAGA.yaml --wait", "or MODULE:OBJECT"
    yield f"{secctl} saga list", ""


def _brief(path: Path) -> str:
    """Relative to the current folder when it lies below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


@dataclass(slots=True)
class _Watched:
    """What the keeper knows of one process."""

    log: IO[bytes]
    started_s: float = field(default_factory=time.monotonic)
    rest: bytes = b""
    """The beginning of a line whose end has not been written yet."""
    latest: str = ""
    """What was told last: it is not told again when it comes again and again."""
    restart_at_s: float | None = None
    pause_s: float = FIRST_PAUSE_S
    told_dead: bool = False


class _Keeper:
    """Tells what happens in a cluster, and starts what dies again."""

    def __init__(self, cluster: DevCluster, console: Console, *, etcd_version: str, restart: bool) -> None:
        self._cluster = cluster
        self._console = console
        self._restart = restart
        self._known_defect = known_defect(etcd_version) or "\n"  # told already; a line has no line break
        self._etcd_is_down = False

    async def run(self) -> None:
        """Runs until it is cancelled."""
        with contextlib.ExitStack() as stack:
            watched = {}
            for name in self._cluster.names:
                log = stack.enter_context(self._cluster.log(name).open("rb"))
                log.seek(0, 2)
                watched[name] = _Watched(log)
            while True:
                for name, node in watched.items():
                    self._tell_news(name, node)
                    self._look_after(name, node)
                await self._look_after_etcd()
                await asyncio.sleep(LOOK_S)

    def _tell_news(self, name: str, node: _Watched) -> None:
        lines = (node.rest + node.log.read(LOG_CHUNK_BYTES)).split(b"\n")
        node.rest = lines.pop()
        for line in lines:
            news = told(line.decode(errors="replace"))
            if news is not None and news.plain != node.latest and self._known_defect not in news.plain:
                node.latest = news.plain
                _print(self._console, Text(f"{time.strftime('%H:%M:%S')} ").append(f"{name:<8}", "cyan").append_text(news))

    def _look_after(self, name: str, node: _Watched) -> None:
        now = time.monotonic()
        status = self._cluster.exit_status(name)
        if status is None:
            if now - node.started_s > LONGEST_PAUSE_S:
                node.pause_s = FIRST_PAUSE_S
        elif node.restart_at_s is not None:
            if now >= node.restart_at_s:
                node.started_s = now
                try:
                    self._cluster.launch(name)
                    node.restart_at_s, node.told_dead = None, False
                except NodeNotServing as error:
                    _print(self._console, Text(f"{error}", "bold red"))
                    self._restart_later(node)
        elif not node.told_dead:
            node.told_dead = True
            self._say_dead(f"SEC node {name}", status, self._cluster.log(name))
            if self._restart:
                self._restart_later(node)

    @staticmethod
    def _restart_later(node: _Watched) -> None:
        node.restart_at_s = time.monotonic() + node.pause_s
        node.pause_s = min(node.pause_s * 2, LONGEST_PAUSE_S)

    async def _look_after_etcd(self) -> None:
        etcd = self._cluster.etcd
        if etcd is None or etcd.pid() is not None or self._etcd_is_down:
            return
        self._say_dead("etcd", None, etcd.log())
        self._etcd_is_down = True
        if self._restart:
            try:
                await etcd.restart_async()
                self._etcd_is_down = False
            except EtcdNotStarted as error:
                _print(self._console, Text(f"etcd does not come back: {error}", "bold red"))

    def _say_dead(self, what: str, status: int | None, log: Path) -> None:
        how = "" if status is None else f" by {signal.Signals(-status).name}" if status < 0 else f" with status {status}"
        then = "It is started again." if self._restart else "It is not started again (--no-restart)."
        _print(
            self._console, Text(f"{time.strftime('%H:%M:%S')} {what} ended unexpectedly{how}. {then} Its log: {log}", "bold red")
        )


def told(line: str) -> Text | None:
    """What a line of a node's log tells whoever runs a cluster for development; None when that is nothing."""
    parts = line.split(maxsplit=4)  # date, time, level, logger, message
    if len(parts) < 5:
        return None
    _, _, level, logger, message = parts
    if level in _LEVEL_STYLES:
        return Text(f"{level.lower()}: {message}", _LEVEL_STYLES[level])
    if level == "INFO" and logger.startswith(_TOLD_LOGGERS):
        return Text(message)
    return None


def _print(console: Console, what: Table | Text | str) -> None:
    console.print(what, soft_wrap=True, crop=False)
