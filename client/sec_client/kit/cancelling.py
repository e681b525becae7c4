"""That nobody wants an effect any more: what `Call.cancelled` shows to handlers."""

import asyncio


class Cancellation:
    """Of the dos of one idempotency key. Set on the event loop, and never taken back; `is_set` may be read on any thread."""

    def __init__(self) -> None:
        self.is_set = False
        self._event: asyncio.Event | None = None

    def set(self) -> None:
        self.is_set = True
        if self._event is not None:
            self._event.set()

    async def wait(self) -> None:
        """Returns once it is set. On the event loop only."""
        if self._event is None:  # most calls are never waited for
            self._event = asyncio.Event()
            if self.is_set:
                self._event.set()
        await self._event.wait()
