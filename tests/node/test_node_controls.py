"""Commands and the calls that are under way, or about to be: what a driver does with its hands full."""

from inprocess_support import FAST, World, chain, cluster
from node_support import give
from sec_client import NodeState, RetryPolicy, SagaState
from sec_model.commands import Abort, InjectRepeat, NodePath, Pause, Phase, Resume
from waiting_support import until

from sec.core.records import Commanded, SagaId

PATIENT = RetryPolicy(max_attempts=1000, initial_backoff_s=3600, max_backoff_s=3600)


async def test_a_pause_withholds_a_retry_and_the_end_of_the_pause_makes_it() -> None:
    world = World(do={"a": ["unknown", ""]})
    async with cluster("n1") as c, c.client() as client:
        await c.serve(world.server())
        saga_id = (await client.submit(chain("a", "b", retry=PATIENT))).saga_id
        driver = c.members["n1"].node.owner.drivers[SagaId(saga_id)]
        await until(lambda: driver.state.tries)
        await give(client, saga_id, Pause("wait"))
        assert (await client.get(saga_id))["a"].state is NodeState.RETRYING
        assert world.count("do", "a") == 1
        await give(client, saga_id, Resume())
        assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.DONE
        assert world.count("do", "a") == 2, "an hour's pause between two calls ends with the operator's"


async def test_a_call_under_way_at_a_pause_is_recorded_and_not_made_twice_after_it() -> None:
    world = World(do={"a": ["hold"]})
    async with cluster("n1") as c, c.client() as client:
        await c.serve(world.server())
        saga_id = (await client.submit(chain("a", "b"))).saga_id
        await until(lambda: world.count("do", "a") == 1)
        await give(client, saga_id, Pause(""))
        await give(client, saga_id, Resume())
        await give(client, saga_id, Pause("again"))
        world.gate.set()
        driver = c.members["n1"].node.owner.drivers[SagaId(saga_id)]
        await until(lambda: not driver.state.in_flight)
        assert world.count("do", "b") == 0
        await give(client, saga_id, Resume())
        assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.DONE
        assert world.count("do", "a") == world.count("do", "b") == 1


async def test_an_abort_of_a_paused_saga_gives_up_the_do_that_was_withheld() -> None:
    world = World(do={"b": ["unknown"]})
    async with cluster("n1") as c, c.client() as client:
        await c.serve(world.server())
        saga_id = (await client.submit(chain("a", "b", "c", retry=PATIENT))).saga_id
        driver = c.members["n1"].node.owner.drivers[SagaId(saga_id)]
        await until(lambda: driver.state.tries)
        await give(client, saga_id, Pause(""))
        await client.command(saga_id, Abort("no more"))
        result = await client.wait(saga_id, timeout_s=20)
        assert result.state is SagaState.UNDONE
        assert [(e.node, e.code) for e in result.errors] == [("", "aborted"), ("b", "unavailable")]
        assert [n for p, n, _ in world.ran if p == "undo"] == ["b", "a"]


async def test_a_paused_saga_stays_paused_at_its_next_owner() -> None:
    world = World(do={"a": ["hold", ""]})
    async with cluster("n1", "n2") as c, c.client("n2") as client:
        await c.serve(world.server())
        async with c.client("n1") as at_first:
            saga_id = (await at_first.submit(chain("a", "b"))).saga_id
        await until(lambda: world.count("do", "a") == 1)
        await give(client, saga_id, Pause("a move"))
        await c.members["n1"].stop()
        await until(lambda: c.owner_of(saga_id) is c.members["n2"])
        driver = c.members["n2"].node.owner.drivers[SagaId(saga_id)]
        await until(lambda: driver.state.owner == "n2")
        assert driver.state.controls.paused
        summary = (await client.get(saga_id)).summary
        assert (summary.paused, summary.pause_reason) == (True, "a move")
        assert world.count("do", "a") == 1, "nothing is dispatched while it is paused, not even what was under way"
        world.gate.set()
        await client.command(saga_id, Resume())
        assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.DONE


async def test_a_repeated_call_has_the_effect_of_one() -> None:
    world = World(do={"a": ["hold"]})
    async with cluster("n1") as c, c.client() as client:
        await c.serve(world.server())
        saga_id = (await client.submit(chain("a", "b", retry=FAST))).saga_id
        await until(lambda: world.count("do", "a") == 1)
        await give(client, saga_id, InjectRepeat(NodePath("b"), Phase.DO, 5))
        world.gate.set()
        assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.DONE
        assert world.effects[saga_id, "b"] == 1


async def test_the_same_command_again_is_taken_up_once() -> None:
    world = World(do={"a": ["hold"]})
    async with cluster("n1") as c, c.client() as client:
        await c.serve(world.server())
        saga_id = (await client.submit(chain("a", "b"))).saga_id
        await until(lambda: world.count("do", "a") == 1)
        for _ in range(3):
            await client.command(saga_id, Pause("once"), command_id="the-same")
        driver = c.members["n1"].node.owner.drivers[SagaId(saga_id)]
        await until(lambda: driver.state.controls.paused)
        await client.command(saga_id, Pause("once"), command_id="the-same")
        entries = (await c.members["n1"].node.sagas.load(SagaId(saga_id))).entries
        assert len([e for e in entries if isinstance(e.record, Commanded)]) == 1
        world.gate.set()
        await client.command(saga_id, Resume())
        assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.DONE
