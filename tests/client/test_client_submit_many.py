"""`submit_many`: what is sent together, what becomes of each, and what is sent again."""

from collections import Counter
from typing import Any

import grpc
import pytest
from client_support import DEADLINE_S, FakeNode, refusal
from google.rpc import status_pb2
from sec_client import (
    Client,
    ClusterUnavailable,
    InvalidDefinition,
    Overloaded,
    Saga,
    SagaError,
    SagaExists,
    Submission,
    SubmitResult,
    action,
    aio,
    submissions,
)
from sec_model import Definition, Graph, compile_graph
from sec_model.codec import definition_from_proto
from sec_protos.v1 import common_pb2, definition_pb2
from sec_protos.v1 import coordinator_pb2 as pb

TRIP = Saga("trip").append(action("hotel", "book_hotel"))
RIDE = Saga("ride").append(action("car", "rent_car"))


def client_of(*nodes: FakeNode, timeout_s: float = DEADLINE_S) -> aio.Client:
    return aio.Client([n.address for n in nodes], timeout_s=timeout_s)


def submitted(saga: pb.SagaSubmission, warnings: tuple[str, ...] = ()) -> pb.SubmissionResult:
    return pb.SubmissionResult(submitted=pb.SubmitSagaResponse(saga_id=saga.saga_id, created=True, warnings=warnings))


def refused(saga: pb.SagaSubmission, status: grpc.StatusCode, message: str, **detail: Any) -> pb.SubmissionResult:
    told = common_pb2.ErrorDetail(saga_id=saga.saga_id, sec_node="sec-1", **detail)
    return pb.SubmissionResult(refused=pb.Refusal(status=status.value[0], message=message, detail=told))


def no_room(saga: pb.SagaSubmission, retry_after_s: float = 0.0) -> pb.SubmissionResult:
    said = {"code": "overloaded", "retryable": True, "definite": True, "retry_after_s": retry_after_s}
    return refused(saga, grpc.StatusCode.RESOURCE_EXHAUSTED, "No room.", **said)


def all_of(message: pb.SubmitSagasRequest) -> pb.SubmitSagasResponse:
    return pb.SubmitSagasResponse(results=[submitted(saga) for saga in message.sagas])


def ids(message: pb.SubmitSagasRequest) -> list[str]:
    return [saga.saga_id for saga in message.sagas]


def trips(count: int) -> list[Submission]:
    return [Submission(TRIP, {"guest": n}, f"s{n}") for n in range(count)]


async def test_what_is_given_is_sent_and_each_definition_once(node: FakeNode) -> None:
    node.answers["SubmitSagas"] = lambda m: pb.SubmitSagasResponse(results=[submitted(s, ("Nobody.",)) for s in m.sagas])
    equal = Saga("trip").append(action("hotel", "book_hotel"))
    given = [
        Submission(TRIP, {"guest": "Ada"}, "s1", {"team": "x"}, 1.5),
        Submission(RIDE),
        Submission(equal.build(), b"raw", "s3"),
        Submission(TRIP),
    ]
    async with client_of(node) as client:
        results = await client.submit_many(iter(given), start=False, require_actions=True)
    [(_, message)] = node.calls
    assert [definition_from_proto(d) for d in message.definitions] == [TRIP.build(), RIDE.build()]
    assert [saga.definition for saga in message.sagas] == [0, 1, 0, 0]
    assert (message.start_later, message.require_actions) == (True, True)
    first, second, third, _ = message.sagas
    assert (first.saga_id, first.params.data, dict(first.labels)) == ("s1", b'{"guest":"Ada"}', {"team": "x"})
    assert first.deadline == definition_pb2.Deadline(after_s=1.5, then=definition_pb2.ON_DEADLINE_FAIL)
    assert (third.params.data, third.HasField("deadline")) == (b"raw", False)
    assert second.saga_id
    assert results == [SubmitResult(saga_id, True, ("Nobody.",)) for saga_id in ids(message)]


async def test_one_that_is_refused_does_not_fail_the_others(node: FakeNode) -> None:
    def answer(message: pb.SubmitSagasRequest) -> pb.SubmitSagasResponse:
        exists = refused(message.sagas[1], grpc.StatusCode.ALREADY_EXISTS, "It exists.", code="saga_exists", definite=True)
        return pb.SubmitSagasResponse(results=[submitted(message.sagas[0]), exists, submitted(message.sagas[2])])

    node.answers["SubmitSagas"] = answer
    async with client_of(node) as client:
        first, second, third = await client.submit_many(trips(3))
    assert (first, third) == (SubmitResult("s0", True), SubmitResult("s2", True))
    assert isinstance(second, SagaExists)
    assert (second.message, second.saga_id, second.sec_node, second.status) == ("It exists.", "s1", "sec-1", "ALREADY_EXISTS")
    assert node.count("SubmitSagas") == 1


