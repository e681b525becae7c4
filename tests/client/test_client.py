"""The client against stand-ins for SEC nodes, on real sockets."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
import sec_client
from client_support import DEADLINE_S, FakeNode, refusal
from google.rpc import status_pb2
from sec_client import (
    ActionNotOffered,
    Client,
    ClusterUnavailable,
    Deadline,
    Definition,
    InvalidArgument,
    InvalidDefinition,
    NodeNotFound,
    NodeState,
    OnDeadline,
    OutcomeIndeterminate,
    Overloaded,
    PageExpired,
    Payload,
    Phase,
    Saga,
    SagaCorrupt,
    SagaError,
    SagaExists,
    SagaFailed,
    SagaNotFound,
    SagaState,
    SagaStuck,
    StoreFull,
    StoreRefused,
    Tls,
    TooLarge,
    WaitTimeout,
    WrongState,
    action,
    aio,
    new_saga_id,
)
from sec_model.codec import definition_from_proto
from sec_protos.v1 import commands_pb2, common_pb2, coordinator_pb2, definition_pb2, records_pb2

TRIP = Saga("trip").append(action("hotel", "book_hotel"))


def summary(state: str = "RUNNING", **fields: Any) -> coordinator_pb2.SagaSummary:
    return coordinator_pb2.SagaSummary(
        saga_id="s1", name="trip", state=coordinator_pb2.SagaState.Value(f"SAGA_STATE_{state}"), **fields
    )


def error(node: str, message: str, time_us: int, phase: int = common_pb2.PHASE_DO) -> coordinator_pb2.NodeError:
    return coordinator_pb2.NodeError(
        node=node,
        phase=phase,  # type: ignore[arg-type]
        error=common_pb2.Error(message=message, code="c"),
        time_us=time_us,
    )


def watched(sequence: int, state: str = "RUNNING") -> coordinator_pb2.WatchSagaResponse:
    record = coordinator_pb2.SequencedRecord(
        sequence=sequence, epoch=7, writer="sec-1", record=records_pb2.Record(started=records_pb2.Started(node=f"n{sequence}"))
    )
    return coordinator_pb2.WatchSagaResponse(record=record, state=coordinator_pb2.SagaState.Value(f"SAGA_STATE_{state}"))


def client_of(*nodes: FakeNode, timeout_s: float = DEADLINE_S) -> aio.Client:
    return aio.Client([n.address for n in nodes], timeout_s=timeout_s)


async def test_submit_draws_an_id_and_sends_what_was_given(node: FakeNode) -> None:
    node.answers["SubmitSaga"] = lambda m: coordinator_pb2.SubmitSagaResponse(saga_id=m.saga_id, created=True, warnings=["Nobody."])
    async with client_of(node) as client:
        result = await client.submit(TRIP, params={"guest": "Ada"}, labels={"team": "x"}, start=False, require_actions=True)
    [(_, message)] = node.calls
    assert message.saga_id == result.saga_id
    assert (result.created, result.warnings) == (True, ("Nobody.",))
    assert definition_from_proto(message.definition) == TRIP.build()
    assert message.params.data == b'{"guest":"Ada"}'
    assert (dict(message.labels), message.start_later, message.require_actions) == ({"team": "x"}, True, True)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (1.5, definition_pb2.Deadline(after_s=1.5, then=definition_pb2.ON_DEADLINE_FAIL)),
        (timedelta(minutes=2), definition_pb2.Deadline(after_s=120, then=definition_pb2.ON_DEADLINE_FAIL)),
        (Deadline(3, OnDeadline.PAUSE), definition_pb2.Deadline(after_s=3, then=definition_pb2.ON_DEADLINE_PAUSE)),
    ],
    ids=str,
)
async def test_a_saga_may_have_a_deadline(node: FakeNode, given: Any, sent: definition_pb2.Deadline) -> None:
    node.answers["SubmitSaga"] = lambda m: coordinator_pb2.SubmitSagaResponse(saga_id=m.saga_id, created=True)
    node.answers["WaitSaga"] = lambda _: coordinator_pb2.WaitSagaResponse(summary=summary("DONE"), settled=True)
    async with client_of(node) as client:
        await client.submit(TRIP)
        await client.submit(TRIP, deadline=given)
        await client.run(TRIP, deadline=given)
    messages = [message for name, message in node.calls if name == "SubmitSaga"]
    assert [m.deadline if m.HasField("deadline") else None for m in messages] == [None, sent, sent]


async def test_a_signal_is_a_command_with_what_was_sent(node: FakeNode) -> None:
    node.answers["CommandSaga"] = lambda _: coordinator_pb2.CommandSagaResponse()
    async with client_of(node) as client:
        drawn = await client.signal("s1", "x/approval", {"by": "Ada"}, by="me")
        assert await client.signal("s1", "bell", command_id="c1") == "c1"
    sent = [message for _, message in node.calls]
    assert [(m.saga_id, m.command_id, m.by) for m in sent] == [("s1", drawn, "me"), ("s1", "c1", "")]
    assert [(m.command.signal.node, m.command.signal.data.data) for m in sent] == [
        ("x/approval", b'{"by":"Ada"}'),
        ("bell", b"null"),
    ]


async def test_a_repeated_submit_has_the_same_id(node: FakeNode, other_node: FakeNode) -> None:
    node.answers["SubmitSaga"] = lambda _: refusal(grpc.StatusCode.UNAVAILABLE, "The store is away.", code="store_unavailable")
    other_node.answers["SubmitSaga"] = lambda m: coordinator_pb2.SubmitSagaResponse(saga_id=m.saga_id, created=True)
    async with client_of(node, other_node) as client:
        await client.submit(TRIP)
        await client.submit(TRIP)
    assert node.calls[0][1].saga_id == other_node.calls[0][1].saga_id
    assert (node.count("SubmitSaga"), other_node.count("SubmitSaga")) == (1, 2)  # it stays with the one that answered


async def test_a_bad_definition_is_not_sent(node: FakeNode) -> None:
    bad = Saga("trip").append(action("a", "x", reads=["b"])).append(action("a", "y"))
    async with client_of(node) as client:
        with pytest.raises(InvalidDefinition) as caught:
            await client.submit(bad)
        with pytest.raises(InvalidDefinition):
            await client.submit(Definition("empty", ()))
    assert 'The node name "a" is used twice in saga "trip".' in caught.value.problems
    assert caught.value.code == "invalid_definition"
    assert not node.calls


async def test_the_next_address_is_asked_when_one_is_dead_or_hangs(node: FakeNode, other_node: FakeNode) -> None:
    async def hang(_: Any) -> Any:
        await asyncio.Event().wait()

    other_node.answers["ListNodes"] = hang
    node.answers["ListNodes"] = lambda _: coordinator_pb2.ListNodesResponse(answered_by="sec-1")
    dead = FakeNode()
    await dead.start()
    await dead.die()
    async with client_of(dead, other_node, node) as client:
        assert (await client.nodes()).answered_by == "sec-1"


async def test_no_node_at_all_is_one_clear_error() -> None:
    dead = FakeNode()
    await dead.start()
    await dead.die()
    async with client_of(dead, timeout_s=0.3) as client:
        with pytest.raises(ClusterUnavailable, match=f"No SEC node at {dead.address} could do the call in time") as caught:
            await client.get("s1")
    assert caught.value.retryable
    assert caught.value.hint == "Check the addresses and that the SEC nodes run."
    assert caught.value.__cause__ is None


CODES: list[tuple[str, grpc.StatusCode, type[SagaError]]] = [
    ("saga_not_found", grpc.StatusCode.NOT_FOUND, SagaNotFound),
    ("saga_exists", grpc.StatusCode.ALREADY_EXISTS, SagaExists),
    ("invalid_definition", grpc.StatusCode.INVALID_ARGUMENT, InvalidDefinition),
    ("invalid_argument", grpc.StatusCode.INVALID_ARGUMENT, InvalidArgument),
    ("payload_too_large", grpc.StatusCode.INVALID_ARGUMENT, TooLarge),
    ("definition_too_large", grpc.StatusCode.INVALID_ARGUMENT, TooLarge),
    ("wrong_state", grpc.StatusCode.FAILED_PRECONDITION, WrongState),
    ("action_not_offered", grpc.StatusCode.FAILED_PRECONDITION, ActionNotOffered),
    ("node_not_found", grpc.StatusCode.NOT_FOUND, NodeNotFound),
    ("page_token_expired", grpc.StatusCode.OUT_OF_RANGE, PageExpired),
    ("store_unavailable", grpc.StatusCode.UNAVAILABLE, ClusterUnavailable),
    ("store_refused", grpc.StatusCode.INTERNAL, StoreRefused),
    ("store_full", grpc.StatusCode.RESOURCE_EXHAUSTED, StoreFull),
    ("overloaded", grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
    ("outcome_indeterminate", grpc.StatusCode.ABORTED, OutcomeIndeterminate),
    ("saga_corrupt", grpc.StatusCode.DATA_LOSS, SagaCorrupt),
    ("draining", grpc.StatusCode.UNAVAILABLE, ClusterUnavailable),
    ("internal", grpc.StatusCode.INTERNAL, SagaError),
    ("something_new", grpc.StatusCode.UNKNOWN, SagaError),
]


@pytest.mark.parametrize(("code", "status", "kind"), CODES, ids=[c[0] for c in CODES])
async def test_every_error_is_decoded(node: FakeNode, code: str, status: grpc.StatusCode, kind: type[SagaError]) -> None:
    node.answers["GetSaga"] = lambda _: refusal(
        status,
        'Saga "s1" is odd.',
        code=code,
        saga_id="s1",
        node="a/b",
        sec_node="sec-1",
        hint="Look.",
        definite=True,
        problems=["One.", "Two."],
    )
    # Only an answer that no node can give at the moment is asked for again, until the client's time is up.
    async with client_of(node, timeout_s=2 if kind is ClusterUnavailable else 30) as client:
        with pytest.raises(SagaError) as caught:
            await client.get("s1")
    e = caught.value
    assert type(e) is kind
    assert 'Saga "s1" is odd.' in str(e)
    assert (e.code, e.saga_id, e.sec_node, e.hint, e.definite, e.status) == (code, "s1", "sec-1", "Look.", True, status.name)
    if kind is not ClusterUnavailable:
        assert (e.node, e.problems) == ("a/b", ("One.", "Two."))


async def test_an_error_without_detail_is_a_saga_error_too(node: FakeNode) -> None:
    node.answers["GetSaga"] = lambda _: 1 / 0
    async with client_of(node) as client:
        with pytest.raises(SagaError, match=f"The SEC node at {node.address} answered UNKNOWN: Unexpected") as caught:
            await client.get("s1")
    assert (caught.value.code, caught.value.saga_id, caught.value.definite) == ("unknown", "s1", False)


async def test_a_retryable_error_is_repeated(node: FakeNode) -> None:
    answers: list[Any] = [refusal(grpc.StatusCode.ABORTED, "Unsure.", code="outcome_indeterminate", retryable=True)]
    node.answers["SubmitSaga"] = lambda m: answers.pop() if answers else coordinator_pb2.SubmitSagaResponse(saga_id=m.saga_id)
    async with client_of(node) as client:
        await client.submit(TRIP)
    assert node.count("SubmitSaga") == 2


def no_room(retry_after_s: float) -> Any:
    return refusal(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "No room.",
        code="overloaded",
        retryable=True,
        definite=True,
        retry_after_s=retry_after_s,
    )


async def test_another_node_is_asked_at_once_when_one_has_no_room(node: FakeNode, other_node: FakeNode) -> None:
    node.answers["SubmitSaga"] = lambda _: no_room(60)
    other_node.answers["SubmitSaga"] = lambda m: coordinator_pb2.SubmitSagaResponse(saga_id=m.saga_id)
    async with client_of(node, other_node) as client:
        await client.submit(TRIP)
    assert (node.count("SubmitSaga"), other_node.count("SubmitSaga")) == (1, 1)


async def test_a_node_without_room_is_left_in_peace_for_as_long_as_it_asks(node: FakeNode) -> None:
    asked: list[float] = []

    def answer(message: Any) -> Any:
        asked.append(time.monotonic())
        return no_room(0.3) if len(asked) < 3 else coordinator_pb2.SubmitSagaResponse(saga_id=message.saga_id)

    node.answers["SubmitSaga"] = answer
    async with client_of(node) as client:
        await client.submit(TRIP)
    assert min(asked[1] - asked[0], asked[2] - asked[1]) >= 0.3


async def test_a_watch_leaves_a_node_without_room_in_peace_too(node: FakeNode) -> None:
    asked: list[float] = []

    async def answer(_: Any) -> AsyncIterator[Any]:
        asked.append(time.monotonic())
        yield (
            no_room(0.3)
            if len(asked) < 2
            else coordinator_pb2.WatchSagaResponse(
                record=coordinator_pb2.SequencedRecord(sequence=1), state=coordinator_pb2.SAGA_STATE_DONE
            )
        )

    node.answers["WatchSaga"] = answer
    async with client_of(node) as client:
        assert [record.sequence async for record in client.watch("s1")] == [1]
    assert asked[1] - asked[0] >= 0.3


async def test_a_client_does_not_wait_for_room_beyond_its_time(node: FakeNode, other_node: FakeNode) -> None:
    node.answers["SubmitSaga"] = other_node.answers["SubmitSaga"] = lambda _: no_room(60)
    async with client_of(node, other_node) as client:
        with pytest.raises(Overloaded) as caught:
            await client.submit(TRIP)
    assert str(caught.value) == f"No SEC node at {node.address}, {other_node.address} has room; the last answer was: No room."
    assert (caught.value.retry_after_s, caught.value.definite) == (60, True)
    assert (node.count("SubmitSaga"), other_node.count("SubmitSaga")) == (1, 1)


async def test_no_room_says_more_than_a_node_that_is_away(node: FakeNode, other_node: FakeNode) -> None:
    node.answers["SubmitSaga"] = lambda _: no_room(60)
    await other_node.die()
    for order in ((node, other_node), (other_node, node)):
        async with client_of(*order) as client:
            with pytest.raises(Overloaded, match=r"No room\."):
                await client.submit(TRIP)


async def test_a_message_that_is_too_large_is_not_sent_again(node: FakeNode) -> None:
    text = "SERVER: Received message larger than max (5 vs. 4)"
    node.answers["SubmitSaga"] = lambda _: status_pb2.Status(code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], message=text)
    async with client_of(node) as client:
        with pytest.raises(TooLarge, match="larger than max"):
            await client.submit(TRIP)
    assert node.count("SubmitSaga") == 1


async def test_a_start_that_an_earlier_try_did_is_no_error(node: FakeNode) -> None:
    wrong = refusal(grpc.StatusCode.FAILED_PRECONDITION, "It has been started.", code="wrong_state", definite=True)
    answers: list[Any] = [wrong, wrong, refusal(grpc.StatusCode.UNAVAILABLE, "Unsure.", code="store_unavailable", retryable=True)]
    node.answers["StartSaga"] = lambda _: answers.pop()
    async with client_of(node) as client:
        await client.start("s1")
        with pytest.raises(WrongState):
            await client.start("s1")


async def test_get_answers_values(node: FakeNode) -> None:
    saga = coordinator_pb2.Saga(
        summary=summary("UNWINDING", labels={"a": "b"}, owner="sec-1", created_us=1_000_000, error=error("x/y", "No.", 2)),
        uid="u",
        params=common_pb2.Payload(data=b"3"),
        nodes=[
            coordinator_pb2.NodeStatus(
                node="x/y",
                label="Why",
                state=coordinator_pb2.NODE_STATE_UNDO_FAILED,
                depends_on=["x/z"],
                action="why",
                attempts=2,
                error=coordinator_pb2.NodeError(
                    node="x/y", phase=common_pb2.PHASE_UNDO, error=common_pb2.Error(message="Not undone."), time_us=3_000_000
                ),
                output=common_pb2.Payload(data=b'"v"'),
                rank=1,
            ),
            coordinator_pb2.NodeStatus(node="w", state=coordinator_pb2.NODE_STATE_WAITING, due_us=4_500_000),
        ],
        errors=[error("x/y", "No.", 2)],
        next_sequence=9,
        epoch=5,
        due_us=5_000_000,
    )
    node.answers["GetSaga"] = lambda m: coordinator_pb2.GetSagaResponse(saga=saga if not m.omit_outputs else None)
    async with client_of(node) as client:
        view = await client.get("s1")
    assert (view.saga_id, view.state, view.summary.owner, view.epoch) == ("s1", SagaState.UNWINDING, "sec-1", 5)
    assert view.summary.created == datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)
    assert view.summary.ended is None
    assert view.due == datetime(1970, 1, 1, 0, 0, 5, tzinfo=UTC)
    assert (view["w"].state, view["w"].due) == (NodeState.WAITING, datetime(1970, 1, 1, 0, 0, 4, 500_000, tzinfo=UTC))
    assert view["x/y"].due is None
    assert view.params == Payload("", b"3")
    why = view["x/y"]
    assert (why.state, why.parent, why.depends_on, why.attempts) == (NodeState.UNDO_FAILED, "x", ("x/z",), 2)
    assert why.error is not None
    assert (why.error.phase, why.error.message) == (Phase.UNDO, "Not undone.")
    assert why.output is not None
    assert why.output.value() == "v"
    assert str(view.errors[0]) == 'node "x/y": No.'


def test_every_state_of_the_contract_has_a_word() -> None:
    words = {f"SAGA_STATE_{s.name}" for s in SagaState} | {f"NODE_STATE_{s.name}" for s in NodeState}
    names = [v.name for e in ("SagaState", "NodeState") for v in coordinator_pb2.DESCRIPTOR.enum_types_by_name[e].values]
    assert {w.replace("UNKNOWN", "UNSPECIFIED") if w.endswith("STATE_UNKNOWN") else w for w in words} == set(names)


async def test_list_goes_over_all_pages(node: FakeNode) -> None:
    def page(m: coordinator_pb2.ListSagasRequest) -> coordinator_pb2.ListSagasResponse:
        first = m.page_token == ""
        saga = coordinator_pb2.SagaSummary(saga_id="a" if first else "b", state=coordinator_pb2.SAGA_STATE_STUCK)
        return coordinator_pb2.ListSagasResponse(sagas=[saga], next_page_token="t" if first else "")

    node.answers["ListSagas"] = page
    async with client_of(node) as client:
        found = [s.saga_id async for s in client.list(states=["stuck"], labels={"k": "v"}, owner="o", name="n")]
    assert found == ["a", "b"]
    for _, m in node.calls:
        assert (list(m.states), dict(m.labels), m.owner, m.name) == ([coordinator_pb2.SAGA_STATE_STUCK], {"k": "v"}, "o", "n")


async def test_wait_goes_on_when_its_node_dies(node: FakeNode, other_node: FakeNode) -> None:
    asked = asyncio.Event()

    async def hang(_: Any) -> Any:
        asked.set()
        await asyncio.Event().wait()

    node.answers["WaitSaga"] = hang
    other_node.answers["WaitSaga"] = lambda _: coordinator_pb2.WaitSagaResponse(
        summary=summary("DONE"), settled=True, output=common_pb2.Payload(data=b"[1]")
    )
    async with client_of(node, other_node) as client:
        waiting = asyncio.ensure_future(client.wait("s1"))
        await asyncio.wait_for(asked.wait(), DEADLINE_S)
        await node.die()
        result = await asyncio.wait_for(waiting, DEADLINE_S)
    assert result.state is SagaState.DONE
    assert result.result() == [1]


async def test_wait_asks_again_until_the_saga_has_settled(node: FakeNode) -> None:
    answers = [
        coordinator_pb2.WaitSagaResponse(summary=summary("DONE"), settled=True),
        coordinator_pb2.WaitSagaResponse(summary=summary("RUNNING")),
    ]
    node.answers["WaitSaga"] = lambda _: answers.pop()
    async with client_of(node) as client:
        assert (await client.wait("s1")).output is None


async def test_wait_ends_when_its_time_is_over(node: FakeNode) -> None:
    node.answers["WaitSaga"] = lambda _: coordinator_pb2.WaitSagaResponse(summary=summary("RUNNING"))
    async with client_of(node) as client:
        with pytest.raises(WaitTimeout, match='Saga "s1" has not settled within 0 seconds: it is running') as caught:
            await client.wait("s1", timeout_s=0)
    assert isinstance(caught.value, TimeoutError)


async def test_a_failed_saga_names_every_error_in_order_of_time(node: FakeNode) -> None:
    node.answers["SubmitSaga"] = lambda m: coordinator_pb2.SubmitSagaResponse(saga_id=m.saga_id, created=True)
    node.answers["WaitSaga"] = lambda _: coordinator_pb2.WaitSagaResponse(
        summary=summary("UNDONE"), settled=True, errors=[error("b", "Second.", 2), error("a", "First.", 1)]
    )
    async with client_of(node) as client:
        result = await client.run(TRIP)
    with pytest.raises(SagaFailed) as caught:
        result.result()
    assert str(caught.value) == 'Saga "s1" failed and all of its effects were undone: node "a": First.; node "b": Second.'
    assert caught.value.result is result


async def test_a_stuck_saga(node: FakeNode) -> None:
    node.answers["WaitSaga"] = lambda _: coordinator_pb2.WaitSagaResponse(
        summary=summary("STUCK"), settled=True, errors=[error("a", "Burnt.", 1, common_pb2.PHASE_UNDO)]
    )
    async with client_of(node) as client:
        with pytest.raises(SagaStuck, match='is stuck, with effects left in the world: undo of node "a": Burnt'):
            (await client.wait("s1")).raise_for_state()


Stream = Callable[[coordinator_pb2.WatchSagaRequest], AsyncIterator[Any]]


def stream(records: dict[int, str], *, then: Any = None, all_again: bool = False) -> Stream:
    """A watch that has these records (sequence → state); after them it ends, or breaks as `then` says.

    `all_again`: of a node that does not look at where the caller wants to begin.
    """

    async def serve(message: coordinator_pb2.WatchSagaRequest) -> AsyncIterator[Any]:
        for sequence, state in records.items():
            if all_again or sequence >= message.from_sequence:
                yield watched(sequence, state)
        if then is not None:
            yield then

    return serve


async def test_watch_resumes_elsewhere_without_gap_or_repeat(node: FakeNode, other_node: FakeNode) -> None:
    gone = refusal(grpc.StatusCode.UNAVAILABLE, "Going down.", code="draining", retryable=True)
    node.answers["WatchSaga"] = stream({1: "RUNNING", 2: "RUNNING"}, then=gone)
    other_node.answers["WatchSaga"] = stream({2: "RUNNING", 3: "RUNNING", 4: "DONE"}, all_again=True)
    async with client_of(node, other_node) as client:
        records = [r async for r in client.watch("s1")]
    assert [r.sequence for r in records] == [1, 2, 3, 4]
    assert [m.from_sequence for _, m in other_node.calls] == [3]
    assert records[-1].saga_state is SagaState.DONE
    assert (records[0].kind, records[0].node, records[0].writer) == ("started", "n1", "sec-1")


async def test_watch_survives_the_death_of_its_node(node: FakeNode, other_node: FakeNode) -> None:
    async def one_and_hang(_: Any) -> AsyncIterator[Any]:
        yield watched(1)
        await asyncio.Event().wait()

    node.answers["WatchSaga"] = one_and_hang
    other_node.answers["WatchSaga"] = stream({1: "RUNNING", 2: "DONE"})
    async with client_of(node, other_node) as client, aclosing(client.watch("s1")) as records:  # type: ignore[type-var]
        assert (await anext(records)).sequence == 1
        await node.die()
        assert [r.sequence async for r in records] == [2]


async def test_a_watch_that_hangs_is_opened_elsewhere(
    node: FakeNode, other_node: FakeNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(_: Any) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield

    monkeypatch.setattr(aio, "_WATCH_IDLE_S", 0.1)
    node.answers["WatchSaga"] = hang
    other_node.answers["WatchSaga"] = stream({1: "DONE"})
    async with client_of(node, other_node) as client:
        assert [r.sequence async for r in client.watch("s1")] == [1]


async def test_watch_does_not_take_a_stream_that_ends_early_for_the_end(node: FakeNode) -> None:
    streams = [stream({1: "RUNNING", 2: "UNDONE"}), stream({1: "RUNNING"})]
    node.answers["WatchSaga"] = lambda m: streams.pop()(m)
    node.answers["GetSaga"] = lambda _: coordinator_pb2.GetSagaResponse(saga=coordinator_pb2.Saga(summary=summary("RUNNING")))
    async with client_of(node) as client:
        assert [r.sequence async for r in client.watch("s1")] == [1, 2]


async def test_watch_from_behind_the_end_of_an_ended_saga_ends(node: FakeNode) -> None:
    node.answers["WatchSaga"] = stream({})
    node.answers["GetSaga"] = lambda _: coordinator_pb2.GetSagaResponse(saga=coordinator_pb2.Saga(summary=summary("DONE")))
    async with client_of(node) as client:
        assert [r async for r in client.watch("s1", 99)] == []


async def test_watch_of_an_unknown_saga(node: FakeNode) -> None:
    node.answers["WatchSaga"] = stream({}, then=refusal(grpc.StatusCode.NOT_FOUND, "None.", code="saga_not_found"))
    async with client_of(node) as client:
        with pytest.raises(SagaNotFound):
            _ = [r async for r in client.watch("s1")]


async def test_log_goes_over_all_pages_and_decodes_records(node: FakeNode) -> None:
    failed = records_pb2.Record(failed=records_pb2.Failed(node="a/b", error=common_pb2.Error(message="No.", code="c")))
    unknown = records_pb2.Record(
        attempt_unknown=records_pb2.AttemptUnknown(
            node="n", phase=common_pb2.PHASE_UNDO, attempt=2, error=common_pb2.Error(message="Eh?")
        )
    )
    succeeded = records_pb2.Record(succeeded=records_pb2.Succeeded(node="n", output=common_pb2.Payload(data=b"1")))
    done = records_pb2.Record(done=records_pb2.Done(outcome=records_pb2.OUTCOME_UNDONE))
    records = {
        n: coordinator_pb2.SequencedRecord(sequence=n, record=r) for n, r in enumerate((failed, unknown, succeeded, done), 1)
    }
    node.answers["GetSagaLog"] = lambda m: coordinator_pb2.GetSagaLogResponse(
        records=[records[m.from_sequence], records[m.from_sequence + 1]], next_sequence=3 if m.from_sequence == 1 else 0
    )
    async with client_of(node) as client:
        log = [r async for r in client.log("s1")]
    assert [(r.sequence, r.kind, r.node) for r in log] == [
        (1, "failed", "a/b"),
        (2, "attempt_unknown", "n"),
        (3, "succeeded", "n"),
        (4, "done", ""),
    ]
    assert log[0].error is not None
    assert log[0].error.code == "c"
    assert log[1].fields == {"phase": "undo", "attempt": 2}
    assert log[2].fields == {"output": Payload("", b"1")}
    assert log[3].fields == {"outcome": "undone"}


async def test_records_have_values_and_no_messages(node: FakeNode) -> None:
    r, c, pause = records_pb2, commands_pb2, definition_pb2.ON_DEADLINE_PAUSE
    skip = c.Command(skip_undo=c.SkipUndo(node="a", reason="Gone."))
    send = c.Command(signal=c.Signal(node="a", data=common_pb2.Payload(data=b"1")))
    extend = c.Command(set_deadline=c.SetDeadline(due_us=2_000_000, then=pause))
    given: list[records_pb2.Record] = [
        r.Record(created=r.Created(uid="u", deadline=definition_pb2.Deadline(after_s=2, then=pause))),
        r.Record(start_requested=r.StartRequested(due_us=1_000_000)),
        r.Record(started=r.Started(node="a", due_us=1_500_000)),
        r.Record(commanded=r.Commanded(command_id="1", by="me", command=c.Command(pause=c.Pause()))),
        r.Record(commanded=r.Commanded(command_id="2", command=skip)),
        r.Record(commanded=r.Commanded(command_id="3", command=send, refused="No.")),
        r.Record(commanded=r.Commanded(command_id="4", command=extend)),
        r.Record(attempt_failed=r.AttemptFailed(node="a", attempt=2, error=common_pb2.Error(message="No."), spent_s=0.5)),
        r.Record(deadline_passed=r.DeadlinePassed(node="a")),
    ]
    records = [coordinator_pb2.SequencedRecord(sequence=n, record=record) for n, record in enumerate(given, 1)]
    node.answers["GetSagaLog"] = lambda _: coordinator_pb2.GetSagaLogResponse(records=records)
    async with client_of(node) as client:
        log = [r async for r in client.log("s1")]

    def at(second: float) -> datetime:
        return datetime.fromtimestamp(second, UTC)

    assert [(record.kind, record.node, dict(record.fields)) for record in log] == [
        ("created", "", {"uid": "u", "deadline": {"after_s": 2, "then": "pause"}}),
        ("start_requested", "", {"due": at(1)}),
        ("started", "a", {"due": at(1.5)}),
        ("commanded", "", {"command_id": "1", "by": "me", "command": {"pause": {}}}),
        ("commanded", "", {"command_id": "2", "command": {"skip_undo": {"node": "a", "reason": "Gone."}}}),
        (
            "commanded",
            "",
            {"command_id": "3", "command": {"signal": {"node": "a", "data": Payload("", b"1")}}, "refused": "No."},
        ),
        ("commanded", "", {"command_id": "4", "command": {"set_deadline": {"due": at(2), "then": "pause"}}}),
        ("attempt_failed", "a", {"attempt": 2, "spent_s": 0.5}),
        ("deadline_passed", "a", {}),
    ]
    assert log[7].error is not None
    assert (log[7].error.message, log[7].error.phase) == ("No.", Phase.DO)


async def test_nodes_drain_and_actions(node: FakeNode) -> None:
    node.answers["DrainNode"] = lambda _: coordinator_pb2.DrainNodeResponse()
    server = coordinator_pb2.ActionServerStatus(instance_id="i", server_name="inv", address="a:1", reachable=True)
    node.answers["ListActions"] = lambda _: coordinator_pb2.ListActionsResponse(
        actions=[coordinator_pb2.OfferedAction(name="take", summary="Takes", servers=[server])]
    )
    async with client_of(node) as client:
        await client.drain("sec-2", undo=True)
        [offered] = await client.actions()
    assert node.calls[0][1] == coordinator_pb2.DrainNodeRequest(name="sec-2", undrain=True)
    assert offered.servers[0].reachable


async def test_metadata_goes_with_every_call(node: FakeNode) -> None:
    node.answers["ListNodes"] = lambda _: coordinator_pb2.ListNodesResponse()
    async with aio.Client(node.address, metadata={"Authorization": "Bearer x"}) as client:
        await client.nodes()
    assert node.metadata["authorization"] == "Bearer x"


@pytest.mark.parametrize("address", ["", "host", "host:", ":1", "host:99999", "host:x", "a:1,b"])
def test_bad_addresses(address: str) -> None:
    with pytest.raises(ValueError, match="address"):
        Client(address)


def test_tls_files_are_checked() -> None:
    with pytest.raises(SagaError, match=r'The TLS file "/none" cannot be read: No such file or directory.'):
        Client("a:1", tls=Tls(ca="/none"))
    with pytest.raises(SagaError, match="both a certificate and its key"):
        Client("a:1", tls=Tls(cert="/none"))


def test_ids_are_ordered_by_time() -> None:
    ids = [new_saga_id() for _ in range(1000)]
    assert sorted(set(ids)) == ids
    assert all(len(i) == 26 and i.isalnum() and i[0].isdigit() for i in ids)


def test_everything_exported_exists() -> None:
    assert all(hasattr(sec_client, name) for name in sec_client.__all__)


async def test_the_blocking_client_from_several_threads(node: FakeNode) -> None:
    node.answers["GetSaga"] = lambda _: coordinator_pb2.GetSagaResponse(saga=coordinator_pb2.Saga(summary=summary("DONE")))
    node.answers["ListSagas"] = lambda _: coordinator_pb2.ListSagasResponse(sagas=[summary(), summary()])
    node.answers["WatchSaga"] = stream({1: "RUNNING", 2: "DONE"})
    node.answers["WaitSaga"] = lambda _: refusal(grpc.StatusCode.NOT_FOUND, "None.", code="saga_not_found")

    def use() -> None:
        with Client(node.address, timeout_s=DEADLINE_S) as client:
            threads = [threading.Thread(target=lambda: states.append(client.get("s1").state)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len([*client.list()]) == 2
            assert [r.sequence for r in client.watch("s1")] == [1, 2]
            assert next(client.watch("s1")).sequence == 1  # left early
            with pytest.raises(SagaNotFound):
                client.wait("s1")
        with pytest.raises(SagaError, match="The client is closed"):
            client.get("s1")
        client.close()

    states: list[SagaState] = []
    await asyncio.to_thread(use)
    assert states == [SagaState.DONE] * 8


async def test_closing_the_blocking_client_ends_a_call_under_way(node: FakeNode) -> None:
    asked = asyncio.Event()

    async def hang(_: Any) -> Any:
        asked.set()
        await asyncio.Event().wait()

    node.answers["WaitSaga"] = hang
    client = Client(node.address)
    waiting = asyncio.create_task(asyncio.to_thread(client.wait, "s1"))
    await asyncio.wait_for(asked.wait(), DEADLINE_S)
    await asyncio.to_thread(client.close)
    with pytest.raises(SagaError, match="The client was closed during the call"):
        await waiting
