"""Keeps a number of sagas in flight, and tells how long each took."""

import asyncio
import contextlib
import itertools
import time
import uuid
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from sec_client import aio as sec_aio

from sec.bench.shapes import Shape
from sec.store.etcd import EtcdConfig, EtcdKv
from sec.store.keys import Keys, last_segment
from sec.store.kv import EventKind, prefix_end

WARM_UP_S = 2.0
ROUND_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Target:
    """A cluster that gets sagas: the addresses of its SEC nodes, and its etcd, if that may be watched."""

    addresses: Sequence[str]
    etcd_endpoints: Sequence[str] = ()


class Ends:
    """Tells when sagas have ended, by a watch of each etcd: that costs the SEC nodes nothing."""

    def __init__(self) -> None:
        self._waiting: dict[str, asyncio.Future[None]] = {}

    def of(self, saga_id: str) -> "asyncio.Future[None]":
        """Ask before the saga is submitted."""
        return self._waiting.setdefault(saga_id, asyncio.get_running_loop().create_future())

    @asynccontextmanager
    async def watching(self, etcd_endpoints: Sequence[str]) -> AsyncIterator[None]:
        """While this lasts, ends are told."""
        kv, ready = EtcdKv(EtcdConfig(tuple(etcd_endpoints))), asyncio.Event()
        watching = asyncio.create_task(self._watch(kv, ready))
        try:
            await ready.wait()
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await kv.aclose()

    async def _watch(self, kv: EtcdKv, ready: asyncio.Event) -> None:
        prefix = Keys().endeds
        async with aclosing(kv.watch(prefix, prefix_end(prefix))) as watch:
            async for batch in watch:
                ready.set()
                for event in batch.events:
                    if event.kind is EventKind.PUT and (waiting := self._waiting.pop(last_segment(event.item.key), None)):
                        waiting.set_result(None)


class Load:
    """Sagas of a shape, submitted to clusters: each to the one that the hash of its id says. `took_s` has how long each took that ended since `begin_again`, in
    seconds."""

    def __init__(self, shape: Shape, payload_bytes: int, targets: Sequence[Target]) -> None:
        """Ends are told by watches of etcd; where there is none to watch the nodes are asked, by a call for each saga."""
        self.took_s: list[float] = []
        self._shape = shape
        self._params = b"p" * payload_bytes
        self._targets = targets
        self._ends = Ends()
        self._numbers = itertools.count()
        self._run = uuid.uuid4().hex[:8]

    @asynccontextmanager
    async def running(self, in_flight: int) -> AsyncIterator[None]:
        """Keeps so many sagas in flight for each cluster, of each address about as many. What is in flight in the end is waited for. Raises `SagaError`."""
        stop = asyncio.Event()
        async with contextlib.AsyncExitStack() as stack:
            clients: list[list[sec_aio.Client]] = []
            for target in self._targets:
                if target.etcd_endpoints:
                    await stack.enter_async_context(self._ends.watching(target.etcd_endpoints))
                clients.append([await stack.enter_async_context(sec_aio.Client([address])) for address in target.addresses])
            async with asyncio.timeout(ROUND_TIMEOUT_S), asyncio.TaskGroup() as group:
                for cluster, each in enumerate(clients):
                    for client in itertools.islice(itertools.cycle(each), in_flight):
                        group.create_task(self._keep_one(cluster, client, stop.is_set))
                await asyncio.sleep(WARM_UP_S)
                yield
                stop.set()

    def begin_again(self) -> None:
        """Forgets what was before."""
        self.took_s.clear()

    def _id_for(self, cluster: int) -> str:
        """The next id whose hash leads to this cluster, of which as many are to be in flight as of the others."""
        ids = (f"bench-{self._run}-{number}" for number in self._numbers)
        return next(saga_id for saga_id in ids if zlib.crc32(saga_id.encode()) % len(self._targets) == cluster)

    async def _keep_one(self, cluster: int, client: sec_aio.Client, stopped: Callable[[], bool]) -> None:
        while not stopped():
            saga_id = self._id_for(cluster)
            end = self._ends.of(saga_id) if self._targets[cluster].etcd_endpoints else None
            start = time.monotonic()
            await client.submit(self._shape.definition, saga_id=saga_id, params=self._params)
            if end is None:
                await client.wait(saga_id)
            else:
                await end
            self.took_s.append(time.monotonic() - start)
