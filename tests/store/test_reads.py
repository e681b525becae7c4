"""Reads that belong together."""

import pytest

from sec.store.kv import Get, GetResult, Put, Revision, Txn
from sec.store.memory import MemoryEtcd, MemoryKv
from sec.store.reads import read_together

A, B = Get(b"/a"), Get(b"/b")


class Meddler(MemoryKv):
    """Between the first read and the others somebody writes, and the first time compacts as well."""

    def __init__(self, etcd: MemoryEtcd) -> None:
        super().__init__(etcd)
        self.reads = 0

    async def get(
        self, get: Get, *, revision: Revision | None = None, serializable: bool = False, timeout_s: float | None = None
    ) -> GetResult:
        result = await super().get(get, revision=revision, serializable=serializable, timeout_s=timeout_s)
        self.reads += 1
        if get is A:
            self.etcd.txn(Txn(then=[Put(b"/a", b"%d" % self.reads), Put(b"/b", b"%d" % self.reads)]))
        if self.reads == 1:
            self.etcd.compact(self.etcd.revision)
        return result


async def test_they_are_as_of_one_revision_though_it_changes_and_is_compacted_meanwhile() -> None:
    kv = Meddler(MemoryEtcd())
    await kv.txn(Txn(then=[Put(b"/a", b"0"), Put(b"/b", b"0")]))
    a, b, missing = await read_together(kv, [A, B, Get(b"/c")])
    assert a.items[0].value == b.items[0].value == b"1"
    assert a.items[0].mod_revision == b.items[0].mod_revision
    assert not missing.items
    await kv.aclose()


async def test_no_transaction_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that only reads kills the etcd of some versions when it is cut off."""
    kv = MemoryKv(MemoryEtcd())
    monkeypatch.delattr(MemoryKv, "txn")
    assert [result.items for result in await read_together(kv, [A, B])] == [(), ()]
    await kv.aclose()
