"""`SubmitSagas`: each saga is stored or refused by itself, what they have in common is done once, and the door counts each of them."""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from inprocess_support import Cluster, Member, World, chain, cluster
from sec_client import ActionNotOffered, InvalidDefinition, Overloaded, SagaError, SagaState, Submission, SubmitResult
from sec_client.errors import detail_of
from sec_model import Definition
from sec_model.codec import definition_to_proto
from sec_protos.v1 import coordinator_pb2 as pb
from sec_protos.v1 import coordinator_pb2_grpc, definition_pb2
from waiting_support import until

from sec.api import requests
from sec.node.door import Bound
from sec.node.settings import Bounds
from sec.store.definitions import DefinitionStore
from sec.store.kv import Delete, Txn

TRIP = chain("a", "b")


@pytest.fixture
async def one() -> AsyncIterator[Cluster]:
    async with cluster("n1") as made:
        yield made


@asynccontextmanager
async def stub_of(member: Member) -> AsyncIterator["coordinator_pb2_grpc.CoordinatorAsyncStub"]:
    async with grpc.aio.insecure_channel(member.address) as channel:
        yield coordinator_pb2_grpc.CoordinatorStub(channel)


def message(sagas: Iterable[pb.SagaSubmission], definitions: Sequence[Definition] = (TRIP,), **terms: Any) -> pb.SubmitSagasRequest:
    return pb.SubmitSagasRequest(definitions=[definition_to_proto(d) for d in definitions], sagas=sagas, **terms)


def saga(saga_id: str, **fields: Any) -> pb.SagaSubmission:
    return pb.SagaSubmission(saga_id=saga_id, **fields)


