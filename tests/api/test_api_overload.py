"""A node that is given more than it may hold refuses the rest at its door, drops nothing of what it has let in, and goes on."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from inprocess_support import Member, World, chain, cluster
from sec_client import NodeCondition, Overloaded, SagaState, StoreFull
from sec_client.aio import Client
from sec_client.errors import detail_of
from sec_model import compile_graph
from sec_model.codec import definition_bytes, definition_to_proto
from sec_model.commands import Pause, Resume
from sec_model.commands_codec import command_to_proto
from sec_protos.v1 import common_pb2, coordinator_pb2, coordinator_pb2_grpc
from waiting_support import eventually, until

from sec.api import cluster as cluster_calls
from sec.api import coordinator
from sec.api import server as api_server
from sec.core.records import SecNodeName
from sec.node.door import Bound, Door
from sec.node.door import Overloaded as Refused
from sec.node.settings import Bounds, InvalidSettings, Settings
from sec.store import definitions
from sec.store.commit import IN_FLIGHT, GroupCommit
from sec.store.keys import Keys
from sec.store.kv import KvUnavailable, Put, Txn, TxnResult
from sec.store.memory import MemoryEtcd, MemoryKv

SMALL = Bounds(active=20, submits=8)


@asynccontextmanager
async def stub_of(member: Member) -> AsyncIterator["coordinator_pb2_grpc.CoordinatorAsyncStub"]:
    """Calls without the client's patience."""
    async with grpc.aio.insecure_channel(member.address) as channel:
        yield coordinator_pb2_grpc.CoordinatorStub(channel)


def submits(ids: Iterable[str]) -> list[coordinator_pb2.SubmitSagaRequest]:
    definition = definition_to_proto(chain("a", "b"))
    return [coordinator_pb2.SubmitSagaRequest(saga_id=saga_id, definition=definition) for saga_id in ids]


def detail(error: object) -> common_pb2.ErrorDetail:
    assert isinstance(error, grpc.aio.AioRpcError), error
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    found = detail_of(error)
    assert found is not None
    return found


async def test_ten_times_what_a_node_may_hold() -> None:
    world = World(do={"a": ["hold"] * 1_000})
    async with cluster("n1", bounds=SMALL, lease_ttl_s=30) as c, c.client() as client:  # this keeps the event loop busy
        await c.serve(world.server())
        member = c.members["n1"]
        node, most = member.node, Counter[Bound]()

        async def look() -> None:
            while True:
                for bound, (used, _) in node.door.used().items():
                    most[bound] = max(most[bound], used)
                await asyncio.sleep(0)

        looking = asyncio.create_task(look())
        member.kv.latency_s = 0.05  # so that submits are still in progress when the next ones come
        try:
            accepted: list[str] = []
            refused: dict[str, common_pb2.ErrorDetail] = {}
            async with stub_of(member) as stub:
                while len(accepted) < SMALL.active or len(refused) < 9 * SMALL.active:
                    ids = [f"s{number}" for number in range(len(accepted) + len(refused), len(accepted) + len(refused) + 50)]
                    answers = await asyncio.gather(*(stub.SubmitSaga(each) for each in submits(ids)), return_exceptions=True)
                    for saga_id, answer in zip(ids, answers, strict=True):
                        if isinstance(answer, coordinator_pb2.SubmitSagaResponse):
                            accepted.append(saga_id)
                        else:
                            refused[saga_id] = detail(answer)
            assert len(accepted) == SMALL.active
            for saga_id, said in refused.items():
                assert (said.code, said.saga_id, said.sec_node, said.retryable, said.definite) == (
                    "overloaded",
                    saga_id,
                    "n1",
                    True,
                    True,
                )
                assert said.retry_after_s == 1.0
                assert said.hint == "Nothing was done. Ask another SEC node, or this one again after 1 s."
            assert min(node.door.refused[Bound.SUBMITS], node.door.refused[Bound.ACTIVE]) > 0
            assert node.door.refused[Bound.SUBMITS] + node.door.refused[Bound.ACTIVE] == len(refused)
            shown = (await client.nodes()).nodes[0]
            assert shown.condition is NodeCondition.OVERLOADED
            assert node.serving, "it brings forward what it has"
            world.gate.set()
            for saga_id in accepted:
                assert (await client.wait(saga_id, timeout_s=30)).state is SagaState.DONE
            await until(lambda: not node.owner.drivers)
            assert len([s async for s in client.list()]) == len(accepted), "what was refused is not there"
            assert (await client.run(chain("b"), saga_id="later", timeout_s=30)).state is SagaState.DONE
        finally:
            looking.cancel()
            await asyncio.wait([looking])
        assert most[Bound.ACTIVE] == SMALL.active
        assert most[Bound.SUBMITS] == SMALL.submits
        assert world.count("do", "a") == len(accepted)


