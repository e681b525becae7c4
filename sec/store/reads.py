"""Several reads at one revision."""

from collections.abc import Sequence

from sec.store.kv import Get, GetResult, Kv, KvRefused, Txn


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