async def test_many_sagas_run_and_share_transactions_and_their_definition(one: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = 0
    put = DefinitionStore.put

    async def counting(self: DefinitionStore, *given: Any) -> str:
        nonlocal stored
        stored += 1
        return await put(self, *given)

    monkeypatch.setattr(DefinitionStore, "put", counting)
    world = World(do={"a": ["hold"] * 300})
    await one.serve(world.server())
    node = one.members["n1"].node
    before = node.commits.transactions
    async with one.client() as client:
        results = await client.submit_many(Submission(TRIP, {"n": n}, f"s{n}") for n in range(300))
        assert results == [SubmitResult(f"s{n}", True) for n in range(300)]
        assert stored == 1, "they have one definition"
        assert 3 <= node.commits.transactions - before <= 30, (
            "how many come into the first ones depends on how fast the definition is stored"
        )
        world.gate.set()
        for n in (0, 150, 299):
            assert (await client.wait(f"s{n}", timeout_s=30)).state is SagaState.DONE
    await until(lambda: not node.owner.drivers)
    assert world.count("do", "b") == 300
    assert sorted(call.params["n"] for call in world.calls if call.node == "a") == list(range(300))


async def test_it_is_idempotent_by_id(one: Cluster) -> None:
    async with one.client() as client:
        given = [Submission(TRIP, {"n": n}, f"s{n}") for n in range(3)]
        await client.submit_many(given[:2])
        other = Submission(TRIP, {"n": "other"}, "s0")
        again = await client.submit_many([*given, given[2], other])
    assert [r.created for r in again[:3] if isinstance(r, SubmitResult)] == [False, False, True]
    assert again[3] == SubmitResult("s2", False)
    assert isinstance(again[4], SagaError)
    assert (again[4].code, again[4].saga_id, again[4].status) == ("saga_exists", "s0", "ALREADY_EXISTS")


async def test_each_is_refused_by_itself(one: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = 0
    check = requests._definition  # noqa: SLF001

    def counting(*given: Any) -> Any:
        nonlocal checked
        checked += 1
        return check(*given)

    monkeypatch.setattr(requests, "_definition", counting)
    bad = definition_pb2.SagaDefinition(name="bad", nodes=[definition_pb2.NodeDefinition(name="x")])
    sent = message(
        [
            saga("fine"),
            saga("a/b"),
            saga("labels", labels={"team": "x" * 257}),
            saga("params", params={"data": bytes(300_000)}),
            saga("late", deadline=definition_pb2.Deadline(after_s=-1)),
            saga("bad-1", definition=1),
            saga("bad-2", definition=1),
            saga("none", definition=2),
            saga(""),
        ]
    )
    sent.definitions.append(bad)
    async with stub_of(one.members["n1"]) as stub:
        results = (await stub.SubmitSagas(sent)).results
    told = [(r.refused.status, r.refused.detail.code, r.refused.detail.saga_id) for r in results[1:8]]
    wrong = grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert told == [
        (wrong, "invalid_argument", "a/b"),
        (wrong, "invalid_argument", "labels"),
        (wrong, "payload_too_large", "params"),
        (wrong, "invalid_argument", "late"),
        (wrong, "invalid_definition", "bad-1"),
        (wrong, "invalid_definition", "bad-2"),
        (wrong, "invalid_argument", "none"),
    ]
    assert results[7].refused.message == 'Saga "none" is to be made from definition 2, but the call has 2, from 0 on.'
    assert all(r.refused.detail.sec_node == "n1" for r in results[1:8])
    assert results[0].submitted.created
    assert results[8].submitted.saga_id, "the cluster drew one"
    assert checked == 2, "each definition once, the bad one too"


async def test_the_bounds_of_a_call(one: Cluster) -> None:
    async with stub_of(one.members["n1"]) as stub:
        for sent, complaint in (
            (message([saga(f"s{n}") for n in range(1_001)]), "One call submits at most 1000 sagas, not 1001."),
            (message([saga("s1")], [TRIP] * 101), "One call submits at most 100 definitions, not 101."),
        ):
            with pytest.raises(grpc.aio.AioRpcError, match=complaint) as caught:
                await stub.SubmitSagas(sent)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert not (await stub.SubmitSagas(message([]))).results
        assert not (await stub.ListSagas(pb.ListSagasRequest())).sagas


async def test_what_holds_for_all_of_them(one: Cluster) -> None:
    async with one.client() as client:
        refused = await client.submit_many([Submission(TRIP), Submission(TRIP)], require_actions=True)
        assert all(isinstance(r, ActionNotOffered) for r in refused)
        [stored] = await client.submit_many([Submission(TRIP, saga_id="s1")], start=False)
        assert isinstance(stored, SubmitResult)
        assert stored.warnings == ('No action server that can be reached offers the action "step" now; its nodes will wait.',)
        assert (await client.get("s1")).state is SagaState.CREATED
        assert [s.saga_id async for s in client.list()] == ["s1"]


async def test_what_does_not_fit_the_actions_is_refused_by_itself(one: Cluster) -> None:
    server = World().server(actions=())
    server.action("step", undo=None, params_schema={"type": "object", "required": ["guest"]})(lambda call: "done")
    await one.serve(server)
    async with one.client() as client:
        good, bad = await client.submit_many([Submission(TRIP, {"guest": "Ada"}), Submission(TRIP, {})])
    assert isinstance(good, SubmitResult)
    assert isinstance(bad, InvalidDefinition)


async def test_each_counts_at_the_door() -> None:
    async with cluster("n1", bounds=Bounds(active=3)) as c, stub_of(c.members["n1"]) as stub:
        node = c.members["n1"].node
        results = (await stub.SubmitSagas(message([saga(f"s{n}") for n in range(5)]))).results
        assert [r.WhichOneof("result") for r in results] == ["submitted"] * 3 + ["refused"] * 2
        detail = results[3].refused.detail
        assert results[3].refused.message.startswith('The submit of saga "s3" was refused: SEC node "n1" has 3 active sagas')
        assert (detail.code, detail.saga_id, detail.retryable, detail.definite) == ("overloaded", "s3", True, True)
        assert detail.retry_after_s == 1.0
        assert (node.door.refused[Bound.ACTIVE], len(node.owner.drivers)) == (2, 3)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.SubmitSagas(message([saga("s5"), saga("s6")]))
        told = detail_of(caught.value)
        assert told is not None
        assert (caught.value.code(), told.code, told.retry_after_s) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded", 1.0)
        later = (await stub.SubmitSagas(message([saga("s7")], start_later=True))).results
        assert later[0].submitted.created, "nobody owns it yet"
    async with cluster("n1", bounds=Bounds(submits=4)) as c, stub_of(c.members["n1"]) as stub:
        results = (await stub.SubmitSagas(message([saga(f"s{n}") for n in range(6)]))).results
        assert [r.WhichOneof("result") for r in results] == ["submitted"] * 4 + ["refused"] * 2
        assert c.members["n1"].node.door.used()[Bound.SUBMITS][0] == 0


async def test_a_client_takes_the_rest_to_a_node_that_has_room() -> None:
    async with cluster("n1", "n2", bounds=Bounds(active=3)) as c, c.client("n1", "n2") as client:
        results = await client.submit_many(Submission(TRIP, saga_id=f"s{n}") for n in range(6))
        assert results == [
            SubmitResult(f"s{n}", True, results[n].warnings) for n in range(6) if isinstance(results[n], SubmitResult)
        ]
        assert [len(member.node.owner.drivers) for member in c.members.values()] == [3, 3]
        async with c.client("n1") as other:
            other._cluster.timeout_s = 0.5  # noqa: SLF001 # it would be patient for longer
            [refused] = await other.submit_many([Submission(TRIP)])
        assert isinstance(refused, Overloaded)


async def test_a_definition_that_has_been_removed_is_stored_again(one: Cluster) -> None:
    async with one.client() as client:
        await client.submit_many([Submission(TRIP, saga_id="s1")])
        node = one.members["n1"].node
        for key in one.etcd_keys(node.keys.definition("")):
            one.etcd.txn(Txn(then=[Delete(key)]))
        assert all(isinstance(r, SubmitResult) for r in await client.submit_many(Submission(TRIP) for _ in range(5)))
        assert len(one.etcd_keys(node.keys.definition(""))) == 1
