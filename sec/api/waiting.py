"""Waits for sagas to settle: to end, or to be stuck. One listener on the mirror of live sagas serves all who wait."""

import asyncio
from collections.abc import Sequence

from google.protobuf.message import DecodeError
from sec_protos.v1 import coordinator_pb2

from sec.core.records import SagaId
from sec.store.keys import Keys, last_segment
from sec.store.mirror import Change, Mirror

RECHECK_S = 5.0
"""A wait looks at the store after so long, whatever the mirror has shown: nobody depends on one event being seen."""

_SETTLED_BUT_ACTIVE = (coordinator_pb2.SAGA_STATE_STUCK, coordinator_pb2.SAGA_STATE_CORRUPT)


class SettledWatch:
    """Tells when a saga may have settled. Read the saga before the first wait, unless it is `at_work`, and after each."""

    def __init__(self, live: Mirror, keys: Keys) -> None:
        self._keys = keys
        self._live = live
        self._waiting: dict[SagaId, set[asyncio.Event]] = {}
        live.subscribe(self._live_changed)

    def subscribe(self, saga_id: SagaId) -> asyncio.Event:
        """An event that is set when the saga may have settled, from now on. Give it back to `unsubscribe`."""
        event = asyncio.Event()
        self._waiting.setdefault(saga_id, set()).add(event)
        return event

    def unsubscribe(self, saga_id: SagaId, event: asyncio.Event) -> None:
        """Ends a subscription."""
        events = self._waiting[saga_id]
        events.discard(event)
        if not events:
            del self._waiting[saga_id]

    def at_work(self, saga_id: SagaId) -> bool:
        """Whether the mirror shows the saga as one that has not settled: then what comes of it will be told to those who have subscribed."""
        active = self._live.items.get(self._keys.active(saga_id))
        return active is not None and not _may_have_settled(active.value)

    def wake_all(self) -> None:
        """Lets everyone who waits look again: the node is about to stop."""
        for events in self._waiting.values():
            for event in events:
                event.set()

    def _live_changed(self, changes: Sequence[Change]) -> None:
        if not self._waiting:
            return
        for change in changes:
            if not change.key.startswith(self._keys.actives):
                continue
            events = self._waiting.get(SagaId(last_segment(change.key)))
            if events and (change.new is None or _may_have_settled(change.new.value)):
                for event in events:
                    event.set()


def _may_have_settled(summary: bytes) -> bool:
    try:
        return coordinator_pb2.SagaSummary.FromString(summary).state in _SETTLED_BUT_ACTIVE
    except DecodeError:
        return True
