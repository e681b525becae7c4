"""The life of an action server, and what its handlers see."""

import asyncio
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from client_support import DEADLINE_S, Actions, FakeNode, eventually, refusal, serving, status_of
from grpc_health.v1 import health_pb2, health_pb2_grpc
from sec_client import SagaError, Tls
from sec_client.kit import ActionServer, Call, Incoming, MemoryStore, Phase, Response, SqliteStore, Status
from sec_client.kit.__main__ import load, main
from sec_model import Payload
from sec_protos.v1 import action_server_pb2, action_server_pb2_grpc, coordinator_pb2


def server(**options: Any) -> ActionServer:
    return ActionServer("inventory", store=MemoryStore(), **options)


async def test_what_a_handler_sees() -> None:
    made, seen = server(), {}

    @made.action("look", undo=None)
    def look(call: Call) -> Payload:
        seen.update(
            ids=(call.saga_id, call.saga_uid, call.node, call.action, call.key, call.epoch, call.attempt, call.sec_node),
            phase=call.phase,
            params=call.params,
            inputs=dict(call.inputs),
            remaining_s=call.remaining_s(),
            deadline=call.deadline,
            thread=threading.current_thread() is threading.main_thread(),
        )
        return call.inputs.payload("a")

    async with serving(made) as actions:
        answer = await actions.do("look", params={"p": 1}, inputs={"a": [1], "b": None})
    assert answer.output.data == b"[1]"
    assert seen["ids"] == ("s1", "u1", "n1", "look", "k1", 1, 1, "sec-1")
    assert seen["phase"] is Phase.DO
    assert (seen["params"], seen["inputs"]) == ({"p": 1}, {"a": [1], "b": None})
    assert 0 < seen["remaining_s"] <= 1.02 * DEADLINE_S, "gRPC rounds the time left up, to two or three digits, when it sends it"
    assert seen["deadline"] is not None
    assert seen["thread"] is False


class Refusing(grpc.aio.ServerInterceptor):
    """Lets no call through."""

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(details)
        if not details.method.endswith("/Do"):
            return handler

        async def refuse(message: Any, context: Any) -> None:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"nobody may call {details.method}")

        return grpc.unary_unary_rpc_method_handler(refuse, handler.request_deserializer, handler.response_serializer)


async def test_interceptors_come_before_the_kit() -> None:
    made, called = server(interceptors=[Refusing()]), []
    made.action("look", undo=None)(lambda call: called.append(call.key))
    async with serving(made) as actions:
        assert (await status_of(actions.do("look")))[0] is grpc.StatusCode.PERMISSION_DENIED
        described = await actions.stub.Describe(action_server_pb2.DescribeRequest())
        assert not described.batches, "they would not see each delivery"
    assert not called


@pytest.mark.parametrize("batched", [False, True])
async def test_middleware_is_around_each_delivery_of_a_batch_too(batched: bool) -> None:
    seen: list[tuple[str, str, bool]] = []

    async def around(incoming: Incoming, deliver: Callable[[], Awaitable[Response | Status]]) -> Response | Status:
        about = incoming.message.call
        seen.append((type(incoming.message).__name__, about.idempotency_key, incoming.batched))
        if about.epoch == 13:
            return Status(grpc.StatusCode.PERMISSION_DENIED, "nobody may call in this epoch")
        await deliver()
        return await deliver()

    made, ran = server(middleware=around), []
    made.action("look", undo=None)(lambda call: ran.append(call.key))
    async with serving(made, batched=batched) as actions:
        assert (await actions.do("look", "k1")).HasField("output")
        assert not (await actions.undo("look", "k1")).HasField("failure")
        assert await status_of(actions.do("look", "k2", epoch=13)) == (
            grpc.StatusCode.PERMISSION_DENIED,
            "nobody may call in this epoch",
        )
    assert ran == ["k1"], "what is delivered twice is had once"
    assert seen == [("DoRequest", "k1", batched), ("UndoRequest", "k1", batched), ("DoRequest", "k2", batched)]


async def test_a_server_that_stops_answers_what_it_has_in_hand_and_ends_the_stream() -> None:
    made, gate, begun = server(), asyncio.Event(), asyncio.Event()

    @made.action("hold", undo=None)
    async def hold(call: Call) -> str:
        begun.set()
        await gate.wait()
        return "held"

    await made.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{made.port}") as channel:
        stream = action_server_pb2_grpc.ActionServerStub(channel).Batch()
        about = Actions.about("hold", "k1", 1, "u1")
        call = action_server_pb2.BatchedCall(id=7, do_request=action_server_pb2.DoRequest(call=about), timeout_s=60)
        await stream.write(action_server_pb2.BatchRequest(calls=[call]))
        await begun.wait()
        stopping = asyncio.create_task(made.stop(60.0))
        gate.set()
        (answer,) = (await stream.read()).answers
        assert (answer.id, answer.do_response.output.data) == (7, b'"held"')
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK
        await stopping


