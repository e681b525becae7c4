"""Sagas go on although an event was missed, each kind of event in its turn: behind each of them stands a look at what is there."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from inprocess_support import World, chain, cluster
from node_support import paused, records_of
from sec_client import SagaState
from sec_model import Saga, action, timer
from sec_model.commands import Pause, Resume
from waiting_support import eventually, until

from sec.core.records import Commanded, OwnerChanged, SagaId
from sec.dispatch.directory import Directory
from sec.node.driver import SagaDriver
from sec.node.orders import Orders
from sec.node.owner import Owner
from sec.store.kv import KeyValue, Revision
from sec.store.mirror import Change, Mirror


async def test_commands_of_which_nobody_heard_are_taken_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def miss(self: Orders, changes: Sequence[Change]) -> None: ...

    monkeypatch.setattr(Orders, "_live_changed", miss)
    world = World(do={"a": ["hold"]})
    async with cluster("n1") as c, c.client() as client:
        await c.serve(world.server())
        await client.submit(chain("a", "b"), saga_id="s1")
        await until(lambda: world.ran)
        await client.command("s1", Pause("nobody heard"))
        assert await paused(client, "s1") == "nobody heard"
        world.gate.set()
        await client.command("s1", Resume())
        assert (await client.wait("s1", timeout_s=20)).state is SagaState.DONE
        assert len([r for r in await records_of(c.members["n1"], "s1") if isinstance(r, Commanded)]) == 2


async def test_a_saga_whose_action_is_offered_without_a_word_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def miss(self: Owner) -> None: ...

    monkeypatch.setattr(Owner, "_offers_changed", miss)
    world = World()
    async with cluster("n1") as c, c.client() as client:
        await client.submit(chain("a", "b"), saga_id="s1")
        await c.serve(world.server())
        assert (await client.wait("s1", timeout_s=20)).state is SagaState.DONE


async def test_a_server_whose_registration_no_watch_has_told_of_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    follow = Mirror._follow  # noqa: SLF001

    async def deaf(self: Mirror, start: Revision) -> None:
        if self.prefix.endswith(b"/server/"):
            await asyncio.Event().wait()
        await follow(self, start)

    monkeypatch.setattr(Mirror, "_follow", deaf)
    world = World()
    async with cluster("n1") as c, c.client() as client:
        await client.submit(chain("a", "b"), saga_id="s1")
        await c.serve(world.server())
        assert (await client.wait("s1", timeout_s=20)).state is SagaState.DONE


async def test_a_timer_whose_alarm_does_not_go_off_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_alarm(self: SagaDriver, instant_us: int) -> None:
        self._wake_at_us = instant_us

    monkeypatch.setattr(SagaDriver, "_wake_at", no_alarm)
    world = World()
    async with cluster("n1") as c, c.client() as client:
        await c.serve(world.server())
        saga = Saga("timer").append(action("a", "step")).append(timer("t", 0.1)).append(action("b", "step"))
        await client.submit(saga, saga_id="s1")
        assert (await client.wait("s1", timeout_s=20)).state is SagaState.DONE


@pytest.mark.parametrize("nodes", [("n1",), ("n1", "n2")])
async def test_a_saga_that_its_owner_does_not_drive_is_given_up_and_claimed(
    nodes: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the call that submitted it was cut off between its transaction and the driver."""

    def forget(self: Owner, *args: object) -> None: ...

    world = World()
    async with cluster(*nodes) as c, c.client("n1") as client:
        await c.serve(world.server())
        with monkeypatch.context() as patch:
            patch.setattr(Owner, "_adopt", forget)
            await client.submit(chain("a", "b"), saga_id="s1")
        assert (await client.wait("s1", timeout_s=20)).state is SagaState.DONE
        assert {n: world.effects["s1", n] for n in "ab"} == {"a": 1, "b": 1}


async def test_a_dispatch_that_ends_by_a_fault_of_ours_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    def break_down(self: Directory, call: object, tell: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(Directory, "call", break_down)
    async with cluster("n1") as c, c.client() as client:
        await c.serve(World().server())
        await client.submit(chain("a"), saga_id="s1")

        async def why() -> str:
            [summary] = [s async for s in client.list()]
            return str(summary.error) if summary.state is SagaState.CORRUPT else ""

        assert "A dispatch of saga \"s1\" failed: RuntimeError('a fault of ours')" in await eventually(why)


async def test_a_saga_whose_submit_is_cut_off_behind_its_transaction_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller has gone, and with it the call that would have given the saga to a driver."""
    world = World()
    async with cluster("n1") as c, c.client() as client:
        await c.serve(world.server())
        sagas = c.members["n1"].node.sagas
        submit, written, cut_off = sagas.submit, asyncio.Event(), asyncio.Event()

        async def held(*args: Any, **kwargs: Any) -> None:
            await submit(*args, **kwargs)
            written.set()
            try:
                await asyncio.Event().wait()
            finally:
                cut_off.set()

        monkeypatch.setattr(sagas, "submit", held)
        submitting = asyncio.create_task(client.submit(chain("a", "b"), saga_id="s1"))
        await written.wait()
        submitting.cancel()
        await cut_off.wait()
        assert (await client.wait("s1", timeout_s=20)).state is SagaState.DONE
        await asyncio.wait([submitting])


async def test_a_saga_whose_submit_waits_for_the_stores_answer_is_left_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is owned and has no driver, as one that was cut off; but the call that will give it one is still under way."""
    world = World()
    looks = 0
    lacks_driver = Owner.lacks_driver

    def counted(self: Owner, saga_id: SagaId, owner: KeyValue) -> bool:
        nonlocal looks
        looks += 1
        return lacks_driver(self, saga_id, owner)

    async with cluster("n1", "n2") as c, c.client("n1") as client:
        await c.serve(world.server())
        sagas = c.members["n1"].node.sagas
        submit = sagas.submit

        async def late(*args: Any, **kwargs: Any) -> Any:
            submitted = await submit(*args, **kwargs)
            monkeypatch.setattr(Owner, "lacks_driver", counted)
            await until(lambda: looks >= 8)
            return submitted

        monkeypatch.setattr(sagas, "submit", late)
        await client.submit(chain("a", "b"), saga_id="s1")
        assert (await client.wait("s1", timeout_s=20)).state is SagaState.DONE
        assert not [r for r in await records_of(c.members["n1"], "s1") if isinstance(r, OwnerChanged)]
        assert len({epoch for _, _, epoch in world.ran}) == 1
