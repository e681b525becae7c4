"""A local copy of a range of keys, kept up to date by a watch.

The copy lags by a network round trip: decide with it, never prove with it. What must hold is compared in a transaction.

A mirror of few keys can also check itself: it compares what it has with the store, again and again, and reads the range anew when the watch
has missed something.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from msgspec import Struct

from sec.store.kv import Compacted, EventKind, Get, KeyValue, Kv, KvError, Revision, prefix_end

RETRY_S = 0.5
"""Pause before the range is read anew after the store could not be reached."""

_log = logging.getLogger(__name__)


class Change(Struct, frozen=True, gc=False):
    """What became of a key. `new` None: it is gone."""

    key: bytes
    old: KeyValue | None
    new: KeyValue | None


OnChanges = Callable[[Sequence[Change]], None]


class Mirror:
    """Copies the keys under a prefix. `run` it for as long as it is needed; `items` is the copy; `ready` is set once it is there.

    With `check_s` it compares itself with the store so often. What differs for two checks was missed: the watch had time to tell.
    """

    def __init__(self, kv: Kv, prefix: bytes, *, check_s: float = 0.0) -> None:
        self.prefix = prefix
        self.items: dict[bytes, KeyValue] = {}
        self.ready = asyncio.Event()
        self._kv = kv
        self._check_s = check_s
        self._at = Revision(0)
        self._listeners: list[OnChanges] = []

    def subscribe(self, listener: OnChanges) -> Callable[[], None]:
        """Calls the listener with the changes, in the order of their revisions, after they are in `items`. Returns what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    async def run(self) -> None:
        """Keeps the copy until it is cancelled. A store that is away is waited for: the copy is then old, but stays."""
        async with asyncio.TaskGroup() as group:
            if self._check_s:
                group.create_task(self._check())
            group.create_task(self._keep())

    async def _keep(self) -> None:
        while True:
            try:
                revision = await self._read()
                self.ready.set()
                await self._follow(Revision(revision + 1))
            except Compacted:
                _log.info("The watch of %s fell behind what the store keeps; reading it anew.", self.prefix.decode())
            except KvError as error:
                _log.warning("Lost sight of %s, trying again: %s", self.prefix.decode(), error)
                await asyncio.sleep(RETRY_S)

    async def _check(self) -> None:
        before: set[tuple[bytes, int, int]] = set()
        while True:
            await asyncio.sleep(self._check_s)
            try:
                stored = await self._kv.get(Get(self.prefix, prefix_end(self.prefix), keys_only=True))
                there = {item.key: item.mod_revision for item in stored.items}
                here = {key: item.mod_revision for key, item in self.items.items()}
                differing = {
                    (key, there.get(key, 0), here.get(key, 0))
                    for key in there.keys() | here.keys()
                    if there.get(key) != here.get(key)
                }
                if differing & before:
                    _log.warning("The watch of %s missed something; reading it anew.", self.prefix.decode())
                    await self._read()
                before = differing
            except KvError as error:
                _log.debug("Cannot check what is known of %s: %s", self.prefix.decode(), error)

    async def _read(self) -> Revision:
        """Reads the range anew, unless the watch has brought something later meanwhile. Returns the revision up to which the copy is right."""
        result = await self._kv.get(Get(self.prefix, prefix_end(self.prefix)))
        if result.revision < self._at:
            return self._at
        fresh = {item.key: item for item in sorted(result.items, key=lambda item: item.mod_revision)}
        changes = [Change(key, old, None) for key, old in self.items.items() if key not in fresh]
        for key, item in fresh.items():
            old = self.items.get(key)
            if old is None or old.mod_revision != item.mod_revision:
                changes.append(Change(key, old, item))
        self.items = fresh
        self._at = result.revision
        self._tell(changes)
        return result.revision

    async def _follow(self, start: Revision) -> None:
        async for batch in self._kv.watch(self.prefix, prefix_end(self.prefix), start=start):
            changes = []
            for event in batch.events:
                if event.item.mod_revision <= self._at:
                    continue  # a check has read the range meanwhile
                item = event.item
                if event.kind is EventKind.PUT:
                    changes.append(Change(item.key, self.items.get(item.key), item))
                    self.items[item.key] = item
                else:
                    changes.append(Change(item.key, self.items.pop(item.key, None), None))
            self._at = max(self._at, batch.revision)
            self._tell(changes)

    def _tell(self, changes: Sequence[Change]) -> None:
        if changes:
            for listener in list(self._listeners):
                listener(changes)
