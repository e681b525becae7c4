"""Removes definitions that no saga uses any more: one of the leader's duties, and safe beside submits that are just about to use one.

A pass has a look at the summaries of all sagas, which name their definitions. In the order created, active, ended, which is that in which a
saga goes, it misses none that was there when it began. What no saga uses is not deleted but *retired*: moved to another key, in one transaction.
A submit compares that the definition stands at its own key, so from then on it has to be stored again before a saga can be made from
it. The next pass over the same definitions deletes what was retired, or puts it back when a saga was submitted between look and move; until
then readers find it where it is. So a definition goes only if no saga used it when a look began after it could not be used any more.

Definitions are many when programs write constants into them. So each pass sees to one slice of them, by the first digit of the hash.
"""

import asyncio
import logging
from collections.abc import AsyncIterator

from google.protobuf.message import DecodeError
from sec_protos.v1 import coordinator_pb2

from sec.core.errors import CorruptLog
from sec.core.records import SagaId
from sec.store.election import Leadership
from sec.store.errors import SagaNotFound
from sec.store.keys import Keys, last_segment
from sec.store.kv import Compare, Delete, Get, KeyValue, Kv, KvError, Op, Put, Relation, Target, Txn, absent, prefix_end
from sec.store.sagas import SagaStore

_log = logging.getLogger(__name__)

INTERVAL_S = 3_600.0
"""Between passes: all slices have had their turn in 16 hours, and an unused definition goes within 32."""
SLICES = "0123456789abcdef"
PAGE = 500
PAUSE_S = 0.1
"""Between pages, so that sagas that run are not held up."""


class DefinitionSweep:
    """Retires definitions that no saga uses, and deletes those that were retired and are still unused."""

    def __init__(self, kv: Kv, keys: Keys, sagas: SagaStore, interval_s: float = INTERVAL_S) -> None:
        self._kv = kv
        self._keys = keys
        self._sagas = sagas
        self._interval_s = interval_s

    async def run(self, leadership: Leadership) -> None:
        """Keeps looking until it is cancelled."""
        turn = int(leadership.revision)  # another slice for each leader, should leaders change often
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.one_pass(leadership, SLICES[turn % len(SLICES)])
                turn += 1
            except KvError as error:
                _log.warning("The look for definitions that no saga uses has to wait: %s", error)

    async def one_pass(self, leadership: Leadership, first_digit: str) -> None:
        """Sees to the definitions whose hash begins with this digit. Raises `KvError`."""
        stored = [item async for item in self._all(self._keys.definition(first_digit), keys_only=True)]
        retired = [item async for item in self._all(self._keys.retired(first_digit), keys_only=True)]
        if not stored and not retired:
            return
        used = await self._used(first_digit)
        if used is None:
            return
        for item in retired:
            await self._settle(leadership, item, last_segment(item.key) in used)
        for item in stored:
            if last_segment(item.key) not in used:
                await self._retire(leadership, item)

    async def _used(self, first_digit: str) -> set[str] | None:
        """The definitions of this slice that sagas are made from. None: that cannot be told of some saga, and so of none."""
        used: set[str] = set()
        for index in (self._keys.createds, self._keys.actives, self._keys.endeds):  # the order in which a saga goes
            async for item in self._all(index):
                try:
                    digest = coordinator_pb2.SagaSummary.FromString(item.value).definition_hash
                    digest = digest or await self._read_hash(SagaId(last_segment(item.key)))
                except (DecodeError, CorruptLog):
                    _log.info("No definition is removed: which one the saga of %r is made from cannot be read.", item.key)
                    return None
                if digest.startswith(first_digit):
                    used.add(digest)
        return used

    async def _read_hash(self, saga_id: SagaId) -> str:
        """Of a saga whose summary does not say it: an earlier version wrote that. Empty when the saga is gone."""
        try:
            stored = await self._sagas.load(saga_id)
        except SagaNotFound:
            return ""
        if not stored.head.definition_hash:
            raise CorruptLog(stored.problem)
        return stored.head.definition_hash

    async def _retire(self, leadership: Leadership, item: KeyValue) -> None:
        found = (await self._kv.get(Get(item.key))).items
        if found:
            compares = [leadership.fence, _unchanged(item)]
            move: list[Op] = [Put(self._keys.retired(last_segment(item.key)), found[0].value), Delete(item.key)]
            await self._kv.txn(Txn(compares, move))

    async def _settle(self, leadership: Leadership, item: KeyValue, used: bool) -> None:
        fences = [leadership.fence, _unchanged(item)]
        key = self._keys.definition(last_segment(item.key))
        found = (await self._kv.get(Get(item.key))).items
        if used and found:
            await self._kv.txn(Txn(fences, [Txn([absent(key)], [Put(key, found[0].value)]), Delete(item.key)]))
        else:
            await self._kv.txn(Txn(fences, [Delete(item.key)]))

    async def _all(self, prefix: bytes, *, keys_only: bool = False) -> AsyncIterator[KeyValue]:
        """What stands under a prefix, in pages; what is written meanwhile may be among it or not."""
        begin = prefix
        while True:
            page = await self._kv.get(Get(begin, prefix_end(prefix), limit=PAGE, keys_only=keys_only))
            for item in page.items:
                yield item
            if not page.more:
                return
            begin = page.items[-1].key + b"\0"
            await asyncio.sleep(PAUSE_S)


def _unchanged(item: KeyValue) -> Compare:
    return Compare(item.key, Target.MOD, Relation.EQUAL, item.mod_revision)
