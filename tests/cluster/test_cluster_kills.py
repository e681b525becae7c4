"""Owners that are killed, hung or told to go in the middle of real work: processes, sockets, an etcd and an inventory, all real."""

import asyncio
import os
import signal
import time

import grpc
import grpc.aio
import pytest
from cluster_support import Stage
from sec_client import Definition, LogRecord, Phase, Saga, SagaState, action
from sec_client import aio as sec_aio
from sec_protos.v1 import action_server_pb2, action_server_pb2_grpc
from waiting_support import eventually, until


def saga() -> Definition:
    """a, then b and c beside each other, then d."""
    made = Saga("cluster-test").append(action("a", "step"))
    made.append_parallel(action("b", "step"), action("c", "step"))
    return made.append(action("d", "step")).build()


async def log_of(client: sec_aio.Client, saga_id: str) -> list[LogRecord]:
    return [record async for record in client.log(saga_id)]


def check_log(log: list[LogRecord]) -> None:
    """Epochs never go back, and each has one writer."""
    assert [r.sequence for r in log] == list(range(1, len(log) + 1))
    epochs = [r.epoch for r in log]
    assert epochs == sorted(epochs)
    writers: dict[int, set[str]] = {}
    for record in log:
        writers.setdefault(record.epoch, set()).add(record.writer)
    assert all(len(names) == 1 for names in writers.values())


async def test_an_owner_killed_before_an_outcome_is_written(stage: Stage) -> None:
    async with stage.client() as client:
        saga_id = (await client.submit(saga(), params={"hold": ["b"]})).saga_id
        await stage.held(saga_id, "b", "do")
        owner = await stage.owner(client, saga_id)
        stage.cluster.kill(owner)
        takeover = await stage.takeover(client, saga_id, owner)
        assert takeover.writer != owner
        stage.gate.touch()
        result = await client.wait(saga_id, timeout_s=30)
        assert result.state is SagaState.DONE
        assert stage.inventory(saga_id) == ["a", "b", "c", "d"]
        assert stage.done(saga_id) == {"a": 1, "b": 1, "c": 1, "d": 1}
        check_log(await log_of(client, saga_id))


async def test_an_owner_killed_during_unwinding(stage: Stage) -> None:
    async with stage.client() as client:
        saga_id = (await client.submit(saga(), params={"fail": ["d"], "undo_hold": ["b"]})).saga_id
        await stage.held(saga_id, "b", "undo")
        owner = await stage.owner(client, saga_id)
        stage.cluster.kill(owner)
        await stage.takeover(client, saga_id, owner)
        assert "a" in stage.inventory(saga_id), "nothing is undone before its children are"
        stage.gate.touch()
        result = await client.wait(saga_id, timeout_s=30)
        assert result.state is SagaState.UNDONE
        assert [(e.node, e.phase) for e in result.errors] == [("d", Phase.DO)]
        assert stage.inventory(saga_id) == []
        assert stage.done(saga_id) == stage.undone(saga_id) == {"a": 1, "b": 1, "c": 1}
        check_log(await log_of(client, saga_id))


async def test_two_hundred_sagas_in_flight_when_a_node_is_killed(stage: Stage) -> None:
    nodes = stage.cluster.names
    async with stage.client() as client:
        ids = [f"many-{time.time_ns()}-{i}" for i in range(200)]

        async def submit(number: int) -> None:
            params = {"hold": ["b"], "fail": ["d"] if number % 4 == 0 else []}
            async with sec_aio.Client([stage.cluster.addresses[number % 3]]) as one:
                await one.submit(saga(), saga_id=ids[number], params=params)

        for start in range(0, 200, 20):
            await asyncio.gather(*(submit(i) for i in range(start, start + 20)))
        for saga_id in ids:
            await stage.held(saga_id, "b", "do")
        owners = [(await client.get(saga_id)).summary.owner for saga_id in ids]
        assert {name: owners.count(name) for name in nodes} == {nodes[0]: 67, nodes[1]: 67, nodes[2]: 66}
        stage.cluster.kill(nodes[1])
        stage.gate.touch()
        for number, saga_id in enumerate(ids):
            result = await client.wait(saga_id, timeout_s=60)
            if number % 4 == 0:
                assert result.state is SagaState.UNDONE
                assert stage.inventory(saga_id) == []
                assert stage.done(saga_id) == stage.undone(saga_id) == {"a": 1, "b": 1, "c": 1}
            else:
                assert result.state is SagaState.DONE
                assert stage.inventory(saga_id) == ["a", "b", "c", "d"]
                assert stage.done(saga_id) == {"a": 1, "b": 1, "c": 1, "d": 1}
        for saga_id in ids:
            check_log(await log_of(client, saga_id))


