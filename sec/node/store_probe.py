"""How the store is, as one SEC node sees it: asked again and again, so that it is right also when nothing else is going on.

A read that needs a majority of the store's members says whether there is one; the status of a member, whether the store is full. Whether it is
slow is seen in the writes that are under way, which wait for the disks.
"""

import asyncio
import logging

from sec.core.records import SecNodeName
from sec.node.health import Condition
from sec.store.commit import GroupCommit
from sec.store.kv import Get, Kv, KvError, KvRefused, NoQuorum

_log = logging.getLogger(__name__)

PAUSE_S = 1.0
"""At the least between two looks; a third of the timeout, when that is long."""
SLOW_S = 1.0
"""A store is slow when a transaction takes so long; it is some milliseconds when all is well."""
SLOW_FOR_S = 5.0
"""It is shown as slow for so long after that."""


class StoreProbe:
    """Looks at the store of one SEC node. `condition` is `WELL`, or which trouble there is; `trouble` says it as a sentence."""

    def __init__(self, sec_node: SecNodeName, kv: Kv, key: bytes, commits: GroupCommit, timeout_s: float) -> None:
        """`key` is one that may be read; what it holds does not matter."""
        self._sec_node = sec_node
        self._kv = kv
        self._key = key
        self._commits = commits
        self._timeout_s = timeout_s
        self._pause_s = max(PAUSE_S, timeout_s / 3)
        self._loop = asyncio.get_running_loop()
        self._found = Condition.WELL
        self._why = ""

    @property
    def condition(self) -> Condition:
        if self._found is not Condition.WELL:
            return self._found
        return Condition.STORE_SLOW if self._slowest_s() >= SLOW_S else Condition.WELL

    @property
    def trouble(self) -> str:
        match self.condition:
            case Condition.STORE_SLOW:
                return f"The store is slow: a transaction took {self._slowest_s():.1f} s."
            case _:
                return self._why

    def _slowest_s(self) -> float:
        return self._commits.slowest_s(self._loop.time(), SLOW_FOR_S)

    async def run(self) -> None:
        """Looks until it is cancelled; says in the log when trouble begins and ends."""
        while True:
            before = self._found
            found, why = await self._look()
            if before is Condition.WELL and found in (Condition.STORE_UNREACHABLE, Condition.STORE_WITHOUT_QUORUM):
                found, why = await self._look()  # one lost answer, or an election in the store, is no trouble yet
            self._found, self._why = found, why
            if self._found is not before:
                if self._found is Condition.WELL:
                    _log.warning('The store of SEC node "%s" is well again.', self._sec_node)
                else:
                    _log.error('SEC node "%s": %s', self._sec_node, self._why)
            await asyncio.sleep(self._pause_s)

    async def _look(self) -> tuple[Condition, str]:
        try:
            if await self._is_full():
                return Condition.STORE_FULL, (
                    "The store is out of space and refuses to write: compact it, defragment it, and disarm its alarm."
                )
            await self._kv.get(Get(self._key, keys_only=True), timeout_s=self._timeout_s)
        except NoQuorum as error:
            return Condition.STORE_WITHOUT_QUORUM, f"The store has lost the majority of its members: {error}"
        except KvRefused:
            return Condition.WELL, ""  # it answers; what else is wrong is said by who is refused
        except KvError as error:
            return Condition.STORE_UNREACHABLE, f"The store does not answer: {error}"
        return Condition.WELL, ""

    async def _is_full(self) -> bool:
        try:
            return (await self._kv.status(timeout_s=self._timeout_s)).full
        except KvRefused:  # not every user may ask that
            return False
