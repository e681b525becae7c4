"""Operators' commands on a cluster of real processes: each taken up once, by whoever owns the saga, though its owner dies in between."""

from collections.abc import Awaitable, Callable

import pytest
from cluster_support import Stage
from sec_client import NodeState, Saga, SagaState, WrongState, action
from sec_client import aio as sec_aio
from sec_model.commands import (
    Abort,
    Command,
    InjectError,
    MarkUndone,
    NodePath,
    Pause,
    Phase,
    Resume,
    RetryUndo,
    SetBreakpoint,
    SetMaxInFlight,
    SkipUndo,
    Step,
)
from waiting_support import eventually, until

A, B, C = NodePath("a"), NodePath("b"), NodePath("c")
CHAIN = Saga("chain").append(action("a", "step")).append(action("b", "step")).append(action("c", "step")).build()
FAN = Saga("fan")
FAN.append_parallel(*(action(f"f{i}", "step") for i in range(6))).append(action("z", "step"))


async def taken_up(client: sec_aio.Client, saga_id: str, command_id: str) -> None:
    async def recorded() -> bool:
        return command_id in [r.fields.get("command_id") async for r in client.log(saga_id)]

    await eventually(recorded)


async def give(client: sec_aio.Client, saga_id: str, command: Command) -> None:
    """Gives a command and waits until its owner has recorded it."""
    await taken_up(client, saga_id, await client.command(saga_id, command, by="a test"))


async def given_to_a_dead_owner(stage: Stage, client: sec_aio.Client, saga_id: str, command: Command) -> str:
    """A command that is acknowledged while the owner hangs, which is killed before it can take it up."""
    owner = await stage.owner(client, saga_id)
    stage.cluster.pause(owner)
    others = [stage.cluster.address(n) for n in stage.cluster.names if n != owner]
    try:
        async with sec_aio.Client(others) as awake:
            command_id = await awake.command(saga_id, command, by="a test")
    finally:
        stage.cluster.kill(owner)
    return command_id


Check = Callable[[Stage, sec_aio.Client, str], Awaitable[None]]


async def is_paused(stage: Stage, client: sec_aio.Client, saga_id: str) -> None:
    stage.gate.touch()
    await until(lambda: stage.done(saga_id).get("a") == 1)
    view = await client.get(saga_id)
    assert view.summary.paused
    assert view["b"].state in (NodeState.BLOCKED, NodeState.QUEUED)
    await give(client, saga_id, Resume())
    assert (await client.wait(saga_id, timeout_s=30)).state is SagaState.DONE


async def is_unwound(stage: Stage, client: sec_aio.Client, saga_id: str) -> None:
    stage.gate.touch()
    result = await client.wait(saga_id, timeout_s=30)
    assert result.state is SagaState.UNDONE
    assert stage.inventory(saga_id) == []
    assert "b" not in stage.done(saga_id)


async def breaks_before_b(stage: Stage, client: sec_aio.Client, saga_id: str) -> None:
    stage.gate.touch()

    async def paused() -> bool:
        return (await client.get(saga_id)).summary.paused

    await eventually(paused)
    assert (await client.get(saga_id)).summary.pause_reason == 'Breakpoint before node "b".'
    assert stage.done(saga_id) == {"a": 1}
    await give(client, saga_id, Resume())
    assert (await client.wait(saga_id, timeout_s=30)).state is SagaState.DONE


async def fails_at_c(stage: Stage, client: sec_aio.Client, saga_id: str) -> None:
    stage.gate.touch()
    result = await client.wait(saga_id, timeout_s=30)
    assert result.state is SagaState.UNDONE
    assert (result.errors[0].node, result.errors[0].code) == ("c", "injected")
    assert stage.undone(saga_id) == {"a": 1, "b": 1}


