"""What an SEC node says of itself while its store is in trouble. With real members of etcd: tests/cluster/test_cluster_etcd_trouble.py."""

import pytest
from inprocess_support import World, chain, cluster
from sec_client import NodeCondition, SagaState
from waiting_support import until

from sec.node import store_probe
from sec.node.health import Condition


async def test_a_store_that_cannot_be_reached_is_named_and_so_is_its_return(caplog: pytest.LogCaptureFixture) -> None:
    async with cluster("n1") as c, c.client() as client:
        member = c.members["n1"]
        assert member.node.health.trouble == ""
        member.kv.partition()
        await until(lambda: member.node.health.condition is Condition.STORE_UNREACHABLE)
        assert not member.node.serving
        assert member.node.health.trouble.startswith("The store does not answer: Could not ")
        [shown] = member.node.known_nodes()
        assert shown.trouble == member.node.health.trouble
        member.kv.partition(False)
        await until(lambda: member.node.serving)
        assert member.node.health.condition is Condition.WELL
        assert (await client.nodes()).nodes[0].condition is NodeCondition.WELL
        assert 'SEC node "n1": The store does not answer: ' in caplog.text
        assert 'The store of SEC node "n1" is well again.' in caplog.text


async def test_a_slow_store_is_said_and_the_node_goes_on_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_probe, "SLOW_FOR_S", 0.5)
    world = World()
    async with cluster("n1", store_timeout_s=5, lease_ttl_s=30, stall_limit_s=60) as c, c.client() as client:
        await c.serve(world.server())
        member = c.members["n1"]
        member.kv.latency_s = 1.1
        submitted = await client.submit(chain("a"), start=False)
        assert member.node.health.condition is Condition.STORE_SLOW
        assert member.node.serving
        assert member.node.health.trouble.startswith("The store is slow: a transaction took 1.")
        member.kv.latency_s = 0.001
        await client.start(submitted.saga_id)
        assert (await client.wait(submitted.saga_id, timeout_s=30)).state is SagaState.DONE
        await until(lambda: member.node.health.condition is Condition.WELL)
