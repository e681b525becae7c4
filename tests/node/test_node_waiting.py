"""Signals, timers and deadlines at a real SEC node: what waits, what ends the waiting, and what it costs."""

import asyncio
import threading
from datetime import UTC, datetime

import pytest
from inprocess_support import FAST, World, chain, cluster
from node_support import PATIENT, driver_of, give, paused, records_of, refusals_of, submit_with_deadline
from sec_client import NodeState, SagaState, WrongState
from sec_model import Deadline, Definition, OnDeadline, Payload, RetryPolicy, Saga, action, signal, timer
from sec_model.commands import Abort, NodePath, Pause, Resume, SetDeadline, Signal
from waiting_support import until

from sec.core.records import DeadlinePassed, OutcomeUnknown, SagaId, Started, Succeeded, UndoFinished
from sec.node.owner import wall_clock_us

A, B, W, T, WHOLE = NodePath("a"), NodePath("b"), NodePath("w"), NodePath("t"), NodePath("")
HERE = Payload.json({"parcel": 7})


def waiting(deadline: Deadline | None = None) -> Definition:
    """a, then a signal w, then b, which reads it."""
    saga = Saga("waiting").append(action("a", "step", retry=FAST)).append(signal("w", deadline=deadline))
    return saga.append(action("b", "step", reads=["w"], retry=FAST)).build()


def one(retry: RetryPolicy, deadline: Deadline | None = None) -> Definition:
    """a with a deadline, then b."""
    saga = Saga("one").append(action("a", "step", retry=retry, deadline=deadline))
    return saga.append(action("b", "step")).build()


class TestTimers:
    async def test_a_timer_waits_its_time_and_then_the_saga_goes_on(self) -> None:
        world = World()
        async with cluster("n1") as c, c.client() as client:
            await c.serve(world.server())
            saga = Saga("timer").append(action("a", "step")).append(timer("t", 0.3)).append(action("b", "step"))
            saga_id = (await client.submit(saga.build())).saga_id
            assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.DONE
            entries = (await c.members["n1"].node.sagas.load(SagaId(saga_id))).entries
            (started,) = [e for e in entries if isinstance(e.record, Started) and e.record.node == T]
            (over,) = [e for e in entries if isinstance(e.record, Succeeded) and e.record.node == T]
            assert isinstance(started.record, Started)
            assert started.record.due_us <= over.time_us, "not before its time"
            assert 200_000 < started.record.due_us - started.time_us <= 300_000

    async def test_a_timer_that_is_far_away_is_shown_as_waiting(self) -> None:
        world = World()
        async with cluster("n1") as c, c.client() as client:
            await c.serve(world.server())
            saga = Saga("timer").append(timer("t", 86_400 * 30)).append(action("b", "step"))
            saga_id = (await client.submit(saga.build())).saga_id
            view = await client.get(saga_id)
            assert (view["t"].state, view["b"].state) == (NodeState.WAITING, NodeState.BLOCKED)
            await client.command(saga_id, Abort("not in a month"))
            assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.UNDONE
            assert (await client.get(saga_id))["t"].state is NodeState.ABANDONED
            assert world.ran == []

    async def test_an_instant_that_has_passed_is_waited_for_no_more(self) -> None:
        async with cluster("n1") as c, c.client() as client:
            await c.serve(World().server())
            saga = Saga("timer").append(timer("t", datetime(2001, 1, 1, tzinfo=UTC))).append(action("b", "step"))
            assert (await client.run(saga.build(), timeout_s=20)).state is SagaState.DONE

    async def test_a_timer_goes_on_in_a_saga_that_is_paused(self) -> None:
        world = World()
        async with cluster("n1") as c, c.client() as client:
            await c.serve(world.server())
            saga = Saga("timer").append(timer("t", 3600)).append(action("b", "step"))
            saga_id = (await client.submit(saga.build())).saga_id
            driver = await driver_of(c, saga_id)
            await give(client, saga_id, Pause("look first"))
            assert T in driver.state.dues, "its time runs"
            with pytest.raises(WrongState, match=r'Node "t" of saga ".*" is a timer, which ends by itself\.'):
                await client.command(saga_id, SetDeadline(T, after_s=1))
            await client.command(saga_id, Abort("enough"))
            assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.UNDONE


