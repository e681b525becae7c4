"""The trace context of a submit goes with each call of its saga."""

import asyncio
from typing import Any

import grpc.aio
import pytest
from inprocess_support import FAST, World, chain, cluster
from opentelemetry import trace
from sec_client import SagaState
from sec_client.aio import Client
from sec_client.kit import ActionFailed, ActionServer, Call, MemoryStore
from tracing_support import ids_of, parent_of, spans_of
from waiting_support import until

TRACER = trace.get_tracer("test")


class Through(grpc.aio.ServerInterceptor):
    """Lets every call through. With it, each delivery is a gRPC call of its own."""

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        return await continuation(details)


@pytest.mark.parametrize("batched", [True, False])
async def test_every_do_and_undo_belongs_to_the_trace_of_the_submit_over_a_takeover_too(batched: bool) -> None:
    server = ActionServer("s", store=MemoryStore(), interceptors=[] if batched else [Through()])
    begun, gate = asyncio.Event(), asyncio.Event()

    @server.action()
    async def step(call: Call) -> None:
        if call.node == "b":
            begun.set()
            await gate.wait()
        if call.node == "c":
            raise ActionFailed("It fails.")

    @step.undo
    async def undo(call: Call) -> None: ...

    with spans_of() as spans:
        async with cluster("n1", "n2") as c, c.client() as client:
            await c.serve(server)
            with TRACER.start_as_current_span("checkout") as checkout:
                saga_id = (await client.submit(chain("a", "b", "c", retry=FAST))).saga_id
            await begun.wait()
            owner = c.owner_of(saga_id)
            assert owner is not None
            await client.drain(str(owner.node.settings.name))
            await until(lambda: c.owner_of(saga_id) not in (None, owner))
            gate.set()
            assert (await client.wait(saga_id, timeout_s=20)).state is SagaState.UNDONE
        found = spans.get_finished_spans()
    trace_id, checkout_id = ids_of(checkout)  # type: ignore[arg-type] # it is one of the SDK
    made = [(span.name, (span.attributes or {}).get("sec.node")) for span in found if span.name != "checkout"]
    assert made == [("step do", "a"), ("step do", "b"), ("step do", "c"), ("step undo", "b"), ("step undo", "a")]
    assert {(ids_of(span)[0], parent_of(span)) for span in found if span.name != "checkout"} == {(trace_id, checkout_id)}


async def test_the_trace_context_is_no_part_of_what_was_submitted() -> None:
    world = World()
    async with cluster("n1") as c, c.client() as client:
        await c.serve(world.server())
        with TRACER.start_as_current_span("first"):
            assert (await client.submit(chain("a"), saga_id="once")).created
        with TRACER.start_as_current_span("second"):
            assert not (await client.submit(chain("a"), saga_id="once")).created


async def test_metadata_that_is_no_trace_context_is_left_out() -> None:
    world = World()
    good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with cluster("n1") as c:
        await c.serve(world.server())
        for given in ("nonsense", good, good + "x", ""):
            async with Client(c.members["n1"].address, metadata={"traceparent": given}) as client:
                await client.run(chain("a"), timeout_s=20)
    assert [call.traceparent for call in world.calls] == ["", good, "", ""]
