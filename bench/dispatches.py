"""What an action server of a bench sees: for the measurements in this folder."""

import asyncio
import time
from collections.abc import Callable

from sec_client.kit import MemoryStore


class Dispatches(MemoryStore):
    """Notes when each saga was first called in each epoch, be it that a handler of an earlier epoch is still running."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: dict[str, dict[int, float]] = {}
        self.repeated = 0
        """Calls in an epoch after a saga's first, since this was set to 0."""
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Returns when a condition that depends on what was noted holds."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def remember_epoch(self, saga_uid: str, epoch: int) -> int:
        if epoch not in (epochs := self.epochs.setdefault(saga_uid, {})):
            self.repeated += bool(epochs)
            epochs[epoch] = time.monotonic()
            self._changed.set()
        return await super().remember_epoch(saga_uid, epoch)
