"""What is appended to the logs of sagas, for all who watch one: a single watch of the store, for as long as there is anybody.

However many sagas are watched at a node, etcd sees one watch of it. What the watch brings of sagas that nobody watches here is looked at by its key only.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from sec.core.records import SagaId
from sec.store.keys import Keys
from sec.store.kv import Compacted, Event, Kv, KvError, WatchBatch, prefix_end
from sec.store.watch_queue import WatchQueue

MAX_BEHIND = 1_000
"""So many changes of its saga may wait for a watcher; one that is slower reads the log anew."""


class LogWatch:
    """The watchers of one node."""

    def __init__(self, kv: Kv, keys: Keys) -> None:
        self._kv = kv
        self._prefix = keys.logs
        self._run: _Run | None = None

    @asynccontextmanager
    async def follow(self, saga_id: SagaId) -> AsyncIterator[WatchQueue]:
        """The changes of a saga's log from now on: read the log within the block, and pass over what it has already.

        They come in batches as from `Kv.watch`. What it gives raises `KvError` when the store cannot be watched; `Compacted` means: read the log anew, and
        follow it anew.
        """
        if self._run is None or self._run.over:
            self._run = _Run(self._kv, self._prefix)
        run = self._run
        queue = run.add(saga_id)
        try:
            await run.begun.wait()
            yield queue
        finally:
            run.remove(saga_id, queue)
            if self._run is run and not run.watchers:
                self._run = None


class _Run:
    """A watch of the store, from the first watcher that comes to the last one that goes, or to an error."""

    def __init__(self, kv: Kv, prefix: bytes) -> None:
        self.watchers: dict[bytes, set[WatchQueue]] = {}
        self.over = False
        self.begun = asyncio.Event()
        """Set once nothing more is missed, or the store cannot be watched."""
        self._kv = kv
        self._prefix = prefix
        self._task = asyncio.create_task(self._watch(), name="log-watch")

    def add(self, saga_id: SagaId) -> WatchQueue:
        queue = WatchQueue(_nothing, _nothing)
        self.watchers.setdefault(saga_id.encode(), set()).add(queue)
        return queue

    def remove(self, saga_id: SagaId, queue: WatchQueue) -> None:
        key = saga_id.encode()
        self.watchers[key].discard(queue)
        if not self.watchers[key]:
            del self.watchers[key]
        if not self.watchers:
            self._task.cancel()

    async def _watch(self) -> None:
        try:
            async with aclosing(self._kv.watch(self._prefix, prefix_end(self._prefix))) as watch:
                async for batch in watch:
                    self.begun.set()
                    for event in batch.events:
                        self._tell(batch, event)
        except KvError as error:
            self._end(error)

    def _tell(self, batch: WatchBatch, event: Event) -> None:
        saga_id, _, _ = event.item.key[len(self._prefix) :].partition(b"/")
        for queue in self.watchers.get(saga_id, ()):
            if queue.events < MAX_BEHIND:
                queue.push(WatchBatch(batch.revision, (event,)))
            else:
                queue.drop()
                queue.fail(
                    Compacted(f"More than {MAX_BEHIND} changes of the log of saga {saga_id.decode()!r} wait for their watcher.")
                )

    def _end(self, error: KvError) -> None:
        self.over = True
        self.begun.set()
        for queues in self.watchers.values():
            for queue in queues:
                queue.fail(error)


def _nothing() -> None:
    pass
