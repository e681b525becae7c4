"""A node that accepts work and does not execute it is not well, and says so."""

import asyncio
import time
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from inprocess_support import Member, World, chain, cluster
from sec_client import SagaState
from waiting_support import eventually, until

from sec.core.records import SecNodeName
from sec.node.health import Progress
from sec.store.commit import IN_FLIGHT, GroupCommit
from sec.store.kv import Txn
from sec.store.memory import MemoryEtcd, MemoryKv


async def status_of(member: Member) -> str:
    async with grpc.aio.insecure_channel(member.address) as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)  # type: ignore[attr-defined]
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


async def test_a_node_whose_steps_do_not_come_forward_is_not_serving_until_they_do(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    async with cluster("n1", stall_limit_s=1.0) as c, c.client() as client:
        await c.serve(world.server())
        member = c.members["n1"]
        gate = asyncio.Event()
        append = member.node.sagas.append
        waiting: list[asyncio.Task[None]] = []

        def held(*args: Any, **kwargs: Any) -> None:
            async def late() -> None:
                await gate.wait()
                append(*args, **kwargs)

            waiting.append(asyncio.create_task(late()))

        member.node.sagas.append = held  # type: ignore[method-assign]

        async def shown(status: str) -> bool:
            return await status_of(member) == status

        try:
            await eventually(lambda: shown("SERVING"))
            await client.submit(chain("a"), saga_id="s1")
            await eventually(lambda: shown("NOT_SERVING"))
            [shown_node] = (await client.nodes()).nodes
            assert '1 of its sagas wait for their next step to be decided and written; saga "s1" has for' in shown_node.trouble
            assert 'SEC node "n1" is not well: 1 of its sagas' in caplog.text
        finally:
            gate.set()
        await eventually(lambda: shown("SERVING"))
        assert 'SEC node "n1" is well again.' in caplog.text
        assert (await client.wait("s1", timeout_s=20)).state is SagaState.DONE
        assert (await client.nodes()).nodes[0].trouble == ""


async def test_what_a_saga_waits_for_from_outside_does_not_count() -> None:
    world = World(do={"a": ["hold"]})
    async with cluster("n1", stall_limit_s=1.0) as c, c.client() as client:
        await c.serve(world.server())
        node = c.members["n1"].node
        await client.submit(chain("a"), saga_id="s1")
        await until(lambda: world.ran)
        [driver] = node.owner.drivers_now()
        await until(lambda: driver.step_since is None)
        world.gate.set()


async def test_writes_that_wait_for_the_store_are_trouble() -> None:
    kv = MemoryKv(MemoryEtcd(), latency_s=3600)
    commits = GroupCommit(kv, timeout_s=3600)
    progress = Progress(SecNodeName("n1"), list, commits, stall_limit_s=0.2)
    running = asyncio.create_task(progress.run())
    writes = []
    try:
        for number in range(IN_FLIGHT):
            writes.append(commits.commit(f"s{number}", Txn()))
            await until(lambda n=number: len(commits._in_flight) == n + 1)  # noqa: SLF001
        writes.append(commits.commit("late", Txn()))
        await until(lambda: progress.trouble)
        assert progress.trouble.startswith("1 writes wait for the store; the first has for ")
    finally:
        for task in (running, *writes, *commits._in_flight):  # noqa: SLF001
            task.cancel()
        await asyncio.gather(running, *writes, return_exceptions=True)
        await commits.close()
        await kv.aclose()


async def test_an_event_loop_that_stands_still_is_trouble() -> None:
    commits = GroupCommit(MemoryKv(MemoryEtcd()), timeout_s=1)
    progress = Progress(SecNodeName("n1"), list, commits, stall_limit_s=0.3)
    running = asyncio.create_task(progress.run())
    await asyncio.sleep(0)
    time.sleep(1.0)  # noqa: ASYNC251 # it is what is tested
    await until(lambda: progress.trouble)
    assert progress.trouble.startswith("The event loop was late by ")
    await until(lambda: not progress.trouble)
    running.cancel()
    await asyncio.wait([running])