async def test_a_definition_that_is_not_valid_is_not_sent(node: FakeNode) -> None:
    node.answers["SubmitSagas"] = all_of
    async with client_of(node) as client:
        bad, good = await client.submit_many([Submission(Saga("empty"), saga_id="s1"), Submission(TRIP, saga_id="s2")])
        assert isinstance(bad, InvalidDefinition)
        assert (bad.saga_id, bad.problems) == ("s1", ('The saga "empty" has no nodes.',))
        assert good == SubmitResult("s2", True)
        with pytest.raises(TypeError):
            await client.submit_many([Submission(TRIP), Submission(TRIP, object())])
    assert [ids(message) for _, message in node.calls] == [["s2"]]


async def test_many_are_sent_in_several_calls(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submissions, "MAX_SAGAS", 4)
    monkeypatch.setattr(submissions, "MAX_DEFINITIONS", 2)
    node.answers["SubmitSagas"] = all_of
    others = [Submission(Saga(f"saga{n}").append(action("a", "b")), saga_id=f"o{n}") for n in range(3)]
    async with client_of(node) as client:
        results = await client.submit_many([*trips(9), *others])
    assert [len(message.sagas) for _, message in node.calls] == [4, 4, 2, 2]
    assert [len(message.definitions) for _, message in node.calls] == [1, 1, 2, 2]
    assert [r.saga_id for r in results] == [*(f"s{n}" for n in range(9)), "o0", "o1", "o2"]


async def test_calls_are_bounded_by_their_bytes(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submissions, "MAX_BYTES", 1_000)
    node.answers["SubmitSagas"] = all_of
    async with client_of(node) as client:
        await client.submit_many([Submission(TRIP, b"x" * size) for size in (400, 400, 400, 5_000, 10)])
    assert [len(message.sagas) for _, message in node.calls] == [2, 1, 1, 1]


async def test_a_call_without_an_answer_is_sent_again_to_another_node(node: FakeNode, other_node: FakeNode) -> None:
    async def die(message: Any) -> Any:
        assert node.server is not None
        await node.die()

    node.answers["SubmitSagas"], other_node.answers["SubmitSagas"] = die, all_of
    async with client_of(node, other_node) as client:
        results = await client.submit_many(trips(3))
    assert [r.saga_id for r in results if isinstance(r, SubmitResult)] == ["s0", "s1", "s2"]
    assert ids(node.calls[0][1]) == ids(other_node.calls[0][1])


async def test_those_without_room_are_sent_again_to_another_node(node: FakeNode, other_node: FakeNode) -> None:
    def some(message: pb.SubmitSagasRequest) -> pb.SubmitSagasResponse:
        return pb.SubmitSagasResponse(results=[submitted(message.sagas[0]), *map(no_room, message.sagas[1:])])

    node.answers["SubmitSagas"], other_node.answers["SubmitSagas"] = some, all_of
    given = [Submission(TRIP, saga_id="s0"), Submission(TRIP, saga_id="s1"), Submission(RIDE, saga_id="s2")]
    async with client_of(node, other_node) as client:
        results = await client.submit_many(given)
    assert results == [SubmitResult(f"s{n}", True) for n in range(3)]
    again = other_node.calls[0][1]
    assert ids(again) == ["s1", "s2"]
    assert [again.definitions[saga.definition].name for saga in again.sagas] == ["trip", "ride"]


async def test_those_without_room_until_the_time_is_up_are_told_so(node: FakeNode) -> None:
    node.answers["SubmitSagas"] = lambda m: pb.SubmitSagasResponse(
        results=[no_room(s, 60) if s.saga_id == "s1" else submitted(s) for s in m.sagas]
    )
    async with client_of(node) as client:
        first, second = await client.submit_many(trips(2))
    assert first == SubmitResult("s0", True)
    assert isinstance(second, Overloaded)
    assert (second.saga_id, second.retry_after_s, node.count("SubmitSagas")) == ("s1", 60, 1)


