import os
from collections.abc import Iterator

import pytest

from sec.dev.cluster import DevCluster
from sec.dev.etcd import EmbeddedEtcd


@pytest.fixture(scope="session")
def sec_addresses(etcd: EmbeddedEtcd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ...]]:
    """The addresses of a cluster of real SEC nodes, called sec-1, sec-2 and so on."""
    folder = tmp_path_factory.mktemp("sec-nodes")
    with DevCluster(folder, etcd_endpoints=etcd.endpoints, prefix=f"/docs/{os.getpid()}") as cluster:
        yield cluster.addresses