@pytest.mark.parametrize(
    ("command", "check"),
    [
        (Pause("maintenance"), is_paused),
        (Abort("not wanted any more"), is_unwound),
        (SetBreakpoint(B, after=False), breaks_before_b),
        (InjectError(C, Phase.DO), fails_at_c),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Command) else "",
)
async def test_a_command_outlives_the_owner_that_never_read_it(stage: Stage, command: Command, check: Check) -> None:
    async with stage.client() as client:
        saga_id = (await client.submit(CHAIN, params={"hold": ["a"]})).saga_id
        await stage.held(saga_id, "a", "do")
        command_id = await given_to_a_dead_owner(stage, client, saga_id, command)
        await taken_up(client, saga_id, command_id)
        await check(stage, client, saga_id)
        ids = [r.fields.get("command_id") async for r in client.log(saga_id) if r.kind == "commanded"]
        assert ids.count(command_id) == 1, "taken up once"


@pytest.mark.parametrize(
    "command", [RetryUndo(A), SkipUndo(A, "it may stay"), MarkUndone(A, "by hand")], ids=lambda c: type(c).__name__
)
async def test_a_stuck_saga_is_freed_though_its_owner_dies(stage: Stage, command: Command) -> None:
    async with stage.client() as client:
        saga_id = (await client.submit(CHAIN, params={"fail": ["c"], "undo_fail_once": ["a"]})).saga_id
        assert (await client.wait(saga_id, timeout_s=30)).state is SagaState.STUCK
        assert stage.undone(saga_id) == {"b": 1}
        await taken_up(client, saga_id, await given_to_a_dead_owner(stage, client, saga_id, command))
        result = await client.wait(saga_id, timeout_s=30)
        assert result.state is SagaState.UNDONE
        assert stage.undone(saga_id) == ({"a": 1, "b": 1} if isinstance(command, RetryUndo) else {"b": 1})
        expected = NodeState.UNDO_SKIPPED if isinstance(command, SkipUndo) else NodeState.UNDONE
        assert (await client.get(saga_id))["a"].state is expected


async def test_one_node_at_a_time(stage: Stage) -> None:
    async with stage.client() as client:
        saga_id = (await client.submit(CHAIN, params={"hold": ["a"]})).saga_id
        await stage.held(saga_id, "a", "do")
        await give(client, saga_id, Pause("step by step"))
        stage.gate.touch()
        await until(lambda: stage.done(saga_id) == {"a": 1})
        await give(client, saga_id, Step())
        await until(lambda: stage.done(saga_id) == {"a": 1, "b": 1})
        assert (await client.get(saga_id)).summary.paused
        await give(client, saga_id, Step())
        assert (await client.wait(saga_id, timeout_s=30)).state is SagaState.DONE


async def test_a_limit_bounds_what_is_in_flight(stage: Stage) -> None:
    async with stage.client() as client:
        saga_id = (await client.submit(FAN.build(), params={"hold": [f"f{i}" for i in range(6)]}, start=False)).saga_id
        with pytest.raises(WrongState, match="is created"):
            await client.command(saga_id, SetMaxInFlight(2))
        await client.start(saga_id)
        await give(client, saga_id, SetMaxInFlight(2))
        stage.gate.touch()
        assert (await client.wait(saga_id, timeout_s=30)).state is SagaState.DONE


async def test_commands_that_make_no_sense_are_refused_in_a_sentence(stage: Stage) -> None:
    async with stage.client() as client:
        saga_id = (await client.submit(CHAIN, params={"hold": ["a"]})).saga_id
        await stage.held(saga_id, "a", "do")
        for command, sentence in (
            (Resume(), "is not paused"),
            (Step(), "pause it before you step"),
            (InjectError(NodePath("nobody"), Phase.DO), 'has no node "nobody"'),
            (InjectError(A, Phase.DO), 'The do of node "a" of saga .* is past'),
            (SkipUndo(A, "why not"), 'The undo of node "a" of saga .* has not failed'),
            (SkipUndo(A, " "), "Say why"),
        ):
            with pytest.raises(WrongState, match=sentence):
                await client.command(saga_id, command)
        stage.gate.touch()
        await client.wait(saga_id, timeout_s=30)
        with pytest.raises(WrongState, match="is done: it takes commands while it runs"):
            await client.command(saga_id, Pause(""))