async def test_bytes_come_and_go_as_they_are() -> None:
    made = server()

    @made.action("echo", undo=None)
    async def echo(call: Call) -> bytes:
        assert isinstance(call.params, bytes)
        return call.params

    async with serving(made) as actions:
        answer = await actions.do("echo", params=Payload("application/octet-stream", b"\x00\xff"))
    assert (answer.output.content_type, answer.output.data) == ("application/octet-stream", b"\x00\xff")


async def test_no_value_is_null() -> None:
    made = server()

    @made.action("nothing", undo=None)
    def nothing(call: Call) -> None: ...

    async with serving(made) as actions:
        answer = await actions.do("nothing")
    assert answer.WhichOneof("result") == "output"
    assert answer.output.data == b"null"


async def test_the_log_names_saga_and_node_and_has_the_traceback(caplog: pytest.LogCaptureFixture) -> None:
    made = server()

    @made.action("fall", undo=None)
    def fall(call: Call) -> None:
        call.log.warning("about to fall")
        raise KeyError("depth")

    async with serving(made) as actions:
        await status_of(actions.do("fall"))
    assert "saga s1 node n1 do: about to fall" in caplog.text
    assert "saga s1 node n1 do: the handler raised" in caplog.text
    assert 'raise KeyError("depth")' in caplog.text
    assert {r.__dict__["node"] for r in caplog.records if r.levelno >= logging.WARNING} == {"n1"}


def test_declarations_are_checked() -> None:
    made = server()

    @made.action()
    def first(call: Call) -> None:
        """Does the first thing.

        And more."""

    made.action("second")(lambda call: None)
    with pytest.raises(ValueError, match='It is not declared how these actions are undone: "first", "second"'):
        made.actions.check()
    first.undo(lambda call: None)
    with pytest.raises(ValueError, match='"first" has an undo already'):
        first.undo(lambda call: None)
    with pytest.raises(ValueError, match='"first" is declared twice'):
        made.action("first", undo=None)(lambda call: None)
    with pytest.raises(ValueError, match='"a b" cannot name an action'):
        made.action("a b", undo=None)(lambda call: None)
    with pytest.raises(ValueError, match="has no actions"):
        server().actions.check()
    assert first.summary == "Does the first thing."


async def test_a_server_with_undeclared_undos_does_not_start() -> None:
    made = server()
    made.action("second")(lambda call: None)
    with pytest.raises(ValueError, match='"second"'):
        await made.start()


def offering() -> ActionServer:
    made = server()
    made.action("take", summary="Takes one", undo=None)(lambda call: 1)
    return made


async def test_describe_and_health() -> None:
    made = offering()
    async with serving(made) as actions:
        described = await actions.stub.Describe(action_server_pb2.DescribeRequest())
        assert described == action_server_pb2.DescribeResponse(
            server_name="inventory",
            actions=[action_server_pb2.ActionDescription(name="take", summary="Takes one")],
            batches=True,
        )
        async with grpc.aio.insecure_channel(f"127.0.0.1:{made.port}") as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for service in ("", "sec.v1.ActionServer"):
                answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_taken_port_is_a_clear_error() -> None:
    made = offering()
    async with serving(made):
        with pytest.raises(OSError, match=f'"inventory" cannot listen on "127.0.0.1:{made.port}"'):
            await offering().start(f"127.0.0.1:{made.port}")


async def test_it_registers_keeps_that_up_and_leaves(node: FakeNode, other_node: FakeNode) -> None:
    for fake in (node, other_node):
        fake.answers["RegisterActionServer"] = lambda _: coordinator_pb2.RegisterActionServerResponse(ttl_s=0.3)
        fake.answers["UnregisterActionServer"] = lambda _: coordinator_pb2.UnregisterActionServerResponse()
    made = offering()
    await made.start(sec=[node.address, other_node.address])
    await asyncio.wait_for(made.wait_registered(), DEADLINE_S)
    await eventually(lambda: node.count("RegisterActionServer") >= 3)
    messages = [message for _, message in node.calls]
    assert len({m.instance_id for m in messages}) == 1
    assert messages[0].address == f"127.0.0.1:{made.port}"
    assert [a.name for a in messages[0].actions] == ["take"]
    await node.die()
    await eventually(lambda: other_node.count("RegisterActionServer") >= 2)
    await made.stop(1)
    assert other_node.calls[-1][0] == "UnregisterActionServer"
    assert other_node.calls[-1][1].instance_id == messages[0].instance_id


