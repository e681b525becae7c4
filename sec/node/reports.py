"""What actions under way have reported of how far they are. In memory only: of this node's own sagas, and of those of its peers, which tell each other.

Nothing depends on it. It costs no write to the store, and a takeover loses it until the next report comes.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import suppress

from msgspec import Struct
from sec_protos.internal.v1 import peers_pb2
from sec_protos.v1 import coordinator_pb2

from sec.core.records import NodePath
from sec.dispatch.calls import Report

MAX_REPORTS = 10_000
"""Of the sagas of one node, and as many of each peer's. What is beyond is not shown."""
TELL_INTERVAL_S = 1.0
"""Between two messages to a peer. Of what is reported meanwhile it hears the last."""
MAX_TOLD = 1_000
"""In one message."""

Key = tuple[str, NodePath]
"""The uid of a saga, and a node of it."""


class Timed(Struct, frozen=True):
    """A report, and when it came, by the wall clock of the owner."""

    report: Report
    time_us: int


class Told(Struct, frozen=True):
    """What a peer is told of a call: None, when it is over."""

    key: Key
    timed: Timed | None


class _Table:
    """Of one node."""

    def __init__(self) -> None:
        self._by_saga: dict[str, dict[NodePath, Timed]] = {}
        self._size = 0

    def put(self, key: Key, timed: Timed | None) -> bool:
        """False when there was nothing to do, or there is no room."""
        uid, node = key
        found = self._by_saga.get(uid, {})
        if timed is None:
            if found.pop(node, None) is None:
                return False
            self._size -= 1
            if not found:
                del self._by_saga[uid]
            return True
        if node not in found:
            if self._size >= MAX_REPORTS:
                return False
            self._size += 1
        self._by_saga.setdefault(uid, {})[node] = timed
        return True

    def get(self, key: Key) -> Timed | None:
        return self._by_saga.get(key[0], {}).get(key[1])

    def of(self, saga_uid: str) -> Mapping[NodePath, Timed]:
        return self._by_saga.get(saga_uid, {})

    def keys(self) -> list[Key]:
        return [(uid, node) for uid, nodes in self._by_saga.items() for node in nodes]


class Reports:
    """Of one SEC node and its peers."""

    def __init__(self) -> None:
        self._own = _Table()
        self._peers: dict[object, _Table] = {}
        self._listeners: list[tuple[dict[Key, None], asyncio.Event]] = []
        self._ended = asyncio.Event()

    def put(self, saga_uid: str, node: NodePath, timed: Timed | None) -> None:
        """A call of an own saga has reported; None: it is over."""
        key = (saga_uid, node)
        if self._own.put(key, timed):
            for changed, event in self._listeners:
                changed[key] = None
                event.set()

    def of(self, saga_uid: str) -> Mapping[NodePath, Timed]:
        """The last report of each call of a saga that is under way, as far as this node has heard."""
        found: dict[NodePath, Timed] = {}
        for table in (self._own, *self._peers.values()):
            for node, timed in table.of(saga_uid).items():
                if node not in found or found[node].time_us < timed.time_us:
                    found[node] = timed
        return found

    async def follow(self) -> AsyncGenerator[list[Told], None]:
        """All that own calls have reported, and then what changes, for one peer. Until `end`."""
        changed: dict[Key, None] = dict.fromkeys(self._own.keys())
        event = asyncio.Event()
        listener = (changed, event)
        self._listeners.append(listener)
        try:
            while not self._ended.is_set():
                while changed and not self._ended.is_set():
                    keys = list(changed)[:MAX_TOLD]
                    for key in keys:
                        del changed[key]
                    yield [Told(key, self._own.get(key)) for key in keys]
                    with suppress(TimeoutError):
                        async with asyncio.timeout(TELL_INTERVAL_S):
                            await self._ended.wait()
                if not changed and not self._ended.is_set():
                    event.clear()
                    await event.wait()
        finally:
            self._listeners.remove(listener)

    def end(self) -> None:
        """Peers are told nothing any more."""
        self._ended.set()
        for _, event in self._listeners:
            event.set()

    def heard(self, peer: object, told: Iterable[Told]) -> None:
        """A peer tells of its calls."""
        table = self._peers.setdefault(peer, _Table())
        for each in told:
            table.put(each.key, each.timed)

    def lost(self, peer: object) -> None:
        """Nothing is known of the peer's calls any more."""
        self._peers.pop(peer, None)


def progress_to_proto(timed: Timed) -> coordinator_pb2.Progress:
    return coordinator_pb2.Progress(fraction=timed.report.fraction, message=timed.report.message, time_us=timed.time_us)


def told_to_proto(told: Iterable[Told]) -> peers_pb2.AttendResponse:
    return peers_pb2.AttendResponse(
        reports=[
            peers_pb2.Report(saga_uid=uid, node=node, progress=None if each.timed is None else progress_to_proto(each.timed))
            for each in told
            for uid, node in [each.key]
        ]
    )


def told_from_proto(reports: Iterable[peers_pb2.Report]) -> list[Told]:
    return [Told((r.saga_uid, NodePath(r.node)), _timed(r.progress) if r.HasField("progress") else None) for r in reports]


def _timed(progress: coordinator_pb2.Progress) -> Timed:
    fraction = progress.fraction if progress.HasField("fraction") else None
    return Timed(Report(fraction, progress.message), progress.time_us)
