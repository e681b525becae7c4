"""A node that joins gets its share of sagas, of those that only wait; and sagas do not wander."""

import pytest
from inprocess_support import World, chain, cluster
from sec_client import SagaState
from sec_model import Saga, action, signal
from waiting_support import until

from sec.core.records import SagaId, SecNodeName
from sec.node.rebalance import LEAST_DIFFERENCE, MOST_AT_ONCE, to_give_away


def named(*counts: int) -> dict[SecNodeName, int]:
    return {SecNodeName(f"n{number}"): count for number, count in enumerate(counts)}


@pytest.mark.parametrize(
    ("owned", "given"),
    [
        ((), ()),
        ((100,), (0,)),
        ((0, 0, 0), (0, 0, 0)),
        ((LEAST_DIFFERENCE, 0), (0, 0)),
        ((LEAST_DIFFERENCE + 2, 0), (6, 0)),
        ((30, 30, 0), (10, 10, 0)),
        ((1000, 1000, 0), (MOST_AT_ONCE, MOST_AT_ONCE, 0)),
        ((1000, 820), (0, 0)),
        ((1000, 800), (MOST_AT_ONCE, 0)),
        ((12, 11, 0), (4, 3, 0)),
    ],
)
def test_who_gives_away_how_many(owned: tuple[int, ...], given: tuple[int, ...]) -> None:
    assert to_give_away(named(*owned)) == {node: count for node, count in named(*given).items() if count}


def waiting() -> Saga:
    return Saga("waiting").append(action("a", "step")).append(signal("go")).append(action("b", "step"))


async def test_a_node_that_joins_gets_its_share_of_the_sagas_that_wait_and_none_that_is_at_work() -> None:
    world = World(do={"held": ["hold"] * 6})
    async with cluster("n1", "n2") as c, c.client("n1") as at_first, c.client("n2") as at_second:
        await c.serve(world.server())
        for number in range(24):
            await (at_first, at_second)[number % 2].submit(waiting(), saga_id=f"w{number}")
        for number in range(6):
            await at_first.submit(chain("held"), saga_id=f"h{number}")
        await until(lambda: world.count("do", "held") == 6 and world.count("do", "a") == 24)
        third = (await c.add("n3")).node
        await until(lambda: len(third.owner.drivers) >= 6)
        assert all(saga_id.startswith("w") for saga_id in third.owner.drivers)
        assert world.count("do", "held") == 6, "what was at work stayed where it was"
        await until(lambda: not to_give_away({m.node.settings.name: len(m.node.owner.drivers) for m in c.members.values()}))
        world.gate.set()
        for number in range(24):
            await at_first.signal(f"w{number}", "go")
        for saga_id in [f"w{n}" for n in range(24)] + [f"h{n}" for n in range(6)]:
            assert (await at_second.wait(saga_id, timeout_s=20)).state is SagaState.DONE
        assert all(count == 1 for count in world.effects.values())
        assert world.count("do", "a") == 24, "a saga that moved did not do again what it had done"


async def test_a_node_that_is_drained_counts_for_nothing() -> None:
    async with cluster("n1", "n2") as c, c.client("n1") as client:
        await c.serve(World().server())
        await client.drain("n2")
        await until(lambda: c.members["n1"].node.claimers() == ["n1"])
        for number in range(LEAST_DIFFERENCE + 5):
            await client.submit(waiting(), saga_id=f"w{number}")
        node = c.members["n1"].node
        await until(lambda: node.counts.of(SecNodeName("n1")) == LEAST_DIFFERENCE + 5)
        assert to_give_away({name: node.counts.of(name) for name in node.claimers()}) == {}
        assert set(node.owner.drivers) == {SagaId(f"w{n}") for n in range(LEAST_DIFFERENCE + 5)}
