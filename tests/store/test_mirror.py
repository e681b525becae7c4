"""The local copy of a range of keys, over both stores: what it tells, and in which order."""

import asyncio
from collections.abc import Sequence

from store_support import put
from waiting_support import until

from sec.store.kv import Kv
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
