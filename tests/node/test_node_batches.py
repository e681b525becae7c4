"""Calls of an action server by its stream of batches, against a server that is told what to do with each message."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import grpc.aio
from sec_model import Payload
from sec_protos.v1 import action_server_pb2 as pb
from sec_protos.v1 import action_server_pb2_grpc, common_pb2
from waiting_support import until

from sec.core.records import Epoch, Fault, NodePath, Phase, SagaId, SecNodeName
from sec.dispatch import stream as stream_module
from sec.dispatch.calls import Answer, Answered, Busy, Call, Heard, NotOffered, Report, StaleEpoch, Unanswered
from sec.dispatch.endpoint import Endpoint

MAX_OUTPUT_BYTES = 1_000


class EndOfStream(Exception):
    """Raised by `play`: the server ends the stream in good order."""


class Server(action_server_pb2_grpc.ActionServerServicer):
    """Hands each message of a stream to `play`, and counts calls that come by themselves."""

    def __init__(self, play: Callable[[pb.BatchRequest, Any], Awaitable[None]]) -> None:
        self.messages: list[pb.BatchRequest] = []
        self.by_themselves: list[pb.DoRequest] = []
        self.streams = 0
        self._play = play

    async def Describe(self, request: Any, context: Any) -> pb.DescribeResponse:  # noqa: N802
        return pb.DescribeResponse(actions=[pb.ActionDescription(name="step")], batches=True)

    async def Do(self, request: Any, context: Any) -> pb.DoResponse:  # noqa: N802
        self.by_themselves.append(request)
        return _output(b"by itself")

    async def Batch(self, requests: Any, context: Any) -> None:  # type: ignore[override] # noqa: N802
        self.streams += 1
        with suppress(EndOfStream):
            async for message in requests:
                self.messages.append(message)
                await self._play(message, context)


def _output(data: bytes) -> pb.DoResponse:
    return pb.DoResponse(output=common_pb2.Payload(data=data))


def _answers(*answers: pb.BatchedAnswer) -> pb.BatchResponse:
    return pb.BatchResponse(answers=answers)


def call(
    node: str,
    *,
    phase: Phase = Phase.DO,
    params: bytes = b"p",
    timeout_s: float = 600.0,
    cancelled: bool = False,
    heartbeat_timeout_s: float = 0.0,
) -> Call:
    return Call(
        saga_id=SagaId("s1"),
        saga_uid="u1",
        node=NodePath(node),
        action="step",
        phase=phase,
        idempotency_key=f"u1/{node}",
        epoch=Epoch(7),
        attempt=2,
        sec_node=SecNodeName("n1"),
        params=Payload("text/plain", params),
        inputs={"a": Payload.json(1), "nothing": Payload()},
        output=Payload.json("done") if phase is Phase.UNDO else None,
        timeout_s=timeout_s,
        cancelled=cancelled,
        heartbeat_timeout_s=heartbeat_timeout_s,
    )


def made(endpoint: Endpoint, call: Call) -> "asyncio.Future[Answer]":
    """The answer of a call."""
    answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    endpoint.call(call, answer.set_result)
    return answer


@asynccontextmanager
async def connected(
    play: Callable[[pb.BatchRequest, Any], Awaitable[None]], heard: Heard = lambda call, report: None
) -> AsyncIterator[tuple[Server, Endpoint]]:
    """The server on a real socket, and an endpoint that knows it."""
    servicer, server = Server(play), grpc.aio.server()
    action_server_pb2_grpc.add_ActionServerServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    endpoint = Endpoint(f"127.0.0.1:{port}", None, MAX_OUTPUT_BYTES, lambda: None, heard)
    try:
        await until(lambda: endpoint.up)
        yield servicer, endpoint
    finally:
        await endpoint.close()
        await server.stop(0)


async def answer_all(message: pb.BatchRequest, context: Any) -> None:
    for each in reversed(message.calls):
        if each.WhichOneof("request") == "undo_request":
            await context.write(_answers(pb.BatchedAnswer(id=each.id, undo_response=pb.UndoResponse())))
        else:
            data = each.do_request.call.node.encode()
            await context.write(_answers(pb.BatchedAnswer(id=each.id, do_response=_output(data))))


async def test_calls_that_are_made_together_share_a_message_and_each_has_its_own_answer() -> None:
    async with connected(answer_all) as (server, endpoint):
        answers = await asyncio.gather(
            *(made(endpoint, call(str(n))) for n in range(100)), made(endpoint, call("u", phase=Phase.UNDO))
        )
    assert answers == [*(Answered(Payload("", str(n).encode())) for n in range(100)), Answered(None)]
    assert [len(message.calls) for message in server.messages] == [101]
    assert not server.by_themselves


async def test_a_call_says_all_that_it_says_by_itself() -> None:
    async with connected(answer_all) as (server, endpoint):
        await asyncio.gather(made(endpoint, call("n")), made(endpoint, call("n", phase=Phase.UNDO, timeout_s=60.0)))
    do, undo = server.messages[0].calls
    about = pb.Call(saga_id="s1", saga_uid="u1", node="n", action="step", idempotency_key="u1/n", epoch=7, attempt=2, sec_node="n1")
    params = common_pb2.Payload(content_type="text/plain", data=b"p")
    inputs = {"a": common_pb2.Payload(content_type="application/json", data=b"1"), "nothing": common_pb2.Payload()}
    output = common_pb2.Payload(content_type="application/json", data=b'"done"')
    assert do.do_request == pb.DoRequest(call=about, params=params, inputs=inputs)
    assert undo.undo_request == pb.UndoRequest(call=about, params=params, inputs=inputs, output=output)
    assert (do.timeout_s, undo.timeout_s) == (600.0, 60.0)
    assert do.id != undo.id


async def test_each_call_has_a_status_of_its_own() -> None:
    async def play(message: pb.BatchRequest, context: Any) -> None:
        codes = {"stale": 9, "busy": 8, "elsewhere": 12, "odd": 13}
        for each in message.calls:
            status = pb.BatchedStatus(code=codes[each.do_request.call.node], message="why")
            await context.write(_answers(pb.BatchedAnswer(id=each.id, status=status)))

    async with connected(play) as (_, endpoint):
        answers = await asyncio.gather(*(made(endpoint, call(node)) for node in ("stale", "busy", "elsewhere", "odd")))
        text = f'The action of "step" at {endpoint.address} ended with INTERNAL: why'
    assert answers == [StaleEpoch("why"), Busy(), NotOffered(), Unanswered(Fault(text, "internal"))]


async def test_what_is_no_answer_says_nothing_about_the_effect() -> None:
    async def play(message: pb.BatchRequest, context: Any) -> None:
        do, undo = message.calls
        await context.write(
            _answers(
                pb.BatchedAnswer(id=do.id, undo_response=pb.UndoResponse()),
                pb.BatchedAnswer(id=undo.id),
                pb.BatchedAnswer(id=12345, do_response=_output(b"whose?")),
            )
        )

    async with connected(play) as (_, endpoint):
        answers = await asyncio.gather(made(endpoint, call("n")), made(endpoint, call("n", phase=Phase.UNDO)))
    assert [answer.error.code for answer in answers if isinstance(answer, Unanswered)] == ["empty_answer", "empty_answer"]


async def test_a_call_without_an_answer_ends_in_its_time_and_keeps_no_other_waiting() -> None:
    async def play(message: pb.BatchRequest, context: Any) -> None:
        await answer_all(pb.BatchRequest(calls=[c for c in message.calls if c.do_request.call.node == "answered"]), context)

    async with connected(play) as (_, endpoint):
        silent, answered = await asyncio.gather(made(endpoint, call("silent", timeout_s=0.05)), made(endpoint, call("answered")))
    assert isinstance(silent, Unanswered)
    assert silent.error.code == "deadline_exceeded"
    assert answered == Answered(Payload("", b"answered"))


async def test_calls_have_unknown_outcomes_when_the_stream_breaks_and_the_next_one_begins_another() -> None:
    async def play(message: pb.BatchRequest, context: Any) -> None:
        if any(each.do_request.call.node == "break" for each in message.calls):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "for the test")
        await answer_all(message, context)

    async with connected(play) as (server, endpoint):
        answers = await asyncio.gather(made(endpoint, call("break")), made(endpoint, call("beside")))
        assert [a.error.code for a in answers if isinstance(a, Unanswered)] == ["unavailable", "unavailable"]
        assert await made(endpoint, call("after")) == Answered(Payload("", b"after"))
        assert server.streams == 2
        assert not server.by_themselves


async def test_a_server_that_ends_the_stream_leaves_outcomes_unknown() -> None:
    async def play(message: pb.BatchRequest, context: Any) -> None:
        raise EndOfStream

    async with connected(play) as (_, endpoint):
        answer = await made(endpoint, call("n"))
    assert isinstance(answer, Unanswered)
    assert answer.error.code == "unavailable"


async def test_a_server_that_takes_no_batches_after_all_is_called_by_itself() -> None:
    async def play(message: pb.BatchRequest, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no batches here")

    async with connected(play) as (server, endpoint):
        answers = await asyncio.gather(made(endpoint, call("a")), made(endpoint, call("b")))
        assert answers == [Answered(Payload("", b"by itself"))] * 2
        assert await made(endpoint, call("c")) == Answered(Payload("", b"by itself"))
        assert (len(server.by_themselves), server.streams) == (3, 1)


async def test_a_stream_that_broke_for_what_was_in_it_is_not_begun_again() -> None:
    async def play(message: pb.BatchRequest, context: Any) -> None:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (9 vs. 1)")

    async with connected(play) as (server, endpoint):
        first = await made(endpoint, call("n"))
        assert isinstance(first, Unanswered), "not busy: it may have begun"
        assert await made(endpoint, call("n")) == Answered(Payload("", b"by itself"))
        assert server.streams == 1


async def test_a_large_call_is_made_by_itself_and_messages_are_bounded(monkeypatch: Any) -> None:
    monkeypatch.setattr(stream_module, "MAX_BYTES", 1_000)
    monkeypatch.setattr(stream_module, "MAX_CALLS", 3)
    monkeypatch.setattr("sec.dispatch.endpoint.MAX_BYTES", 1_000)
    async with connected(answer_all) as (server, endpoint):
        large = made(endpoint, call("large", params=b"p" * 2_000))
        some = [made(endpoint, call(f"n{n}", params=b"p" * 400)) for n in range(4)]
        small = [made(endpoint, call(f"s{n}")) for n in range(4)]
        await asyncio.gather(large, *some, *small)
    assert [request.call.node for request in server.by_themselves] == ["large"]
    assert [[each.do_request.call.node for each in message.calls] for message in server.messages] == [
        ["n0", "n1"],
        ["n2", "n3", "s0"],
        ["s1", "s2", "s3"],
    ]


async def test_a_call_that_is_given_up_before_it_is_sent_is_not_made(monkeypatch: Any) -> None:
    monkeypatch.setattr(stream_module, "MAX_CALLS", 1)
    async with connected(answer_all) as (server, endpoint):
        told: list[Answer] = []
        first = made(endpoint, call("first"))
        given_up = endpoint.call(call("given up"), told.append)
        last = made(endpoint, call("last"))
        await asyncio.sleep(0)  # they have begun, and the first is about to be sent
        given_up.cancel()
        await asyncio.wait([first, last])
        assert endpoint.in_flight == 0
        assert not told
        assert last.result() == Answered(Payload("", b"last"))
    assert [each.do_request.call.node for message in server.messages for each in message.calls] == ["first", "last"]


async def test_an_output_that_is_too_large_is_no_failure() -> None:
    async def play(message: pb.BatchRequest, context: Any) -> None:
        (each,) = message.calls
        await context.write(_answers(pb.BatchedAnswer(id=each.id, do_response=_output(b"x" * (MAX_OUTPUT_BYTES + 1)))))

    async with connected(play) as (_, endpoint):
        answer = await made(endpoint, call("n"))
    assert isinstance(answer, Unanswered)
    assert answer.error.code == "output_too_large"


async def test_what_is_not_wanted_any_more_is_told_once_it_is_sent_and_answered_as_ever(monkeypatch: Any) -> None:
    monkeypatch.setattr(stream_module, "MAX_CALLS", 2)
    waiting: list[pb.BatchedCall] = []

    async def play(message: pb.BatchRequest, context: Any) -> None:
        waiting.extend(message.calls)
        if len(message.cancelled) == 1 and not message.calls:
            await answer_all(pb.BatchRequest(calls=waiting), context)

    async with connected(play) as (server, endpoint):
        endpoint.cancel("u1/of another stream")
        calls = [made(endpoint, call(node)) for node in ("a", "b", "c")]
        calls.append(made(endpoint, call("a", phase=Phase.UNDO)))
        for key in ("u1/a", "u1/c", "u1/nobody's"):
            endpoint.cancel(key)
        await until(lambda: len(waiting) == 4)
        endpoint.cancel("u1/b")
        answers = await asyncio.gather(*calls)
    ids = {(each.do_request.call.node or "undo"): each.id for each in waiting}
    assert answers == [*(Answered(Payload("", node.encode())) for node in ("a", "b", "c")), Answered(None)]
    assert [(len(message.calls), list(message.cancelled)) for message in server.messages] == [
        (2, [ids["a"]]),
        (2, [ids["c"]]),
        (0, [ids["b"]]),
    ]


async def test_an_empty_message_is_not_sent_for_a_call_that_nobody_makes() -> None:
    async with connected(answer_all) as (server, endpoint):
        await made(endpoint, call("a"))
        endpoint.cancel("u1/a")
        await made(endpoint, call("b"))
    assert [len(message.calls) for message in server.messages] == [1, 1]


async def test_a_call_that_is_known_not_to_be_wanted_says_so() -> None:
    async with connected(answer_all) as (server, endpoint):
        await asyncio.gather(made(endpoint, call("a", cancelled=True)), made(endpoint, call("b")))
    assert [each.do_request.call.cancelled for each in server.messages[0].calls] == [True, False]


async def test_reports_of_a_call_are_heard_until_it_is_answered() -> None:
    heard: list[tuple[str, Report]] = []

    async def report_and_answer(message: pb.BatchRequest, context: Any) -> None:
        [only] = message.calls
        reports = [
            pb.BatchedProgress(id=only.id, fraction=0.25, message="a quarter"),
            pb.BatchedProgress(id=only.id, message="x" * 300),
            pb.BatchedProgress(id=only.id, fraction=7.0),
            pb.BatchedProgress(id=only.id + 1, fraction=0.5),
        ]
        for each in reports:
            await context.write(pb.BatchResponse(progress=[each]))
        await context.write(_answers(pb.BatchedAnswer(id=only.id, do_response=_output(b"done"))))
        await context.write(pb.BatchResponse(progress=[pb.BatchedProgress(id=only.id, fraction=1.0)]))
        raise EndOfStream

    async with connected(report_and_answer, lambda call, report: heard.append((call.node, report))) as (_, endpoint):
        assert await made(endpoint, call("a")) == Answered(Payload("", b"done"))
        await until(lambda: endpoint._stream is not None and endpoint._stream.ended)  # noqa: SLF001 # all that was sent has been read
    assert heard == [("a", Report(0.25, "a quarter")), ("a", Report(None, "x" * 200)), ("a", Report(None, ""))]


async def test_a_call_that_neither_answers_nor_reports_has_an_unknown_outcome() -> None:
    async def say_nothing(message: pb.BatchRequest, context: Any) -> None: ...

    async with connected(say_nothing) as (_, endpoint):
        patient = made(endpoint, call("b"))
        answer = await made(endpoint, call("a", heartbeat_timeout_s=0.2))
        assert not patient.done()
    assert answer == Unanswered(
        Fault(f'The action of "step" at {endpoint.address} has neither answered nor reported for 0.2 s.', "no_heartbeat")
    )


async def test_a_report_gives_a_call_more_time() -> None:
    async def report_once(message: pb.BatchRequest, context: Any) -> None:
        await context.write(pb.BatchResponse(progress=[pb.BatchedProgress(id=message.calls[0].id)]))

    heard: list[Report] = []
    async with connected(report_once, lambda call, report: heard.append(report)) as (_, endpoint):
        made(endpoint, call("a", heartbeat_timeout_s=60))
        assert endpoint._stream is not None  # noqa: SLF001 # when the call ends is not to be waited for
        [waiting] = endpoint._stream._waiting.values()  # noqa: SLF001
        assert waiting.silence is not None
        first = waiting.silence.when()
        await until(lambda: heard)
        assert waiting.silence.when() > first


async def test_a_call_with_a_heartbeat_timeout_goes_by_the_stream_however_large_it_is() -> None:
    large = b"x" * (stream_module.MAX_BYTES + 1)
    async with connected(answer_all) as (server, endpoint):
        await made(endpoint, call("a", params=large, heartbeat_timeout_s=60))
        assert not server.by_themselves
        await made(endpoint, call("b", params=large))
        assert len(server.by_themselves) == 1


def test_a_call_by_itself_has_no_more_time_than_its_heartbeat_timeout() -> None:
    assert call("a", timeout_s=600, heartbeat_timeout_s=5).timeout_alone_s == 5
    assert call("a", timeout_s=3, heartbeat_timeout_s=5).timeout_alone_s == 3
    assert call("a", timeout_s=600).timeout_alone_s == 600