class TestSignals:
    async def test_a_signal_comes_while_its_node_waits(self) -> None:
        world = World()
        async with cluster("n1") as c, c.client() as client:
            await c.serve(world.server())
            saga_id = (await client.submit(waiting())).saga_id
            driver = await driver_of(c, saga_id)
            await until(lambda: driver.state.waiting)
            assert (await client.get(saga_id))["w"].state is NodeState.WAITING
            assert world.count("do", "b") == 0
            await client.command(saga_id, Signal(W, HERE))
            result = await client.wait(saga_id, timeout_s=20)
            assert result.state is SagaState.DONE
            assert result.output == {"node": "b", "inputs": {"w": {"parcel": 7}}}

    async def test_a_signal_that_comes_before_its_node_is_kept_and_the_next_is_refused(self) -> None:
        world = World(do={"a": ["hold"]})
        async with cluster("n1") as c, c.client() as client:
            await c.serve(world.server())
            saga_id = (await client.submit(waiting())).saga_id
            await give(client, saga_id, Signal(W, HERE))
            with pytest.raises(WrongState, match=f'^Node "w" of saga "{saga_id}" has got its signal already\\.'):
                await client.command(saga_id, Signal(W, Payload.json("another")))
            world.gate.set()
            result = await client.wait(saga_id, timeout_s=20)
            assert result.output == {"node": "b", "inputs": {"w": {"parcel": 7}}}

    async def test_two_signals_at_once_are_one(self) -> None:
        world = World(do={"a": ["hold"], "b": ["hold"]})
        async with cluster("n1") as c, c.client() as client:
            await c.serve(world.server())
            saga_id = (await client.submit(waiting(), start=False)).saga_id
            for number in (1, 2):  # nobody has taken up the first when the second comes
                await client.command(saga_id, Signal(W, Payload.json(number)))
            await client.start(saga_id)
            world.gate.set()
            result = await client.wait(saga_id, timeout_s=20)
            assert result.output == {"node": "b", "inputs": {"w": 1}}
            assert await refusals_of(c.members["n1"], saga_id) == ["", f'Node "w" of saga "{saga_id}" has got its signal already.']

    async def test_while_the_saga_unwinds_nobody_waits_for_a_signal(self) -> None:
        world = World(undo={"a": ["hold"]})
        async with cluster("n1") as c, c.client() as client:
            await c.serve(world.server())
            saga_id = (await client.submit(waiting())).saga_id
            driver = await driver_of(c, saga_id)
            await until(lambda: driver.state.waiting)
            await give(client, saga_id, Abort("never mind"))
            with pytest.raises(WrongState, match=f'^Node "w" of saga "{saga_id}" does not wait for its signal any more\\.'):
                await client.command(saga_id, Signal(W, HERE))
            with pytest.raises(WrongState, match=f'^Saga "{saga_id}" unwinds: deadlines are for going forward\\.'):
                await client.command(saga_id, SetDeadline(WHOLE, after_s=1))
            assert (await client.get(saga_id))["w"].state is NodeState.ABANDONED
            world.gate.set()
            assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.UNDONE
            assert not world.effects[saga_id, "a"]

    async def test_a_signal_that_does_not_come_by_its_deadline_fails(self) -> None:
        world = World()
        async with cluster("n1") as c, c.client() as client:
            await c.serve(world.server())
            saga_id = (await client.submit(waiting(Deadline(0.2)))).saga_id
            result = await client.wait(saga_id, timeout_s=20)
            assert result.state is SagaState.UNDONE
            assert [(e.node, e.code) for e in result.errors] == [("w", "deadline_passed")]
            assert result.errors[0].message == 'The signal of node "w" did not come by its deadline.'
            assert (await client.get(saga_id))["w"].state is NodeState.FAILED
            assert [n for p, n, _ in world.ran if p == "undo"] == ["a"]

    async def test_or_pauses_the_saga_which_takes_it_still(self) -> None:
        async with cluster("n1") as c, c.client() as client:
            await c.serve(World().server())
            saga_id = (await client.submit(waiting(Deadline(0.05, OnDeadline.PAUSE)))).saga_id
            assert await paused(client, saga_id) == 'Node "w" did not end by its deadline.'
            await give(client, saga_id, Signal(W, HERE))
            assert (await client.get(saga_id)).summary.paused, "only an operator ends a pause"
            await give(client, saga_id, Resume())
            assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.DONE

    async def test_a_signal_in_time_ends_its_deadline(self) -> None:
        world = World(do={"b": ["hold"]})
        async with cluster("n1") as c, c.client() as client:
            await c.serve(world.server())
            saga_id = (await client.submit(waiting(Deadline(3600)))).saga_id
            driver = await driver_of(c, saga_id)
            await until(lambda: driver.state.waiting)
            await client.command(saga_id, Signal(W, HERE))
            await until(lambda: world.count("do", "b") == 1)
            assert driver.state.dues == {}
            world.gate.set()
            assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.DONE


