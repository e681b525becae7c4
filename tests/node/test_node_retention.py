"""Ended sagas go when their time is up, all of them at once, and nothing else does."""

import pytest
from inprocess_support import Cluster, World, chain, cluster
from node_support import leadership
from sec_client import SagaNotFound, SagaState
from sec_client.aio import Client
from sec_protos.v1 import coordinator_pb2
from waiting_support import eventually

from sec.core.records import SagaId
from sec.node.retention import PAGE, Retention
from sec.store.election import Leadership
from sec.store.kv import Revision

DAY_US = 86_400 * 1_000_000


async def ids(client: Client) -> set[str]:
    return {summary.saga_id async for summary in client.list()}


def retention(c: Cluster, now_us: list[int], **keep_s: float) -> Retention:
    node = c.members["n1"].node
    given = {"keep_done_s": 0.0, "keep_undone_s": 0.0, **keep_s}
    return Retention(node.kv, node.keys, node.sagas, lambda: now_us[0], at_least_s=0.5, **given)


async def test_a_leader_removes_each_saga_after_the_time_of_its_state() -> None:
    world = World(do={"bad": ["fail"], "held": ["hold"]})
    async with cluster("n1", "n2", keep_done_s=0.5, keep_undone_s=3600) as c:
        await c.serve(world.server())
        async with c.client() as client:
            await client.submit(chain("held"), saga_id="runs")
            await client.submit(chain("a"), saga_id="waits", start=False)
            await client.run(chain("bad"), saga_id="undone")
            await client.run(chain("a"), saga_id="done")

            async def gone() -> bool:
                return "done" not in await ids(client)

            await eventually(gone)
            assert await ids(client) == {"runs", "waits", "undone"}
            assert not [key for key in c.etcd_keys(b"/sec/") if key.split(b"/").count(b"done")]
            assert (await client.get("undone")).state is SagaState.UNDONE
            world.gate.set()


async def test_a_pass_removes_what_is_due_over_many_pages_and_says_when_the_next_is() -> None:
    now_us = [1_000 * DAY_US]
    async with cluster("n1", keep_done_s=0, keep_undone_s=0) as c:
        node = c.members["n1"].node
        old, young = PAGE + 50, 20
        for number in range(old + young):
            ended_us = now_us[0] - (8 * DAY_US if number < old else DAY_US)
            state = coordinator_pb2.SAGA_STATE_DONE
            summary = coordinator_pb2.SagaSummary(saga_id=f"s{number:04}", state=state, ended_us=ended_us)
            c.etcd_put(node.keys.ended(SagaId(summary.saga_id)), summary.SerializeToString())
            c.etcd_put(node.keys.log_batch(SagaId(summary.saga_id), 1), b"x")
        c.etcd_put(node.keys.ended(SagaId("unreadable")), b"\xff")
        held = await leadership(c)
        removed, due_in_s = await retention(c, now_us, keep_done_s=7 * 86_400).one_pass(held)
        assert (removed, due_in_s) == (old, 6 * 86_400)
        assert len(c.etcd_keys(node.keys.endeds)) == young + 1
        assert len(c.etcd_keys(b"/sec/v1/00/log/")) == young


async def test_a_node_that_only_believes_that_it_leads_removes_nothing() -> None:
    world = World()
    async with cluster("n1", keep_done_s=0, keep_undone_s=0) as c:
        await c.serve(world.server())
        async with c.client() as client:
            await client.run(chain("a"), saga_id="s1")
            held = await leadership(c)
            later = [10**18]
            stale = Leadership(held.key, Revision(held.revision - 1))
            assert (await retention(c, later, keep_done_s=1).one_pass(stale))[0] == 0
            assert await ids(client) == {"s1"}
            assert (await retention(c, later, keep_undone_s=1).one_pass(held))[0] == 0, "it was done, not undone"
            assert (await retention(c, later, keep_done_s=1).one_pass(held))[0] == 1
            assert await ids(client) == set()


async def test_who_waits_for_or_watches_a_saga_that_is_deleted_hears_of_it() -> None:
    async with cluster("n1") as c, c.client() as client:
        await client.submit(chain("a"), saga_id="s1", start=False)
        records = client.watch("s1")
        assert (await anext(records)).kind == "created"
        await client.delete("s1")
        with pytest.raises(SagaNotFound, match='Saga "s1" was deleted'):
            await anext(records)
        assert (await client.submit(chain("b"), saga_id="s1", start=False)).created, "its id is free again"
