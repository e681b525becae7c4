"""What can be done to an etcd in tests: a way to it that is slow or cut, and members that come and go."""

import asyncio
import subprocess
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

import grpc.aio
from aetcd import rpc
from waiting_support import eventually

from sec.dev.etcd import EmbeddedEtcd
from sec.dev.processes import free_ports, launch


class Way:
    """A TCP proxy to one port, in a thread of its own. `delay_s` keeps back all that etcd answers; a way that is cut breaks connections and makes none."""

    def __init__(self, target_port: int) -> None:
        self.delay_s = 0.0
        self.port = 0
        self._target_port = target_port
        self._is_cut = False
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="way to etcd", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    def cut(self) -> None:
        """Breaks all connections, and every new one at once, until `mend`."""
        self._is_cut = True
        asyncio.run_coroutine_threadsafe(self._break(), self._loop).result()

    def mend(self) -> None:
        self._is_cut = False

    async def _break(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stopping = asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stopping.wait()
        server.close()
        await self._break()
        for pump in list(self._pumps):
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.transport.abort()
            return
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        for source, sink, answers in ((reader, there_writer, False), (there_reader, writer, True)):
            self._writers.add(sink)
            pump = self._loop.create_task(self._pump(source, sink, answers))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, answers: bool) -> None:
        try:
            while data := await source.read(1 << 20):
                if answers and self.delay_s:
                    await asyncio.sleep(self.delay_s)
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            self._writers.discard(sink)
            sink.transport.abort()


def port_of(endpoint: str) -> int:
    return int(endpoint.rpartition(":")[2])


async def write_and_compact(endpoint: str) -> None:
    """Writes something that concerns nobody, and lets etcd forget all but the present state."""
    async with rpc.insecure_channel(endpoint.removeprefix("http://")) as channel:
        store = rpc.KVStub(channel)
        for _ in range(2):
            written = await store.Put(rpc.PutRequest(key=b"/elsewhere"))
        await store.Compact(rpc.CompactionRequest(revision=written.header.revision, physical=True))


TRY_S = 2.0
"""What is proposed while there is no leader is never answered."""


async def when_etcd_can(attempt: Callable[[], Awaitable[Any]]) -> Any:
    """What comes of it; None when etcd cannot do it now: it elects a leader, or its members have not been connected for 5 s."""
    try:
        return await attempt()
    except grpc.aio.AioRpcError:
        return None


async def replace_member(etcd: EmbeddedEtcd, lost: int, folder: Path) -> "subprocess.Popen[bytes]":
    """What an operator does about a member that is gone for good: member remove, member add, and a new one with an empty data directory, at
    other ports. Returns its process when it answers."""
    asked = etcd.endpoints[0 if lost else 1].removeprefix("http://")
    client_port, peer_port = free_ports(2)
    client_url, peer_url = f"http://127.0.0.1:{client_port}", f"http://127.0.0.1:{peer_port}"
    async with rpc.insecure_channel(asked) as channel:
        cluster = rpc.ClusterStub(channel)

        async def members() -> Any:
            return (await cluster.MemberList(rpc.MemberListRequest(), timeout=TRY_S)).members

        async def removed() -> bool:
            gone = [member for member in await members() if etcd.endpoints[lost] in member.clientURLs]
            if gone:
                await cluster.MemberRemove(rpc.MemberRemoveRequest(ID=gone[0].ID), timeout=TRY_S)
            return not gone

        async def added() -> Any:
            listed = await members()
            if any(peer_url in member.peerURLs for member in listed):
                return listed
            await cluster.MemberAdd(rpc.MemberAddRequest(peerURLs=[peer_url]), timeout=TRY_S)
            return None

        await eventually(lambda: when_etcd_can(removed))
        listed = await eventually(lambda: when_etcd_can(added))
    names = {url: member.name or "replacement" for member in listed for url in member.peerURLs}
    command = [
        str(etcd.binary.path),
        "--name=replacement",
        f"--data-dir={folder / 'replacement'}",
        f"--listen-client-urls={client_url}",
        f"--advertise-client-urls={client_url}",
        f"--listen-peer-urls={peer_url}",
        f"--initial-advertise-peer-urls={peer_url}",
        "--initial-cluster=" + ",".join(f"{name}={url}" for url, name in names.items()),
        "--initial-cluster-state=existing",
        f"--initial-cluster-token={etcd.directory.name}",
        "--log-level=warn",
        "--logger=zap",
        "--unsafe-no-fsync",
    ]
    process = launch(command, folder / "replacement.log")
    async with rpc.insecure_channel(f"127.0.0.1:{client_port}") as channel:
        store = rpc.KVStub(channel)
        await store.Range(rpc.RangeRequest(key=b"/"), timeout=60, wait_for_ready=True)
    return process
