"""Lists of sagas, a page at a time, all pages as of the instant of the first.

A listing walks sections one after the other: stuck sagas, other active ones, those not started, those that ended. A page token says in which
section, behind which id, and at which revision to go on.
"""

import base64
import binascii
import json
from dataclasses import dataclass, field

from sec_protos.v1 import coordinator_pb2

from sec.store.errors import InvalidPageToken, PageTokenExpired
from sec.store.keys import Keys, last_segment
from sec.store.kv import Compacted, Get, GetResult, Kv, Revision, prefix_end

Summary = coordinator_pb2.SagaSummary

SCAN_CHUNK = 1_000
MAX_SCANNED = 10_000
"""Index entries that one page looks at before it is answered, full or not: a rare filter must not hold a call for long."""


@dataclass(frozen=True, slots=True)
class ListFilter:
    """What a listing is about; an empty field does not restrict it. Labels must all be there."""

    states: frozenset[int] = frozenset()
    name: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    owner: str = ""

    def accepts(self, summary: Summary) -> bool:
        return (
            (not self.states or summary.state in self.states)
            and (not self.name or summary.name == self.name)
            and (not self.owner or summary.owner == self.owner)
            and all(summary.labels.get(k) == v for k, v in self.labels.items())
        )


@dataclass(frozen=True, slots=True)
class _Section:
    """A part of a listing: the entries under an index that are (not) stuck, or all of them."""

    index: bytes
    stuck: bool | None = None

    def has(self, summary: Summary) -> bool:
        return self.stuck is None or (summary.state == coordinator_pb2.SAGA_STATE_STUCK) == self.stuck


@dataclass(frozen=True, slots=True)
class _Position:
    """Go on in this section, behind this id (empty: at its start)."""

    revision: Revision
    section: int
    after: str

    def token(self) -> str:
        return base64.urlsafe_b64encode(json.dumps([self.revision, self.section, self.after]).encode()).decode()


class SagaListing:
    """Pages through the indexes of a cluster."""

    def __init__(self, kv: Kv, keys: Keys) -> None:
        self._kv = kv
        self._keys = keys
        self._sections = (
            _Section(keys.actives, True),
            _Section(keys.actives, False),
            _Section(keys.createds),
            _Section(keys.endeds),
        )

    async def page(self, wanted: ListFilter, size: int, token: str) -> tuple[list[Summary], str]:
        """At most `size` summaries and the token of the next page (empty on the last).

        Raises `InvalidPageToken` and `PageTokenExpired`.
        """
        position: _Position | None = self._position(token) if token else await self._now()
        found: list[Summary] = []
        scanned = 0
        while position is not None and len(found) < size and scanned < MAX_SCANNED:
            section = self._sections[position.section]
            begin = section.index + position.after.encode() + b"\0" if position.after else section.index
            chunk = await self._read(Get(begin, prefix_end(section.index), limit=SCAN_CHUNK), position.revision)
            owners = await self._owners_between(chunk, position.revision) if section.index == self._keys.actives else {}
            position, looked_at = self._take(position, chunk, owners, wanted, found, size)
            scanned += looked_at
        return found, position.token() if position else ""

    def _take(
        self, position: _Position, chunk: GetResult, owners: dict[str, str], wanted: ListFilter, found: list[Summary], size: int
    ) -> tuple[_Position | None, int]:
        """Moves what is wanted of a chunk into `found`. Returns where to go on (None: nowhere) and how many entries it took."""
        section = self._sections[position.section]
        for looked_at, item in enumerate(chunk.items, 1):
            saga_id = last_segment(item.key)
            summary = Summary.FromString(item.value)
            summary.saga_id, summary.owner = saga_id, owners.get(saga_id, "")
            if section.has(summary) and wanted.accepts(summary):
                found.append(summary)
            if len(found) == size and (looked_at < len(chunk.items) or chunk.more):
                return _Position(position.revision, position.section, saga_id), looked_at
        if chunk.more:
            return _Position(position.revision, position.section, last_segment(chunk.items[-1].key)), len(chunk.items)
        following = position.section + 1
        return (_Position(position.revision, following, "") if following < len(self._sections) else None), len(chunk.items)

    async def _owners_between(self, page: GetResult, revision: Revision) -> dict[str, str]:
        if not page.items:
            return {}
        first, last = last_segment(page.items[0].key), last_segment(page.items[-1].key)
        owners = self._keys.owners
        result = await self._read(Get(owners + first.encode(), owners + last.encode() + b"\0"), revision)
        return {last_segment(item.key): item.value.decode() for item in result.items}

    async def _read(self, get: Get, revision: Revision) -> GetResult:
        try:
            return await self._kv.get(get, revision=revision)
        except Compacted as error:
            raise PageTokenExpired(
                "This listing was interrupted for too long and cannot go on. Start it again without a page token."
            ) from error

    async def _now(self) -> _Position:
        result = await self._kv.get(Get(self._keys.actives, keys_only=True))
        return _Position(result.revision, 0, "")

    def _position(self, token: str) -> _Position:
        try:
            revision, section, after = json.loads(base64.urlsafe_b64decode(token.encode()))
            if not (
                isinstance(revision, int)
                and isinstance(section, int)
                and 0 <= section < len(self._sections)
                and isinstance(after, str)
            ):
                raise ValueError(token)
        except (ValueError, TypeError, binascii.Error) as error:
            raise InvalidPageToken(f'"{token[:80]}" is not a page token. Take the one of the previous answer, or none.') from error
        return _Position(Revision(revision), section, after)
