"""Reads of many keys, one page after the other."""

import pytest

from sec.store import reads
from sec.store.kv import Compacted, Kv, Put, Revision, Txn
from sec.store.memory import MemoryEtcd
from sec.store.reads import keys_under


async def write(kv: Kv, *keys: bytes) -> Revision:
    return (await kv.txn(Txn(then=[Put(key, b"value") for key in keys]))).revision


@pytest.mark.parametrize("count", [0, 1, 2, 3, 6, 7])
async def test_all_keys_under_a_prefix_are_read_in_pages(memory_kv: Kv, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(reads, "PAGE", 3)
    wanted = [b"/a/%d" % n for n in range(count)]
    await write(memory_kv, b"/0", b"/a", b"/b/1", *wanted)
    assert (await keys_under(memory_kv, b"/a/"))[0] == wanted


async def test_what_changes_between_two_pages_is_not_seen(memory_kv: Kv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "PAGE", 1)
    before = await write(memory_kv, b"/a/1", b"/a/2", b"/b/1")
    get, pages = memory_kv.get, 0

    async def get_and_write(*args: object, **kwargs: object) -> object:
        nonlocal pages
        pages += 1
        answer = await get(*args, **kwargs)  # type: ignore[arg-type]
        await write(memory_kv, b"/a/3", b"/b/2")
        return answer

    monkeypatch.setattr(memory_kv, "get", get_and_write)
    keys, revision = await keys_under(memory_kv, b"/a/")
    assert (keys, revision, pages) == ([b"/a/1", b"/a/2"], before, 2)
    assert await keys_under(memory_kv, b"/b/", revision) == ([b"/b/1"], revision)


async def test_a_revision_that_the_store_has_forgotten_is_an_error(memory_etcd: MemoryEtcd, memory_kv: Kv) -> None:
    old = await write(memory_kv, b"/a/1")
    memory_etcd.compact(await write(memory_kv, b"/a/2"))
    with pytest.raises(Compacted):
        await keys_under(memory_kv, b"/a/", old)
