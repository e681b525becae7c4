"""What all tests share: one real etcd for each test process, and the stores that the contract suites run over."""

from collections.abc import AsyncIterator, Iterator
from itertools import count

import pytest
from aetcd import rpc
from hypothesis import Phase, settings
from postgres_support import MISSING, Postgres, find_binaries
from store_support import Store

from sec.dev.etcd import EmbeddedEtcd
from sec.store.etcd import EtcdConfig, EtcdKv
from sec.store.kv import Kv
from sec.store.memory import MemoryEtcd, MemoryKv

_prefixes = count(1)

# For those who only want to know whether there is a failure, not what the smallest one looks like.
settings.register_profile("no-shrinking", phases=(Phase.explicit, Phase.generate), database=None)


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedEtcd]:
    """A real etcd that runs as long as the tests of this process. Keep to your own `prefix` in it, and leave it running."""
    with EmbeddedEtcd(tmp_path_factory.mktemp("etcd"), unsafe_no_fsync=True) as embedded:
        yield embedded


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL that runs as long as the tests of this process. Keep to a schema of your own in it, and leave it running."""
    binaries = find_binaries()
    if binaries is None:
        pytest.skip(MISSING)
    with Postgres(binaries) as cluster:
        yield cluster


@pytest.fixture
def prefix() -> bytes:
    """A prefix of keys that no other test uses."""
    return b"/test/%d/" % next(_prefixes)


@pytest.fixture
async def etcd_kv(etcd: EmbeddedEtcd) -> AsyncIterator[EtcdKv]:
    """A client of the real etcd."""
    kv = EtcdKv(EtcdConfig(etcd.endpoints))
    yield kv
    await kv.aclose()


@pytest.fixture
def memory_etcd() -> MemoryEtcd:
    return MemoryEtcd()


@pytest.fixture
async def memory_kv(memory_etcd: MemoryEtcd) -> AsyncIterator[MemoryKv]:
    """A client of `memory_etcd`."""
    kv = MemoryKv(memory_etcd)
    yield kv
    await kv.aclose()


@pytest.fixture(params=["memory", "etcd"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """Each of the two stores in turn."""
    if request.param == "memory":
        memory = MemoryEtcd()

        async def compact(revision: int) -> None:
            memory.compact(revision)

        found = Store("memory", lambda: MemoryKv(memory), compact)
    else:
        embedded: EmbeddedEtcd = request.getfixturevalue("etcd")

        async def compact(revision: int) -> None:
            async with rpc.insecure_channel(embedded.endpoints[0].removeprefix("http://")) as channel:
                await rpc.KVStub(channel).Compact(rpc.CompactionRequest(revision=revision, physical=True))

        found = Store("etcd", lambda: EtcdKv(EtcdConfig(embedded.endpoints)), compact)
    yield found
    for kv in found.opened:
        await kv.aclose()


@pytest.fixture
def kv(store: Store) -> Kv:
    """A client of each of the two stores in turn."""
    return store.kv()