async def test_a_full_node_says_why_and_takes_what_it_does_not_own() -> None:
    world = World(do={"a": ["hold"] * 9})
    async with cluster("n1", bounds=Bounds(active=1)) as c:
        await c.serve(world.server())
        async with stub_of(c.members["n1"]) as stub, c.client() as client:
            first, second, third = submits(["s1", "s2", "s3"])
            await stub.SubmitSaga(first)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.SubmitSaga(second)
            assert caught.value.details() == (
                'The submit of saga "s2" was refused: SEC node "n1" has 1 active sagas, which is as many as it may.'
            )
            third.start_later = True
            await stub.SubmitSaga(third)
            with pytest.raises(grpc.aio.AioRpcError, match='The start of saga "s3" was refused'):
                await stub.StartSaga(coordinator_pb2.StartSagaRequest(saga_id="s3"))
            await client.command("s1", Pause("to see that commands are taken"))
            await client.command("s1", Resume())
            world.gate.set()
            assert (await client.wait("s1", timeout_s=30)).state is SagaState.DONE
            await client.start("s3")
            assert (await client.wait("s3", timeout_s=30)).state is SagaState.DONE


async def test_a_client_goes_to_the_node_that_has_room() -> None:
    world = World(do={"a": ["hold"] * 9})
    async with cluster("n1", bounds=Bounds(active=1)) as c:
        await c.add("n2")
        await c.serve(world.server())
        async with c.client("n1") as only_one, c.client("n1", "n2") as both:
            await only_one.submit(chain("a"), saga_id="s1")
            await both.submit(chain("a"), saga_id="s2")
            assert c.owner_of("s2") is c.members["n2"]
            world.gate.set()
            assert (await both.wait("s2", timeout_s=30)).state is SagaState.DONE


async def test_sagas_are_taken_over_beyond_the_bound() -> None:
    world = World(do={"a": ["hold"] * 99})
    async with cluster("n1", "n2", bounds=Bounds(active=3)) as c:
        await c.serve(world.server())
        async with c.client("n1") as first, c.client("n2") as second:
            for number in range(3):
                await first.submit(chain("a"), saga_id=f"a{number}")
                await second.submit(chain("a"), saga_id=f"b{number}")
            await c.members["n1"].stop()
            survivor = c.members["n2"].node
            await until(lambda: len(survivor.owner.drivers) == 6)
            async with stub_of(c.members["n2"]) as stub:
                with pytest.raises(grpc.aio.AioRpcError, match="has 6 active sagas"):
                    await stub.SubmitSaga(*submits(["late"]))
            world.gate.set()
            for number in range(3):
                assert (await second.wait(f"a{number}", timeout_s=30)).state is SagaState.DONE


async def test_a_drained_node_takes_no_more_than_the_others_have_room_for() -> None:
    world = World(do={"a": ["hold"] * 9})
    async with cluster("n1", "n2", bounds=Bounds(active=1)) as c:
        await c.serve(world.server())
        async with c.client("n1", "n2") as client, stub_of(c.members["n1"]) as stub:
            await client.drain("n1")
            await until(lambda: c.members["n1"].node.draining and not c.members["n1"].node.owner.may_dispatch())
            await until(lambda: [str(n) for n in c.members["n1"].node.claimers()] == ["n2"])
            await stub.SubmitSaga(*submits(["s1"]))
            await until(lambda: c.members["n1"].node.counts.of(SecNodeName("n2")) == 1)
            with pytest.raises(grpc.aio.AioRpcError, match='SEC node "n1" has 1 active sagas'):
                await stub.SubmitSaga(*submits(["s2"]))
            world.gate.set()
            assert (await client.wait("s1", timeout_s=30)).state is SagaState.DONE


async def test_what_nobody_takes_is_bounded_too() -> None:
    async with cluster("n1", bounds=Bounds(active=1)) as c, c.client() as client, stub_of(c.members["n1"]) as stub:
        node = c.members["n1"].node
        await client.drain("n1")
        await until(lambda: not node.owner.may_dispatch() and not node.claimers())
        await stub.SubmitSaga(*submits(["s1"]))
        await until(lambda: node.live.items)
        with pytest.raises(grpc.aio.AioRpcError, match='SEC node "n1" has 1 active sagas'):
            await stub.SubmitSaga(*submits(["s2"]))


