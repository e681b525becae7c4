"""What takes back the effect of an action, where that is not its undo action: nothing, an operator, or nothing ever."""

import pytest
from inprocess_support import FAST, World, cluster
from node_support import driver_of, give, paused, records_of
from sec_client import NodeState, Phase, SagaState, WrongState
from sec_model import Definition, RetryPolicy, Saga, UndoPolicy, action
from sec_model.commands import Abort, MarkUndone, NodePath, Pause, Resume, RetryUndo, SetBreakpoint, SkipUndo
from waiting_support import until

from sec.core.records import AttemptFailed, AttemptUnknown, OutcomeUnknown

A, B, C = NodePath("a"), NodePath("b"), NodePath("c")
NONE_NEEDED, CONFIRM, MANUAL = UndoPolicy.NONE_NEEDED, UndoPolicy.CONFIRM, UndoPolicy.MANUAL
NO_RETURN = UndoPolicy.POINT_OF_NO_RETURN


def chain(*policies: UndoPolicy, retry: RetryPolicy = FAST) -> Definition:
    """a, b, c one after the other, undone as these say, and the rest by their undo actions."""
    saga = Saga("policies")
    for node, undo in zip("abc", (*policies, *[UndoPolicy.ACTION] * 3), strict=False):
        saga.append(action(node, "step", retry=retry, undo_retry=retry, undo=undo))
    return saga.build()


def undone(world: World) -> list[str]:
    return [node for phase, node, _ in world.ran if phase == "undo"]


async def test_what_needs_no_undo_is_undone_without_a_call() -> None:
    world = World(do={"c": ["fail"]})
    async with cluster("n1") as c, c.client() as client:
        await c.serve(world.server())
        result = await client.run(chain(UndoPolicy.ACTION, NONE_NEEDED), timeout_s=20)
        assert result.state is SagaState.UNDONE
        assert undone(world) == ["a"]
        view = await client.get(result.saga_id)
        assert [view[n].state for n in "abc"] == [NodeState.UNDONE, NodeState.UNDONE, NodeState.FAILED]


async def test_an_unknown_outcome_that_needs_no_undo_is_undone_without_a_call_too() -> None:
    world = World(do={"b": ["unknown"] * 3})
    async with cluster("n1") as c, c.client() as client:
        await c.serve(world.server())
        result = await client.run(chain(UndoPolicy.ACTION, NONE_NEEDED), timeout_s=20)
        assert result.state is SagaState.UNDONE
        assert undone(world) == ["a"]


class TestConfirm:
    REASON = 'Node "b" cannot be undone by a call: resume the saga to let it run, or abort it.'

    async def test_the_saga_pauses_before_it_and_goes_on_when_it_is_resumed(self) -> None:
        world = World()
        async with cluster("n1") as c, c.client() as client:
            await c.serve(world.server())
            saga_id = (await client.submit(chain(UndoPolicy.ACTION, CONFIRM))).saga_id
            assert await paused(client, saga_id) == self.REASON
            assert world.ran == [("do", "a", world.ran[0][2])]
            await client.command(saga_id, Resume())
            assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.DONE

    async def test_an_abort_leaves_it_untouched(self) -> None:
        world = World()
        async with cluster("n1") as c, c.client() as client:
            await c.serve(world.server())
            saga_id = (await client.submit(chain(UndoPolicy.ACTION, CONFIRM))).saga_id
            await paused(client, saga_id)
            await client.command(saga_id, Abort("better not"))
            assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.UNDONE
            assert (world.count("do", "b"), undone(world)) == (0, ["a"])
            assert (await client.get(saga_id))["b"].state is NodeState.ABANDONED

    async def test_clearing_its_breakpoint_ahead_approves_it(self) -> None:
        world = World(do={"a": ["hold"]})
        async with cluster("n1") as c, c.client() as client:
            await c.serve(world.server())
            saga_id = (await client.submit(chain(UndoPolicy.ACTION, CONFIRM))).saga_id
            await give(client, saga_id, SetBreakpoint(B, after=False, clear=True))
            world.gate.set()
            assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.DONE

    async def test_it_is_undone_by_hand(self) -> None:
        world = World(do={"c": ["fail"]})
        async with cluster("n1") as c, c.client() as client:
            await c.serve(world.server())
            saga_id = (await client.submit(chain(UndoPolicy.ACTION, CONFIRM))).saga_id
            await paused(client, saga_id)
            await client.command(saga_id, Resume())
            assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.STUCK
            await client.command(saga_id, MarkUndone(B, "taken back by hand"))
            assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.UNDONE
            assert undone(world) == ["a"]

    async def test_a_list_shows_the_pause_when_it_is_the_very_first_step(self) -> None:
        async with cluster("n1", "n2") as c, c.client("n1") as client:
            await c.serve(World().server())
            at_first = (await client.submit(chain(CONFIRM))).saga_id
            assert [s.saga_id async for s in client.list() if s.paused and "resume the saga" in s.pause_reason] == [at_first]
            await client.drain("n1")
            await until(lambda: not c.members["n1"].node.serving)
            assert await paused(client, (await client.submit(chain(CONFIRM))).saga_id), "also when another node takes the saga"


