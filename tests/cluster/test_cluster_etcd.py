"""An etcd that hangs, is not there yet, or loses a member: the nodes stop in time, say so, and go on by themselves."""

import asyncio
import os
import sys
import time
from pathlib import Path

import pytest
from aetcd import rpc
from cluster_support import come_to, serving, stage_of
from sec_client import ClusterUnavailable, NodeCondition, Saga, SagaState, StoreFull, action
from sec_client import aio as sec_aio
from waiting_support import eventually, until

from sec.dev.cluster import DevCluster
from sec.dev.etcd import EmbeddedEtcd, find_etcd
from sec.dev.processes import free_ports, launch
from sec.store.etcd import EtcdConfig, EtcdKv
from sec.store.etcd.versions import parse_version
from sec.store.kv import KvRefused, Put, Txn, prefix_end

CHAIN = Saga("chain").append(action("a", "step")).append(action("b", "step")).build()


async def test_nodes_stop_while_etcd_hangs_and_go_on_when_it_is_back(tmp_path: Path) -> None:
    with DevCluster(tmp_path / "sec", nodes=2, lease_ttl_s=2, unsafe_no_fsync=True) as cluster:
        async with stage_of(cluster, tmp_path) as stage, stage.client() as client:
            saga_id = (await client.submit(CHAIN, params={"hold": ["a"]})).saga_id
            await stage.held(saga_id, "a", "do")
            assert cluster.etcd is not None
            cluster.etcd.pause()
            try:

                async def stopped() -> bool:
                    return not any([await serving(a) for a in cluster.addresses])

                await eventually(stopped)
                stage.gate.touch()
                with pytest.raises(ClusterUnavailable):
                    async with sec_aio.Client(cluster.addresses, timeout_s=4) as impatient:
                        await impatient.get(saga_id)
                assert "b" not in stage.done(saga_id), "nothing is dispatched past the deadline of a session"
            finally:
                cluster.etcd.resume()
            assert (await client.wait(saga_id, timeout_s=60)).state is SagaState.DONE
            assert stage.done(saga_id) == {"a": 1, "b": 1}
            cluster.wait_serving()
            log = cluster.log("sec-1").read_text() + cluster.log("sec-2").read_text()
            assert "lost its session" in log


async def test_a_node_waits_for_an_etcd_that_is_not_there_yet(tmp_path: Path) -> None:
    with EmbeddedEtcd(tmp_path / "etcd", unsafe_no_fsync=True) as etcd:
        endpoint = etcd.endpoints[0]
    (port,) = free_ports(1)
    address, log = f"127.0.0.1:{port}", tmp_path / "node.log"
    node = launch([sys.executable, "-m", "sec", "node", "--name=early", f"--listen={address}", f"--etcd={endpoint}"], log)
    try:
        await until(lambda: "etcd cannot be reached" in log.read_text())
        assert not await serving(address)
        with etcd:  # the same one, on the same port

            async def joined() -> bool:
                return await serving(address)

            await eventually(joined)
            node.terminate()
            assert node.wait(20) == 0
        assert "Traceback" not in log.read_text()
    finally:
        node.kill()
        node.wait()


async def test_sagas_go_on_when_a_member_of_etcd_is_killed(tmp_path: Path) -> None:
    with DevCluster(tmp_path / "sec", nodes=2, lease_ttl_s=4, etcd_size=3, unsafe_no_fsync=True) as cluster:
        async with stage_of(cluster, tmp_path) as stage, stage.client() as client:
            ids = [(await client.submit(CHAIN, params={"hold": ["a"]})).saga_id for _ in range(10)]
            for saga_id in ids:
                await stage.held(saga_id, "a", "do")
            assert isinstance(cluster.etcd, EmbeddedEtcd)
            cluster.etcd.kill(0)
            stage.gate.touch()
            results = await asyncio.gather(*(client.wait(saga_id, timeout_s=60) for saga_id in ids))
            assert {r.state for r in results} == {SagaState.DONE}
            assert all(stage.done(saga_id) == {"a": 1, "b": 1} for saga_id in ids)


async def fill(kv: EtcdKv) -> None:
    """Writes until there is no space left. At first plain writes are refused that are larger than the rest. Nested transactions, such as those
    of the saga log, do not count for that: they are refused when the quota has been reached."""
    for nested in (False, True):
        for _ in range(10_000):
            write = Txn(then=[Put(b"/ballast/%d" % time.time_ns(), os.urandom(10_000 if nested else 1_000_000))])
            try:
                await kv.txn(Txn(then=[write]) if nested else write)
            except KvRefused:
                break
        else:
            raise AssertionError("this etcd has no quota")


async def make_space(target: str) -> None:
    """What an operator does with etcdctl: del, compact, defrag, alarm disarm."""
    async with rpc.insecure_channel(target.removeprefix("http://")) as channel:
        store = rpc.KVStub(channel)
        deleted = await store.DeleteRange(rpc.DeleteRangeRequest(key=b"/ballast/", range_end=prefix_end(b"/ballast/")))
        await store.Compact(rpc.CompactionRequest(revision=deleted.header.revision, physical=True))
        maintenance = rpc.MaintenanceStub(channel)
        await maintenance.Defragment(rpc.DefragmentRequest())
        alarms = await maintenance.Alarm(rpc.AlarmRequest(action=rpc.AlarmRequest.GET))
        for alarm in alarms.alarms:
            await maintenance.Alarm(
                rpc.AlarmRequest(action=rpc.AlarmRequest.DEACTIVATE, memberID=alarm.memberID, alarm=alarm.alarm)
            )


async def test_sagas_wait_while_etcd_is_out_of_space_and_go_on_when_there_is_some(tmp_path: Path) -> None:
    version = find_etcd().version
    if parse_version(version) < (3, 5, 0):
        pytest.skip(
            f"etcd {version} does not count nested transactions, such as those of the saga log, against its quota: it never refuses them."
        )
    quota = ["--quota-backend-bytes=16777216"]
    with (
        EmbeddedEtcd(tmp_path / "etcd", unsafe_no_fsync=True, extra=quota) as etcd,
        DevCluster(tmp_path / "sec", nodes=2, etcd_endpoints=etcd.endpoints) as cluster,
    ):
        kv = EtcdKv(EtcdConfig(etcd.endpoints))
        async with stage_of(cluster, tmp_path) as stage, stage.client() as client:
            saga_id = (await client.submit(CHAIN, params={"hold": ["a"]})).saga_id
            await stage.held(saga_id, "a", "do")
            await fill(kv)
            stage.gate.touch()

            async def waits() -> bool:
                logs = "".join(cluster.log(name).read_text() for name in cluster.names)
                return f'The store refuses writes of saga "{saga_id}"' in logs

            try:
                await eventually(waits)
            except TimeoutError:
                logs = "\n".join(cluster.log(name).read_text() for name in cluster.names)
                pytest.fail(f"The owner did not say that it waits: {await client.get(saga_id)}\n{logs}")
            assert (await client.get(saga_id)).state is SagaState.RUNNING, "it can still be read"
            with pytest.raises(StoreFull):
                await client.submit(CHAIN)

            await come_to(cluster.addresses, NodeCondition.STORE_FULL)
            await make_space(etcd.endpoints[0])
            assert (await client.wait(saga_id, timeout_s=60)).state is SagaState.DONE
            assert stage.done(saga_id) == {"a": 1, "b": 1}
            await come_to(cluster.addresses, NodeCondition.WELL)
            assert (await client.run(CHAIN, timeout_s=60)).state is SagaState.DONE
        await kv.aclose()
