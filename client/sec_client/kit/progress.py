"""How far an action under way is: from its handler to the calls that wait for it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

REPORT_INTERVAL_S = 0.5
"""Between two reports that are sent for one key. Of those that a handler makes meanwhile the last one counts."""
MAX_MESSAGE_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Report:
    """How much is done, from 0 to 1 (None: it is at work), and a line for people."""

    fraction: float | None
    message: str


Listener = Callable[[Report], None]


class Progress:
    """Of one idempotency key. Used on the event loop only.

    All calls with this key are told, those too that wait for their turn: it is the effect of the key that they ask about.
    """

    __slots__ = ("_listeners", "_timer", "_waiting")

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._waiting: Report | None = None
        self._timer: asyncio.TimerHandle | None = None

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def forget(self, listener: Listener) -> None:
        self._listeners.remove(listener)

    def report(self, report: Report) -> None:
        """Tells at once, or, when that was just done, after a pause."""
        if self._timer is not None:
            self._waiting = report
            return
        for listener in self._listeners:
            listener(report)
        self._timer = asyncio.get_running_loop().call_later(REPORT_INTERVAL_S, self._go_on)

    def _go_on(self) -> None:
        self._timer = None
        report, self._waiting = self._waiting, None
        if report is not None:
            self.report(report)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
