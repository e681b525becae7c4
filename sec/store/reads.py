"""Reads that belong together: as of one revision, or one page after the other."""

import asyncio
from collections.abc import Sequence

from sec.store.kv import Compacted, Get, GetResult, Kv, Revision, prefix_end

PAGE = 1_000
"""Keys read at once: to make sense of many more in one turn would hold up the event loop."""


async def read_together(kv: Kv, gets: Sequence[Get]) -> list[GetResult]:
    """The answers to reads, all as of one revision, linearizably. Raises `KvError`.

    The first read finds the revision, and the others are done at it, at the same time. One transaction would do, but a transaction that only reads
    kills the etcd of some versions when its caller goes away in the middle (before 3.4.23 and 3.5.7: etcd's issues 14110 and 14891), and is refused by
    some when there is no space left.
    """
    while True:
        first = await kv.get(gets[0])
        try:
            return [first, *await asyncio.gather(*(kv.get(get, revision=first.revision) for get in gets[1:]))]
        except Compacted:
            continue  # just now, by somebody: the next revision is there


async def keys_under(kv: Kv, prefix: bytes, revision: Revision | None = None) -> tuple[list[bytes], Revision]:
    """All keys under a prefix, as of one revision, which is answered too: the given one, or that of the first page. Raises `KvError`, and with it
    `Compacted`."""
    keys: list[bytes] = []
    begin = prefix
    while True:
        page = await kv.get(Get(begin, prefix_end(prefix), limit=PAGE, keys_only=True), revision=revision)
        keys += [item.key for item in page.items]
        revision = page.revision if revision is None else revision
        if not page.more:
            return keys, revision
        begin = keys[-1] + b"\0"