class TestDeadlinesOfNodes:
    async def test_a_call_under_way_ends_with_the_deadline_and_is_undone(self) -> None:
        world = World(do={"a": ["hold"]})
        async with cluster("n1") as c, c.client() as client:
            await c.serve(world.server())
            saga_id = (await client.submit(one(PATIENT, Deadline(0.5)))).saga_id
            await until(lambda: world.count("do", "a") == 1)
            remaining_s = world.calls[0].remaining_s()
            assert remaining_s is not None
            assert remaining_s <= 0.5, "the call is not to outlast the deadline"
            driver = await driver_of(c, saga_id)
            await until(lambda: driver.state.mishaps)
            world.gate.set()  # the action has its effect after all, and its undo waited for that
            result = await client.wait(saga_id, timeout_s=20)
            assert result.state is SagaState.UNDONE
            assert result.errors[0].node == "a"
            assert world.effects[saga_id, "a"] == 0
            assert (world.count("do", "a"), world.count("do", "b")) == (1, 0)
            records = await records_of(c.members["n1"], saga_id)
            assert [r.node for r in records if isinstance(r, DeadlinePassed | OutcomeUnknown)] == ["a", "a"]

    async def test_a_call_that_would_be_made_again_is_not(self) -> None:
        world = World(do={"a": ["unknown"]})
        async with cluster("n1") as c, c.client() as client:
            await c.serve(world.server())
            saga_id = (await client.submit(one(PATIENT))).saga_id
            driver = await driver_of(c, saga_id)
            await until(lambda: driver.state.tries)
            await client.command(saga_id, SetDeadline(A, after_s=0.01))
            result = await client.wait(saga_id, timeout_s=20)
            assert result.state is SagaState.UNDONE
            assert [(e.node, e.code) for e in result.errors] == [("a", "deadline_passed")]
            assert result.errors[0].message.startswith('Node "a" did not end by its deadline. The last that went wrong: ')
            assert (world.count("do", "a"), world.count("undo", "a")) == (1, 1)

    async def test_nor_is_one_that_waits_for_an_action_server(self) -> None:
        world = World(do={"a": ["hold"]})
        async with cluster("n1") as c, c.client() as client:
            first = await c.serve(world.server())
            saga_id = (await client.submit(one(FAST))).saga_id
            await until(lambda: world.count("do", "a") == 1)
            await first.stop(0.0)
            driver = await driver_of(c, saga_id)
            await until(lambda: not c.members["n1"].node.directory.offered and driver.state.tries)
            await give(client, saga_id, SetDeadline(A, after_s=0.01))
            await until(lambda: driver.state.mishaps)
            assert driver.state.mishaps[0].error.code == "deadline_passed"
            await c.serve(world.server("another"))
            assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.UNDONE
            assert world.count("do", "a") == 1
            assert isinstance((await records_of(c.members["n1"], saga_id))[-2], UndoFinished), "an undo waits as long as it takes"

    async def test_a_node_that_never_started_fails_its_saga_too(self) -> None:
        async with cluster("n1") as c, c.client() as client:  # no action server at all
            saga_id = (await client.submit(one(FAST))).saga_id
            await client.command(saga_id, SetDeadline(B, after_s=0.01))
            result = await client.wait(saga_id, timeout_s=20)
            assert result.state is SagaState.UNDONE
            assert [(e.node, e.code) for e in result.errors] == [("b", "deadline_passed")]
            assert not [r for r in await records_of(c.members["n1"], saga_id) if isinstance(r, Started)]

    async def test_a_deadline_can_pause_instead(self) -> None:
        world = World(do={"a": ["unknown"]})
        async with cluster("n1") as c, c.client() as client:
            await c.serve(world.server())
            saga_id = (await client.submit(one(PATIENT, Deadline(0.3, OnDeadline.PAUSE)))).saga_id
            assert await paused(client, saga_id) == 'Node "a" did not end by its deadline.'
            await give(client, saga_id, Resume())
            assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.DONE
            assert world.count("do", "a") == 2

    async def test_what_an_operator_has_set_stays_when_the_node_starts(self) -> None:
        world = World(do={"a": ["hold"]})
        async with cluster("n1") as c, c.client() as client:
            await c.serve(world.server())
            saga_id = (await client.submit(one(PATIENT, Deadline(0.01)), start=False)).saga_id
            due_us = wall_clock_us() + 3_600_000_000
            await client.command(saga_id, SetDeadline(A, due_us=due_us))
            await client.start(saga_id)
            driver = await driver_of(c, saga_id)
            await until(lambda: world.count("do", "a") == 1)
            assert driver.state.dues[A].us == due_us
            await give(client, saga_id, SetDeadline(A))
            assert driver.state.dues == {}
            world.gate.set()
            assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.DONE

    async def test_a_withheld_call_is_given_up_when_its_deadline_passes_in_the_pause(self) -> None:
        world = World(do={"a": ["unknown"]})
        async with cluster("n1") as c, c.client() as client:
            await c.serve(world.server())
            saga_id = (await client.submit(one(PATIENT))).saga_id
            driver = await driver_of(c, saga_id)
            await until(lambda: driver.state.tries)
            await give(client, saga_id, Pause("wait"))
            await give(client, saga_id, SetDeadline(A, after_s=0.01))
            await until(lambda: driver.state.mishaps)
            assert (world.count("do", "a"), world.count("undo", "a")) == (1, 0), "the pause holds"
            await give(client, saga_id, Resume())
            assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.UNDONE
            assert (world.count("do", "a"), world.count("undo", "a")) == (1, 1)


