"""What the leader does: the housekeeping that nobody needs within a second. Sagas go on while there is no leader.

First duty: the sweep. Every unowned saga is claimed by whoever sees its owner key vanish; the sweep is for what all have missed. It reads
the store itself, not a mirror that may be what is broken. Further duties are given to it; what they write is fenced by the leadership, so
that a node which only believes that it leads does no harm.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from sec.core.records import SagaId, SecNodeName
from sec.store.election import Election, Leadership
from sec.store.keys import Keys, last_segment
from sec.store.kv import Get, Kv, KvError, prefix_end
from sec.store.reads import keys_under, read_together
from sec.store.session import Session, SessionLost

_log = logging.getLogger(__name__)

RETRY_S = 1.0
EVERY_KEY_EACH = 12
"""The sweep compares numbers, and at each so many-th look every key: two mistakes could make the numbers equal."""

Duty = Callable[[Leadership], Coroutine[Any, Any, None]]
"""What is done while leading, until it is cancelled. It deals with a store that is away."""


class Leader:
    """Stands for election while its session lasts, and keeps house while it leads. `leading` says whether it does."""

    def __init__(
        self,
        kv: Kv,
        keys: Keys,
        sec_node: SecNodeName,
        claim_now: Callable[[Sequence[SagaId]], None],
        sweep_interval_s: float,
        duties: Sequence[Duty] = (),
    ) -> None:
        self.leading = False
        self._kv = kv
        self._keys = keys
        self._sec_node = sec_node
        self._claim_now = claim_now
        self._sweep_interval_s = sweep_interval_s
        self._duties: tuple[Duty, ...] = (self._sweep, *duties)

    async def run(self, session: Session) -> None:
        """Returns when the session is lost."""
        while session.alive():
            try:
                async with Election(self._kv, self._keys.election, session, self._sec_node.encode()).lead() as leadership:
                    _log.info('SEC node "%s" is the leader.', self._sec_node)
                    self.leading = True
                    async with asyncio.TaskGroup() as group:
                        for duty in self._duties:
                            group.create_task(duty(leadership))
            except SessionLost:
                return
            except KvError as error:
                _log.warning('SEC node "%s" does not lead: %s', self._sec_node, error)
                await asyncio.sleep(RETRY_S)
            finally:
                self.leading = False

    async def _sweep(self, _: Leadership) -> None:
        before: set[SagaId] = set()
        for look in itertools.count(1):
            await asyncio.sleep(self._sweep_interval_s)
            try:
                every_key = bool(before) or look % EVERY_KEY_EACH == 0
                unowned = await self.unowned() if every_key or await self._may_be_unowned() else set()
            except KvError as error:
                _log.warning("The sweep for unowned sagas has to wait: %s", error)
                continue
            missed = sorted(unowned & before)  # what is unowned for the first time is about to be claimed by somebody
            if missed:
                _log.warning("The sweep found %d sagas that nobody claimed, and claims them.", len(missed))
                self._claim_now(missed)
            before = unowned

    async def _may_be_unowned(self) -> bool:
        """Whether there are other numbers of active sagas and of owners: an owner key is written and deleted with its saga."""
        actives, owners = await read_together(self._kv, [_count(self._keys.actives), _count(self._keys.owners)])
        return actives.count != owners.count

    async def unowned(self) -> set[SagaId]:
        """The active sagas without an owner, read from the store at one revision."""
        active, revision = await keys_under(self._kv, self._keys.actives)
        owned, _ = await keys_under(self._kv, self._keys.owners, revision)
        return {SagaId(last_segment(key)) for key in active} - {SagaId(last_segment(key)) for key in owned}


def _count(prefix: bytes) -> Get:
    return Get(prefix, prefix_end(prefix), limit=1, keys_only=True)
