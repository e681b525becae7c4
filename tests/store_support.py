"""What the tests of the store, and of what is built on it, share."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from waiting_support import DEADLINE_S

from sec.store.kv import NO_LEASE, Event, Get, Kv, LeaseId, Put, Revision, Txn, Watch, WatchBatch, prefix_end
from sec.store.sagas import SagaStore


@dataclass
class Store:
    """One store, in memory or real."""

    name: str
    client: Callable[[], Kv]
    compact: Callable[[int], Awaitable[None]]
    opened: list[Kv] = field(default_factory=list)

    def kv(self) -> Kv:
        """Another client of it, closed at the end of the test."""
        self.opened.append(self.client())
        return self.opened[-1]


async def put(kv: Kv, key: bytes, value: bytes = b"", lease: LeaseId = NO_LEASE) -> Revision:
    return (await kv.txn(Txn(then=[Put(key, value, lease)]))).revision


async def keys(kv: Kv, prefix: bytes) -> dict[bytes, bytes]:
    found = await kv.get(Get(prefix, prefix_end(prefix)))
    return {item.key.removeprefix(prefix): item.value for item in found.items}


async def batch(watch: Watch) -> WatchBatch:
    async with asyncio.timeout(DEADLINE_S):
        return await anext(watch)


async def events(watch: Watch) -> tuple[Event, ...]:
    """The next batch that is not empty."""
    while True:
        if found := (await batch(watch)).events:
            return found


def brief(found: Sequence[Event]) -> list[tuple[str, bytes, bytes]]:
    return [(event.kind.value, event.item.key, event.item.value) for event in found]


async def append(sagas: SagaStore, *args: Any, **kwargs: Any) -> None:
    """`SagaStore.append` as what it comes to."""
    written: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def take(error: Exception | None) -> None:
        written.set_result(None) if error is None else written.set_exception(error)

    sagas.append(*args, written=take, **kwargs)
    await written