async def test_waits_are_bounded_and_what_gets_a_cluster_out_of_trouble_is_not_refused() -> None:
    world = World(do={"a": ["hold"]})
    async with cluster("n1", bounds=Bounds(reads=2)) as c:
        await c.serve(world.server())
        async with stub_of(c.members["n1"]) as stub:
            await stub.SubmitSaga(*submits(["s1"]))
            wait = coordinator_pb2.WaitSagaRequest(saga_id="s1", timeout_s=60)
            waits = [asyncio.ensure_future(stub.WaitSaga(wait)) for _ in range(2)]
            used = c.members["n1"].node.door.used
            await until(lambda: used()[Bound.READS] == (2, 2))
            for call in (stub.WaitSaga(wait), stub.GetSaga(coordinator_pb2.GetSagaRequest(saga_id="s1"))):
                with pytest.raises(grpc.aio.AioRpcError, match="has 2 reads, waits and watches in progress"):
                    await call
            with pytest.raises(grpc.aio.AioRpcError, match="has 2 reads, waits and watches in progress"):
                async for _ in stub.WatchSaga(coordinator_pb2.WatchSagaRequest(saga_id="s1")):
                    pass
            await stub.ListNodes(coordinator_pb2.ListNodesRequest())
            await stub.ListActions(coordinator_pb2.ListActionsRequest())
            world.gate.set()
            assert all(answer.settled for answer in await asyncio.gather(*waits))
            await stub.GetSaga(coordinator_pb2.GetSagaRequest(saga_id="s1"))


async def test_beyond_all_that_grpc_itself_refuses_and_the_client_takes_it_for_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_server, "OTHER_CALLS", 0)
    async with cluster("n1", bounds=Bounds(submits=1, reads=2)) as c, c.client() as client:
        member = c.members["n1"]
        await client.submit(chain("a"), saga_id="s1")
        async with stub_of(member) as stub, grpc.aio.insecure_channel(member.address) as channel:
            watches = [stub.WatchSaga(coordinator_pb2.WatchSagaRequest(saga_id="s1")) for _ in range(2)]
            await until(lambda: member.node.door.used()[Bound.READS] == (2, 2))
            health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())  # type: ignore[attr-defined] # missing in the stubs
            await health.read()
            async with Client(member.address, timeout_s=2) as impatient:
                with pytest.raises(Overloaded, match="Concurrent RPC limit exceeded") as caught:
                    await impatient.nodes()
            assert (caught.value.retryable, caught.value.retry_after_s) == (True, 1.0)
            for stream in (*watches, health):
                stream.cancel()
        assert (await client.nodes()).answered_by == "n1"


async def test_writes_that_wait_for_the_store_close_the_door() -> None:
    kv = MemoryKv(MemoryEtcd(), latency_s=3600)
    commits = GroupCommit(kv, timeout_s=3600)
    door = Door(SecNodeName("n1"), Bounds(waiting_bytes=1_000), lambda: 0, commits)
    writes: list[asyncio.Future[TxnResult]] = []
    try:
        for number in range(IN_FLIGHT + 1):
            assert not door.overload
            with door.write("The submit", starts=True):
                writes.append(commits.commit(f"s{number}", Txn(then=[Put(b"k", bytes(2_000))])))
            await until(
                lambda n=number: commits.transactions == min(n + 1, IN_FLIGHT) and commits.depth == max(0, n + 1 - IN_FLIGHT)
            )
        assert commits.waiting_bytes > 2_000
        said = r'The command was refused: SEC node "n1" has 2\d{3} bytes that wait to be written to the store'
        with pytest.raises(Refused, match=said), door.write("The command", starts=False):
            pass
        assert door.overload.startswith("It refuses what is new: it has 2")
    finally:
        for write in writes:
            write.cancel()
        while in_flight := list(commits._in_flight):  # those that waited begin when the others have ended  # noqa: SLF001
            for transaction in in_flight:
                transaction.cancel()
            await asyncio.gather(*in_flight, return_exceptions=True)
            await asyncio.sleep(0)
        await commits.close()
        await kv.aclose()


async def test_what_waits_is_counted_down_when_it_is_written() -> None:
    kv = MemoryKv(MemoryEtcd(), latency_s=0.001)
    commits = GroupCommit(kv, timeout_s=5)
    # More than fits into one transaction, and two of one saga, which cannot share one.
    await asyncio.gather(*(commits.commit(f"s{n % 150}", Txn(then=[Put(b"k%d" % n, bytes(100))])) for n in range(300)))
    assert (commits.waiting_bytes, commits.depth) == (0, 0)
    await commits.close()
    await kv.aclose()


