"""Finding and calling action servers: who is called, who is not, and what a saga does while nobody can be."""

import asyncio
from typing import Any

import grpc
import grpc.aio
from inprocess_support import FAST, World, chain, cluster
from sec_client import NodeState, Phase, RetryPolicy, Saga, SagaState, action
from sec_protos.v1 import action_server_pb2, action_server_pb2_grpc, common_pb2
from waiting_support import until

from sec.core.records import AttemptUnknown, SagaId, Started


async def test_a_saga_waits_visibly_for_an_action_that_nobody_offers() -> None:
    world = World()
    async with cluster("n1", "n2") as c, c.client() as client:
        submitted = await client.submit(chain("a", "b"))
        assert submitted.warnings == ('No action server that can be reached offers the action "step" now; its nodes will wait.',)
        view = await client.get(submitted.saga_id)
        assert view["a"].state is NodeState.QUEUED
        assert view["a"].detail == 'No action server that can be reached offers "step".'
        entries = (await c.members["n1"].node.sagas.load(SagaId(submitted.saga_id))).entries
        assert not [e for e in entries if isinstance(e.record, Started)], "what was never started needs no undo"
        await c.serve(world.server())
        assert (await client.wait(submitted.saga_id, timeout_s=20)).state is SagaState.DONE


async def test_a_node_waits_again_when_its_server_goes_in_the_middle() -> None:
    world = World(do={"a": ["hold"]})
    async with cluster("n1") as c, c.client() as client:
        first = await c.serve(world.server())
        saga_id = (await client.submit(chain("a", "b"))).saga_id
        await until(lambda: world.count("do", "a") == 1)
        await first.stop(0.0)
        await until(lambda: not c.members["n1"].node.directory.offered)

        driver = c.members["n1"].node.owner.drivers[SagaId(saga_id)]
        await until(lambda: driver.state.tries)
        view = await client.get(saga_id)
        assert view["a"].state is NodeState.RETRYING
        assert view["a"].detail == 'No action server that can be reached offers "step".'
        assert view["a"].error is not None
        assert view["a"].error.phase is Phase.DO
        world.gate.set()
        await c.serve(world.server("second"))
        assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.DONE


async def test_unwinding_does_not_sit_out_a_retry_policy() -> None:
    """One branch pauses for an hour after an unknown outcome; the other fails: the first is given up and undone at once."""
    world = World(do={"lost": ["unknown"], "bad": ["hold fail"]})
    patient = RetryPolicy(max_attempts=1000, initial_backoff_s=3600, max_backoff_s=3600)
    saga = Saga("fork").append(action("a", "step"))
    saga.append_parallel(action("lost", "step", retry=patient), action("bad", "step", retry=FAST))
    saga.append(action("z", "step"))
    async with cluster("n1") as c, c.client() as client:
        await c.serve(world.server())
        saga_id = (await client.submit(saga.build())).saga_id
        driver = c.members["n1"].node.owner.drivers[SagaId(saga_id)]
        await until(lambda: driver.state.tries and world.count("do", "bad") == 1)
        world.gate.set()
        result = await client.wait(saga_id, timeout_s=20)
        assert result.state is SagaState.UNDONE
        assert [(e.node, e.phase) for e in result.errors] == [("bad", Phase.DO), ("lost", Phase.DO)]
        assert [n for p, n, _ in world.ran if p == "undo"] == ["lost", "a"]


async def test_calls_are_spread_over_the_servers_that_are_up() -> None:
    world = World()
    async with cluster("n1") as c, c.client() as client:
        await c.serve(world.server("one"))
        second = await c.serve(world.server("two"))
        for _ in range(10):
            await client.run(chain("a", "b"), timeout_s=20)
        assert 7 <= world.served_by.count("one") <= 13
        await second.stop(1.0)
        world.served_by.clear()
        for _ in range(3):
            await client.run(chain("a", "b"), timeout_s=20)
        assert set(world.served_by) == {"one"}