class TestDeadlinesOfSagas:
    async def test_the_saga_unwinds(self) -> None:
        world = World(do={"b": ["unknown"]})
        async with cluster("n1") as c, c.client() as client:
            await c.serve(world.server())
            await submit_with_deadline(c.members["n1"], chain("a", "b", retry=PATIENT), "s1", Deadline(0.5))
            result = await client.wait("s1", timeout_s=20)
            assert result.state is SagaState.UNDONE
            assert (result.errors[0].node, result.errors[0].code) == ("", "deadline_passed")
            assert result.errors[0].message == "The saga did not end by its deadline."
            assert [n for p, n, _ in world.ran if p == "undo"][-1] == "a"

    async def test_or_is_paused_and_says_why(self) -> None:
        world = World(do={"b": ["unknown"]})
        async with cluster("n1") as c, c.client() as client:
            await c.serve(world.server())
            await submit_with_deadline(c.members["n1"], chain("a", "b", retry=PATIENT), "s1", Deadline(0.5, OnDeadline.PAUSE))
            assert await paused(client, "s1") == "The saga did not end by its deadline."
            await client.command("s1", Resume())
            assert (await client.wait("s1", timeout_s=20)).state is SagaState.DONE

    async def test_a_saga_that_ends_in_time_has_no_more_to_fear(self) -> None:
        async with cluster("n1") as c, c.client() as client:
            await c.serve(World().server())
            await submit_with_deadline(c.members["n1"], chain("a"), "s1", Deadline(3600))
            assert (await client.wait("s1", timeout_s=20)).state is SagaState.DONE

    async def test_it_can_be_set_moved_and_taken_away(self) -> None:
        world = World(do={"a": ["hold"]})
        async with cluster("n1") as c, c.client() as client:
            await c.serve(world.server())
            await submit_with_deadline(c.members["n1"], chain("a", "b"), "s1", Deadline(3600))
            driver = await driver_of(c, "s1")
            due_us = driver.state.dues[WHOLE].us + 1
            await give(client, "s1", SetDeadline(WHOLE, OnDeadline.PAUSE, due_us))
            assert (driver.state.dues[WHOLE].us, driver.state.dues[WHOLE].then) == (due_us, OnDeadline.PAUSE)
            await give(client, "s1", SetDeadline(WHOLE))
            assert driver.state.dues == {}
            await client.command("s1", SetDeadline(WHOLE, after_s=0.01))
            await until(lambda: driver.state.mishaps)
            world.gate.set()
            assert (await client.wait("s1", timeout_s=20)).state is SagaState.UNDONE
            records = await records_of(c.members["n1"], "s1")
            assert [r.node for r in records if isinstance(r, DeadlinePassed)] == [""]
            assert world.effects[("s1", "a")] == 0


async def test_sagas_that_wait_for_days_cost_no_task_and_no_thread() -> None:
    """One handle of the event loop each, and that only for the clock."""
    world = World()
    async with cluster("n1") as c, c.client() as client:
        await c.serve(world.server())
        long = Saga("long").append(action("a", "step")).append(timer("t", 86_400 * 7)).append(action("b", "step")).build()

        async def wait_with(number: int) -> None:
            for kind, definition in (("timer", long), ("signal", waiting())):
                await client.submit(definition, saga_id=f"{kind}-{number}")
            drivers = [await driver_of(c, f"{kind}-{number}") for kind in ("timer", "signal")]
            await until(lambda: all(d.state.waiting for d in drivers))

        await wait_with(0)
        tasks, threads = len(asyncio.all_tasks()), threading.active_count()
        for number in range(1, 31):
            await wait_with(number)
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
        assert threading.active_count() <= threads
        drivers = c.members["n1"].node.owner.drivers
        assert len(drivers) == 62
        assert all(driver.state.waiting and not driver.state.in_flight for driver in drivers.values())
