"""Signals, timers and deadlines of sagas whose owner is killed before they come: the survivors see to them, once and not before their time."""

from datetime import UTC, datetime, timedelta
from typing import Any

import grpc.aio
import pytest
from cluster_support import Stage, given_to_a_dead_owner, taken_up
from sec_client import Definition, LogRecord, NodeState, Saga, SagaState, action
from sec_client import aio as sec_aio
from sec_model import Deadline, OnDeadline, Payload, signal, timer
from sec_model.codec import deadline_to_proto, definition_to_proto, payload_to_proto
from sec_model.commands import NodePath, Resume, SetDeadline, Signal
from sec_protos.v1 import coordinator_pb2 as pb
from sec_protos.v1 import coordinator_pb2_grpc
from waiting_support import eventually

A, W, WHOLE = NodePath("a"), NodePath("w"), NodePath("")
LATER_S = 4.0
"""Time enough to kill the owner; longer than its lease, so that the deadline usually passes at the next one."""

WAITING = Saga("waiting").append(action("a", "step")).append(signal("w")).append(action("b", "step")).build()


def two(deadline: Deadline | None = None) -> Definition:
    return Saga("two").append(action("a", "step", deadline=deadline)).append(action("b", "step")).build()


async def call(stage: Stage, method: str, message: Any) -> Any:
    """A call without a client in between."""
    async with grpc.aio.insecure_channel(stage.cluster.addresses[0]) as channel:
        return await getattr(coordinator_pb2_grpc.CoordinatorStub(channel), method)(message, timeout=10)


async def due(stage: Stage, saga_id: str, node: str) -> datetime:
    """When a node's deadline is, or the time of a timer."""
    saga = (await call(stage, "GetSaga", pb.GetSagaRequest(saga_id=saga_id))).saga
    (due_us,) = [n.due_us for n in saga.nodes if n.node == node]
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=due_us)


async def kill_owner(stage: Stage, client: sec_aio.Client, saga_id: str) -> str:
    owner = await stage.owner(client, saga_id)
    stage.cluster.kill(owner)
    return owner


async def of_kind(client: sec_aio.Client, saga_id: str, kind: str) -> list[LogRecord]:
    return [record async for record in client.log(saga_id) if record.kind == kind]


async def waits(client: sec_aio.Client, saga_id: str, node: str) -> None:
    async def waiting() -> bool:
        return (await client.get(saga_id))[node].state is NodeState.WAITING

    await eventually(waiting)


async def test_a_signal_outlives_the_owner_that_never_read_it(stage: Stage) -> None:
    async with stage.client() as client:
        saga_id = (await client.submit(WAITING)).saga_id
        await waits(client, saga_id, "w")
        command_id = await given_to_a_dead_owner(stage, client, saga_id, Signal(W, Payload.json("here")))
        result = await client.wait(saga_id, timeout_s=30)
        assert result.state is SagaState.DONE
        assert (await client.get(saga_id))["w"].output == Payload.json("here")
        assert stage.done(saga_id) == {"a": 1, "b": 1}
        assert [r.fields["command_id"] for r in await of_kind(client, saga_id, "commanded")] == [command_id]


async def test_a_signal_that_comes_while_nobody_owns_the_saga_waits_for_its_next_owner(stage: Stage) -> None:
    async with stage.client() as client:
        saga_id = (await client.submit(WAITING)).saga_id
        await waits(client, saga_id, "w")
        owner = await stage.owner(client, saga_id)
        others = [name for name in stage.cluster.names if name != owner]
        try:
            for name in others:
                await client.drain(name)
            stage.cluster.kill(owner)

            async def orphaned() -> bool:
                return not (await client.get(saga_id)).summary.owner

            await eventually(orphaned)
            await client.command(saga_id, Signal(W, Payload.json("anybody?")))
            assert (await client.get(saga_id))["w"].state is NodeState.WAITING
        finally:
            for name in others:
                await client.drain(name, undo=True)
        assert (await client.wait(saga_id, timeout_s=30)).state is SagaState.DONE
        assert (await client.get(saga_id))["w"].output == Payload.json("anybody?")
        assert stage.done(saga_id) == {"a": 1, "b": 1}


