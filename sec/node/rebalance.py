"""Spreads sagas over the SEC nodes anew when these own very different numbers of them, as when a node has joined: one of the leader's duties.

The leader writes a wish for each node that owns too many: how many sagas it should give away. The node gives away those that have waited
longest, for a timer, a signal, an operator or a retry, and none that is at work: a saga that can finish first does. They are claimed as any
saga without an owner, those nodes first that own less than their share. A wrong count costs a few moves, never safety.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from sec.core.records import SecNodeName
from sec.store.election import Leadership
from sec.store.keys import Keys
from sec.store.kv import Kv, KvError, Put, Txn, created_at
from sec.store.mirror import Change, Mirror

_log = logging.getLogger(__name__)

MOST_AT_ONCE = 50
"""Sagas that one node gives away in a round: each of them is a log that is read anew."""
LEAST_DIFFERENCE = 10
LEAST_SHARE = 0.2
"""Nodes that own nearly the same are left alone, or sagas would wander for ever: the most and the least must differ by more than both of
these, in sagas and as a part of the mean."""


def to_give_away(owned: Mapping[SecNodeName, int]) -> dict[SecNodeName, int]:
    """How many sagas each node should give away now, given how many each one owns that takes sagas."""
    if len(owned) < 2:
        return {}
    mean = sum(owned.values()) / len(owned)
    if max(owned.values()) - min(owned.values()) <= max(LEAST_DIFFERENCE, LEAST_SHARE * mean):
        return {}
    over = {node: int(count - mean) for node, count in owned.items()}
    return {node: min(count, MOST_AT_ONCE) for node, count in over.items() if count > 0}


class OwnedCounts:
    """How many sagas each SEC node owns, as the mirror of live keys knows it. Make it before what looks at it when that mirror changes."""

    def __init__(self, keys: Keys, live: Mirror) -> None:
        self._owners = keys.owners
        self._counts: Counter[SecNodeName] = Counter()
        live.subscribe(self._live_changed)

    def of(self, node: SecNodeName) -> int:
        return self._counts[node]

    def below_the_mean(self, nodes: Iterable[SecNodeName]) -> list[SecNodeName]:
        """Those of the nodes that own less than their share; all, when all own the same."""
        among = list(nodes)
        total = sum(self._counts[node] for node in among)
        return [node for node in among if self._counts[node] * len(among) < total] or among

    def _live_changed(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.key.startswith(self._owners):
                if change.old is not None:
                    self._counts[SecNodeName(change.old.value.decode())] -= 1
                if change.new is not None:
                    self._counts[SecNodeName(change.new.value.decode())] += 1


class Rebalance:
    """Writes wishes while it leads, and hands those for this node to `give_away`."""

    def __init__(
        self,
        kv: Kv,
        keys: Keys,
        sec_node: SecNodeName,
        nodes: Mirror,
        wishes: Mirror,
        owned: Callable[[], Mapping[SecNodeName, int]],
        give_away: Callable[[int], None],
        interval_s: float,
    ) -> None:
        self._kv = kv
        self._keys = keys
        self._sec_node = sec_node
        self._nodes = nodes
        self._wishes = wishes
        self._owned = owned
        self._give_away = give_away
        self._interval_s = interval_s
        wishes.subscribe(self._wishes_changed)

    async def run(self, leadership: Leadership) -> None:
        """Looks again and again, until it is cancelled. What is uneven for the first time may be about to settle."""
        before: set[SecNodeName] = set()
        while True:
            await asyncio.sleep(self._interval_s)
            wanted = to_give_away(self._owned())
            try:
                for node in wanted.keys() & before:
                    await self._wish(leadership, node, wanted[node])
            except KvError as error:
                _log.warning("Sagas are spread unevenly, and stay so for now: %s", error)
            before = set(wanted)

    async def _wish(self, leadership: Leadership, node: SecNodeName, count: int) -> None:
        """It goes with the session of the node."""
        item = self._nodes.items.get(self._keys.node(node))
        if item is not None:
            compares = [leadership.fence, created_at(item.key, item.create_revision)]
            await self._kv.txn(Txn(compares, [Put(self._keys.wish(node), b"%d" % count, item.lease)]))

    def _wishes_changed(self, changes: Sequence[Change]) -> None:
        if not self._wishes.ready.is_set():
            return  # what stood there before this node came is about a former session of its
        for change in changes:
            if change.key == self._keys.wish(self._sec_node) and change.new is not None and change.new.value.isdigit():
                self._give_away(min(int(change.new.value), MOST_AT_ONCE))
