"""Members of an embedded etcd that are replaced, and something that stands between them."""

from pathlib import Path

from waiting_support import eventually

from sec.dev.etcd import EmbeddedEtcd, EtcdNotStarted
from sec.store.etcd import EtcdConfig, EtcdKv
from sec.store.kv import Get, KvError, Put, Txn


async def value(endpoint: str, *, serializable: bool = True) -> bytes:
    """What this member has; unless `serializable`, by the word of a majority."""
    kv = EtcdKv(EtcdConfig((endpoint,)))
    try:
        found = await kv.get(Get(b"k"), serializable=serializable)
        return found.items[0].value if found.items else b""
    except KvError:
        return b""
    finally:
        await kv.aclose()


async def test_a_member_that_has_lost_its_data_is_replaced_and_gets_it_from_the_others(tmp_path: Path) -> None:
    async with EmbeddedEtcd(tmp_path, size=3, unsafe_no_fsync=True) as etcd:
        kv = EtcdKv(EtcdConfig(etcd.endpoints[1:]))
        await kv.txn(Txn(then=[Put(b"k", b"v")]))

        async def is_replaced() -> bool:
            try:
                await etcd.replace_async(0)
            except EtcdNotStarted:  # the others have not known each other for long enough
                return False
            return True

        await eventually(is_replaced)

        async def has_it() -> bool:
            return await value(etcd.endpoint(0)) == b"v"

        await eventually(has_it)
        await kv.aclose()
        etcd.kill(1)  # the new one counts: two of three are a majority

        async def has_a_majority() -> bool:
            return await value(etcd.endpoint(0), serializable=False) == b"v"

        await eventually(has_a_majority)
