from __future__ import annotations

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from libs.bus.tracing import extract, inject


def test_trace_of_the_sender_reaches_the_reader() -> None:
    tracer = TracerProvider().get_tracer("test")
    with tracer.start_as_current_span("send") as span:
        headers = inject({"other": "1"})
        sent = span.get_span_context()
    assert headers is not None
    assert headers["other"] == "1"
    found = trace.get_current_span(extract(headers)).get_span_context()
    assert (found.trace_id, found.span_id, found.is_remote) == (sent.trace_id, sent.span_id, True)
    assert trace.get_current_span(extract({"Traceparent": headers["traceparent"]})).get_span_context() == found


def test_without_a_trace_there_is_no_header() -> None:
    assert inject() is None
    assert inject({"a": "1"}) == {"a": "1"}
    for headers in (None, {}, {"traceparent": "nonsense"}):
        assert not trace.get_current_span(extract(headers)).get_span_context().is_valid