async def test_a_server_that_is_listed_in_the_configuration_is_found_without_registration() -> None:
    world = World()
    server = world.server()
    await server.start("127.0.0.1:0")
    try:
        async with cluster("n1", action_servers=(f"127.0.0.1:{server.port}",)) as c, c.client() as client:
            await until(lambda: "step" in c.members["n1"].node.directory.offered)
            (offered,) = await client.actions()
            assert offered.name == "step"
            assert [(s.configured, s.reachable) for s in offered.servers] == [(True, True)]
            assert (await client.run(chain("a"), timeout_s=20)).state is SagaState.DONE
    finally:
        await server.stop(0.0)


async def test_unknown_outcomes_are_retried_with_the_same_key_and_then_undone() -> None:
    world = World(do={"b": ["unknown"] * 3})
    async with cluster("n1") as c, c.client() as client:
        await c.serve(world.server())
        result = await client.run(chain("a", "b"), timeout_s=20)
        assert result.state is SagaState.UNDONE
        assert (result.errors[0].node, result.errors[0].code) == ("b", "unavailable")
        assert world.count("do", "b") == 3
        assert world.count("undo", "b") == 1
        entries = (await c.members["n1"].node.sagas.load(SagaId(result.saga_id))).entries
        attempts = [e.record.attempt for e in entries if isinstance(e.record, AttemptUnknown)]
        assert attempts == [1, 2, 3]


async def test_an_undo_that_fails_for_good_makes_the_saga_stuck_and_first_in_the_list() -> None:
    world = World(do={"c": ["fail"]}, undo={"a": ["fail"]})
    async with cluster("n1") as c, c.client() as client:
        await c.serve(world.server())
        await client.run(chain("x"), saga_id="0-earlier", timeout_s=20)
        result = await client.run(chain("a", "b", "c"), saga_id="9-stuck", timeout_s=20)
        assert result.state is SagaState.STUCK
        assert [(e.node, e.phase) for e in result.errors] == [("c", Phase.DO), ("a", Phase.UNDO)]
        assert next(iter([s async for s in client.list()])).saga_id == "9-stuck"
        view = await client.get("9-stuck")
        assert {n.node: n.state for n in view.nodes} == {
            "a": NodeState.UNDO_FAILED,
            "b": NodeState.UNDONE,
            "c": NodeState.FAILED,
        }


async def test_a_rush_of_sagas_waits_for_a_busy_server_and_does_not_fail() -> None:
    world = World()
    async with cluster("n1") as c, c.client() as client:
        await c.serve(world.server(max_concurrency=1))
        results = await asyncio.gather(*(client.run(chain("a", "b"), timeout_s=60) for _ in range(30)))
        assert {r.state for r in results} == {SagaState.DONE}
        assert all(count == 1 for count in world.effects.values())


class Refusing(action_server_pb2_grpc.ActionServerServicer):
    """An action server that calls the first call stale, whatever its epoch is."""

    def __init__(self) -> None:
        self.calls = 0

    async def Describe(self, request: Any, context: Any) -> action_server_pb2.DescribeResponse:  # noqa: N802
        return action_server_pb2.DescribeResponse(actions=[action_server_pb2.ActionDescription(name="step")])

    async def Do(self, request: Any, context: Any) -> action_server_pb2.DoResponse:  # noqa: N802
        self.calls += 1
        if self.calls == 1:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "a higher epoch was seen")
        return action_server_pb2.DoResponse(output=common_pb2.Payload(data=b"1"))


async def test_an_owner_that_is_called_stale_asks_the_store_and_goes_on() -> None:
    """Also: an action server without kit, registration and health service."""
    servicer, server = Refusing(), grpc.aio.server()
    action_server_pb2_grpc.add_ActionServerServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with cluster("n1", action_servers=(f"127.0.0.1:{port}",)) as c, c.client() as client:
            await until(lambda: "step" in c.members["n1"].node.directory.offered)
            result = await client.run(chain("a"), timeout_s=20)
            assert result.state is SagaState.DONE
            entries = (await c.members["n1"].node.sagas.load(SagaId(result.saga_id))).entries
            (missing,) = [e.record for e in entries if isinstance(e.record, AttemptUnknown)]
            assert missing.error.code == "stale_epoch"
    finally:
        await server.stop(0)
