"""Definitions that no saga uses any more go, and none that one uses or is about to use."""

import pytest
from inprocess_support import Cluster, World, chain, cluster
from node_support import leadership
from sec_client import SagaState
from sec_protos.v1 import coordinator_pb2

from sec.core.records import SagaId
from sec.node.definition_sweep import SLICES, DefinitionSweep
from sec.store.election import Leadership
from sec.store.kv import Get, Revision


async def passes(c: Cluster, held: Leadership, count: int = 1) -> None:
    for _ in range(count):
        for digit in SLICES:
            await c.members["n1"].node.definition_sweep.one_pass(held, digit)


def stored(c: Cluster) -> tuple[int, int]:
    """How many definitions are stored, and how many are retired."""
    return len(c.etcd_keys(b"/sec/v1/00/definition/")), len(c.etcd_keys(b"/sec/v1/00/retired/"))


async def test_a_definition_goes_when_the_last_saga_made_from_it_is_gone_and_comes_back_with_the_next() -> None:
    world = World(do={"held": ["hold"]})
    async with cluster("n1", "n2") as c, c.client("n1") as client:
        await c.serve(world.server())
        held = await leadership(c)
        await client.submit(chain("held"), saga_id="runs")
        await client.submit(chain("w"), saga_id="waits", start=False)
        await client.run(chain("a"), saga_id="ended")
        await client.run(chain("a"), saga_id="another")
        await passes(c, held, 2)
        assert stored(c) == (3, 0)
        await client.delete("ended")
        await passes(c, held, 2)
        assert stored(c) == (3, 0), "another saga is made from it"
        await client.delete("another")
        await passes(c, held)
        assert stored(c) == (2, 1)
        await passes(c, held)
        assert stored(c) == (2, 0)
        assert (await client.run(chain("a"), saga_id="again")).state is SagaState.DONE, (
            "the node remembered what the store had lost"
        )
        assert stored(c) == (3, 0)
        world.gate.set()


async def test_a_saga_that_is_submitted_between_look_and_move_is_read_and_its_definition_put_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with cluster("n1", "n2") as c, c.client("n1") as client, c.client("n2") as at_second:
        held = await leadership(c)
        await client.submit(chain("a"), saga_id="first", start=False)
        await client.delete("first")
        looked = DefinitionSweep._used  # noqa: SLF001

        async def used(self: DefinitionSweep, first_digit: str) -> set[str] | None:
            found = await looked(self, first_digit)
            if "second" not in [s.saga_id async for s in client.list()]:
                await client.submit(chain("a"), saga_id="second", start=False)
            return found

        with monkeypatch.context() as patch:
            patch.setattr(DefinitionSweep, "_used", used)
            await passes(c, held)
        assert stored(c) == (0, 1)
        assert (await at_second.get("second")).state is SagaState.CREATED
        await passes(c, held)
        assert stored(c) == (1, 0)


async def test_summaries_of_an_earlier_version_count_too_and_what_cannot_be_read_keeps_everything() -> None:
    async with cluster("n1") as c, c.client() as client:
        held = await leadership(c)
        node = c.members["n1"].node
        await client.submit(chain("a"), saga_id="s1", start=False)
        await client.submit(chain("b"), saga_id="s2", start=False)
        c.etcd_put(node.keys.created(SagaId("s1")), coordinator_pb2.SagaSummary(saga_id="s1").SerializeToString())
        await client.delete("s2")
        c.etcd_put(node.keys.created(SagaId("bad")), coordinator_pb2.SagaSummary(saga_id="bad").SerializeToString())
        c.etcd_put(node.keys.saga(SagaId("bad")), b"\xff")
        await passes(c, held)
        assert stored(c) == (2, 0)
        c.etcd_put(node.keys.saga(SagaId("bad")), (await node.kv.get(Get(node.keys.saga(SagaId("s1"))))).items[0].value)
        await passes(c, held, 2)
        assert stored(c) == (1, 0)


async def test_a_node_that_only_believes_that_it_leads_moves_nothing() -> None:
    async with cluster("n1") as c, c.client() as client:
        held = await leadership(c)
        await client.submit(chain("a"), saga_id="s1", start=False)
        await client.delete("s1")
        await passes(c, Leadership(held.key, Revision(held.revision - 1)))
        assert stored(c) == (1, 0)
        await passes(c, held)
        await passes(c, Leadership(held.key, Revision(held.revision - 1)))
        assert stored(c) == (0, 1)