async def test_an_owner_that_hangs_until_its_lease_is_gone_and_wakes_up(stage: Stage) -> None:
    async with stage.client() as client:
        saga_id = (await client.submit(saga(), params={"hold": ["b", "d"]})).saga_id
        old_epoch = await stage.held(saga_id, "b", "do")
        owner = await stage.owner(client, saga_id)
        # What the hung owner would send: its very own call of "d", which it never got to make.
        uid = (await client.get(saga_id)).uid
        others = [stage.cluster.address(n) for n in stage.cluster.names if n != owner]
        stage.cluster.pause(owner)
        try:
            async with sec_aio.Client(others) as awake:
                takeover = await stage.takeover(awake, saga_id, owner)
                stage.gate.touch()
                result = await awake.wait(saga_id, timeout_s=30)
        finally:
            stage.cluster.resume(owner)
        assert result.state is SagaState.DONE
        assert takeover.epoch > old_epoch

        # It rejoins, with a new session, and owns nothing of what it had.
        stage.cluster.wait_serving(owner)
        async with sec_aio.Client([stage.cluster.address(owner)]) as woken:
            assert owner in {n.name for n in (await woken.nodes()).nodes}
            assert (await woken.get(saga_id)).state is SagaState.DONE
            log = await log_of(woken, saga_id)
        check_log(log)
        assert {r.writer for r in log if r.sequence >= takeover.sequence} == {takeover.writer}, "none of its writes landed"
        assert stage.done(saga_id) == {"a": 1, "b": 1, "c": 1, "d": 1}

        # A call in its old epoch, had it been on its way, is refused by the action server.
        call = action_server_pb2.Call(
            saga_id=saga_id,
            saga_uid=uid,
            node="d",
            action="step",
            idempotency_key=f"{uid}/d",
            epoch=old_epoch,
            attempt=1,
            sec_node=owner,
        )
        (offered,) = [a for a in await client.actions() if a.name == "step"]
        async with grpc.aio.insecure_channel(offered.servers[0].address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await action_server_pb2_grpc.ActionServerStub(channel).Do(action_server_pb2.DoRequest(call=call), timeout=10)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert stage.inventory(saga_id) == ["a", "b", "c", "d"]


async def test_an_owner_that_wakes_up_with_an_answer_in_its_hands_cannot_write_it(stage: Stage) -> None:
    """The answer of its call lies in the socket of the hung node, and is the first that it reads when it wakes up."""
    async with stage.client() as client:
        saga_id = (await client.submit(saga(), params={"hold": ["b"], "undo_hold": ["a"]})).saga_id
        await stage.held(saga_id, "b", "do")
        owner = await stage.owner(client, saga_id)
        others = [stage.cluster.address(n) for n in stage.cluster.names if n != owner]
        stage.cluster.pause(owner)
        try:
            stage.gate.touch()  # its own call is answered while it hangs
            async with sec_aio.Client(others) as awake:
                takeover = await stage.takeover(awake, saga_id, owner)
        finally:
            stage.cluster.resume(owner)
        assert (await client.wait(saga_id, timeout_s=30)).state is SagaState.DONE
        stage.cluster.wait_serving(owner)
        log = await log_of(client, saga_id)
        check_log(log)
        assert all(r.writer != owner for r in log if r.sequence >= takeover.sequence)
        assert stage.done(saga_id) == {"a": 1, "b": 1, "c": 1, "d": 1}


async def test_a_node_that_is_told_to_go_does_not_make_anybody_wait_for_its_lease(stage: Stage) -> None:
    async with stage.client() as client:
        saga_id = (await client.submit(saga(), params={"hold": ["b"]})).saga_id
        await stage.held(saga_id, "b", "do")
        owner = await stage.owner(client, saga_id)
        pid = stage.cluster.pid(owner)
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
        others = [stage.cluster.address(n) for n in stage.cluster.names if n != owner]
        async with sec_aio.Client(others) as client_of_others:
            await stage.takeover(client_of_others, saga_id, owner)
        stage.gate.touch()
        assert (await client.wait(saga_id, timeout_s=30)).state is SagaState.DONE
        await until(lambda: stage.cluster.pid(owner) is None)
        assert stage.cluster.exit_status(owner) == 0
        assert f'SEC node "{owner}" handed over 1 sagas.' in stage.cluster.log(owner).read_text(), (
            "nobody had to wait for its lease"
        )
        assert stage.done(saga_id) == {"a": 1, "b": 1, "c": 1, "d": 1}


async def test_the_action_server_is_killed_in_the_middle_and_comes_back(stage: Stage) -> None:
    async with stage.client() as client:
        saga_id = (await client.submit(saga(), params={"hold": ["b"]})).saga_id
        await stage.held(saga_id, "b", "do")
        stage.restart_effects()
        stage.gate.touch()

        async def ended() -> bool:
            return (await client.get(saga_id)).state is SagaState.DONE

        await eventually(ended, 60)
        assert stage.done(saga_id) == {"a": 1, "b": 1, "c": 1, "d": 1}
