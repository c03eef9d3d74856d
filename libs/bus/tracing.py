"""Carries the current OpenTelemetry trace over the bus in the W3C header `traceparent`
(https://www.w3.org/TR/trace-context/).
"""

from __future__ import annotations

from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_propagator = TraceContextTextMapPropagator()


def inject(headers: Mapping[str, str] | None = None, context: Context | None = None) -> dict[str, str] | None:
    """`headers` with the trace of `context` (default: the current one) added; None when that leaves none at all.

    A message without headers is cheaper for everybody, hence None rather than an empty dict.
    """
    carrier = dict(headers) if headers else {}
    _propagator.inject(carrier, context)
    return carrier or None


def extract(headers: Mapping[str, str] | None) -> Context:
    """The sender's trace context, to be passed as `context=` when a span is started. Empty when the message carries
    none.
    """
    carrier = {key.lower(): value for key, value in headers.items()} if headers else {}
    return _propagator.extract(carrier, Context())
