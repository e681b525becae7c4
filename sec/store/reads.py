"""Reads that belong together: as of one revision, or one page after the other."""

from collections.abc import Sequence

from sec.store.kv import Get, GetResult, Kv, KvRefused, Revision, Txn, prefix_end

PAGE = 1_000
"""Keys read at once: to make sense of many more in one turn would hold up the event loop."""


async def read_together(kv: Kv, gets: Sequence[Get]) -> list[GetResult]:
    """The answers to reads, all as of one revision, linearizably. Raises `KvError`.

    One transaction does it. An etcd that is out of space refuses transactions (some versions those that only read too); then the
    first read finds the revision at which the others are done. Should that be compacted meanwhile, the caller sees `Compacted`.
    """
    try:
        result = await kv.txn(Txn(then=gets))
    except KvRefused:
        first = await kv.get(gets[0])
        return [first, *[await kv.get(get, revision=first.revision) for get in gets[1:]]]
    return [answer for answer in result.results if isinstance(answer, GetResult)]


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
