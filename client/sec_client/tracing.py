"""OpenTelemetry, where `opentelemetry-api` is installed (the extra `otel`). Without it nothing of this does anything.

A saga belongs to the trace of whoever submits it: its context goes with the submit, is kept with the saga, and comes with every call.
"""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

try:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError:  # the extra is not installed
    _installed = False
else:
    _installed = True

TRACEPARENT = "traceparent"
"""The W3C trace context, among the metadata of a call."""
_NOTHING = nullcontext()
_FORM = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


def current_traceparent() -> str:
    """The trace context of the caller. Empty when there is none."""
    if not _installed:
        return ""
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get(TRACEPARENT, "")


def current_metadata() -> tuple[tuple[str, str], ...]:
    """What goes with a call that submits sagas."""
    traceparent = current_traceparent()
    return ((TRACEPARENT, traceparent),) if traceparent else ()


def trace_id_of(traceparent: str) -> str:
    """Empty for what is no trace context."""
    found = _FORM.fullmatch(traceparent)
    return "" if found is None else found[1]


def span(traceparent: str, fields: Mapping[str, str | int]) -> AbstractContextManager[object]:
    """A span of a server, named by the action and phase of a call, current within the `with`; an exception there makes it one that failed. Its parent is the span that is current already, be it of
    a middleware, and otherwise that of the trace context. `fields` become its attributes, with "sec." before their names."""
    if not _installed or (not traceparent and isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)):
        return _NOTHING  # nobody collects spans, and there is no trace to pass on
    parent = None
    if not trace.get_current_span().get_span_context().is_valid:
        parent = TraceContextTextMapPropagator().extract({TRACEPARENT: traceparent})
    attributes = {f"sec.{field}": value for field, value in fields.items() if field != "trace_id"}
    tracer, name = trace.get_tracer("sec_client.kit"), f"{fields['action']} {fields['phase']}"
    return tracer.start_as_current_span(name, context=parent, kind=trace.SpanKind.SERVER, attributes=attributes)
