"""Spans of deliveries, where OpenTelemetry is installed."""

import subprocess
import sys
from typing import Any

import pytest
from client_support import Actions, serving, status_of
from opentelemetry import trace
from sec_client.kit import ActionFailed, ActionServer, Call, MemoryStore
from sec_client.tracing import trace_id_of
from sec_protos.v1 import action_server_pb2 as pb
from tracing_support import ids_of, parent_of, spans_of

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"


async def do(actions: Actions, action: str, *, batched: bool, traceparent: str = TRACEPARENT) -> pb.DoResponse:
    message = pb.DoRequest(call=Actions.about(action, "k1", 1, "u1"))
    if not batched:
        return await actions.stub.Do(message, metadata=(("traceparent", traceparent),))  # type: ignore[no-any-return]
    stream = actions.stub.Batch()
    call = pb.BatchedCall(id=1, do_request=message, timeout_s=60, traceparent=traceparent)
    await stream.write(pb.BatchRequest(calls=[call]))
    (answer,) = (await stream.read()).answers
    return answer.do_response  # type: ignore[no-any-return]


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("plain", [False, True])
async def test_a_handler_runs_in_a_span_of_the_callers_trace(batched: bool, plain: bool) -> None:
    made, seen = ActionServer("inventory", store=MemoryStore()), []

    def look(call: Call) -> None:
        seen.append((trace.format_span_id(trace.get_current_span().get_span_context().span_id), call.log.extra))

    async def look_async(call: Call) -> None:
        look(call)

    made.action("look", undo=None)(look if plain else look_async)
    with spans_of() as spans:
        async with serving(made) as actions:
            await do(actions, "look", batched=batched)
            await do(actions, "look", batched=batched)
        (span,) = spans.get_finished_spans()
    trace_id, span_id = ids_of(span)
    assert (span.name, trace_id, parent_of(span), span.kind) == ("look do", TRACE, CALLER, trace.SpanKind.SERVER)
    fields = {"saga_id": "s1", "node": "n1", "action": "look", "phase": "do", "attempt": 1}
    assert span.attributes == {f"sec.{name}": value for name, value in fields.items()}
    assert seen == [(span_id, {**fields, "trace_id": TRACE})], "an answer that is repeated runs no handler, and has no span"


async def test_spans_of_failures_and_undos_say_so() -> None:
    made = ActionServer("inventory", store=MemoryStore())

    @made.action()
    def fail(call: Call) -> None:
        raise ActionFailed("There is none.")

    @made.action()
    def burst(call: Call) -> None:
        raise RuntimeError("It burst.")

    @fail.undo
    @burst.undo
    def undo(call: Call) -> None: ...

    with spans_of() as spans:
        async with serving(made) as actions:
            await actions.do("fail", "k1")
            await status_of(actions.do("burst", "k2"))
            await actions.undo("burst", "k2")
        failed, burst_span, undone = spans.get_finished_spans()
    assert [s.name for s in (failed, burst_span, undone)] == ["fail do", "burst do", "burst undo"]
    assert [s.status.status_code.name for s in (failed, burst_span, undone)] == ["ERROR", "ERROR", "UNSET"]
    assert "It burst." in (burst_span.status.description or "")
    assert parent_of(failed) == "", "a call without a trace context begins a trace"


async def test_a_span_that_is_current_already_is_the_parent() -> None:
    async def around(incoming: Any, deliver: Any) -> Any:
        with trace.get_tracer("test").start_as_current_span("around"):
            return await deliver()

    made = ActionServer("inventory", store=MemoryStore(), middleware=around)
    made.action("look", undo=None)(lambda call: None)
    with spans_of() as spans:
        async with serving(made) as actions:
            await do(actions, "look", batched=True)
        inner, outer = spans.get_finished_spans()
    assert (inner.name, outer.name) == ("look do", "around")
    assert parent_of(inner) == ids_of(outer)[1]


def test_a_trace_context_of_another_form_has_no_trace_id() -> None:
    assert trace_id_of(TRACEPARENT) == TRACE
    for other in ("", "nonsense", TRACEPARENT.upper(), f"00-{TRACE}-{CALLER}"):
        assert trace_id_of(other) == ""


WITHOUT = """
import asyncio, sys
sys.modules["opentelemetry"] = None
from sec_client import tracing
from sec_client.kit import ActionServer, MemoryStore
from client_support import serving

async def main():
    server = ActionServer("plain", store=MemoryStore())
    server.action("look", undo=None)(lambda call: "seen")
    async with serving(server) as actions:
        print((await actions.do("look")).output.data.decode(), repr(tracing.current_traceparent()))

asyncio.run(main())
"""


def test_it_all_works_without_opentelemetry(pytestconfig: pytest.Config) -> None:
    here = pytestconfig.rootpath / "tests" / "client"
    done = subprocess.run([sys.executable, "-c", WITHOUT], cwd=here, capture_output=True, text=True, check=False)
    assert done.stdout == "\"seen\" ''\n", done.stderr
