"""Operators' commands on a cluster of real processes: each taken up once, by whoever owns the saga, though its owner dies in between."""

import itertools
from collections.abc import Awaitable, Callable

import pytest
from cluster_support import Stage, counting_server, give, given_to_a_dead_owner, taken_up
from sec_client import LogRecord, NodeState, Saga, SagaState, WrongState, action
from sec_client import aio as sec_aio
from sec_model.commands import (
    Abort,
    Command,
    InjectError,
    InjectRepeat,
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


async def paused_behind_a(stage: Stage, client: sec_aio.Client) -> str:
    """A chain that is paused, whose first node is done, and the others have not started."""
    saga_id = (await client.submit(CHAIN, params={"hold": ["a"]})).saga_id
    await stage.held(saga_id, "a", "do")
    await give(client, saga_id, Pause("step by step"))
    stage.gate.touch()
    await recorded(client, saga_id, "succeeded a")
    return saga_id


async def log_of(client: sec_aio.Client, saga_id: str) -> list[LogRecord]:
    return [record async for record in client.log(saga_id)]


async def recorded(client: sec_aio.Client, saga_id: str, wanted: str) -> None:
    """Waits for a record, such as "succeeded a"."""

    async def found() -> bool:
        return wanted in [f"{record.kind} {record.node}" for record in await log_of(client, saga_id)]

    await eventually(found)


async def taken_up_once(client: sec_aio.Client, saga_id: str, command_id: str) -> bool:
    return [r.fields["command_id"] for r in await log_of(client, saga_id) if r.kind == "commanded"].count(command_id) == 1


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
        assert await taken_up_once(client, saga_id, command_id)


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


async def test_a_saga_is_resumed_though_its_owner_dies(stage: Stage) -> None:
    async with stage.client() as client:
        saga_id = await paused_behind_a(stage, client)
        command_id = await given_to_a_dead_owner(stage, client, saga_id, Resume())
        assert (await client.wait(saga_id, timeout_s=30)).state is SagaState.DONE
        assert stage.done(saga_id) == {"a": 1, "b": 1, "c": 1}
        assert await taken_up_once(client, saga_id, command_id)


async def test_a_step_is_one_step_though_the_owner_dies(stage: Stage) -> None:
    async with stage.client() as client:
        saga_id = await paused_behind_a(stage, client)
        command_id = await given_to_a_dead_owner(stage, client, saga_id, Step())
        await recorded(client, saga_id, "succeeded b")
        assert "started c" not in [f"{r.kind} {r.node}" for r in await log_of(client, saga_id)], (
            "it would start with the record of b"
        )
        assert (await client.get(saga_id)).summary.paused
        assert await taken_up_once(client, saga_id, command_id)
        await give(client, saga_id, Resume())
        assert (await client.wait(saga_id, timeout_s=30)).state is SagaState.DONE
        assert stage.done(saga_id) == {"a": 1, "b": 1, "c": 1}


async def test_a_limit_holds_though_the_owner_dies(stage: Stage) -> None:
    async with stage.client() as client:
        fan = Saga("fan").append(action("a", "step")).append_parallel(*(action(f"f{i}", "step") for i in range(6)))
        saga_id = (await client.submit(fan.append(action("z", "step")), params={"hold": ["a"]})).saga_id
        await stage.held(saga_id, "a", "do")
        command_id = await given_to_a_dead_owner(stage, client, saga_id, SetMaxInFlight(2))
        await taken_up(client, saga_id, command_id)
        stage.gate.touch()
        assert (await client.wait(saga_id, timeout_s=30)).state is SagaState.DONE
        changes = [{"started": 1, "succeeded": -1}.get(r.kind, 0) for r in await log_of(client, saga_id)]
        assert max(itertools.accumulate(changes)) == 2
        assert await taken_up_once(client, saga_id, command_id)


async def test_a_call_is_repeated_as_ordered_though_the_owner_dies(stage: Stage) -> None:
    async with stage.client() as client, counting_server(stage.cluster.addresses, "counted") as calls:
        saga = Saga("counted").append(action("a", "step")).append(action("b", "counted"))
        saga_id = (await client.submit(saga, params={"hold": ["a"]})).saga_id
        await stage.held(saga_id, "a", "do")
        command_id = await given_to_a_dead_owner(stage, client, saga_id, InjectRepeat(B, Phase.DO, 3))
        await taken_up(client, saga_id, command_id)
        stage.gate.touch()
        assert (await client.wait(saga_id, timeout_s=30)).state is SagaState.DONE
        assert calls.called("b") == (3, 0)
        assert calls.effects == {"b": 1}
        assert await taken_up_once(client, saga_id, command_id)


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
        with pytest.raises(WrongState, match="is done: it takes no commands any more"):
            await client.command(saga_id, Pause(""))
