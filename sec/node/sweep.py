"""No saga depends on one event being seen: what an SEC node looks at by itself, for the sagas that it owns, again and again.

    what a saga waits for           tells of it                        sweep behind it
    an owner                        the owner key vanishes             the leader's, of unowned sagas (sec.node.leader)
    a driver                        its owner's claim, submit, start   owner keys that are ours without a driver: given up, to be claimed
    a command (signals are some)    the mirror of live keys            commands in the store that its driver has not taken up: delivered
    an action that is offered       the directory                      drivers that could start something: woken
    an instant                      an alarm of the event loop         drivers whose instant has passed: woken

The mirrors behind the directory and behind who is in the cluster compare themselves with the store (`sec.store.mirror`).
"""

import asyncio
import logging

from sec.core.records import Epoch, SagaId
from sec.node.orders import read_orders
from sec.node.owner import Owner
from sec.store.keys import Keys, last_segment
from sec.store.kv import Get, KeyValue, Kv, KvError, Revision, prefix_end
from sec.store.mirror import Mirror

_log = logging.getLogger(__name__)

PAGE = 1_000
"""Keys of commands read at once."""
AT_ONCE = 200
"""Drivers that are looked at in one turn of the event loop."""


OWNERS_AT_ONCE = 1_000
"""Owner keys."""


class Sweep:
    """Looks after the sagas of one owner. What was seen by two looks, one after the other, was missed: events had time to come in between."""

    def __init__(self, kv: Kv, keys: Keys, live: Mirror, owner: Owner, interval_s: float) -> None:
        self._kv = kv
        self._keys = keys
        self._live = live
        self._owner = owner
        self._interval_s = interval_s
        self._waiting: dict[bytes, Revision] = {}
        self._delivered: set[tuple[bytes, Revision, Epoch]] = set()
        self._undriven: set[tuple[SagaId, Epoch]] = set()

    async def run(self) -> None:
        """Looks until it is cancelled."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self._look_at_commands()
                await self._look_at_ownership()
            except KvError as error:
                _log.warning("The sweep over the sagas of this node has to wait: %s", error)
            await self._look_at_drivers()

    async def _look_at_commands(self) -> None:
        before, self._waiting = self._waiting, {}
        missed: list[KeyValue] = []
        begin = prefix = self._keys.commands
        while True:
            page = await self._kv.get(Get(begin, prefix_end(prefix), limit=PAGE, keys_only=True))
            for item in page.items:
                if self._saga_of(item.key) in self._owner.drivers:
                    self._waiting[item.key] = item.create_revision
                    if before.get(item.key) == item.create_revision:
                        missed.append(item)
            if not page.more:
                break
            begin = page.items[-1].key + b"\0"
        delivered, self._delivered = self._delivered, set()
        for item in sorted(missed, key=lambda item: item.create_revision):
            await self._deliver(item, delivered)

    async def _deliver(self, item: KeyValue, delivered: set[tuple[bytes, Revision, Epoch]]) -> None:
        """Hands a command to the driver of its saga, once."""
        saga_id = self._saga_of(item.key)
        driver = self._owner.drivers.get(saga_id)
        if driver is None:
            return
        delivery = (item.key, item.create_revision, driver.epoch)
        self._delivered.add(delivery)
        if delivery in delivered:
            return
        for found in (await self._kv.get(Get(item.key))).items:
            for ordered in read_orders(saga_id, [(last_segment(item.key), found.value)]):
                _log.warning(
                    'The command "%s" for saga "%s" had not been taken up; delivering it again.', ordered.command_id, saga_id
                )
                self._owner.deliver(saga_id, ordered)

    def _saga_of(self, command: bytes) -> SagaId:
        return SagaId(command[len(self._keys.commands) :].partition(b"/")[0].decode())

    async def _look_at_ownership(self) -> None:
        before, self._undriven = self._undriven, set()
        owners = self._keys.owners
        for number, key in enumerate([key for key in self._live.items if key.startswith(owners)]):
            saga_id, item = SagaId(last_segment(key)), self._live.items.get(key)
            if item is not None and self._owner.lacks_driver(saga_id, item):
                self._undriven.add((saga_id, Epoch(item.create_revision)))
            if number % OWNERS_AT_ONCE == OWNERS_AT_ONCE - 1:
                await asyncio.sleep(0)
        missed = self._undriven & before
        if missed:
            _log.warning("%d sagas are owned by this node, which does not drive them; giving them up, to be claimed.", len(missed))
            await self._owner.release(sorted(missed))

    async def _look_at_drivers(self) -> None:
        for number, driver in enumerate(self._owner.drivers_now()):
            driver.look_again()
            if number % AT_ONCE == AT_ONCE - 1:
                await asyncio.sleep(0)
