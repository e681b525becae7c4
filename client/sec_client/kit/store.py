"""The port behind which an action server keeps its marks, and the store for tests that keeps them in memory."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from sec_client.kit.rules import Delivery, Entry, Stale, Verdict, judge


class StoreError(Exception):
    """The store cannot be opened, read or written. The message is a sentence that names it."""


class Store(Protocol):
    """Where the marks of an action server are kept. Used from one event loop, which no method may block.

    An awaited method has made durable what it says when it returns. All raise `StoreError`.
    """

    async def open(self, server_name: str) -> None:
        """Called once, before anything else."""

    async def close(self) -> None:
        """Called last. Effects that were begun and not finished are dropped. May be repeated."""

    def hold(self, key: str) -> AbstractAsyncContextManager[None]:
        """While inside, no other process that shares the store is inside with the same key. (Within this process the server sees to that.)"""

    async def remember_epoch(self, saga_uid: str, epoch: int) -> int:
        """Remembers the epoch if it is higher than what is known; answers the highest."""

    async def begin(self, delivery: Delivery) -> Verdict:
        """Applies `judge` in one step: the epoch and the entry that the verdict asks for are durable on return."""

    async def begin_effects(self) -> sqlite3.Connection:
        """Opens the transaction in which a handler has its effects. One at a time: waits for the one before."""

    async def finish(self, delivery: Delivery, entry: Entry, *, with_effects: bool) -> None:
        """Stores the entry, in the transaction of the effects if there is one. When this raises the effects are dropped."""

    async def drop_effects(self, *, in_use: bool) -> None:
        """Rolls the effects back. `in_use`: their handler may still be running; it must not be able to write any more."""


class MemoryStore:
    """Forgets everything with its process. For tests only: an action server that forgets cannot keep its obligations."""

    def __init__(self) -> None:
        self._epochs: dict[str, int] = {}
        self._entries: dict[str, Entry] = {}

    async def open(self, server_name: str) -> None:
        pass

    async def close(self) -> None:
        pass

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[None]:
        yield

    async def remember_epoch(self, saga_uid: str, epoch: int) -> int:
        highest = self._epochs[saga_uid] = max(epoch, self._epochs.get(saga_uid, epoch))
        return highest

    async def begin(self, delivery: Delivery) -> Verdict:
        highest = await self.remember_epoch(delivery.saga_uid, delivery.epoch)
        if highest > delivery.epoch:
            return Stale(highest)
        verdict, entry = judge(self._entries.get(delivery.key), delivery)
        if entry is not None:
            self._entries[delivery.key] = entry
        return verdict

    async def begin_effects(self) -> sqlite3.Connection:
        raise StoreError("The memory store has no database for effects: use SqliteStore.")

    async def finish(self, delivery: Delivery, entry: Entry, *, with_effects: bool) -> None:
        self._entries[delivery.key] = entry

    async def drop_effects(self, *, in_use: bool) -> None:
        pass
