"""Time limits of many calls, in a heap: one alarm of the event loop for all of them, since nearly all calls are answered long before."""

import asyncio
from collections.abc import Callable, Container
from heapq import heapify, heappop, heappush

SPARE = 1_000
"""So many limits of calls that are over may stay in the heap, and as many as there are of the others."""


class TimeLimits:
    """Calls `late` with the number of each call that is still `open` when its time is up."""

    def __init__(self, open_calls: Container[int], late: Callable[[int], None]) -> None:
        self._open = open_calls
        self._late = late
        self._loop = asyncio.get_running_loop()
        self._heap: list[tuple[float, int]] = []
        self._alarm: asyncio.TimerHandle | None = None
        self._most = SPARE

    def add(self, number: int, timeout_s: float) -> None:
        """Limits a call from now on."""
        due = self._loop.time() + timeout_s
        if len(self._heap) >= self._most:
            self._heap = [limit for limit in self._heap if limit[1] in self._open]
            heapify(self._heap)
            self._most = 2 * len(self._heap) + SPARE
        heappush(self._heap, (due, number))
        if self._alarm is None or self._heap[0][1] == number:
            self._set_alarm()

    def clear(self) -> None:
        """Forgets all of them."""
        self._heap.clear()
        self._set_alarm()

    def _set_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.call_at(self._heap[0][0], self._ring) if self._heap else None

    def _ring(self) -> None:
        self._alarm = None
        now = self._loop.time()
        while self._heap and (self._heap[0][0] <= now or self._heap[0][1] not in self._open):
            _, number = heappop(self._heap)
            if number in self._open:
                self._late(number)
        self._set_alarm()