async def test_commands_that_nobody_takes_up_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "MAX_WAITING_COMMANDS", 2)
    async with cluster("n1") as c, c.client() as client, stub_of(c.members["n1"]) as stub:
        await client.submit(chain("a"), saga_id="s1", start=False)

        def pause(number: int) -> coordinator_pb2.CommandSagaRequest:
            return coordinator_pb2.CommandSagaRequest(saga_id="s1", command_id=f"c{number}", command=command_to_proto(Pause("a")))

        for number in range(2):
            await stub.CommandSaga(pause(number))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.CommandSaga(pause(2))
        assert detail(caught.value).code == "overloaded"
        assert 'has 2 commands for saga "s1" that its owner has not taken up' in str(caught.value.details())


async def test_action_servers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_calls, "MAX_ACTION_SERVERS", 1)
    async with cluster("n1") as c, stub_of(c.members["n1"]) as stub:
        first = coordinator_pb2.RegisterActionServerRequest(instance_id="i1", server_name="one", address="127.0.0.1:1")
        await stub.RegisterActionServer(first)
        await until(lambda: c.members["n1"].node.registrations.items)
        await stub.RegisterActionServer(first)
        with pytest.raises(grpc.aio.AioRpcError, match="knows 1 action servers"):
            await stub.RegisterActionServer(
                coordinator_pb2.RegisterActionServerRequest(instance_id="i2", server_name="two", address="127.0.0.1:2")
            )


async def test_calls_of_one_action_server_are_bounded_and_all_sagas_get_their_turn() -> None:
    world = World(do={"a": ["hold"] * 9})
    async with cluster("n1", bounds=Bounds(calls=3)) as c, c.client() as client:
        await c.serve(world.server())
        for number in range(5):
            await client.submit(chain("a"), saga_id=f"s{number}")
        directory = c.members["n1"].node.directory
        await until(lambda: len(world.ran) == 3)
        assert directory.calls == 3
        world.gate.set()
        for number in range(5):
            assert (await client.wait(f"s{number}", timeout_s=30)).state is SagaState.DONE
        assert world.count("do", "a") == 5


async def test_a_store_that_is_full_refuses_submits_and_nothing_is_lost() -> None:
    world = World(do={"a": ["hold"]})
    async with cluster("n1") as c, c.client() as client:
        await c.serve(world.server())
        await client.submit(chain("a", "b"), saga_id="s1")
        await until(lambda: world.ran)
        c.etcd.full = True
        world.gate.set()
        with pytest.raises(StoreFull) as caught:
            await client.submit(chain("a"), saga_id="s2")
        assert (caught.value.status, caught.value.retryable, caught.value.definite) == ("RESOURCE_EXHAUSTED", False, True)

        async def condition() -> NodeCondition:
            return (await client.nodes()).nodes[0].condition

        async def full() -> bool:
            return await condition() is NodeCondition.STORE_FULL

        await eventually(full)
        assert not c.members["n1"].node.serving
        assert (await client.get("s1")).state is SagaState.RUNNING
        c.etcd.full = False
        assert (await client.wait("s1", timeout_s=30)).state is SagaState.DONE
        await until(lambda: c.members["n1"].node.serving)
        assert await condition() is NodeCondition.WELL


async def test_a_client_whose_time_is_up_says_that_there_is_no_room() -> None:
    async with cluster("n1", bounds=Bounds(active=1)) as c, c.client() as client:
        await client.submit(chain("a"), saga_id="s1")
        async with Client(c.members["n1"].address, timeout_s=2) as impatient:
            with pytest.raises(Overloaded, match='The submit of saga "s2" was refused') as caught:
                await impatient.submit(chain("a"), saga_id="s2")
        assert (caught.value.code, caught.value.definite, caught.value.retry_after_s) == ("overloaded", True, 1.0)


def test_bounds_are_at_least_one() -> None:
    with pytest.raises(InvalidSettings, match=r"The bound of active sagas is 0; it must be at least 1\."):
        Settings(SecNodeName("n1"), bounds=Bounds(active=0)).check()


async def test_definitions_that_are_kept_are_bounded_by_their_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(definitions, "MAX_CACHED_NODES", 5)
    kv = MemoryKv(MemoryEtcd())
    store = definitions.DefinitionStore(kv, Keys("/sec"))
    graphs = {}
    for name in ("a", "b", "c"):
        definition = chain(name, f"{name}2", name=name)
        graphs[name] = compile_graph(definition), await store.put(definition_bytes(definition), compile_graph(definition))
    assert 2 * len(graphs["a"][0].nodes) <= 5 < 3 * len(graphs["a"][0].nodes)
    kv.partition()
    for name in ("b", "c"):
        assert (await store.graph(graphs[name][1])).final == graphs[name][0].final
    with pytest.raises(KvUnavailable):
        await store.graph(graphs["a"][1])
    await kv.aclose()
