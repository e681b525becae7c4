"""Submits that are made at the same time share a call, and each has its own answer."""

import asyncio

import grpc
import pytest
from client_support import DEADLINE_S, FakeNode
from sec_client import ClusterUnavailable, InvalidDefinition, Saga, SagaExists, SubmitResult, action, aio, together
from sec_protos.v1 import common_pb2
from sec_protos.v1 import coordinator_pb2 as pb

TRIP = Saga("trip").append(action("hotel", "book_hotel"))


def client_of(*nodes: FakeNode, timeout_s: float = DEADLINE_S) -> aio.Client:
    return aio.Client([n.address for n in nodes], timeout_s=timeout_s)


def result(saga: pb.SagaSubmission) -> pb.SubmissionResult:
    if saga.saga_id == "there":
        detail = common_pb2.ErrorDetail(code="saga_exists", saga_id=saga.saga_id, definite=True)
        status = grpc.StatusCode.ALREADY_EXISTS.value[0]
        return pb.SubmissionResult(refused=pb.Refusal(status=status, message="It exists.", detail=detail))
    return pb.SubmissionResult(submitted=pb.SubmitSagaResponse(saga_id=saga.saga_id, created=True))


@pytest.fixture
def answering(node: FakeNode) -> FakeNode:
    node.answers["SubmitSagas"] = lambda m: pb.SubmitSagasResponse(results=[result(saga) for saga in m.sagas])
    node.answers["SubmitSaga"] = lambda m: pb.SubmitSagaResponse(saga_id=m.saga_id, created=True)
    return node


def sent(node: FakeNode) -> list[list[str]]:
    """The ids of each call, and "alone" before that of a call for one saga."""
    return [
        [saga.saga_id for saga in message.sagas] if isinstance(message, pb.SubmitSagasRequest) else ["alone", message.saga_id]
        for _, message in node.calls
    ]


async def test_those_of_one_turn_share_a_call_and_a_definition(answering: FakeNode) -> None:
    async with client_of(answering) as client:
        results = await asyncio.gather(*(client.submit(TRIP, params={"n": n}, saga_id=f"s{n}") for n in range(50)))
    assert results == [SubmitResult(f"s{n}", True) for n in range(50)]
    [(_, message)] = answering.calls
    assert len(message.definitions) == 1
    assert [saga.params.data for saga in message.sagas] == [b'{"n":%d}' % n for n in range(50)]


async def test_one_by_itself_has_a_call_of_its_own(answering: FakeNode) -> None:
    async with client_of(answering) as client:
        await client.submit(TRIP, saga_id="s1")
        await client.submit(TRIP, saga_id="s2")
    assert sent(answering) == [["alone", "s1"], ["alone", "s2"]]


async def test_those_on_other_terms_have_other_calls(answering: FakeNode) -> None:
    async with client_of(answering) as client:
        await asyncio.gather(
            client.submit(TRIP, saga_id="s1"),
            client.submit(TRIP, saga_id="s2", start=False),
            client.submit(TRIP, saga_id="s3"),
            client.submit(TRIP, saga_id="s4", require_actions=True),
        )
    assert sorted(sent(answering)) == [["alone", "s2"], ["alone", "s4"], ["s1", "s3"]]


async def test_those_of_other_traces_have_other_calls(answering: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    async def submit(client: aio.Client, saga_id: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(together, "current_metadata", lambda: (("traceparent", saga_id[0]),))
            submitting = asyncio.ensure_future(client.submit(TRIP, saga_id=saga_id))
            await asyncio.sleep(0)
        await submitting

    async with client_of(answering) as client:
        await asyncio.gather(submit(client, "a1"), submit(client, "b1"))
    assert sorted(sent(answering)) == [["alone", "a1"], ["alone", "b1"]]


async def test_one_that_is_refused_or_cannot_be_sent_does_not_fail_the_others(answering: FakeNode) -> None:
    async with client_of(answering) as client:
        results = await asyncio.gather(
            client.submit(TRIP, saga_id="s1"),
            client.submit(TRIP, saga_id="there"),
            client.submit(Saga("empty"), saga_id="s2"),
            client.submit(TRIP, params=object(), saga_id="s3"),
            client.submit(TRIP, saga_id="s4"),
            return_exceptions=True,
        )
    assert [type(r) for r in results] == [SubmitResult, SagaExists, InvalidDefinition, TypeError, SubmitResult]
    assert sent(answering) == [["s1", "there", "s4"]]


async def test_one_that_is_cancelled_is_not_sent_and_does_not_cancel_the_others(answering: FakeNode) -> None:
    async with client_of(answering) as client:
        first, second, third = (asyncio.ensure_future(client.submit(TRIP, saga_id=f"s{n}")) for n in range(3))
        asyncio.get_running_loop().call_soon(first.cancel)  # before what they have in common is sent
        assert await second == SubmitResult("s1", True)
        assert await third == SubmitResult("s2", True)
        assert first.cancelled()
    assert sent(answering) == [["s1", "s2"]]


async def test_an_error_of_the_call_is_that_of_each(node: FakeNode) -> None:
    await node.server.stop(0)
    async with client_of(node, timeout_s=0.3) as client:
        results = await asyncio.gather(*(client.submit(TRIP, saga_id=f"s{n}") for n in range(2)), return_exceptions=True)
    assert [(type(r), getattr(r, "saga_id", "")) for r in results] == [(ClusterUnavailable, "s0"), (ClusterUnavailable, "s1")]
