"""etcd without a quorum, slow, compacted, restarted, with a member replaced: the SEC nodes say so, lose nothing, and come back by themselves.

One that hangs, is not there yet, loses a member or is full: test_cluster_etcd.py. The table of all: docs/operations.md.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aetcd import rpc
from cluster_support import Stage, come_to, give, stage_of
from sec_client import ClusterUnavailable, NodeCondition, Saga, SagaState, action
from sec_client import aio as sec_aio
from sec_model.commands import Pause, Resume
from waiting_support import eventually, until

from sec.chaos.network import Network
from sec.dev.cluster import DevCluster
from sec.dev.etcd import EmbeddedEtcd, EtcdNotStarted

CHAIN = Saga("chain").append(action("a", "step")).append(action("b", "step")).build()
PATIENT_S = 60.0
LEASE_TTL_S = 6
"""Longer than a slow etcd takes; and no test waits until it has ended."""

READING_ANEW = "fell behind what the store keeps; reading it anew"
MIRRORS = 5
"""Ranges of keys that an SEC node follows."""


async def held(stage: Stage, client: sec_aio.Client) -> str:
    """A saga whose first action is under way until the gate is opened."""
    stage.gate.unlink(missing_ok=True)
    saga_id = (await client.submit(CHAIN, params={"hold": ["a"]})).saga_id
    await stage.held(saga_id, "a", "do")
    return saga_id


async def ends_well(stage: Stage, client: sec_aio.Client, saga_id: str) -> None:
    assert (await client.wait(saga_id, timeout_s=PATIENT_S)).state is SagaState.DONE
    assert stage.done(saga_id) == {"a": 1, "b": 1}


async def write_and_compact(endpoint: str) -> None:
    """Writes something that concerns nobody, and lets etcd forget all but the present state."""
    async with rpc.insecure_channel(endpoint.removeprefix("http://")) as channel:
        store = rpc.KVStub(channel)
        for _ in range(2):
            written = await store.Put(rpc.PutRequest(key=b"/elsewhere"))
        await store.Compact(rpc.CompactionRequest(revision=written.header.revision, physical=True))


@asynccontextmanager
async def network_of(pids: Callable[[], Mapping[str, int]]) -> AsyncIterator[Network]:
    network = Network(pids)
    try:
        yield network
    finally:
        await network.close()


async def test_a_single_member_that_is_slow_compacted_and_restarted(tmp_path: Path) -> None:
    clusters: list[DevCluster] = []
    ways = [("sec-1", "etcd"), ("etcd", "sec-1")]
    async with (
        EmbeddedEtcd(tmp_path / "etcd", unsafe_no_fsync=True) as etcd,
        network_of(lambda: {name: pid for each in clusters for name in each.names if (pid := each.pid(name))}) as network,
    ):
        front = network.front("etcd", int(etcd.endpoints[0].rpartition(":")[2]))
        clusters.append(
            DevCluster(tmp_path / "sec", nodes=1, lease_ttl_s=LEASE_TTL_S, etcd_endpoints=[f"http://127.0.0.1:{front}"])
        )
        async with clusters[0] as cluster:
            running = cluster.pid("sec-1")
            async with stage_of(cluster, tmp_path) as stage, sec_aio.Client(cluster.addresses, timeout_s=PATIENT_S) as client:
                # slow
                saga_id = await held(stage, client)
                with network.delayed([("etcd", "sec-1")], 1.2):
                    stage.gate.touch()
                    await come_to(cluster.addresses, NodeCondition.STORE_SLOW)
                    late = await client.submit(CHAIN)
                await ends_well(stage, client, saga_id)
                await ends_well(stage, client, late.saga_id)
                await come_to(cluster.addresses, NodeCondition.WELL)

                # compacted past what its watches have seen
                saga_id = await held(stage, client)
                with network.held(ways):
                    network.reset(ways)
                    await write_and_compact(etcd.endpoints[0])
                await until(lambda: cluster.log("sec-1").read_text().count(READING_ANEW) >= MIRRORS)
                await give(client, saga_id, Pause("to see that commands are heard of"))
                await give(client, saga_id, Resume())
                stage.gate.touch()
                await ends_well(stage, client, saga_id)
                await come_to(cluster.addresses, NodeCondition.WELL)

                # restarted
                saga_id = await held(stage, client)
                etcd.kill()
                stage.gate.touch()
                await come_to(cluster.addresses, NodeCondition.STORE_UNREACHABLE)
                await etcd.restart_async()
                await come_to(cluster.addresses, NodeCondition.WELL)
                await ends_well(stage, client, saga_id)
                assert (await client.run(CHAIN, timeout_s=PATIENT_S)).state is SagaState.DONE
            assert cluster.pid("sec-1") == running


async def test_three_members_without_quorum_and_with_one_replaced(tmp_path: Path) -> None:
    async with DevCluster(tmp_path / "sec", nodes=1, lease_ttl_s=LEASE_TTL_S, etcd_size=3, unsafe_no_fsync=True) as cluster:
        running, etcd = cluster.pid("sec-1"), cluster.etcd
        assert etcd is not None
        async with stage_of(cluster, tmp_path) as stage, stage.client() as client:
            # without quorum
            saga_id = await held(stage, client)
            for member in (1, 2):
                etcd.pause(member)
            await come_to(cluster.addresses, NodeCondition.STORE_WITHOUT_QUORUM)
            stage.gate.touch()
            async with sec_aio.Client(cluster.addresses, timeout_s=2) as impatient:
                with pytest.raises(ClusterUnavailable):
                    await impatient.submit(CHAIN)
            assert "b" not in stage.done(saga_id), "nothing is dispatched of which the start is not in the log"
            for member in (1, 2):
                etcd.resume(member)
            await ends_well(stage, client, saga_id)
            await come_to(cluster.addresses, NodeCondition.WELL)

            # one lost for good, and replaced by one that knows nothing
            saga_id = await held(stage, client)
            etcd.kill(2)

            async def replaced() -> bool:
                try:
                    await etcd.replace_async(2)
                except EtcdNotStarted:
                    return False
                return True

            await eventually(replaced)
            async with rpc.insecure_channel(etcd.endpoints[2].removeprefix("http://")) as channel:
                await rpc.KVStub(channel).Range(rpc.RangeRequest(key=b"/"), timeout=PATIENT_S, wait_for_ready=True)
            etcd.kill(1)  # so that the new one is needed for a majority
            stage.gate.touch()
            await ends_well(stage, client, saga_id)
            await come_to(cluster.addresses, NodeCondition.WELL)
            assert (await client.run(CHAIN, timeout_s=PATIENT_S)).state is SagaState.DONE
        assert cluster.pid("sec-1") == running