class TestManual:
    @pytest.mark.parametrize("last", [MarkUndone(A, "by hand"), SkipUndo(A, "it may stay")], ids=lambda c: type(c).__name__)
    async def test_all_else_is_undone_first_and_then_an_operator_is_waited_for(self, last: MarkUndone | SkipUndo) -> None:
        world = World(do={"c": ["fail"]})
        async with cluster("n1") as c, c.client() as client:
            await c.serve(world.server())
            saga_id = (await client.submit(chain(MANUAL))).saga_id
            result = await client.wait(saga_id, timeout_s=20)
            assert result.state is SagaState.STUCK
            assert undone(world) == ["b"]
            error = result.errors[-1]
            assert (error.node, error.phase, error.code) == ("a", Phase.UNDO, "undone_by_hand")
            assert 'Node "a" cannot be undone by a call: take back by hand what it did' in error.message
            with pytest.raises(WrongState, match=f'^Node "a" of saga "{saga_id}" has no undo action that could be called'):
                await client.command(saga_id, RetryUndo(A))
            await client.command(saga_id, last)
            assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.UNDONE
            assert world.count("undo", "a") == 0
            expected = NodeState.UNDONE if isinstance(last, MarkUndone) else NodeState.UNDO_SKIPPED
            assert (await client.get(saga_id))["a"].state is expected

    async def test_another_branch_is_undone_before_it_is_asked_for(self) -> None:
        world = World(do={"z": ["fail"]}, undo={"y": ["hold"]})
        async with cluster("n1") as c, c.client() as client:
            await c.serve(world.server())
            saga = Saga("branches")
            saga.append_parallel(action("x", "step", undo=MANUAL), action("y", "step")).append(action("z", "step"))
            saga_id = (await client.submit(saga.build())).saga_id
            await until(lambda: world.count("undo", "y") == 1)
            assert (await client.get(saga_id)).summary.state is SagaState.UNWINDING
            world.gate.set()
            assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.STUCK
            assert (await client.get(saga_id))["y"].state is NodeState.UNDONE


class TestPointOfNoReturn:
    async def test_before_it_the_saga_unwinds_as_ever(self) -> None:
        world = World(do={"a": ["hold"], "b": ["fail"]})
        async with cluster("n1") as c, c.client() as client:
            await c.serve(world.server())
            saga_id = (await client.submit(chain(UndoPolicy.ACTION, NO_RETURN))).saga_id
            world.gate.set()
            assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.UNDONE
            assert undone(world) == ["a"], "a failure of the point itself says that it has no effect"

    @pytest.mark.parametrize("held", ["b", "c"])
    async def test_an_abort_is_refused_at_it_and_behind_it(self, held: str) -> None:
        world = World(do={held: ["hold"]})
        async with cluster("n1") as c, c.client() as client:
            await c.serve(world.server())
            saga_id = (await client.submit(chain(UndoPolicy.ACTION, NO_RETURN))).saga_id
            await until(lambda: world.count("do", held) == 1)
            with pytest.raises(WrongState, match='has come to its point of no return, node "b": it only goes forward'):
                await client.command(saga_id, Abort("too late"))
            world.gate.set()
            assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.DONE

    async def test_a_failure_behind_it_is_tried_again_as_something_new(self) -> None:
        """The kit remembers that the first key has failed, and would answer so for ever."""
        world = World(do={"c": ["fail", "fail"]})
        async with cluster("n1") as c, c.client() as client:
            await c.serve(world.server())
            saga_id = (await client.submit(chain(UndoPolicy.ACTION, NO_RETURN))).saga_id
            assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.DONE
            uid = (await client.get(saga_id)).uid
            assert [call.key for call in world.calls if call.node == "c"] == [f"{uid}/c", f"{uid}/c~2", f"{uid}/c~3"]
            failed = [r for r in await records_of(c.members["n1"], saga_id) if isinstance(r, AttemptFailed)]
            assert [(r.node, r.attempt, r.error.code) for r in failed] == [("c", 1, "scripted"), ("c", 2, "scripted")]
            assert world.effects[saga_id, "c"] == 1

    async def test_the_next_owner_goes_on_with_the_last_key(self) -> None:
        world = World(do={"c": ["fail", "hold", ""]})
        async with cluster("n1", "n2") as c, c.client("n2") as client:
            await c.serve(world.server())
            async with c.client("n1") as at_first:
                saga_id = (await at_first.submit(chain(UndoPolicy.ACTION, NO_RETURN))).saga_id
            await until(lambda: world.count("do", "c") == 2)
            await client.drain("n1")
            await until(lambda: c.owner_of(saga_id) is c.members["n2"])
            world.gate.set()
            assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.DONE
            assert [call.key[-2:] for call in world.calls if call.node == "c"] == ["/c", "~2"], "one effect under the second key"
            assert world.effects[saga_id, "c"] == 1

    async def test_an_unknown_outcome_at_it_is_never_given_up(self) -> None:
        """Beyond the policy calls become rare. An operator who pauses and resumes the saga has the next one made at once."""
        twice = RetryPolicy(max_attempts=2, initial_backoff_s=0.01, max_backoff_s=0.02, attempt_timeout_s=10)
        world = World(do={"b": ["unknown"] * 4})
        async with cluster("n1") as c, c.client() as client:
            await c.serve(world.server())
            saga_id = (await client.submit(chain(UndoPolicy.ACTION, NO_RETURN, retry=twice))).saga_id
            driver = await driver_of(c, saga_id)
            for attempts in (2, 3, 4):
                await until(lambda attempts=attempts: driver.state.tries and driver.state.tries[1].count == attempts)
                node = (await client.get(saga_id))["b"]
                assert (node.state, node.attempts) == (NodeState.RETRYING, attempts)
                await give(client, saga_id, Pause(""))
                await give(client, saga_id, Resume())
            assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.DONE
            records = await records_of(c.members["n1"], saga_id)
            assert len([r for r in records if isinstance(r, AttemptUnknown)]) == 4
            assert not [r for r in records if isinstance(r, OutcomeUnknown)]
            assert undone(world) == []
            assert len({call.key for call in world.calls if call.node == "b"}) == 1, "what is unknown keeps its key"
