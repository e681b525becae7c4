"""How an SEC node is, and whether it does what it has accepted: a node that holds a session and takes sagas, and does not bring them forward, is not well.

It is judged by ages, and not by events: how long the oldest step of a saga has waited to be decided and written, how long the oldest write
has waited for its turn, and how late the event loop is.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

from sec.core.records import SecNodeName
from sec.node.driver import SagaDriver
from sec.store.commit import GroupCommit

_log = logging.getLogger(__name__)

LOOK_S = 0.5
"""At the least between two looks."""
LOOKS = 20
"""So many within the limit, when it is long."""


class Condition(Enum):
    """How an SEC node is, in one word. What is worse comes first."""

    STOPPING = "stopping"
    DRAINED = "drained"
    STORE_UNREACHABLE = "store_unreachable"
    STORE_WITHOUT_QUORUM = "store_without_quorum"
    STORE_FULL = "store_full"
    WITHOUT_SESSION = "without_session"
    STALLED = "stalled"
    """What it has accepted does not come forward."""
    STORE_SLOW = "store_slow"
    OVERLOADED = "overloaded"
    """It brings forward what it has, and refuses what is new."""
    WELL = "well"

    @property
    def serving(self) -> bool:
        """It holds a session, takes sagas, and brings them forward."""
        return self in (Condition.STORE_SLOW, Condition.OVERLOADED, Condition.WELL)


@dataclass(frozen=True, slots=True)
class Health:
    """How an SEC node is, and why, as sentences; these are empty when it is well."""

    condition: Condition
    trouble: str = ""


class Progress:
    """Looks at the work of a node. `trouble` says, as sentences, what has waited for longer than the limit; empty: nothing has."""

    def __init__(
        self, sec_node: SecNodeName, drivers: Callable[[], Iterable[SagaDriver]], commits: GroupCommit, stall_limit_s: float
    ) -> None:
        self.trouble = ""
        self._sec_node = sec_node
        self._drivers = drivers
        self._commits = commits
        self._stall_limit_s = stall_limit_s
        self._look_s = max(LOOK_S, stall_limit_s / LOOKS)

    async def run(self) -> None:
        """Looks again and again, until it is cancelled; says in the log when trouble begins and ends."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            await asyncio.sleep(self._look_s)
            now = loop.time()
            trouble = " ".join(self._found(now, now - began - self._look_s))
            if trouble and not self.trouble:
                _log.error('SEC node "%s" is not well: %s', self._sec_node, trouble)
            elif self.trouble and not trouble:
                _log.warning('SEC node "%s" is well again.', self._sec_node)
            self.trouble = trouble

    def _found(self, now: float, late_s: float) -> list[str]:
        since = now - self._stall_limit_s
        found = []
        stalled = [(began, driver) for driver in self._drivers() if (began := driver.step_since) is not None and began <= since]
        if stalled:
            began, oldest = min(stalled, key=lambda each: each[0])
            found.append(
                f"{len(stalled)} of its sagas wait for their next step to be decided and written; "
                f'saga "{oldest.saga_id}" has for {now - began:.0f} s.'
            )
        waiting_since = self._commits.waiting_since
        if waiting_since is not None and waiting_since <= since:
            found.append(f"{self._commits.depth} writes wait for the store; the first has for {now - waiting_since:.0f} s.")
        if late_s >= self._stall_limit_s:
            found.append(f"The event loop was late by {late_s:.0f} s.")
        return found
