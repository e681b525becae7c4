"""The local copy of a range of keys, over both stores: what it tells, and in which order."""

import asyncio
from collections.abc import Sequence

from store_support import put
from waiting_support import until

from sec.store.kv import Delete, Kv, Put, Revision, Txn
from sec.store.mirror import Change, Mirror


async def test_what_was_there_is_told_in_the_order_in_which_it_was_written(kv: Kv, prefix: bytes) -> None:
    """Commands that wait for an owner are taken up in this order, also when its mirror had to read the range anew."""
    for key in (b"m", b"z", b"a", b"k", b"z"):
        await put(kv, prefix + key)
    told: list[bytes] = []

    def listen(changes: Sequence[Change]) -> None:
        told.extend(change.key.removeprefix(prefix) for change in changes)

    mirror = Mirror(kv, prefix)
    mirror.subscribe(listen)
    running = asyncio.create_task(mirror.run())
    try:
        await mirror.ready.wait()
        assert told == [b"m", b"a", b"k", b"z"]
        await put(kv, prefix + b"c")
        await put(kv, prefix + b"b")
        await until(lambda: len(told) == 6)
        assert told[4:] == [b"c", b"b"]
    finally:
        running.cancel()
        await asyncio.wait([running])


class Deaf(Mirror):
    """A mirror whose watch brings nothing."""

    async def _follow(self, start: Revision) -> None:
        await asyncio.Event().wait()


async def test_a_mirror_that_checks_itself_tells_what_its_watch_has_missed(kv: Kv, prefix: bytes) -> None:
    await put(kv, prefix + b"stays")
    await put(kv, prefix + b"goes")
    mirror = Deaf(kv, prefix, check_s=0.05)
    told: list[tuple[bytes, bool]] = []
    mirror.subscribe(lambda changes: told.extend((c.key.removeprefix(prefix), c.new is not None) for c in changes))
    running = asyncio.create_task(mirror.run())
    try:
        await mirror.ready.wait()
        told.clear()
        await kv.txn(Txn(then=[Delete(prefix + b"goes"), Put(prefix + b"comes", b"1")]))
        await until(lambda: len(told) == 2)
        assert sorted(told) == [(b"comes", True), (b"goes", False)]
        await put(kv, prefix + b"comes", b"2")
        await until(lambda: mirror.items[prefix + b"comes"].value == b"2")
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_a_check_takes_nothing_back_and_tells_nothing_twice(kv: Kv, prefix: bytes) -> None:
    mirror = Mirror(kv, prefix, check_s=0.001)
    values: list[int] = []
    mirror.subscribe(lambda changes: values.extend(int(c.new.value) for c in changes if c.new is not None))
    running = asyncio.create_task(mirror.run())
    try:
        await mirror.ready.wait()
        for number in range(100):
            await put(kv, prefix + b"key", b"%d" % number)
        await until(lambda: values and values[-1] == 99)
        assert values == sorted(set(values))
    finally:
        running.cancel()
        await asyncio.wait([running])