async def test_what_cannot_be_sent_is_not_tried_for_ever(node: FakeNode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submissions, "MAX_SAGAS", 2)
    node.answers["SubmitSagas"] = lambda _: refusal(
        grpc.StatusCode.UNAVAILABLE, "The store is away.", code="outcome_indeterminate", retryable=True, definite=False
    )
    async with client_of(node, timeout_s=0.2) as client:
        results = await client.submit_many(trips(4))
    assert all(isinstance(r, ClusterUnavailable) for r in results)
    assert [(r.saga_id, r.definite) for r in results if isinstance(r, SagaError)] == [
        ("s0", False),
        ("s1", False),
        ("s2", True),
        ("s3", True),
    ]
    assert {saga_id for _, message in node.calls for saga_id in ids(message)} == {"s0", "s1"}


async def test_a_node_that_answers_too_little_is_asked_again(node: FakeNode) -> None:
    answers = [pb.SubmitSagasResponse(), pb.SubmitSagasResponse(results=[submitted(pb.SagaSubmission(saga_id="s0"))])]
    node.answers["SubmitSagas"] = lambda m: answers.pop(0) if answers else all_of(m)
    async with client_of(node) as client:
        results = await client.submit_many(trips(2))
    assert results == [SubmitResult("s0", True), SubmitResult("s1", True)]
    assert [ids(message) for _, message in node.calls] == [["s0", "s1"], ["s0", "s1"], ["s1"]]


async def test_a_node_of_before_gets_them_one_by_one(node: FakeNode) -> None:
    def answer(message: pb.SubmitSagaRequest) -> Any:
        if message.saga_id == "s1":
            return refusal(grpc.StatusCode.ALREADY_EXISTS, "It exists.", code="saga_exists", definite=True)
        return pb.SubmitSagaResponse(saga_id=message.saga_id, created=True)

    unknown = status_pb2.Status(code=grpc.StatusCode.UNIMPLEMENTED.value[0], message="Method not found!")
    node.answers["SubmitSagas"], node.answers["SubmitSaga"] = (lambda _: unknown), answer
    given = [*trips(2), Submission(RIDE, {"to": "Rome"}, "s2", {"team": "x"}, 5)]
    async with client_of(node) as client:
        results = await client.submit_many(given, start=False, require_actions=True)
    assert isinstance(results[1], SagaExists)
    assert [results[0], results[2]] == [SubmitResult("s0", True), SubmitResult("s2", True)]
    last = next(message for _, message in node.calls if message.saga_id == "s2") if node.calls.pop(0) else None
    assert last is not None
    assert definition_from_proto(last.definition) == RIDE.build()
    assert (last.params.data, dict(last.labels), last.deadline.after_s) == (b'{"to":"Rome"}', {"team": "x"}, 5)
    assert (last.start_later, last.require_actions) == (True, True)
    assert not next(m for _, m in node.calls if m.saga_id == "s0").HasField("deadline")


async def test_the_blocking_client_has_it_too(node: FakeNode) -> None:
    import asyncio

    node.answers["SubmitSagas"] = all_of

    def use() -> Any:
        with Client(node.address) as client:
            return client.submit_many(each for each in trips(2))

    assert await asyncio.to_thread(use) == [SubmitResult("s0", True), SubmitResult("s1", True)]


async def test_a_closed_client_says_so_for_each(node: FakeNode) -> None:
    client = client_of(node)
    await client.close()
    results = await client.submit_many(trips(2))
    assert [r.code for r in results if isinstance(r, SagaError)] == ["client_closed"] * 2


async def test_a_definition_is_checked_once_by_a_client_and_a_builder_each_time(
    node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.answers["SubmitSaga"] = lambda m: pb.SubmitSagaResponse(saga_id=m.saga_id, created=True)
    checks = Counter[str]()

    def check(definition: Definition) -> Graph:
        checks[definition.name] += 1
        return compile_graph(definition)

    monkeypatch.setattr(submissions, "compile_graph", check)
    monkeypatch.setattr(submissions, "MAX_KNOWN", 2)
    growing = Saga("growing").append(action("a", "b"))
    one, two, three = (Saga(name).append(action("a", "b")).build() for name in ("one", "two", "three"))
    async with client_of(node) as client:
        await client.submit(growing)
        growing.append(action("c", "d"))
        await client.submit(growing)
        for definition in (one, two, one, three, one, two):
            await client.submit(definition)
    sent = [definition_from_proto(message.definition) for _, message in node.calls]
    assert [len(definition.nodes) for definition in sent[:2]] == [1, 2]
    assert sent[2:] == [one, two, one, three, one, two]
    assert checks == {"one": 1, "two": 2, "three": 1}
