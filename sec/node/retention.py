"""Removes sagas whose time is up: one of the leader's duties.

How it finds them: in passes over the index of ended sagas, a page after the other, whose summaries tell when each saga ended and how. Nothing
is written for it while sagas run, and other settings hold from the next pass on. A pass over a million ended sagas reads some 150 MB in
pages; so there is one in an hour at most, and none before the first saga that was seen can be due. A saga is thus removed up to an hour, or a
hundredth of its time, too late, never too early.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping

from google.protobuf.message import DecodeError
from sec_protos.v1 import coordinator_pb2

from sec.store.election import Leadership
from sec.store.keys import Keys
from sec.store.kv import Get, KeyValue, Kv, KvError, prefix_end
from sec.store.sagas import SagaStore

_log = logging.getLogger(__name__)

PAGE = 500
"""Entries of the index read at once."""
BATCH = 50
"""Sagas removed at once: they share a transaction, and those of sagas that run wait for no more than this one."""
PAUSE_S = 0.1
"""Between pages. So the leader looks at 5,000 ended sagas a second at most, and sagas that run are not held up."""
MAX_BETWEEN_S = 3_600.0


class Retention:
    """Removes ended sagas after a time that depends on their state; 0 keeps them for ever."""

    def __init__(
        self,
        kv: Kv,
        keys: Keys,
        sagas: SagaStore,
        clock_us: Callable[[], int],
        *,
        keep_done_s: float,
        keep_undone_s: float,
        at_least_s: float,
    ) -> None:
        self._kv = kv
        self._keys = keys
        self._sagas = sagas
        self._clock_us = clock_us
        keep_s = {coordinator_pb2.SAGA_STATE_DONE: keep_done_s, coordinator_pb2.SAGA_STATE_UNDONE: keep_undone_s}
        self._keep_s: Mapping[int, float] = {state: time_s for state, time_s in keep_s.items() if time_s}
        self._between_s = max(at_least_s, min(MAX_BETWEEN_S, min(self._keep_s.values(), default=0.0) / 100))

    async def run(self, leadership: Leadership) -> None:
        """Keeps removing until it is cancelled; returns when everything is kept for ever."""
        while self._keep_s:
            try:
                removed, due_in_s = await self.one_pass(leadership)
            except KvError as error:
                _log.warning("The removal of ended sagas has to wait: %s", error)
                due_in_s = 0.0
            else:
                if removed:
                    _log.info("Removed %d sagas that had ended long enough ago.", removed)
            await asyncio.sleep(max(self._between_s, min(due_in_s, *self._keep_s.values(), MAX_BETWEEN_S)))

    async def one_pass(self, leadership: Leadership) -> tuple[int, float]:
        """Removes what is due. Returns how many sagas that were, and in how many seconds the next of those that it saw is due. Raises `KvError`."""
        index = self._keys.endeds
        begin, removed, next_due_us = index, 0, 0
        while True:
            page = await self._kv.get(Get(begin, prefix_end(index), limit=PAGE))
            now_us = self._clock_us()
            due: list[KeyValue] = []
            for item in page.items:
                due_us = self._due_us(item)
                if 0 < due_us <= now_us:
                    due.append(item)
                elif due_us:
                    next_due_us = min(next_due_us or due_us, due_us)
            for first in range(0, len(due), BATCH):
                batch = due[first : first + BATCH]
                removed += sum(await asyncio.gather(*(self._sagas.remove_ended(item, leadership.fence) for item in batch)))
            if not page.more:
                return removed, max(0.0, (next_due_us - self._clock_us()) / 1e6) if next_due_us else MAX_BETWEEN_S
            begin = page.items[-1].key + b"\0"
            await asyncio.sleep(PAUSE_S)

    def _due_us(self, ended: KeyValue) -> int:
        """When a saga may be removed, in microseconds since 1970; 0: never."""
        try:
            summary = coordinator_pb2.SagaSummary.FromString(ended.value)
        except DecodeError:
            return 0  # nobody can say how long it is to be kept
        keep_s = self._keep_s.get(summary.state)
        return 0 if keep_s is None or not summary.ended_us else summary.ended_us + round(keep_s * 1e6)
