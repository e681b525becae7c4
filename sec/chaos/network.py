"""The network of a chaos run: a proxy before each port at which others reach a process, so that what goes from one process to another can be
held up, delayed and reset. It needs no privileges.

Who connects is asked of the kernel (of Linux), so that one proxy serves all who dial a port, and each pair of processes has a link
of its own. What is held up is not lost: as TCP does over a network that drops packets, a connection stands still, the news of its end too, and
goes on when the network is back. A port behind which nobody listens refuses connections here too: SEC nodes tell by that that a peer has died.
"""

import asyncio
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress

from sec.dev.processes import free_ports

CHUNK_BYTES = 64 * 1024
POLL_S = 0.02
"""How often a proxy looks whether somebody listens behind it again."""
_BACKLOG = 128
_RESET = struct.pack("ii", 1, 0)
"""As SO_LINGER: closing sends a reset."""

# Asking the kernel for one socket, from linux/netlink.h, sock_diag.h and inet_diag.h. A look into /proc/net/tcp costs milliseconds.
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST = 4, 20, 1
_ANY_STATE = 0xFFFFFFFF
_NO_COOKIE = (0xFFFFFFFF, 0xFFFFFFFF)
_HEADER = struct.Struct("=IHHII")
_INODE_AT = _HEADER.size + 4 + 48 + 16
"""Behind the header: the state, the addresses, and four numbers more."""

Way = tuple[str, str]
"""From one process to another, by their names."""


def ways(ones: Iterable[str], others: Collection[str]) -> list[Way]:
    """All ways from some processes to others."""
    return [(one, other) for one in ones for other in others if one != other]


def both(there: Iterable[Way]) -> list[Way]:
    """The ways, there and back."""
    return [way for one, other in there for way in ((one, other), (other, one))]


class Network:
    """The proxies of a run, and what is done to them. Belongs to the event loop in which `front` is called first; `close` it in the end.

    `pids` answers the processes that run now, by their names: who is not among them is not let through.
    """

    def __init__(self, pids: Callable[[], Mapping[str, int]]) -> None:
        self._pids = pids
        self._proxies: dict[tuple[str, int], _Proxy] = {}
        self._held: Counter[Way] = Counter()
        self._delays: dict[Way, list[float]] = {}
        self._changed = asyncio.Event()
        self.connections: dict[_Connection, Way] = {}
        """Those that stand now, with who dialled whom."""

    def front(self, name: str, port: int) -> int:
        """The port at which others reach what the process `name` listens on at `port`, now or later: always the same for the same."""
        proxy = self._proxies.get((name, port))
        if proxy is None:
            proxy = self._proxies[name, port] = _Proxy(self, name, port)
        return proxy.port

    @contextmanager
    def held(self, held: Collection[Way]) -> Iterator[None]:
        """Nothing gets through these ways for the length of a block, neither bytes nor news. It does afterwards."""
        self._held.update(held)
        try:
            yield
        finally:
            self._held.subtract(held)
            self._held = +self._held
            self._tell()

    @contextmanager
    def delayed(self, delayed: Collection[Way], delay_s: float) -> Iterator[None]:
        """What goes these ways is later by `delay_s` for the length of a block."""
        for way in delayed:
            self._delays.setdefault(way, []).append(delay_s)
        try:
            yield
        finally:
            for way in delayed:
                self._delays[way].remove(delay_s)
                if not self._delays[way]:
                    del self._delays[way]

    def reset(self, links: Collection[Way]) -> None:
        """Resets the connections that stand between these processes, whoever dialled."""
        for connection in self.between(links):
            connection.reset()

    def between(self, links: Collection[Way]) -> list["_Connection"]:
        """The connections that stand between these processes, whoever dialled."""
        wanted = set(both(links))
        return [connection for connection, way in self.connections.items() if way in wanted]

    def who(self, port: int, front: int) -> str | None:
        """The name of the process that has connected from a port to one of ours; None when it is none of the run's, or gone."""
        inode = _inode(port, front)
        wanted = f"socket:[{inode}]"
        return next((name for name, pid in self._pids().items() if inode and _has(pid, wanted)), None)

    async def passes(self, way: Way) -> None:
        """Returns when what goes this way now would have arrived."""
        if delays := self._delays.get(way):
            await asyncio.sleep(max(delays))
        while way in self._held:
            await self._changed.wait()

    async def close(self) -> None:
        """Ends all connections and all listening."""
        proxies = list(self._proxies.values())
        self._proxies.clear()
        await asyncio.gather(*(proxy.close() for proxy in proxies))

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class _Proxy:
    """Stands before one port. Listens for as long as somebody listens there."""

    def __init__(self, network: Network, name: str, behind: int) -> None:
        self.name = name
        self._network = network
        self._behind = behind
        (self.port,) = free_ports(1)
        self._socket = _bound(self.port)
        self._gone = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        self._serving = asyncio.get_running_loop().create_task(self._serve(), name=f"proxy of {name}")

    async def look(self) -> None:
        """Stops listening if nobody listens behind."""
        if not await self._is_there():
            self._gone.set()

    async def close(self) -> None:
        tasks = [self._serving, *self._connections]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._socket.close()

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not await self._is_there():  # noqa: ASYNC110 # another process sets no event
                await asyncio.sleep(POLL_S)
            self._gone.clear()
            self._socket.listen(_BACKLOG)
            loop.add_reader(self._socket, self._accept)
            try:
                await self._gone.wait()
            finally:
                loop.remove_reader(self._socket)
                self._socket.close()
            self._socket = _bound(self.port)  # ours still, and refuses

    def _accept(self) -> None:
        with suppress(BlockingIOError):
            accepted, address = self._socket.accept()
            task = asyncio.get_running_loop().create_task(self._connect(accepted, address[1]))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def _connect(self, accepted: socket.socket, port: int) -> None:
        with accepted:
            dialler = self._network.who(port, self.port)
            if dialler is None:
                return
            way = (dialler, self.name)
            for each in both([way]):
                await self._network.passes(each)
            dialled = await self._dial()
            if dialled is None:
                await self.look()
                return
            with dialled:
                await _Connection(self._network, self, way).run(accepted, dialled)

    async def _is_there(self) -> bool:
        dialled = await self._dial()
        if dialled is not None:
            dialled.close()
        return dialled is not None

    async def _dial(self) -> socket.socket | None:
        dialled = socket.socket()
        dialled.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(dialled, ("127.0.0.1", self._behind))
        except BaseException as error:
            dialled.close()
            if isinstance(error, OSError):
                return None
            raise
        return dialled


