"""Which SEC node claims an unowned saga: all agree without talking, and nobody waits for a node that does not.

Rendezvous hashing (Thaler and Ravishankar, 1996) orders the live nodes for each saga. The first claims at once, the n-th after n times a
fallback delay, if the saga is still unowned by then. A wrong guess costs a lost transaction, never safety.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Sequence

from sec.core.records import SagaId, SecNodeName
from sec.store.keys import Keys, last_segment
from sec.store.mirror import Change, Mirror

FIRST_BATCH, MAX_BATCH = 8, 64
"""Sagas claimed at once, at first and at most: their logs come back in one answer, and the first of them should not wait for the last."""
BATCH_BYTES = 4 * 1024 * 1024
"""What the logs of one batch should come to, going by those that were read before."""
BATCHES_AT_ONCE = 3
"""While one is in the store, the sagas of another are folded; more would only hold more logs in memory."""


def in_turn(subject: str, nodes: Iterable[SecNodeName]) -> list[SecNodeName]:
    """The nodes in the order in which they should see to a saga, or to a dead node: evenly spread, and the same on every node."""

    def weight(node: SecNodeName) -> bytes:
        return hashlib.blake2b(f"{node}\0{subject}".encode(), digest_size=8).digest()

    return sorted(nodes, key=weight, reverse=True)


class Claims:
    """Watches for unowned sagas and calls `claim` with those that this node should take, in batches, while it is enabled.

    `claim` answers how many bytes of logs it has read.
    """

    def __init__(
        self,
        sec_node: SecNodeName,
        keys: Keys,
        live: Mirror,
        claimers: Callable[[], Iterable[SecNodeName]],
        claim: Callable[[Sequence[SagaId]], Awaitable[int]],
        fallback_s: float,
        first: Callable[[Iterable[SecNodeName]], list[SecNodeName]] = list,
    ) -> None:
        """`first` chooses those nodes that claim a saga first which its owner gave away while it takes sagas itself."""
        self._sec_node = sec_node
        self._keys = keys
        self._live = live
        self._claimers = claimers
        self._claim = claim
        self._fallback_s = fallback_s
        self._first = first
        self._enabled = False
        self._due: dict[SagaId, bool] = {}
        """What to claim. True: whatever the mirror says."""
        self._under_way: set[SagaId] = set()
        self._batch = FIRST_BATCH
        self._wake = asyncio.Event()
        self._unsubscribe = live.subscribe(self._live_changed)

    def enable(self) -> None:
        """Begins to claim; first of all whatever is unowned now."""
        self._enabled = True
        for key in self._live.items:
            if key.startswith(self._keys.actives):
                self._consider(SagaId(last_segment(key)), former=None)

    def disable(self) -> None:
        """Claims nothing more until `enable`."""
        self._enabled = False
        self._due.clear()

    def claim_now(self, saga_ids: Iterable[SagaId]) -> None:
        """Claims without waiting for a turn: what a sweep has found. It has read the store, and so may know better than the mirror."""
        self._put(saga_ids, certain=True)

    async def run(self) -> None:
        """Claims what is due, until it is cancelled."""
        free = asyncio.Semaphore(BATCHES_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._due:
                    await free.acquire()
                    batch = self._next_batch()
                    group.create_task(self._claim_batch(batch)).add_done_callback(lambda _: free.release())

    def _put(self, saga_ids: Iterable[SagaId], *, certain: bool) -> None:
        if self._enabled:
            for saga_id in saga_ids:
                self._due[saga_id] = certain or self._due.get(saga_id, False)
            self._wake.set()

    def _next_batch(self) -> list[SagaId]:
        """What is due and still unowned: after a fallback delay, most of it has been taken while it waited here."""
        batch: list[SagaId] = []
        while self._due and len(batch) < self._batch:
            saga_id = next(iter(self._due))
            certain = self._due.pop(saga_id)
            if saga_id not in self._under_way and (certain or self.unowned(saga_id)):
                batch.append(saga_id)
        return batch

    async def _claim_batch(self, batch: Sequence[SagaId]) -> None:
        self._under_way.update(batch)
        try:
            log_bytes = await self._claim(batch)
            fitting = BATCH_BYTES * len(batch) // max(1, log_bytes)
            self._batch = max(1, min(2 * self._batch, fitting, MAX_BATCH))
        finally:
            self._under_way.difference_update(batch)

    def unowned(self, saga_id: SagaId) -> bool:
        """An active saga without an owner, as far as the mirror knows."""
        return self._keys.active(saga_id) in self._live.items and self._keys.owner(saga_id) not in self._live.items

    def _live_changed(self, changes: Sequence[Change]) -> None:
        if not self._enabled:
            return
        owners, actives = self._keys.owners, self._keys.actives
        for change in changes:
            if change.new is None:
                if change.old is not None and change.key.startswith(owners):
                    self._consider(SagaId(last_segment(change.key)), former=SecNodeName(change.old.value.decode()))
            elif change.old is None and change.key.startswith(actives):
                self._consider(SagaId(last_segment(change.key)), former=None)

    def _consider(self, saga_id: SagaId, former: SecNodeName | None) -> None:
        """Claims an unowned saga when it is our turn. The former owner, which has just let go or died, comes last."""
        if not self.unowned(saga_id):
            return
        claimers = list(self._claimers())
        nodes = [n for n in claimers if n != former]
        if former in claimers:
            nodes = self._first(nodes)
        if former == self._sec_node or self._sec_node not in nodes:
            nodes.append(self._sec_node)
        turn = in_turn(saga_id, nodes).index(self._sec_node) if former != self._sec_node else len(nodes) - 1
        if turn == 0:
            self._put([saga_id], certain=False)
        else:
            asyncio.get_running_loop().call_later(turn * self._fallback_s, self._if_still_unowned, saga_id)

    def _if_still_unowned(self, saga_id: SagaId) -> None:
        if self.unowned(saga_id):
            self._put([saga_id], certain=False)
