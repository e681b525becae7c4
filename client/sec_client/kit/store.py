"""The port behind which an action server keeps its marks, and the store for tests that keeps them in memory."""

from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Protocol

from sec_client.kit.rules import Delivery, Entry, Stale, Verdict, judge


class StoreError(Exception):
    """The store cannot be opened, read or written. The message is a sentence that names it."""


class Effects:
    """An open transaction, in which a handler has its effects. `db` is what the handler gets: a connection or a session, of the store's kind."""

    def __init__(self, db: Any) -> None:
        self.db = db


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

    async def begin_effects(self, delivery: Delivery) -> Effects:
        """Opens the transaction in which the handler of a delivery that was begun has its effects. Waits for its turn, if the store has few."""

    async def finish(self, delivery: Delivery, entry: Entry, effects: Effects | None) -> None:
        """Stores the entry, in the transaction of the effects if there is one, which ends. When this raises the effects are dropped, unless it could
        not be told whether they were committed: then the entry tells."""

    async def drop_effects(self, effects: Effects, *, in_use: bool) -> None:
        """Rolls the effects back. `in_use`: their handler may still be running; it must not be able to write any more."""


_NOT_SHARED = nullcontext()
"""What `hold` answers where no other process can see the store."""


class MemoryStore:
    """Forgets everything with its process. For tests only: an action server that forgets cannot keep its obligations."""

    def __init__(self) -> None:
        self._epochs: dict[str, int] = {}
        self._entries: dict[str, Entry] = {}

    async def open(self, server_name: str) -> None:
        pass

    async def close(self) -> None:
        pass

    def hold(self, key: str) -> AbstractAsyncContextManager[None]:
        return _NOT_SHARED

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

    async def begin_effects(self, delivery: Delivery) -> Effects:
        raise StoreError("The memory store has no database for effects: use SqliteStore.")

    async def finish(self, delivery: Delivery, entry: Entry, effects: Effects | None) -> None:
        self._entries[delivery.key] = entry

    async def drop_effects(self, effects: Effects, *, in_use: bool) -> None:
        pass
