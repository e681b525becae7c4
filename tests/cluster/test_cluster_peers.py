"""SEC nodes that die and hang, as processes: what is dead is replaced at once, what hangs is left to its lease. No lease ends in these tests."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from cluster_support import counting_server
from sec_client import Definition, Saga, SagaState, action
from sec_client import aio as sec_aio
from waiting_support import eventually, until

from sec.core.records import SecNodeName
from sec.dev.cluster import DevCluster
from sec.dev.etcd import EmbeddedEtcd
from sec.node.peers import Connection, connect
from sec.store.etcd import EtcdKv
from sec.store.keys import Keys
from sec.store.kv import Get, LeaseId

PREFIX = "/peers-tests"
LEASE_TTL_S = 300


@pytest.fixture
async def patient(etcd: EmbeddedEtcd, tmp_path: Path) -> AsyncIterator[DevCluster]:
    """Two SEC nodes whose leases outlast every test."""
    options = ["--log-level=debug"]
    async with DevCluster(
        tmp_path, nodes=2, etcd_endpoints=etcd.endpoints, prefix=PREFIX, lease_ttl_s=LEASE_TTL_S, extra=options
    ) as cluster:
        yield cluster


def saga(name: str) -> Definition:
    return Saga(name).append(action("a", "step")).build()


async def lease_of(kv: EtcdKv, name: str) -> LeaseId | None:
    found = (await kv.get(Get(Keys(PREFIX).node(SecNodeName(name))))).items
    return found[0].lease if found else None


async def test_what_a_killed_node_owned_goes_on_without_its_lease(patient: DevCluster, etcd_kv: EtcdKv) -> None:
    async with sec_aio.Client([patient.address("sec-1")]) as client, sec_aio.Client([patient.address("sec-2")]) as other:
        await client.submit(saga("waits"), saga_id="waits-for-a-server")

        async def taken_over() -> bool:
            return (await other.get("waits-for-a-server")).summary.owner == "sec-2"

        first = await lease_of(etcd_kv, "sec-1")
        await until(lambda: 'attends SEC node "sec-1"' in patient.log("sec-2").read_text())
        patient.kill("sec-1")
        await eventually(taken_over)
        await patient.restart_async("sec-1")
        second = await lease_of(etcd_kv, "sec-1")
        assert second not in (None, first)

        # Nobody is left to see that they are dead: each ends its own last session.
        patient.kill("sec-1")
        patient.kill("sec-2")
        await patient.restart_async("sec-2")
        await patient.restart_async("sec-1")
        async with counting_server(patient.addresses, "step") as server:
            assert (await client.wait("waits-for-a-server", timeout_s=30)).state is SagaState.DONE
            assert server.effects == {"a": 1}


async def test_sagas_go_on_while_the_nodes_are_restarted_one_after_the_other(patient: DevCluster) -> None:
    three = Saga("goes-on").append(action("a", "step")).append(action("b", "step")).append(action("c", "step")).build()
    restarted = asyncio.Event()

    async def work(client: sec_aio.Client) -> int:
        """How many sagas were run, each to its end, before all nodes had been restarted."""
        count = 0
        while not restarted.is_set():
            assert (await client.run(three, timeout_s=60)).state is SagaState.DONE
            count += 1
        return count

    async with sec_aio.Client(patient.addresses) as client, counting_server(patient.addresses, "step") as server:

        def past(count: int) -> Callable[[], bool]:
            return lambda: server.effects["c"] > count

        async with asyncio.TaskGroup() as tasks:
            workers = [tasks.create_task(work(client)) for _ in range(8)]
            for name in patient.names:
                await until(past(server.effects["c"] + 16))
                await patient.terminate_async(name)
                assert patient.exit_status(name) == 0
                await patient.restart_async(name)
            restarted.set()
        ran = sum(worker.result() for worker in workers)
        assert server.effects == {"a": ran, "b": ran, "c": ran}
    assert all("handed over" in patient.log(name).read_text() for name in patient.names)


async def test_a_node_that_hangs_is_not_taken_for_dead(patient: DevCluster, etcd_kv: EtcdKv) -> None:
    lease = await lease_of(etcd_kv, "sec-2")
    patient.pause("sec-2")
    try:
        # It is looked at anew, by a node that has no stream to it: it takes the connection and says nothing.
        await patient.restart_async("sec-1")
        await until(lambda: 'SEC node "sec-2" at' in patient.log("sec-1").read_text())
        assert await connect(patient.address("sec-2")) is Connection.ACCEPTED
        assert await lease_of(etcd_kv, "sec-2") == lease
    finally:
        patient.resume("sec-2")
    patient.wait_serving("sec-2")
    assert await lease_of(etcd_kv, "sec-2") == lease, "it goes on where it stood"
