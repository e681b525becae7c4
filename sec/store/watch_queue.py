"""The consumer's end of a watch, for all adapters: a queue of batches that ends in an error or a close.

What fills it, and what happens when the consumer is slow, stands in the adapters.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Self

from sec.store.kv import WatchBatch


class WatchQueue:
    """A `sec.store.kv.Watch`. `begin` is called at the first read, `ended` once at the close, `taken` after each batch taken."""

    def __init__(self, begin: Callable[[], None], ended: Callable[[], None], taken: Callable[[], None] | None = None) -> None:
        self._begin = begin
        self._ended = ended
        self._taken = taken
        self._begun = False
        self._closed = False
        self._error: Exception | None = None
        self._batches: deque[tuple[WatchBatch, int]] = deque()
        self._wakeup = asyncio.Event()
        self.events = 0
        """How many events wait for the consumer."""
        self.bytes = 0
        """How many bytes their values have."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchBatch:
        if not self._begun and not self._closed:
            self._begun = True
            self._begin()
        while True:
            if self._closed:
                raise StopAsyncIteration
            if self._batches:
                batch, size = self._batches.popleft()
                self.events -= len(batch.events)
                self.bytes -= size
                if self._taken is not None:
                    self._taken()
                return batch
            if self._error is not None:
                raise self._error
            self._wakeup.clear()
            await self._wakeup.wait()

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        """`aclose`, for callers that cannot await."""
        if self._closed:
            return
        self._closed = True
        self._batches.clear()
        self._wakeup.set()
        if self._begun:
            self._ended()

    def push(self, batch: WatchBatch) -> None:
        """Adds a batch; without effect after a close or an error."""
        if self._closed or self._error is not None:
            return
        size = sum(len(event.item.value) for event in batch.events)
        self._batches.append((batch, size))
        self.events += len(batch.events)
        self.bytes += size
        self._wakeup.set()

    def fail(self, error: Exception) -> None:
        """Ends the watch with `error`, after the batches that are already there."""
        if self._error is None:
            self._error = error
            self._wakeup.set()

    def drop(self) -> None:
        """Forgets the batches that were not taken yet: the adapter will deliver them again."""
        self._batches.clear()
        self.events = self.bytes = 0
