"""A cluster of real processes for each test process: three SEC nodes over the real etcd, and an action server with a real inventory."""

from collections.abc import Iterator

import pytest
from cluster_support import LEASE_TTL_S, Stage
from sec_client import aio as sec_aio
from waiting_support import eventually

from sec.dev.cluster import DevCluster
from sec.dev.etcd import EmbeddedEtcd


@pytest.fixture(scope="session")
def _running(etcd: EmbeddedEtcd, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("cluster")
    with DevCluster(folder / "sec", etcd_endpoints=etcd.endpoints, prefix="/cluster-tests", lease_ttl_s=LEASE_TTL_S) as cluster:
        stage = Stage(cluster, folder)
        stage.start_effects()
        yield stage
        stage.stop_effects()


@pytest.fixture
async def stage(_running: Stage) -> Stage:
    """The cluster with all of its nodes up, nothing held, and the action offered everywhere."""
    for name in _running.cluster.names:
        if _running.cluster.pid(name) is None:
            _running.cluster.launch(name)
    _running.cluster.wait_serving()
    _running.gate.unlink(missing_ok=True)
    for address in _running.cluster.addresses:
        async with sec_aio.Client([address]) as client:

            async def offered(client: sec_aio.Client = client) -> bool:
                return any(s.reachable for a in await client.actions() for s in a.servers)

            await eventually(offered)
    return _running