async def test_it_starts_before_the_cluster_does_and_says_so_once(node: FakeNode, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    away = refusal(grpc.StatusCode.INTERNAL, "Not yet.", code="internal")
    answers: list[Any] = [away] * 3
    node.answers["RegisterActionServer"] = lambda _: (
        answers.pop() if answers else coordinator_pb2.RegisterActionServerResponse(ttl_s=30)
    )
    node.answers["UnregisterActionServer"] = lambda _: coordinator_pb2.UnregisterActionServerResponse()
    made = offering()
    await made.start(sec=node.address, advertise="inventory.example")
    await asyncio.wait_for(made.wait_registered(), DEADLINE_S)
    await made.stop(1)
    assert caplog.text.count("cannot be registered") == 1
    assert f"registered as inventory.example:{made.port}" in caplog.text


async def test_a_start_that_fails_leaves_nothing_open(tmp_path: Path) -> None:
    made = ActionServer("inventory", store=SqliteStore(tmp_path / "marks.db"))
    made.action("take", undo=None)(lambda call: 1)
    with pytest.raises(SagaError, match='The TLS file "/none" cannot be read'):
        await made.start(sec="127.0.0.1:1", sec_tls=Tls(ca="/none"))
    async with serving(made) as actions:
        assert (await actions.do("take")).output.data == b"1"


async def test_a_stop_without_any_sec_node_ends() -> None:
    made = offering()
    await made.start(sec="127.0.0.1:1")
    await asyncio.wait_for(made.stop(1), DEADLINE_S)
    await made.stop(1)


async def test_a_graceful_stop_finishes_what_is_under_way() -> None:
    made, entered, go_on = server(), asyncio.Event(), asyncio.Event()

    @made.action("slow", undo=None)
    async def slow(call: Call) -> str:
        entered.set()
        await go_on.wait()
        return "finished"

    await made.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{made.port}") as channel:
        actions = Actions(channel)
        call = asyncio.ensure_future(actions.do("slow"))
        await entered.wait()
        stopping = asyncio.ensure_future(made.stop(DEADLINE_S))
        health = health_pb2_grpc.HealthStub(channel)
        async with asyncio.timeout(DEADLINE_S):
            while True:  # it says so, or takes no calls any more
                try:
                    answer = await health.Check(health_pb2.HealthCheckRequest(service="sec.v1.ActionServer"))
                except grpc.aio.AioRpcError:
                    break
                if answer.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                    break
        assert not stopping.done()
        go_on.set()
        assert (await call).output.data == b'"finished"'
        await stopping


MODULE = """
from sec_client.kit import ActionServer
server = ActionServer("told")
server.action("take", undo=None)(lambda call: 1)
"""


async def test_the_runner_serves_until_sigterm(tmp_path: Path, node: FakeNode) -> None:
    node.answers["RegisterActionServer"] = lambda _: coordinator_pb2.RegisterActionServerResponse(ttl_s=30)
    node.answers["UnregisterActionServer"] = lambda _: coordinator_pb2.UnregisterActionServerResponse()
    (tmp_path / "told.py").write_text(MODULE)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "sec_client.kit", "told:server", "--sec", node.address, cwd=tmp_path, stderr=asyncio.subprocess.PIPE
    )
    try:
        await eventually(lambda: node.count("RegisterActionServer") == 1)
        process.send_signal(signal.SIGTERM)
        _, errors = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, errors
    assert node.count("UnregisterActionServer") == 1
    assert (tmp_path / "told.sec.db").exists()


def test_the_runner_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(os.fspath(tmp_path))
    (tmp_path / "broken_actions.py").write_text("import does_not_exist")
    (tmp_path / "other_actions.py").write_text("server = 3")
    for target, text in (
        ("no-colon", '"no-colon" does not name a server'),
        (
            "broken_actions:server",
            "The module \"broken_actions\" cannot be imported: ModuleNotFoundError: No module named 'does_not_exist'",
        ),
        ("other_actions:server", '"server" of the module "other_actions" is no ActionServer'),
        ("other_actions:none", '"none" of the module "other_actions" is missing'),
    ):
        with pytest.raises(ValueError, match=re.escape(text)):
            load(target)
        assert main([target]) == 2
        assert text in capsys.readouterr().err
