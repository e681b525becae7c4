"""etcd without a quorum, slow, compacted, restarted, with a member replaced: the SEC nodes say so, lose nothing, and come back by themselves.

One that hangs, is not there yet, loses a member or is full: test_cluster_etcd.py. The table of all: docs/operations.md.
"""

from pathlib import Path

import pytest
from cluster_support import Stage, come_to, give, stage_of
from etcd_trouble_support import Way, port_of, replace_member, write_and_compact
from sec_client import ClusterUnavailable, NodeCondition, Saga, SagaState, action
from sec_client import aio as sec_aio
from sec_model.commands import Pause, Resume
from waiting_support import until

from sec.dev.cluster import DevCluster
from sec.dev.etcd import EmbeddedEtcd

CHAIN = Saga("chain").append(action("a", "step")).append(action("b", "step")).build()
PATIENT_S = 60.0
LEASE_TTL_S = 6
"""Longer than a slow etcd takes; and no test waits until it has ended."""

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


def processes_of(cluster: DevCluster) -> list[int | None]:
    return [cluster.pid(name) for name in cluster.names]


async def test_a_single_member_that_is_slow_compacted_and_restarted(tmp_path: Path) -> None:
    with (
        EmbeddedEtcd(tmp_path / "etcd", unsafe_no_fsync=True) as etcd,
        Way(port_of(etcd.endpoints[0])) as way,
        DevCluster(tmp_path / "sec", nodes=1, lease_ttl_s=LEASE_TTL_S, etcd_endpoints=[f"127.0.0.1:{way.port}"]) as cluster,
    ):
        running = processes_of(cluster)
        async with stage_of(cluster, tmp_path) as stage, sec_aio.Client(cluster.addresses, timeout_s=PATIENT_S) as client:
            # slow
            saga_id = await held(stage, client)
            way.delay_s = 1.2
            stage.gate.touch()
            await come_to(cluster.addresses, NodeCondition.STORE_SLOW)
            late = await client.submit(CHAIN)
            way.delay_s = 0.0
            await ends_well(stage, client, saga_id)
            await ends_well(stage, client, late.saga_id)
            await come_to(cluster.addresses, NodeCondition.WELL)

            # compacted past what its watches have seen
            saga_id = await held(stage, client)
            way.cut()
            await write_and_compact(etcd.endpoints[0])
            way.mend()
            await until(
                lambda: cluster.log("sec-1").read_text().count("fell behind what the store keeps; reading it anew") >= MIRRORS
            )
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
        assert processes_of(cluster) == running


async def test_three_members_without_quorum_and_with_one_replaced(tmp_path: Path) -> None:
    with DevCluster(tmp_path / "sec", nodes=1, lease_ttl_s=LEASE_TTL_S, etcd_size=3, unsafe_no_fsync=True) as cluster:
        running = processes_of(cluster)
        etcd = cluster.etcd
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

            # one lost for good, and replaced at another address, of which the SEC node does not know
            saga_id = await held(stage, client)
            etcd.kill(2)
            replacement = await replace_member(etcd, 2, tmp_path)
            try:
                etcd.kill(1)  # so that the new one is needed for a majority
                stage.gate.touch()
                await ends_well(stage, client, saga_id)
                await come_to(cluster.addresses, NodeCondition.WELL)
                assert (await client.run(CHAIN, timeout_s=PATIENT_S)).state is SagaState.DONE
            finally:
                replacement.kill()
                replacement.wait()
        assert processes_of(cluster) == running
