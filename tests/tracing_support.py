"""Spans that a test makes, and those that others make meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


@cache
def _provider() -> TracerProvider:
    """That of the process: it can be set once."""
    provider = TracerProvider()
    trace.set_tracer_provider(provider)
    return provider


@contextmanager
def spans_of() -> Iterator[InMemorySpanExporter]:
    """Collects the spans that end within the `with`."""
    exporter = InMemorySpanExporter()
    _provider().add_span_processor(SimpleSpanProcessor(exporter))
    try:
        yield exporter
    finally:
        exporter.shutdown()


def ids_of(span: ReadableSpan) -> tuple[str, str]:
    """Those of its trace and of itself, as a trace context has them."""
    context = span.get_span_context()
    assert context is not None
    return trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)


def parent_of(span: ReadableSpan) -> str:
    return "" if span.parent is None else trace.format_span_id(span.parent.span_id)
