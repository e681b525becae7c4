"""Commands that are given to a saga before it is started: they act before its first node does, whoever starts it and whoever runs it."""

from collections.abc import Awaitable, Callable

import pytest
from inprocess_support import Cluster, World, chain, cluster
from node_support import driver_of, give, paused, refusals_of
from sec_client import Phase, SagaState
from sec_client.aio import Client
from sec_model import Saga, action
from sec_model.commands import (
    Abort,
    Command,
    InjectError,
    NodePath,
    Pause,
    Resume,
    SetBreakpoint,
    SetDeadline,
    SetMaxInFlight,
    Step,
)
from sec_model.commands import Phase as CommandPhase
from waiting_support import until

from sec.node.orders import MAX_PER_STEP

A, B, WHOLE = NodePath("a"), NodePath("b"), NodePath("")
FAN = Saga("fan")
FAN.append_parallel(*(action(f"f{i}", "step") for i in range(5))).append(action("z", "step"))


async def start(c: Cluster, client: Client, by: str, saga_id: str) -> None:
    """Starts a saga through n1, which takes it, or, when it is draining, leaves it to n2."""
    if by == "draining":
        await client.drain("n1")
        await until(lambda: not c.members["n1"].node.serving)
    async with c.client("n1") as at_first:
        await at_first.start(saga_id)
    owner = c.members["n2" if by == "draining" else "n1"]
    await until(lambda: c.owner_of(saga_id) in (owner, None))


def waiting_commands(c: Cluster) -> set[bytes]:
    return c.etcd_keys(c.members["n1"].node.keys.commands)


async def pauses(world: World, client: Client, saga_id: str) -> None:
    assert await paused(client, saga_id) == "not yet"
    assert world.ran == []
    await client.command(saga_id, Resume())
    assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.DONE


async def breaks(world: World, client: Client, saga_id: str) -> None:
    assert await paused(client, saga_id) == 'Breakpoint before node "a".'
    assert world.ran == []
    await client.command(saga_id, Resume())
    assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.DONE


async def fails(world: World, client: Client, saga_id: str) -> None:
    result = await client.wait(saga_id, timeout_s=20)
    assert (result.state, result.errors[0].code, result.errors[0].phase) == (SagaState.UNDONE, "injected", Phase.DO)
    assert world.ran == []


async def unwinds(world: World, client: Client, saga_id: str) -> None:
    result = await client.wait(saga_id, timeout_s=20)
    assert (result.state, result.errors[0].code) == (SagaState.UNDONE, "aborted")
    assert world.ran == []


async def is_too_late(world: World, client: Client, saga_id: str) -> None:
    result = await client.wait(saga_id, timeout_s=20)
    assert (result.state, result.errors[0].code) == (SagaState.UNDONE, "deadline_passed")
    assert world.ran == []


@pytest.mark.parametrize("by", ["owner", "draining"])
@pytest.mark.parametrize(
    ("command", "check"),
    [
        (Pause("not yet"), pauses),
        (SetBreakpoint(A, after=False), breaks),
        (InjectError(A, CommandPhase.DO), fails),
        (Abort("not at all"), unwinds),
        (SetDeadline(WHOLE, due_us=1), is_too_late),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Command) else "",
)
async def test_a_command_acts_before_the_first_node_starts(
    command: Command, check: Callable[[World, Client, str], Awaitable[None]], by: str
) -> None:
    world = World()
    async with cluster("n1", "n2") as c, c.client("n2") as client:
        await c.serve(world.server())
        saga_id = (await client.submit(chain("a", "b"), start=False)).saga_id
        await client.command(saga_id, command)
        assert (await client.get(saga_id)).summary.state is SagaState.CREATED
        await start(c, client, by, saga_id)
        await check(world, client, saga_id)
        assert await refusals_of(c.members["n2"], saga_id) in ([""], ["", ""]), "the second is a Resume"
        await until(lambda: not waiting_commands(c))


@pytest.mark.parametrize("by", ["owner", "draining"])
async def test_a_limit_holds_from_the_first_node_on(by: str) -> None:
    world = World(do={f"f{i}": ["hold"] for i in range(5)})
    async with cluster("n1", "n2") as c, c.client("n2") as client:
        await c.serve(world.server())
        saga_id = (await client.submit(FAN.build(), start=False)).saga_id
        await client.command(saga_id, SetMaxInFlight(2))
        await start(c, client, by, saga_id)
        driver = await driver_of(c, saga_id)
        await until(lambda: driver.state.in_flight)
        assert len(driver.state.in_flight) == 2
        world.gate.set()
        assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.DONE


@pytest.mark.parametrize("by", ["owner", "draining"])
async def test_the_last_of_many_commands_is_in_time_too(by: str) -> None:
    world = World()
    async with cluster("n1", "n2") as c, c.client("n2") as client:
        await c.serve(world.server())
        saga_id = (await client.submit(chain("a", "b"), start=False)).saga_id
        for _ in range(MAX_PER_STEP - 1):
            await client.command(saga_id, SetBreakpoint(B, after=True))
        await client.command(saga_id, Abort("the last of them"))
        await start(c, client, by, saga_id)
        await unwinds(world, client, saga_id)


async def test_they_act_in_the_order_in_which_they_were_given() -> None:
    world = World()
    async with cluster("n1") as c, c.client() as client:
        await c.serve(world.server())
        saga_id = (await client.submit(chain("a", "b"), start=False)).saga_id
        await client.command(saga_id, SetMaxInFlight(1), command_id="z")
        await client.command(saga_id, Pause("first"), command_id="m")
        await client.command(saga_id, SetMaxInFlight(7), command_id="a")
        await client.start(saga_id)
        driver = await driver_of(c, saga_id)
        assert driver.state.controls.max_in_flight == 7
        await give(client, saga_id, Step())
        await until(lambda: world.count("do", "a") == 1)
        await give(client, saga_id, Resume())
        assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.DONE


async def test_an_abort_that_the_starting_node_has_not_heard_of_is_read_from_the_store() -> None:
    """Its mirror of the store lags: what is decided with that must not start anything."""
    world = World()
    async with cluster("n1") as c, c.client() as client:
        await c.serve(world.server())
        saga_id = (await client.submit(chain("a", "b"), start=False)).saga_id
        c.members["n1"].node.owner._orders._deliver = lambda *_: None  # noqa: SLF001
        c.members["n1"].node.owner._orders.of = lambda _: []  # type: ignore[method-assign] # noqa: SLF001
        await client.command(saga_id, Abort("no"))
        await client.start(saga_id)
        await unwinds(world, client, saga_id)