class _Connection:
    """Two sockets, and what goes from each to the other."""

    def __init__(self, network: Network, proxy: _Proxy, way: Way) -> None:
        self._network, self._proxy, self._way = network, proxy, way
        self._reset = asyncio.Event()

    def reset(self) -> None:
        """Both ends see a reset."""
        self._reset.set()

    async def run(self, accepted: socket.socket, dialled: socket.socket) -> None:
        """Until one end is closed and the other may know. Does not close the sockets."""
        dialler, listener = self._way
        there = asyncio.create_task(self._pump(accepted, dialled, (dialler, listener)))
        back = asyncio.create_task(self._pump(dialled, accepted, (listener, dialler)))
        reset = asyncio.create_task(self._reset.wait())
        self._network.connections[self] = self._way
        try:
            await asyncio.wait([there, back, reset], return_when=asyncio.FIRST_COMPLETED)
            if back.done():  # who listens behind may have died: then we must refuse before the dialler can try again
                await self._proxy.look()
        finally:
            del self._network.connections[self]
            for task in (there, back, reset):
                task.cancel()
            await asyncio.gather(there, back, reset, return_exceptions=True)
            if self._reset.is_set():
                for each in (accepted, dialled):
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    async def _pump(self, source: socket.socket, target: socket.socket, way: Way) -> None:
        loop = asyncio.get_running_loop()
        for each in (source, target):
            each.setblocking(False)
        target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(OSError):
            while piece := await loop.sock_recv(source, CHUNK_BYTES):
                await self._network.passes(way)
                await loop.sock_sendall(target, piece)
        await self._network.passes(way)


def _bound(port: int) -> socket.socket:
    made = socket.socket()
    with ExitStack() as undo:
        undo.callback(made.close)
        made.setblocking(False)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("127.0.0.1", port))
        undo.pop_all()
    return made


def _inode(port: int, front: int) -> int:
    """Of the socket that is connected from a port to one of ours; 0 when it is gone."""
    here = socket.inet_aton("127.0.0.1") + bytes(12)
    wanted = struct.pack("=4BI", socket.AF_INET, socket.IPPROTO_TCP, 0, 0, _ANY_STATE)
    wanted += struct.pack("!2H", port, front) + here + here + struct.pack("=I2I", 0, *_NO_COOKIE)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.send(_HEADER.pack(_HEADER.size + len(wanted), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0) + wanted)
        answer = kernel.recv(4096)
    _, kind, *_ = _HEADER.unpack_from(answer)
    return int(struct.unpack_from("=I", answer, _INODE_AT)[0]) if kind == _SOCK_DIAG_BY_FAMILY else 0


def _has(pid: int, wanted: str) -> bool:
    """Whether a process has a socket open."""
    folder = f"/proc/{pid}/fd"
    with suppress(OSError):
        for name in os.listdir(folder):
            with suppress(OSError):
                if os.readlink(f"{folder}/{name}") == wanted:
                    return True
    return False