@pytest.mark.parametrize("node", [WHOLE, A], ids=["saga", "node"])
async def test_a_deadline_outlives_the_owner_that_never_read_of_it(stage: Stage, node: NodePath) -> None:
    async with stage.client() as client:
        saga_id = (await client.submit(two(), params={"hold": ["a"]})).saga_id
        await stage.held(saga_id, "a", "do")
        await taken_up(client, saga_id, await given_to_a_dead_owner(stage, client, saga_id, SetDeadline(node, after_s=0.001)))
        stage.gate.touch()
        result = await client.wait(saga_id, timeout_s=30)
        assert result.state is SagaState.UNDONE
        assert result.errors[0].code == "deadline_passed"
        assert stage.inventory(saga_id) == []
        assert stage.done(saga_id) == stage.undone(saga_id), "an effect that was had is taken back"
        assert len(await of_kind(client, saga_id, "deadline_passed")) == 1


async def test_a_deadline_that_pauses_outlives_its_owner_too(stage: Stage) -> None:
    async with stage.client() as client:
        saga_id = (await client.submit(two(), params={"hold": ["a"]})).saga_id
        await stage.held(saga_id, "a", "do")
        await taken_up(
            client, saga_id, await given_to_a_dead_owner(stage, client, saga_id, SetDeadline(WHOLE, OnDeadline.PAUSE, after_s=0.1))
        )

        async def paused() -> str:
            return (await client.get(saga_id)).summary.pause_reason

        assert await eventually(paused) == "The saga did not end by its deadline."
        stage.gate.touch()
        await client.command(saga_id, Resume())
        assert (await client.wait(saga_id, timeout_s=30)).state is SagaState.DONE
        assert stage.done(saga_id) == {"a": 1, "b": 1}


async def test_the_deadline_of_a_saga_passes_at_its_next_owner(stage: Stage) -> None:
    async with stage.client() as client:
        request = pb.SubmitSagaRequest(
            saga_id="deadline-of-a-saga",
            definition=definition_to_proto(two()),
            params=payload_to_proto(Payload.json({"hold": ["a"]})),
            deadline=deadline_to_proto(Deadline(LATER_S)),
        )
        await call(stage, "SubmitSaga", request)
        await stage.held(request.saga_id, "a", "do")
        owner = await kill_owner(stage, client, request.saga_id)
        await passes_at_a_survivor(stage, client, request.saga_id, owner)


async def test_the_deadline_of_a_node_passes_at_its_next_owner(stage: Stage) -> None:
    async with stage.client() as client:
        saga_id = (await client.submit(two(Deadline(LATER_S)), params={"hold": ["a"]})).saga_id
        await stage.held(saga_id, "a", "do")
        at = await due(stage, saga_id, "a")
        owner = await kill_owner(stage, client, saga_id)
        passed = await passes_at_a_survivor(stage, client, saga_id, owner)
        assert passed.time is not None
        assert passed.time >= at


async def passes_at_a_survivor(stage: Stage, client: sec_aio.Client, saga_id: str, owner: str) -> LogRecord:
    """The saga unwinds for its deadline, of which the record is answered, and what is still under way then is undone."""

    async def passed() -> list[LogRecord]:
        return await of_kind(client, saga_id, "deadline_passed")

    await eventually(passed)
    stage.gate.touch()
    result = await client.wait(saga_id, timeout_s=30)
    assert result.state is SagaState.UNDONE
    (record,) = await passed()
    assert record.writer != owner
    assert result.errors[0].node == record.node
    assert stage.inventory(saga_id) == []
    assert stage.done(saga_id) == stage.undone(saga_id)
    return record


async def test_a_timer_fires_once_at_the_survivor_and_not_before_its_time(stage: Stage) -> None:
    saga = Saga("timer").append(action("a", "step")).append(timer("t", LATER_S)).append(action("b", "step"))
    async with stage.client() as client:
        saga_id = (await client.submit(saga.build())).saga_id
        await waits(client, saga_id, "t")
        at = await due(stage, saga_id, "t")
        owner = await kill_owner(stage, client, saga_id)
        assert (await client.wait(saga_id, timeout_s=30)).state is SagaState.DONE
        (fired,) = [r for r in await of_kind(client, saga_id, "succeeded") if r.node == "t"]
        assert fired.writer != owner
        assert fired.time is not None
        assert fired.time >= at
        assert stage.done(saga_id) == {"a": 1, "b": 1}
